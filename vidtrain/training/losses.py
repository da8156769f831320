"""Losses: what training makes smaller. Each takes fused logits, and classes or shares of classes.

A loss is a mean over samples of what each costs by itself, so it is the same number at any number of ranks and
accumulation steps; PyTorch's weighted mean, which divides by the weights of the samples at hand, is not.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from vidtrain.errors import UserError, check_share
from vidtrain.evaluation.fusion import fuse
from vidtrain.training.state import ClassSums, EpochSums

BALANCED = "balanced"


class Loss(Protocol):
    """What the loop asks of a loss.

    `independent` tells that each class is judged by itself, by a sigmoid, as videos of several labels need; without
    it classes exclude each other, by a softmax.
    """

    independent: ClassVar[bool]

    def weights(self, class_shares: Tensor) -> Tensor | None:
        """Weights [k] of the classes, given the share [k] of training samples that hold each, on its device; None: all
        are 1."""

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """The mean over samples; `logits` float [b k], `targets` classes int64 [b] or shares float [b k]."""


@dataclass(frozen=True)
class CrossEntropy:
    """Softmax cross-entropy, in natural logarithms.

    `label_smoothing` gives that share of every target to all classes alike. `class_weights` are null, "balanced" or a
    number for each class. Balanced is n / (k n_c) for a class that n_c of the n samples drawn in training are of: every
    class then weighs the same. Only the proportions of a list count: weights are scaled to a mean of 1 over the
    training samples, which leaves the learning rate its meaning.

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
            # a class without samples has nothing to be balanced
            return torch.where(present, 1 / (present.sum() * shares), 1.0).float()
        weights = _listed("class_weights", self.class_weights, shares)
        mean = (weights * shares).sum() / shares.sum()
        if mean == 0:
            raise UserError("loss.class_weights are 0 for every class that there are training videos of")
        return (weights / mean).float()

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        total = F.cross_entropy(
            logits, targets, weights, reduction="sum", label_smoothing=self.label_smoothing
        )
        return total / len(logits)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Each class is a question of its own, yes or no: for videos of several labels, and one-vs-rest for one label.

    The mean over classes, or with `sum_classes` their sum. `label_smoothing` takes targets toward 1/2. `pos_weight`
    weighs the yes of each class: null, "balanced" (negatives / positives among the training samples, so that both
    sides weigh the same) or a number for each class.

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
            # a class that all samples hold, or none, has only one side
            both = (shares > 0) & (shares < 1)
            return torch.where(both, (1 - shares) / shares, 1.0).float()
        return _listed("pos_weight", self.pos_weight, class_shares).float()

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        targets = _answers(logits, targets) * (1 - self.label_smoothing) + self.label_smoothing / 2
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return total / (len(logits) if self.sum_classes else logits.numel())


@dataclass(frozen=True)
class Focal:
    """Binary cross-entropy in which questions that are answered well already count less (arXiv:1708.02002).

    A question whose right answer has probability p counts (1 - p)^`gamma`; `alpha`, unless null, weighs a yes, and
    1 - alpha a no. The mean over classes, or with `sum_classes` their sum.

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

        alpha = -1 if self.alpha is None else self.alpha  # below 0 torchvision weighs nothing
        total = sigmoid_focal_loss(logits, _answers(logits, targets), alpha, self.gamma, reduction="sum")
        return total / (len(logits) if self.sum_classes else logits.numel())


def _answers(logits: Tensor, targets: Tensor) -> Tensor:
    """Classes [b] as yes for one and no for all others; shares [b k] as they are."""
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
    """A word for the log."""
    weighed = "" if weights is None else f", weights of classes {weights.min():.3g} to {weights.max():.3g}"
    return f"loss {loss}{weighed}"


class HeadOutputs(NamedTuple):
    """The answers of h heads for b videos."""

    logits: Tensor  # [h b k], fused over the clips of a video; without classes, k is 0
    losses: Tensor  # [h], the mean over videos


class Objective(Protocol):
    """What a phase makes smaller. The model, what is trained of it and what is kept follow from the run; this is how
    its output becomes losses, what an epoch sums up, and what happens to the model after each optimizer step."""

    def __call__(self, output: Tensor, targets: Tensor, /) -> HeadOutputs:
        """From what the model gives for a batch, and the batch's targets."""

    def no_sums(self, device: torch.device) -> EpochSums:
        """What an epoch sums up, before its first step."""

    def after_step(self) -> None:
        """What follows the optimizer: an average of weights that is part of the model."""


@dataclass(frozen=True)
class Classification:
    """Clip logits [b n (h k)] of h heads and targets (classes [b], or shares [b k]) -> `HeadOutputs`.

    `fusion` is the name of the model's, and `class_weights` [k] are what `loss.weights` gave. With `multi_label`,
    videos may have several.

    Terms beside the loss are to be added here: `by_head` are the raw clip logits, while the fused `logits` are
    log-probabilities where fusion is mean_probs or joint. They will show in train/loss and not in val/loss.
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
