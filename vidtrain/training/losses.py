"""Losses: functions of fused logits, and of targets that are classes or shares of classes.

A loss is the plain mean over samples of their own losses, so it is the same number at any number of ranks and
accumulation steps. PyTorch's weighted mean is not: it divides by the sum of the weights in the batch.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vidtrain.errors import UserError, check_share
from vidtrain.evaluation.views import fuse
from vidtrain.models.masked_models import MaskedModel
from vidtrain.training.state import ClassSums, EpochSums

BALANCED = "balanced"


class Loss(Protocol):
    """The interface of a loss.

    `independent` is True if a sigmoid scores each class by itself, as videos with several labels need, and False if a
    softmax makes the classes exclude each other.
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
    that every class has the same total weight. Only the proportions of a list matter: its weights are scaled to a mean
    of 1 over the training samples, so that the size of the loss, and the best learning rate, stay about the same.

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
        weights = _listed("class_weights", self.class_weights, shares)
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
        return _listed("pos_weight", self.pos_weight, class_shares).float()

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        targets = _answers(logits, targets) * (1 - self.label_smoothing) + self.label_smoothing / 2
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return total / (len(logits) if self.sum_classes else logits.numel())


@dataclass(frozen=True)
class Focal:
    """Binary cross-entropy that reduces the weight of classes that are predicted well already (arXiv:1708.02002).

    If p is the predicted probability of the target (of yes or no), the term has the weight (1 - p)^`gamma`. Unless
    `alpha` is null, positives have the further weight alpha, and negatives 1 - alpha. The mean over classes, or with
    `sum_classes` their sum.

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
        total = sigmoid_focal_loss(logits, _answers(logits, targets), alpha, self.gamma, reduction="sum")
        return total / (len(logits) if self.sum_classes else logits.numel())


def _answers(logits: Tensor, targets: Tensor) -> Tensor:
    """Classes [b] as one-hot targets [b k]; shares [b k] unchanged."""
    return F.one_hot(targets, logits.shape[1]).to(logits.dtype) if targets.ndim == 1 else targets


def _check_weights(name: str, value: str | list[float] | None) -> None:
    if isinstance(value, str) and value != BALANCED:
        raise UserError(f"{name}={value}: write balanced, a number for each class, or null")
    if isinstance(value, list) and not all(0 <= weight < float("inf") for weight in value):
        raise UserError(f"{name}={value}: every weight must be a number of 0 or more")


def _listed(name: str, values: str | list[float], class_shares: Tensor) -> Tensor:
    if len(values) != len(class_shares):
        raise UserError(
            f"loss.{name} has {len(values)} numbers, and the dataset {len(class_shares)} classes; give one for "
            "each, in the order of the classes"
        )
    return torch.tensor(values, dtype=torch.float64, device=class_shares.device)


def describe_loss(loss: Loss, weights: Tensor | None) -> str:
    """The loss and the range of its class weights, for the log."""
    of_classes = "" if weights is None else f", weights of classes {weights.min():.3g} to {weights.max():.3g}"
    return f"loss {loss}{of_classes}"


class HeadOutputs(NamedTuple):
    """Logits of h heads for b videos, and the heads' losses."""

    logits: Tensor  # [h b k], fused over the clips of a video; without classes, k is 0
    losses: Tensor  # [h], the mean over videos


class Objective(Protocol):
    """What a phase optimizes: how the model's output becomes losses, which sums are kept over an epoch, and what
    happens to the model after each optimizer step."""

    def __call__(self, output: Tensor, targets: Tensor, /) -> HeadOutputs:
        """Computes the losses from the model's output for a batch, and the batch's targets."""

    def no_sums(self, device: torch.device) -> EpochSums:
        """The sums of an epoch before its first step: all zero."""

    def after_step(self) -> None:
        """Called after each optimizer step, such as to update a weight average that is part of the model."""


@dataclass(frozen=True)
class Classification:
    """Clip logits [b n (h k)] of h heads and targets (classes [b], or shares [b k]) -> `HeadOutputs`.

    `fusion` names the model's fusion of clips, and `class_weights` [k] come from `loss.weights`. With `multi_label`,
    videos may have several labels.

    Add further terms of the loss here. `by_head` holds the raw clip logits; the fused `logits` are log-probabilities if
    fusion is mean_probs or joint. Further terms are part of train/loss, but not of val/loss.
    """

    loss: Loss
    class_weights: Tensor | None
    fusion: str
    num_classes: int
    multi_label: bool = False

    def __call__(self, clip_logits: Tensor, targets: Tensor) -> HeadOutputs:
        by_head = clip_logits.split(self.num_classes, dim=-1)
        logits = [fuse(head, self.fusion, self.loss.independent) for head in by_head]
        losses = [self.loss(head, targets, self.class_weights) for head in logits]
        return HeadOutputs(torch.stack(logits), torch.stack(losses))

    def no_sums(self, device: torch.device) -> EpochSums:
        return ClassSums.of_classes(self.num_classes, self.multi_label, device)

    def after_step(self) -> None:
        pass


@dataclass(frozen=True)
class MaskedPrediction:
    """The objective of a model of pretraining: the mean of its losses [b]. Labels are ignored."""

    model: MaskedModel

    def __call__(self, output: Tensor, targets: Tensor) -> HeadOutputs:
        return HeadOutputs(output.new_empty(1, len(output), 0), output.mean()[None])

    def no_sums(self, device: torch.device) -> EpochSums:
        return EpochSums.zeros(device)

    def after_step(self) -> None:
        self.model.after_step()
