"""The view table: the logits of every view of every video, each exactly once at any world size."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError


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


@torch.no_grad()
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
    indices, labels, logits, missing = [], [], [], []
    for batch in batches:
        if batch.refusal:
            raise UserError(batch.refusal)
        missing += [tuple(fault) for fault in batch.faults]
        if not len(batch.labels):
            continue
        clips = transform(batch.clips.to(device, non_blocking=True))
        if model.fusion == "joint":
            clips = rearrange(clips, "b (n v) ... -> (b v) n ...", v=crops)
        with autocast:
            views = model(clips)
        views = rearrange(views, "(b v) n k -> b (n v) k", b=len(batch.labels))
        indices.append(batch.indices)
        labels.append(batch.labels)
        logits.append(views.float().cpu())
    return _gather((indices, labels, logits, missing), total, model.num_classes)


def split_heads(table: ViewTable, num_classes: int) -> list[ViewTable]:
    """A table for each head of a model that gives the logits [v n (h k)] of several side by side."""
    return [replace(table, logits=logits) for logits in table.logits.split(num_classes, dim=-1)]


def _gather(mine: tuple[list, list, list, list], total: int, num_classes: int) -> ViewTable:
    shares = [mine]
    if dist.is_initialized():
        shares = [None] * dist.get_world_size()
        dist.all_gather_object(shares, mine)
    indices, labels, logits, missing = (sum((share[i] for share in shares), []) for i in range(4))
    if not indices:
        none = torch.empty(0, dtype=torch.int64)
        return ViewTable(none, none, torch.empty(0, 1, num_classes), sorted(missing), total)
    indices = torch.cat(indices)
    order = indices.argsort()
    return ViewTable(
        indices[order], torch.cat(labels)[order], torch.cat(logits)[order], sorted(missing), total
    )
