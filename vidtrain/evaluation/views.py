"""Computes the view table, the logits of every view of every video, each exactly once at any world size; and fuses the
views of a video into one prediction."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
import torch.nn.functional as F
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
    """A batch of the loader: the fields of `data.loading.dataset.Batch` that evaluation reads."""

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
    """Logits float32 [v n k] of v videos and n views, their `labels` and manifest `indices` [v]. `missing` holds (path,
    cause) of the videos that could not be read; `total` is the number of videos in the split."""

    indices: Tensor
    labels: Tensor
    logits: Tensor
    missing: list[tuple[str, str]]
    total: int

    @property
    def coverage(self) -> str:
        return f"{len(self.indices)}/{self.total}"

    def check_read(self) -> None:
        """Raises `UserError` if no video could be read."""
        if not len(self.labels):
            path, cause = self.missing[0]
            raise UserError(f"none of the {self.total} videos could be read; the first: {shown(path)} ({shown(cause)})")


@dataclass(frozen=True)
class BatchViews:
    """The logits float32 [b o n s k] of a batch: b videos in o orders of frames, n clips and s crops, on the CPU. A
    model that attends over all clips jointly has n = 1. `missing` holds (path, cause) of unreadable videos."""

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
    """Runs `model`, in eval mode, over the clips [b (n crops) c t h w] of a batch, once for each of `orders`. An order,
    int64 [t], selects the frames of a clip; None keeps all in their order. A model that attends over all clips jointly
    gets the clips of one crop at a time. Raises `UserError` if the batch carries a refusal."""
    if batch.refusal:
        raise UserError(batch.refusal)
    missing = [(path, cause) for path, cause in batch.faults]
    if not len(batch.labels):
        nothing = torch.empty(0, len(orders), 1, 1, model.num_classes)
        return BatchViews(batch.indices, batch.labels, nothing, missing)
    joint = model.fusion == "joint"
    decoded = transform(batch.clips.to(device, non_blocking=True))
    logits = []
    for frames in orders:
        clips = decoded if frames is None else decoded.index_select(3, frames.to(device))
        if joint:
            clips = rearrange(clips, "b (n s) ... -> (b s) n ...", s=crops)
        with autocast:
            views = model(clips)
        views = rearrange(views, "(b s) n k -> b n s k" if joint else "b (n s) k -> b n s k", s=crops)
        logits.append(views.float().cpu())
    return BatchViews(batch.indices, batch.labels, torch.stack(logits, dim=1), missing)


def view_table(
    model: ClipModel,
    batches: Iterable[EvalBatch],
    transform: nn.Module,
    total: int,
    device: torch.device,
    autocast: AbstractContextManager,
    crops: int = 1,
) -> ViewTable:
    """Runs `model` over this rank's `batches` (see `batch_views`). Every rank gets the whole table, sorted by index."""
    model.eval()
    views = [batch_views(model, batch, transform, device, autocast, crops) for batch in batches]
    if dist.is_initialized():
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, views)
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
    """A table for each head of a model that concatenates the logits of its heads, [v n (h k)]."""
    return [replace(table, logits=logits) for logits in table.logits.split(num_classes, dim=-1)]


# --- clip fusion, by name ---------------------------------------------------------------------------------


def mean_logits(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the mean over clips, this project's default."""
    return clip_logits.mean(dim=1)


def mean_probs(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the logarithm of the clips' mean probabilities, as VideoMAE and PySlowFast evaluate. Its
    softmax is exactly the mean of the clips' softmaxes, so losses and metrics take it as logits."""
    return clip_logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(clip_logits.shape[1])


def mean_sigmoids(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the logits whose sigmoid is the mean of the clips' sigmoids, for classes judged independently.
    They are computed in logarithms, as the mean sigmoid itself could round to 0 or 1."""
    return F.logsigmoid(clip_logits).logsumexp(dim=1) - F.logsigmoid(-clip_logits).logsumexp(dim=1)


def vote(clip_logits: Tensor, independent: bool = False) -> Tensor:
    """[b n k] -> float64 [b k]: each view votes for its first class, and the class with the most votes wins.

    Ties go to the higher mean probability over views, then to the first class. For the loss and top-5, the mean
    probability counts as one more vote: shares are (votes + mean probability) / (n + 1), so it never outweighs a vote,
    and no share is 0. The result is the logarithms of the shares or, for independent classes, their logits.
    """
    views = clip_logits.double()
    n, num_classes = views.shape[1:]
    first = views.sort(dim=-1, descending=True, stable=True).indices[..., 0]
    votes = F.one_hot(first, num_classes).sum(dim=1)
    probabilities = views.sigmoid() if independent else views.softmax(dim=-1)
    shares = (votes + probabilities.mean(dim=1)) / (n + 1)
    # keeps logarithms finite where a probability was rounded to 0 or 1
    return shares.logit(eps=1e-15) if independent else shares.clamp_min(1e-300).log()


# joint: the model attended over the tokens of all clips, so each row is a spatial view of the whole video. V-JEPA
# averages the probabilities of these rows.
FUSIONS = {"mean_logits": mean_logits, "mean_probs": mean_probs, "joint": mean_probs}
INDEPENDENT = {"mean_logits": mean_logits, "mean_probs": mean_sigmoids, "joint": mean_sigmoids}
# only for one label a video, and only after training, as votes have no gradient
VOTE = "vote"
EVALUATION_FUSIONS = (*FUSIONS, VOTE)


def fusions_of(joint: bool, multi_label: bool) -> tuple[str, ...]:
    """The fusions that a view table allows: only joint for a model that attends over all clips jointly, and vote only
    if videos have one label."""
    if joint:
        return ("joint",)
    return ("mean_logits", "mean_probs") if multi_label else ("mean_logits", "mean_probs", VOTE)


def fuse(clip_logits: Tensor, fusion: str, independent: bool = False) -> Tensor:
    """Clip logits [b n k] -> video logits [b k], by the fusion's name. The prediction is their softmax or, if the loss
    judges classes independently, their sigmoid."""
    if fusion == VOTE:
        return vote(clip_logits, independent)
    return (INDEPENDENT if independent else FUSIONS)[fusion](clip_logits.float())


def probabilities(
    clip_logits: Tensor,
    fusion: str,
    independent: bool = False,
    scaling: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Clip logits [b n k] -> probabilities [b k] of videos. They equal those of `fuse`, but use only operations that an
    exported graph supports for any n. `scaling` is (scale, bias) of the fused logits, each [1] or [k]."""
    to_probabilities = torch.sigmoid if independent else partial(torch.softmax, dim=-1)
    if scaling is not None:
        views = clip_logits.float()
        if fusion == "mean_logits":
            fused = views.mean(dim=1)
        elif independent:
            fused = mean_sigmoids(views)
        else:  # without the constant -log(n), which does not change the softmax
            fused = views.log_softmax(dim=-1).logsumexp(dim=1)
            fused = fused - fused.logsumexp(dim=-1, keepdim=True)
        scale, bias = scaling
        return to_probabilities(fused * scale + bias)
    if fusion == "mean_logits":
        return to_probabilities(clip_logits.float().mean(dim=1))
    return to_probabilities(clip_logits.float()).mean(dim=1)
