"""What the loop works with, assembled by the app."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from vidtrain.evaluation.report import Report
from vidtrain.training.losses import Loss
from vidtrain.training.parameter_groups import OptimizerFactory
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.ranks.signals import PreemptionHandler
from vidtrain.training.schedules import Schedule
from vidtrain.training.settings import PhaseSettings, TrainerSettings

Value = float | int | str | None  # what a cell of a log or of a table holds


class Console(Protocol):
    """What a person sees of a run: what `tracking.console.Console` shows, or nothing on other ranks."""

    def info(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> None: ...

    def phase(
        self, name: str, total_steps: int, start_step: int = 0
    ) -> AbstractContextManager[None, bool | None]:
        """While inside, `advance` moves the bar of this phase."""

    def advance(self, step: int, fields: Mapping[str, Value]) -> None: ...


class Log(Protocol):
    """What a run records: see `tracking.run_log.RunLog`."""

    def log(self, metrics: Mapping[str, Value], step: int) -> None:
        """Numbers known after optimizer step `step`."""

    def step(self, row: Mapping[str, Value]) -> None:
        """One optimizer step of this rank."""

    def fault(self, path: str, cause: str, step: int, split: str) -> None:
        """A video that could not be read."""

    def flush(self) -> str | None:
        """Puts every row on the disk; says why that failed, or None."""


class TrainBatch(Protocol):
    """A micro-batch as the loader gives it: what `data.dataset.Batch` holds."""

    clips: Tensor  # uint8 [b n c t h w]
    labels: Tensor  # int64 [b], or float32 [b k] of 0 and 1
    indices: Tensor  # int64 [b], of the videos in `Run.train_paths`
    seeds: Tensor  # int64 [b n], of what is drawn on the device
    faults: Sequence[tuple[str, str]]  # (path, cause) of the videos that could not be read and were replaced
    refusal: str | None  # why training must end here


@dataclass(frozen=True)
class PhaseTask:
    """What a phase trains and reads: the run's model on clips, or heads alone on a frozen encoder.

    `model` has `encoder` and `head` (of a grid, a list of heads); without a grid they are those of the run's model. It
    maps what `transform` and `mix` give to clip logits [b n (h k)] of h heads. `evaluate` evaluates it on the val
    split and gives a report for each head.
    """

    model: nn.Module
    transform: nn.Module
    mix: Callable[..., tuple[Tensor, Tensor]]
    train_batches: Callable[[int, int], Iterable[TrainBatch]]
    evaluate: Callable[[], list[Report]]


@dataclass(frozen=True)
class Run:
    """The parts of a run. None of them knows Hydra or the programs."""

    model: nn.Module  # a VideoClassifier, on its device
    transform: nn.Module  # uint8 clips and seeds -> float clips, on the device
    mix: Callable[..., tuple[Tensor, Tensor]]  # clips, labels and a key -> clips and targets of a mixed batch
    train_batches: Callable[[int, int], Iterable[TrainBatch]]  # micro-batches of steps from, up to
    train_paths: Sequence[str]  # by index, to name the files of a bad batch
    steps_per_epoch: int
    evaluate: Callable[[], Report]  # the val split, by all ranks
    loss: Loss
    class_weights: Tensor | None  # [k], of the loss, on the device
    multi_label: bool  # whether labels are [b k] of 0 and 1, and not classes [b]
    optimizer: OptimizerFactory
    lr: Schedule
    weight_decay: Schedule
    phases: Mapping[str, PhaseSettings]
    settings: TrainerSettings
    ranks: Ranks
    seed: int
    log: Log
    console: Console
    checkpoints: Path  # the folder of last.pt, previous.pt and best.pt
    metadata: Mapping[str, Any]  # what a checkpoint needs to be usable: classes, resolved config, versions
    frozen: Callable[[PhaseSettings], PhaseTask] | None = None  # many heads, cached features
    # called on every rank after each evaluation, with its value of `trainer.monitor`; it may raise Pruned, on all ranks
    on_validation: Callable[[float], None] = lambda value: None
    # the signals that stop the run; one that nobody entered hears none
    preemption: PreemptionHandler = field(default_factory=PreemptionHandler)

    def task(self, model: nn.Module, phase: PhaseSettings) -> PhaseTask:
        """What a phase trains and reads: `model` on clips, or what `frozen` makes of it."""
        if phase.heads is not None or phase.cache_features:
            return self.frozen(phase)
        return PhaseTask(model, self.transform, self.mix, self.train_batches, lambda: [self.evaluate()])
