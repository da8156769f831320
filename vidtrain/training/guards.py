"""Why a run ends before its time, in words that say what to do."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from vidtrain.errors import DivergedError, UserError
from vidtrain.training.losses import BinaryCrossEntropy, CrossEntropy, Loss
from vidtrain.training.run import PhaseSettings, TrainerSettings
from vidtrain.training.schedules import steps
from vidtrain.training.stages import Classifier, apply_phase, parameter_groups

OVERFIT_LOSS = 0.05  # what the loss of one batch must come below in debug=overfit


def check_phases(model: Classifier, phases: Mapping[str, PhaseSettings], epochs: int, per_epoch: int) -> None:
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
    problems = []
    if right < 1:
        problems.append(f"{right:.0%} of its videos are right")
    if plain and metrics["loss"] > OVERFIT_LOSS:
        problems.append(f"its loss of {metrics['loss']:.4f} is above {OVERFIT_LOSS}")
    if problems or not metrics["loss"] < float("inf"):
        raise UserError(
            f"one batch was not learned: after {steps} steps {' and '.join(problems) or 'its loss is not finite'}; the "
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


def check_gradients(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager,
) -> float:
    """One forward and backward of `clips` float [b n c t h w]; returns the loss and leaves no trace.

    `loss_of` maps what the model gives, clip logits [b n k], and labels to the loss.

    Raises `UserError` naming the parameters whose gradient is absent or not finite, and where logits and
    labels do not fit together.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch statistics move
    with autocast:
        loss = loss_of(model(clips), labels)
    loss.backward()
    silent, broken = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                silent.append(name)
            elif not torch.isfinite(parameter.grad).all():
                broken.append(name)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    if silent:
        raise UserError(f"trainable parameters that the loss does not reach: {_some(silent)}")
    if broken:
        raise UserError(f"gradients that are not finite before the first step: {_some(broken)}")
    return loss.item()


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
