"""What the loop works with, assembled by the app."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidtrain.evaluation.report import Report
from vidtrain.training.distributed import Ranks
from vidtrain.training.halting import Halt
from vidtrain.training.learning import Learning
from vidtrain.training.losses import Loss
from vidtrain.training.optim import OptimizerFactory
from vidtrain.training.schedules import Schedule
from vidtrain.training.settings import PhaseSettings, TrainerSettings


@dataclass(frozen=True)
class Run:
    """A run's parts, of which none knows anything of the app."""

    model: nn.Module  # a VideoClassifier, on its device
    transform: nn.Module  # uint8 clips and seeds -> float clips, on the device
    mix: Callable[..., tuple[Tensor, Tensor]]  # clips, labels and a key -> clips and targets of a mixed batch
    train_batches: Callable[[int, int], Iterable]  # micro-batches of the steps from, up to (over all phases)
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
    log: Any  # a RunLog
    console: Any  # a Console
    checkpoints: Path  # the folder of last.pt, previous.pt and best.pt
    card: Mapping[str, Any]  # what a checkpoint needs to be usable: classes, resolved config, versions
    frozen: Callable[[PhaseSettings], Learning] | None = None  # many heads, cached features
    # what else is told of every validated `trainer.monitor`; it may raise Pruned, on all ranks
    on_validation: Callable[[float], None] = lambda value: None
    halt: Halt = field(
        default_factory=Halt
    )  # the signals that stop the run; one that nobody entered hears none

    def learning(self, model: nn.Module, phase: PhaseSettings) -> Learning:
        """What a phase trains and reads: `model` on clips, or what `frozen` makes of it."""
        if phase.heads is not None or phase.cache_features:
            return self.frozen(phase)
        return Learning(model, self.transform, self.mix, self.train_batches, lambda: [self.evaluate()])
