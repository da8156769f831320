"""The counters and sums of a run: with the weights and the optimizer's state, all that a resumed run needs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vidtrain.evaluation.metrics import count_labels, from_class_counts, from_label_counts
from vidtrain.training.distributed import Ranks

RENAMED = {"stale": "evals_since_best", "due": "eval_pending"}


@dataclass
class TrainState:
    """Counters, and the best evaluation so far. `step` counts the optimizer steps made in this phase."""

    phase: int = 0
    step: int = 0
    total_step: int = 0  # over all phases
    best: float | None = None  # best value of trainer.monitor
    best_step: int | None = None  # total_step at which it was measured
    evals_since_best: int = 0  # in this phase
    # whether this step's evaluation is still to be made: in a checkpoint, because a signal cut it short
    eval_pending: bool = False
    loss: float | None = None  # of the last step, on this rank
    seconds: float = 0.0  # of training, over all attempts

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Self:
        """The state that a checkpoint holds. Earlier versions had other names for two of the fields (`RENAMED`)."""
        return cls(**{RENAMED.get(name, name): value for name, value in stored.items()})

    def next_phase(self) -> None:
        self.phase, self.step, self.evals_since_best = self.phase + 1, 0, 0

    def record(self, value: float, direction: str) -> bool:
        """Records the `value` of an evaluation; returns whether it is the best so far."""
        improved = self.improves(value, direction)
        if improved:
            self.best, self.best_step = value, self.total_step
        self.evals_since_best = 0 if improved else self.evals_since_best + 1
        return improved

    def improves(self, value: float, direction: str) -> bool:
        """Whether `value` is better than the best so far; a value that is not finite never is."""
        if not math.isfinite(value):
            return False
        if self.best is None:
            return True
        return value < self.best if direction == "min" else value > self.best


class StepResult(NamedTuple):
    """The results of one optimizer step on this rank."""

    total_step: int  # counted over all phases, this step included
    loss: float  # the mean over micro-batches; in a grid, over the heads whose loss is finite, too
    grad_norm: float  # before clipping
    rates: dict[str, float]  # learning rate of each parameter group, and the largest weight decay
    clips: int  # number of clips that this rank trained on
    data_seconds: float  # time spent waiting for the loader
    store_seconds: float  # the part of it in which the loader waited for a store of videos


@dataclass
class EpochSums:
    """Sums over the epoch's samples so far, on the device. They are reduced over ranks and divided once per epoch."""

    loss: Tensor  # float64, summed over samples
    samples: Tensor  # int64
    faults: Tensor  # int64, videos that could not be read and were replaced
    # int64, in fp16: updates skipped because gradients overflowed. They are the same on all ranks, so rank 0 counts
    skipped: Tensor

    @staticmethod
    def zeros(device: torch.device) -> "EpochSums":
        return EpochSums(**_no_samples(device))

    def add(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Adds one micro-batch: the mean loss of each head, `losses` [h], their fused `logits` [h b k], and the
        `labels` [b] or [b k]. A head whose loss is not finite does not count. The host does not wait for the device."""
        for loss, counts in zip(losses.nan_to_num(0, 0, 0), losses.isfinite().long(), strict=True):
            self.loss += loss * len(labels)
            self.samples += counts * len(labels)

    def counted(self) -> dict[str, float]:
        """The metrics that follow from counts of predictions."""
        return {}

    def metrics(self, loss_scale: float | None) -> dict[str, float]:
        """The metrics of the epoch, from sums over all ranks; with `loss_scale` (fp16), also the skipped steps."""
        loss = (self.loss / self.samples).item()
        metrics = {"loss": loss, **self.counted(), "faults": int(self.faults)}
        if loss_scale is not None:
            metrics |= {"skipped_steps": int(self.skipped), "loss_scale": loss_scale}
        return metrics

    def reduced(self, ranks: Ranks) -> Self:
        """The sums over all ranks."""
        return type(self)(**{name: ranks.sum(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def restore(self, by_rank: list[dict[str, Tensor]], rank: int, world_size: int) -> None:
        """Adds the sums that a checkpoint holds for each rank; if the number of ranks changed, rank 0 adds them all."""
        if len(by_rank) == world_size:
            by_rank = by_rank[rank : rank + 1]
        elif rank != 0:
            return
        for stored in by_rank:
            for name, tensor in _migrated(stored).items():
                own_sum = getattr(self, name)
                own_sum += tensor.to(own_sum.device)


def _no_samples(device: torch.device) -> dict[str, Tensor]:
    return {
        "loss": torch.zeros((), dtype=torch.float64, device=device),
        "samples": torch.zeros((), dtype=torch.int64, device=device),
        # on the CPU, where the loader's faults and the norms are read
        "faults": torch.zeros((), dtype=torch.int64),
        "skipped": torch.zeros((), dtype=torch.int64),
    }


@dataclass
class ClassSums(EpochSums):
    """`EpochSums` with counts of predictions by class."""

    # int64 [3 k], see `metrics.class_counts`; [k 2 2] for videos with several labels, see `count_labels`
    counts: Tensor

    @staticmethod
    def of_classes(num_classes: int, multi_label: bool, device: torch.device) -> "ClassSums":
        shape = (num_classes, 2, 2) if multi_label else (3, num_classes)
        counts = torch.zeros(shape, dtype=torch.int64, device=device)
        return ClassSums(counts=counts, **_no_samples(device))

    def add(self, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        super().add(losses, logits, labels)
        for head_logits, counts in zip(logits, losses.isfinite().long(), strict=True):
            if labels.ndim == 2:
                self.counts += counts * count_labels(head_logits, labels)
                continue
            predicted, k = head_logits.argmax(-1), self.counts.shape[1]
            once = counts.expand_as(labels)
            cells = torch.cat([labels, k + labels, 2 * k + predicted])
            hits_and_counts = torch.cat([once * (predicted == labels), once, once])
            self.counts.view(-1).index_put_((cells,), hits_and_counts, accumulate=True)

    def counted(self) -> dict[str, float]:
        return from_label_counts(self.counts) if self.counts.ndim == 3 else from_class_counts(self.counts)


def _migrated(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stored sums in the present format: earlier checkpoints hold a matrix of classes by classes, "confusion"."""
    if "confusion" not in sums:
        return sums
    table = sums["confusion"]
    counts = table if table.ndim == 3 else torch.stack([table.diagonal(), table.sum(dim=1), table.sum(dim=0)])
    return {"counts": counts, **{name: tensor for name, tensor in sums.items() if name != "confusion"}}
