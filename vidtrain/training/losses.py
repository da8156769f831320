"""Losses of fused logits and targets; the sums of an epoch; and the objective of a phase, which combines both.

A loss is the plain mean over samples, so it does not depend on the number of ranks and accumulation steps. PyTorch's
weighted mean does, because it divides by the sum of the weights in the batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import ClassVar, NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from vidtrain.errors import UserError, check_share
from vidtrain.evaluation.metrics import count_labels, from_class_counts, from_label_counts
from vidtrain.evaluation.views import fuse
from vidtrain.models.masked_models import MaskedModel
from vidtrain.training.distributed import Ranks

BALANCED = "balanced"


class Loss(Protocol):
    """The interface of a loss.

    `independent` is True if a sigmoid scores each class by itself, which videos with several labels need, and False if
    a softmax makes the classes exclude each other.
    """

    independent: ClassVar[bool]

    def weights(self, class_shares: Tensor) -> Tensor | None:
        """Class weights [k], on the device of `class_shares` [k], which are the shares of training samples that hold
        each class. None means that all weights are 1."""

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The mean loss over samples; `logits` float [b k], `targets` classes int64 [b] or shares float [b k]."""


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy, in natural logarithms.

    `label_smoothing` spreads that share of every target evenly over all classes. `class_weights` are null, "balanced"
    or a number for each class. "balanced" means n / (k n_c) for a class with n_c of the n samples drawn in training, so
    that every class has the same total weight. A list is scaled to a mean weight of 1 over the training samples, so the
    loss and the best learning rate stay about the same.

    Raises `UserError` for values out of bounds.
    """

    label_smoothing: float = 0.0
    class_weights: str | list[float] | None = None
    independent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_share(label_smoothing=self.label_smoothing)
        _check_weights("class_weights", self.class_weights)

    def weights(self, class_shares: Tensor) -> Tensor | None:
        if self.class_weights is None:
            return None
        shares, present = class_shares.double(), class_shares > 0
        if self.class_weights == BALANCED:
            # A class without samples gets the weight 1: its share of 0 would give an infinite one
            return torch.where(present, 1 / (present.sum() * shares), 1.0).float()
        weights = _weight_tensor("class_weights", self.class_weights, shares)
        mean = (weights * shares).sum() / shares.sum()
        if mean == 0:
            raise UserError("loss.class_weights are 0 for every class that has training videos")
        return (weights / mean).float()

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        total = F.cross_entropy(logits, targets, weights, reduction="sum", label_smoothing=self.label_smoothing)
        return total / len(logits)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Sigmoid cross-entropy of each class by itself: for videos with several labels, or one-vs-rest with one label.

    It is the mean over classes, or with `sum_classes` their sum. `label_smoothing` moves targets toward 1/2.
    `pos_weight` is the weight of each class's positives: null, "balanced" (negatives / positives among the training
    samples, so that both have the same total weight) or a number for each class.

    Raises `UserError` for values out of bounds.
    """

    label_smoothing: float = 0.0
    pos_weight: str | list[float] | None = None
    sum_classes: bool = False
    independent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_share(label_smoothing=self.label_smoothing)
        _check_weights("pos_weight", self.pos_weight)

    def weights(self, class_shares: Tensor) -> Tensor | None:
        if self.pos_weight is None:
            return None
        if self.pos_weight == BALANCED:
            shares = class_shares.double()
            # A class that all samples hold, or none, has only positives or only negatives: it gets the weight 1
            has_both = (shares > 0) & (shares < 1)
            return torch.where(has_both, (1 - shares) / shares, 1.0).float()
        return _weight_tensor("pos_weight", self.pos_weight, class_shares).float()

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        targets = _one_hot(logits, targets) * (1 - self.label_smoothing) + self.label_smoothing / 2
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return total / (len(logits) if self.sum_classes else logits.numel())


@dataclass(frozen=True)
class Focal:
    """Binary cross-entropy that reduces the weight of classes that are predicted well already (arXiv:1708.02002).

    If p is the predicted probability of the target (yes or no), the class's term has the weight (1 - p)^`gamma`. Unless
    `alpha` is null, positives have the further weight alpha, and negatives 1 - alpha. The loss is the mean over
    classes, or with `sum_classes` their sum.

    Raises `UserError` for values out of bounds.
    """

    gamma: float = 2.0
    alpha: float | None = 0.25
    sum_classes: bool = False
    independent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise UserError(f"gamma={self.gamma}: must be 0 or more")
        if self.alpha is not None:
            check_share(alpha=self.alpha)

    def weights(self, class_shares: Tensor) -> Tensor | None:
        return None

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        from torchvision.ops import sigmoid_focal_loss  # takes seconds, which other losses need not wait for

        alpha = -1 if self.alpha is None else self.alpha  # torchvision applies no weights for alpha < 0
        total = sigmoid_focal_loss(logits, _one_hot(logits, targets), alpha, self.gamma, reduction="sum")
        return total / (len(logits) if self.sum_classes else logits.numel())


def _one_hot(logits: Tensor, targets: Tensor) -> Tensor:
    """Classes [b] as one-hot targets [b k]; shares [b k] unchanged."""
    return F.one_hot(targets, logits.shape[1]).to(logits.dtype) if targets.ndim == 1 else targets


def _check_weights(name: str, value: str | list[float] | None) -> None:
    if isinstance(value, str) and value != BALANCED:
        raise UserError(f"{name}={value}: write balanced, a number for each class, or null")
    if isinstance(value, list) and not all(0 <= weight < float("inf") for weight in value):
        raise UserError(f"{name}={value}: every weight must be a number of 0 or more")


