"""Why a run ends before its time, in words that say what to do."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from vidtrain.errors import DivergedError, UserError
from vidtrain.training.optim import parameter_groups
from vidtrain.training.schedules import steps
from vidtrain.training.settings import PhaseSettings, TrainerSettings
from vidtrain.training.stages import apply_phase
from vidtrain.training.state import EpochSums


def check_phases(model: nn.Module, phases: Mapping[str, PhaseSettings], epochs: int, per_epoch: int) -> None:
    """Every phase before the first one starts: a fault of the last would cost the training of the others."""
    for name, phase in phases.items():
        if steps(phase.duration, epochs * per_epoch, per_epoch) < 1:
            raise UserError(f"stage.{name}.duration={phase.duration} comes to no step; lengthen it")
        apply_phase(model, phase)
        parameter_groups(model, phase)


def refuse_loss(loss: float, step: int, files: Sequence[str], checkpoints: Path) -> None:
    """Raises `DivergedError` for a loss that is not finite, on a micro-batch of these `files`."""
    named = "\n  ".join(files)
    raise DivergedError(
        f"the loss is {loss} at step {step}, on these files:\n  {named}\n"
        "Lower optimizer.lr, lengthen the warmup or use trainer.precision=fp32. Nothing after this step's "
        f"beginning was saved in {checkpoints}"
    )


def check_faults(
    sums: EpochSums, settings: TrainerSettings, per_epoch: int, rank: int, world_size: int
) -> None:
    """Ends the run as soon as this epoch's share of unreadable videos is sure to pass the bound."""
    videos = per_epoch * settings.batch_size // world_size
    if sums.faults > settings.max_fault_share * videos:
        raise UserError(
            f"{int(sums.faults)} of this epoch's {videos} videos could not be read, more than "
            f"trainer.max_fault_share={settings.max_fault_share:.0%}; faults_rank{rank}.jsonl in the run "
            "folder names them"
        )
