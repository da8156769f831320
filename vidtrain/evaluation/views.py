"""The view table: the logits of every view of every video, each exactly once at any world size."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.files.escaping import shown


class ClipModel(Protocol):
    """A module that maps clips to clip logits [b n k], as a VideoClassifier does."""

    fusion: str
    num_classes: int

    def __call__(self, clips: Any, /) -> Tensor: ...

    def eval(self) -> object: ...


class EvalBatch(Protocol):
    """A batch as the loader gives it: what `data.loading.dataset.Batch` holds."""

    @property
    def clips(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor: ...

    @property
    def indices(self) -> Tensor: ...

    @property
    def faults(self) -> Sequence[tuple[str, str]]: ...

    @property
    def refusal(self) -> str | None: ...


@dataclass
class ViewTable:
    """Logits float32 [v n k] of v videos and n views, their `labels` and manifest `indices` [v].

    `missing` names the (path, cause) of those that could not be read, of `total` in the split.
    """

    indices: Tensor
    labels: Tensor
    logits: Tensor
    missing: list[tuple[str, str]]
    total: int

    @property
    def coverage(self) -> str:
        return f"{len(self.indices)}/{self.total}"

    def check_read(self) -> None:
        """Raises `UserError` where no video could be read."""
        if not len(self.labels):
            path, cause = self.missing[0]
            raise UserError(
                f"none of the {self.total} videos could be read; the first: {shown(path)} ({shown(cause)})"
            )


@dataclass(frozen=True)
class BatchViews:
    """One batch, judged: `logits` float32 [b o n s k] of b videos shown in o orders, in n clips x s crops, on the CPU.

    Where the model attends over all clips jointly, n is 1. `missing` names the (path, cause) of the unreadable.
    """

    indices: Tensor
    labels: Tensor
    logits: Tensor
    missing: list[tuple[str, str]]


@torch.no_grad()
def batch_views(
    model: ClipModel,
    batch: EvalBatch,
    transform: nn.Module,
    device: torch.device,
    autocast: AbstractContextManager,
    crops: int,
    orders: Sequence[Tensor | None] = (None,),
) -> BatchViews:
    """Runs `model`, in eval mode, over the clips [b (n crops) c t h w] of a batch, once for each of `orders`.

    An order says which frames of the decoded ones a clip shows, int64 [t]; None shows them as they are. A model that
    attends over all clips jointly does so for each of the `crops` spatial views apart. Raises `UserError` for a batch
    that carries a refusal.
    """
    if batch.refusal:
        raise UserError(batch.refusal)
    missing = [(path, cause) for path, cause in batch.faults]
    if not len(batch.labels):
        nothing = torch.empty(0, len(orders), 1, 1, model.num_classes)
        return BatchViews(batch.indices, batch.labels, nothing, missing)
    decoded = transform(batch.clips.to(device, non_blocking=True))
    shown = []
    for picks in orders:
        clips = decoded if picks is None else decoded.index_select(3, picks.to(device))
        if model.fusion == "joint":
            clips = rearrange(clips, "b (n s) ... -> (b s) n ...", s=crops)
        with autocast:
            views = model(clips)
        if model.fusion == "joint":
            views = rearrange(views, "(b s) n k -> b n s k", s=crops)
        else:
            views = rearrange(views, "b (n s) k -> b n s k", s=crops)
        shown.append(views.float().cpu())
    return BatchViews(batch.indices, batch.labels, torch.stack(shown, dim=1), missing)


def view_table(
    model: ClipModel,
    batches: Iterable[EvalBatch],
    transform: nn.Module,
    total: int,
    device: torch.device,
    autocast: AbstractContextManager,
    crops: int = 1,
) -> ViewTable:
    """Runs `model` over this rank's `batches` of clips [b (n crops) c t h w] and gathers over ranks.

    A model that attends over all clips jointly does so for each of the `crops` spatial views apart.
    Every rank returns the whole table, sorted by index.
    """
    model.eval()
    share = [batch_views(model, batch, transform, device, autocast, crops) for batch in batches]
    shares = [share]
    if dist.is_initialized():
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, share)
        shares = gathered
    views = [batch for share in shares for batch in share]
    missing = sorted(fault for batch in views for fault in batch.missing)
    read = [batch for batch in views if len(batch.labels)]
    if not read:
        none = torch.empty(0, dtype=torch.int64)
        return ViewTable(none, none, torch.empty(0, 1, model.num_classes), missing, total)
    indices, labels = (torch.cat([getattr(batch, name) for batch in read]) for name in ("indices", "labels"))
    logits = torch.cat([rearrange(batch.logits, "b 1 n s k -> b (n s) k") for batch in read])
    order = indices.argsort()
    return ViewTable(indices[order], labels[order], logits[order], missing, total)


def split_heads(table: ViewTable, num_classes: int) -> list[ViewTable]:
    """A table for each head of a model that gives the logits [v n (h k)] of several side by side."""
    return [replace(table, logits=logits) for logits in table.logits.split(num_classes, dim=-1)]