def _weight_tensor(name: str, values: str | list[float], class_shares: Tensor) -> Tensor:
    if len(values) != len(class_shares):
        raise UserError(
            f"loss.{name} has {len(values)} numbers, and the dataset {len(class_shares)} classes; give one for "
            "each, in the order of the classes"
        )
    return torch.tensor(values, dtype=torch.float64, device=class_shares.device)


def describe_loss(loss: Loss, weights: Tensor | None) -> str:
    """The loss and the range of its class weights, for the log."""
    weight_range = "" if weights is None else f", weights of classes {weights.min():.3g} to {weights.max():.3g}"
    return f"loss {loss}{weight_range}"


# --- sums of an epoch --------------------------------------------------------------------------------------


@dataclass
class EpochSums:
    """Sums over the epoch's samples so far, on the device. They are reduced over ranks and divided once per epoch."""

    loss: Tensor  # float64, summed over samples
    samples: Tensor  # int64
    faults: Tensor  # int64, videos that could not be read and were replaced
    # int64, in fp16: updates skipped because gradients overflowed; only rank 0 counts them, as all ranks skip together
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

    def count_metrics(self) -> dict[str, float]:
        """Metrics computed from counts of predictions."""
        return {}

    def metrics(self, loss_scale: float | None) -> dict[str, float]:
        """The metrics of the epoch, from sums over all ranks; with `loss_scale` (fp16), also the skipped steps."""
        loss = (self.loss / self.samples).item()
        metrics = {"loss": loss, **self.count_metrics(), "faults": int(self.faults)}
        if loss_scale is not None:
            metrics |= {"skipped_steps": int(self.skipped), "loss_scale": loss_scale}
        return metrics

    def reduced(self, ranks: Ranks) -> Self:
        """The sums over all ranks."""
        return type(self)(**{name: ranks.sum(tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def restore(self, by_rank: list[dict[str, Tensor]], rank: int, world_size: int) -> None:
        """Adds this rank's sums from a checkpoint. If the number of ranks has changed, rank 0 adds the sums of all
        ranks."""
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
        # these two are counted on the CPU
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
            valid = counts.expand_as(labels)
            cells = torch.cat([labels, k + labels, 2 * k + predicted])
            hits_and_counts = torch.cat([valid * (predicted == labels), valid, valid])
            self.counts.view(-1).index_put_((cells,), hits_and_counts, accumulate=True)

    def count_metrics(self) -> dict[str, float]:
        return from_label_counts(self.counts) if self.counts.ndim == 3 else from_class_counts(self.counts)


def _migrated(sums: dict[str, Tensor]) -> dict[str, Tensor]:
    """Stored sums in the present format. Earlier checkpoints hold a "confusion" matrix instead of counts."""
    if "confusion" not in sums:
        return sums
    table = sums["confusion"]
    counts = table if table.ndim == 3 else torch.stack([table.diagonal(), table.sum(dim=1), table.sum(dim=0)])
    return {"counts": counts, **{name: tensor for name, tensor in sums.items() if name != "confusion"}}


# --- the objective of a phase -------------------------------------------------------------------------------


class HeadOutputs(NamedTuple):
    """Logits of h heads for b videos, and the heads' losses."""

    logits: Tensor  # [h b k], fused over the clips of a video; without classes, k is 0
    losses: Tensor  # [h], the mean over videos
    terms: Mapping[str, Tensor] = MappingProxyType({})  # [h] each: parts of the losses, logged as train/NAME


class Objective(Protocol):
    """What a phase optimizes: the losses of the model's output, the sums kept over an epoch, and an update of the model
    after each optimizer step."""

    def __call__(self, output: Tensor, targets: Tensor, /) -> HeadOutputs:
        """Computes the losses from the model's output for a batch, and the batch's targets."""

    def zero_sums(self, device: torch.device) -> EpochSums:
        """The sums of an epoch before its first step: all zero."""

    def after_step(self) -> None:
        """Called after each optimizer step, for example to update a weight average that is part of the model."""


@dataclass(frozen=True)
class Classification:
    """Clip logits [b n (h k)] of h heads and targets (classes [b], or shares [b k]) -> `HeadOutputs`.

    `fusion` names the model's fusion of clips, and `class_weights` [k] come from `loss.weights`. With `multi_label`,
    videos may have several labels.

    Add further terms of the loss in `__call__`: `head_logits` holds the raw clip logits of each head, and the fused
    `logits` are log-probabilities if fusion is mean_probs or joint. Such terms count in train/loss, not in val/loss.
    Return them in `terms`, too, and each is logged by its name. Their weights can be fields of the loss, which its YAML
    sets (`loss.NAME=0.1`).
    """

    loss: Loss
    class_weights: Tensor | None
    fusion: str
    num_classes: int
    multi_label: bool = False

    def __call__(self, clip_logits: Tensor, targets: Tensor) -> HeadOutputs:
        head_logits = clip_logits.split(self.num_classes, dim=-1)
        logits = [fuse(head, self.fusion, self.loss.independent) for head in head_logits]
        losses = [self.loss(head, targets, self.class_weights) for head in logits]
        return HeadOutputs(torch.stack(logits), torch.stack(losses))

    def zero_sums(self, device: torch.device) -> EpochSums:
        return ClassSums.of_classes(self.num_classes, self.multi_label, device)

    def after_step(self) -> None:
        pass


@dataclass(frozen=True)
class MaskedPrediction:
    """The objective of pretraining: the mean of the model's losses [b], without labels."""

    model: MaskedModel

    def __call__(self, output: Tensor, targets: Tensor) -> HeadOutputs:
        return HeadOutputs(output.new_empty(1, len(output), 0), output.mean()[None])

    def zero_sums(self, device: torch.device) -> EpochSums:
        return EpochSums.zeros(device)

    def after_step(self) -> None:
        self.model.after_step()
