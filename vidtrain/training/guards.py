"""Why a run ends before its time, in words that say what to do."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from vidtrain.errors import DivergedError, UserError
from vidtrain.training.losses import BinaryCrossEntropy, CrossEntropy, Loss
from vidtrain.training.parameter_groups import parameter_groups
from vidtrain.training.schedules import steps
from vidtrain.training.settings import PhaseSettings, TrainerSettings
from vidtrain.training.stages import apply_phase

OVERFIT_LOSS = 0.05  # what the loss of one batch must come below in debug=overfit


def check_phases(model: nn.Module, phases: Mapping[str, PhaseSettings], epochs: int, per_epoch: int) -> None:
    """Every phase before the first one starts: a fault of the last would cost the training of the others."""
    for name, phase in phases.items():
        if steps(phase.duration, epochs * per_epoch, per_epoch) < 1:
            raise UserError(f"stage.{name}.duration={phase.duration} comes to no step; lengthen it")
        apply_phase(model, phase)
        parameter_groups(model, phase)


def check_overfit(metrics: Mapping[str, float], loss: Loss, steps: int) -> None:
    """Raises `UserError` unless the `metrics` of the one batch that `steps` steps were made on say that it is known by
    heart: all answers are right and, where the loss asks for certainty, the loss is near zero."""
    right = metrics["exact_match"] if "exact_match" in metrics else metrics["top1"]
    plain = isinstance(loss, CrossEntropy | BinaryCrossEntropy) and loss.label_smoothing == 0
    found = [f"{right:.0%} of its videos are right"] if right < 1 else []
    found += (
        [f"its loss of {metrics['loss']:.4f} is above {OVERFIT_LOSS}"]
        if plain and metrics["loss"] > OVERFIT_LOSS
        else []
    )
    if found or not metrics["loss"] < float("inf"):
        raise UserError(
            f"one batch was not learned: after {steps} steps {' and '.join(found) or 'its loss is not finite'}; the "
            "model, the rate or the labels are at fault, or it needs more steps"
        )


def raise_non_finite_loss(loss: float, step: int, files: Sequence[str], checkpoints: Path) -> None:
    """Raises `DivergedError` for a loss that is not finite, on a micro-batch of these `files`."""
    named = "\n  ".join(files)
    raise DivergedError(
        f"the loss is {loss} at step {step}, on these files:\n  {named}\n"
        "Lower optimizer.lr, lengthen the warmup or use trainer.precision=fp32. Nothing after this step's "
        f"beginning was saved in {checkpoints}"
    )


def check_faults(faults: int, settings: TrainerSettings, per_epoch: int) -> None:
    """Ends the run as soon as this epoch's share of failed reads, of which all ranks together had `faults`, is sure to
    pass the bound."""
    videos = per_epoch * settings.batch_size
    if faults > settings.max_unreadable_fraction * videos:
        raise UserError(
            f"{faults} reads failed of this epoch's {videos} videos, more than "
            f"trainer.max_unreadable_fraction={settings.max_unreadable_fraction:.0%}; "
            "faults_rank*.jsonl in the run folder names them"
        )
