"""The view table: the logits of every view of every video, each exactly once at any world size."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError

# What one rank has seen: indices, labels and logits of each batch, and the (path, cause) of what could not be read
Share = tuple[list[Tensor], list[Tensor], list[Tensor], list[tuple[str, str]]]


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
    model: nn.Module,
    batch: Any,
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
    missing = [tuple(fault) for fault in batch.faults]
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
    model: nn.Module,
    batches: Iterable,
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
    share: Share = ([], [], [], [])
    indices, labels, logits, missing = share
    for batch in batches:
        views = batch_views(model, batch, transform, device, autocast, crops)
        missing += views.missing
        if len(views.labels):
            indices.append(views.indices)
            labels.append(views.labels)
            logits.append(rearrange(views.logits, "b 1 n s k -> b (n s) k"))
    return _gather(share, total, model.num_classes)


def split_heads(table: ViewTable, num_classes: int) -> list[ViewTable]:
    """A table for each head of a model that gives the logits [v n (h k)] of several side by side."""
    return [replace(table, logits=logits) for logits in table.logits.split(num_classes, dim=-1)]


def _gather(share: Share, total: int, num_classes: int) -> ViewTable:
    shares = [share]
    if dist.is_initialized():
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, share)
        shares = gathered
    indices = [tensor for share in shares for tensor in share[0]]
    labels = [tensor for share in shares for tensor in share[1]]
    logits = [tensor for share in shares for tensor in share[2]]
    missing = sorted(fault for share in shares for fault in share[3])
    if not indices:
        none = torch.empty(0, dtype=torch.int64)
        return ViewTable(none, none, torch.empty(0, 1, num_classes), missing, total)
    index = torch.cat(indices)
    order = index.argsort()
    return ViewTable(index[order], torch.cat(labels)[order], torch.cat(logits)[order], missing, total)
