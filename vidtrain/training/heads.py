"""The heads that a phase trains, behind one interface: an ordinary phase has one head, a grid has many candidates.

The heads of a grid are one module that gives the logits of all heads side by side. Their losses are summed. The encoder
is frozen and the heads share no parameters, so one backward pass gives each head its own gradients. Each head of a grid
has its own optimizer, bound on the gradient and scaler, so it trains as it would alone.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from vidtrain.evaluation.report import Report
from vidtrain.models.classifier import ManyHeads, VideoClassifier
from vidtrain.training.run import HeadGridSettings

RAW, EMA = "raw", "ema"  # the weights as they are, and their average


def head_names(grid: HeadGridSettings | None) -> list[str]:
    """A name for each head of a grid, in order, such as lr0.001_wd0.1; the weights of an ordinary phase are "raw"."""
    return [RAW] if grid is None else [f"lr{lr:g}_wd{decay:g}" for lr, decay in head_choices(grid)]


def head_choices(grid: HeadGridSettings) -> list[tuple[float, float]]:
    """The (peak learning rate, weight decay) of each head."""
    return list(itertools.product(grid.lr, grid.weight_decay))


def finite_mean(values: Sequence[float]) -> float:
    """The mean of those that are finite; NaN where none is. A head that has diverged does not end the others."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def head_value(report: Report, monitor: str) -> float:
    """The report's value of `monitor`. It is NaN where logits are NaN, as the first class would then count as the
    answer."""
    return report.metrics[monitor] if not report.logits.isnan().any() else math.nan


@dataclass(frozen=True)
class Heads:
    """The heads of a phase, by their `names`: those of a `grid`, or the one head of an ordinary phase (None).

    In an ordinary phase `selecting` names the weights whose report selects the best checkpoint: "raw" or "ema".
    """

    grid: HeadGridSettings | None
    selecting: str = RAW

    @property
    def names(self) -> list[str]:
        return head_names(self.grid)

    def select(self, reports: Mapping[str, Report], monitor: str, direction: str) -> str:
        """The name of the report that selects the best checkpoint.

        In a grid it is the head with the best `monitor`, the first of equal ones. A head that has diverged is never
        selected before one that has not.
        """
        if self.grid is None:
            return self.selecting
        sign = -1 if direction == "max" else 1

        def cost(name: str) -> float:
            value = head_value(reports[name], monitor)
            return sign * value if math.isfinite(value) else math.inf

        return min(reports, key=cost)

    def put_into(self, model: VideoClassifier, trained: VideoClassifier | ManyHeads, name: str) -> None:
        """Copies the head `name` of a grid, which `trained` holds, into `model`. An ordinary phase trains the head of
        `model` itself, so nothing is to be done."""
        if isinstance(trained, ManyHeads) and self.grid is not None:
            model.head.load_state_dict(trained.head[self.names.index(name)].state_dict())

    def describe(self, trained: VideoClassifier | ManyHeads) -> str:
        """What a grid costs in memory, for the log."""
        count = sum(parameter.numel() for parameter in trained.head.parameters())
        size = 4 * count * torch.float32.itemsize / 1e9
        return (
            f"{len(self.names)} heads train on one frozen encoder: {count / 1e6:.2f} M parameters, which take about "
            f"{size:.2g} GB with gradients and Adam's state, and the activations of all of them at once"
        )
