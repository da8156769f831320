"""Validation of the trained weights and of their moving average: the average itself, the monitored metric, the
reports."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import metric_names
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.training.distributed import Ranks
from vidtrain.training.losses import BinaryCrossEntropy, CrossEntropy, Loss
from vidtrain.training.process import Stopped
from vidtrain.training.run import Evaluation, PhaseSettings, TrainerSettings
from vidtrain.training.stages import BATCH_NORMS, batch_norms, never_trained

# Prefix of the metrics in the log, by the weights that they are measured on
METRIC_PREFIXES = {"raw": "val", "ema": "val_ema"}
# Metrics in the console's line about an evaluation, if the evaluation has them
CONSOLE_METRICS = (
    "loss",
    "top1",
    "clip_top1",
    "map",
    "f1_micro",
    "f1_macro",
    "effective_rank",
    "knn_top1",
    "linear_top1",
)
HEADS_PREFIX = "val_heads"  # prefix of the metrics of a grid's heads; the name of the head follows
OVERFIT_LOSS = 0.05  # debug=overfit passes only if the loss of its one batch is at most this


def decay_at(step: int, decay: float, warmup: bool) -> float:
    """The decay of the average at optimizer step `step` = 1, 2, ...

    With `warmup` it is min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage. Without it
    the initial weights would dominate the average for thousands of steps.
    """
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class WeightAverage:
    """Exponential moving average of a model's parameters and float buffers; other buffers are copied.

    It starts as a copy of the model's weights. `tensors` is its whole state: the average under the names of the model's
    state dict, on the same device. The model's tensors must only be updated in place, as training does. Parameters
    named in `frozen` never train and equal their average, so for them `tensors` holds the model's own tensors.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool, frozen: Collection[str] = ()):
        self.decay = decay
        self.warmup = warmup
        live = model.state_dict(keep_vars=True)
        shared = {id(live[name]) for name in frozen}
        # (average, weights): a tensor that has two names in the state dict is here once
        pairs = {
            id(tensor): (tensor.detach().clone(), tensor.detach())
            for tensor in {id(tensor): tensor for tensor in live.values()}.values()
            if id(tensor) not in shared
        }
        self.tensors = {
            name: tensor.detach() if id(tensor) in shared else pairs[id(tensor)][0] for name, tensor in live.items()
        }
        self._averaged = [name for name, tensor in live.items() if id(tensor) not in shared]
        self._pairs = list(pairs.values())
        self._floats = [pair for pair in self._pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in self._pairs if not pair[0].is_floating_point()]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies the average of an earlier attempt into this one."""
        for name in self._averaged:
            self.tensors[name].copy_(tensors[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Updates the average with the model's weights after optimizer step `step` of the run."""
        averages, weights = ([pair[i] for pair in self._floats] for i in (0, 1))
        torch._foreach_lerp_(averages, weights, 1 - decay_at(step, self.decay, self.warmup))
        for average, current in self._others:
            average.copy_(current)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """A context in which the model has the average's weights; afterwards it has its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, current in self._pairs:
            saved = current.clone()
            current.copy_(average)
            average.copy_(saved)


def kept_average(
    model: EncoderWithHead, settings: TrainerSettings, phases: Mapping[str, PhaseSettings]
) -> WeightAverage | None:
    """The average that the run keeps, if trainer.ema is set; parameters that no phase trains are not copied."""
    if settings.ema is None:
        return None
    return WeightAverage(model, settings.ema, settings.ema_warmup, never_trained(model, phases))


def selecting_weights(monitor_weights: str | None, ema: float | None) -> str:
    """The weights, "raw" or "ema", whose metrics select the best checkpoint: `monitor_weights` or, for None, its
    default.

    Raises `UserError` for "ema" if no average is kept.
    """
    if monitor_weights == "ema" and ema is None:
        raise UserError(
            "trainer.monitor_weights=ema, but no average is kept: set trainer.ema, such as to 0.999, or choose raw"
        )
    return monitor_weights or ("raw" if ema is None else "ema")


def check_monitor(monitor: str, num_classes: int, multi_label: bool) -> None:
    """Raises `UserError` if evaluations do not compute the metric `monitor` for such a dataset."""
    known = metric_names(num_classes, multi_label)
    if monitor not in known:
        kind = "whose videos may have several labels" if multi_label else f"with {num_classes} classes"
        raise UserError(
            f"trainer.monitor={monitor} is not a metric of a dataset {kind}; choose one of {', '.join(known)}"
        )


def check_overfit(metrics: Mapping[str, float], loss: Loss, steps: int) -> None:
    """Raises `UserError` unless the model has overfitted the one batch that it trained on for `steps` steps: all
    predictions are right, and the loss is near 0 if 0 is its minimum."""
    accuracy = metrics["exact_match"] if "exact_match" in metrics else metrics["top1"]
    minimum_is_zero = isinstance(loss, CrossEntropy | BinaryCrossEntropy) and loss.label_smoothing == 0
    problems = []
    if accuracy < 1:
        problems.append(f"{accuracy:.0%} of its videos are right")
    if minimum_is_zero and metrics["loss"] > OVERFIT_LOSS:
        problems.append(f"its loss of {metrics['loss']:.4f} is above {OVERFIT_LOSS}")
    if problems or not metrics["loss"] < float("inf"):
        raise UserError(
            f"the model did not learn one batch: after {steps} steps "
            f"{' and '.join(problems) or 'its loss is not finite'}; check the model, the learning rate and "
            "the labels, or take more steps"
        )


def settings_lines(model: EncoderWithHead, settings: TrainerSettings, phases: Mapping[str, PhaseSettings]) -> list[str]:
    """Lines for the log about batch norms, if any of them trains, and about the weight average."""
    lines = []
    frozen = all(phase.encoder_blocks == 0 for phase in phases.values())
    norms = len(batch_norms(model.head if frozen else model))
    if norms or settings.batch_norm != "train":
        behavior = BATCH_NORMS[settings.batch_norm]
        lines.append(f"trainer.batch_norm={settings.batch_norm}: the model's {norms} batch norms {behavior}")
    if settings.ema is not None:
        selecting = selecting_weights(settings.monitor_weights, settings.ema)
        warmup = " after a warmup" if settings.ema_warmup else ""
        lines.append(
            f"weights are averaged with decay {settings.ema:g}{warmup}, and validated beside the raw ones; "
            f"{settings.monitor} of the {selecting} weights selects best.pt, which holds them"
        )
    return lines


def validate(
    model: nn.Module,
    evaluate: Callable[[], Sequence[Evaluation]],
    names: Sequence[str],
    average: WeightAverage | None,
    ranks: Ranks,
) -> dict[str, Evaluation] | None:
    """The reports of `evaluate`, the same on all ranks: on the trained weights, by `names` ("raw", or each head's), and
    on their `average` ("ema"). None if a signal interrupted `evaluate`, which then raised `Stopped` on all ranks.
    """
    ranks.share_buffers(model)
    try:
        reports = dict(zip(names, evaluate(), strict=True))
        if average is not None:
            with average.in_place():
                ranks.share_buffers(model)
                [reports["ema"]] = evaluate()
    except Stopped:
        return None
    return reports


def validation_row(reports: Mapping[str, Evaluation], selecting: str) -> dict[str, float]:
    """All metrics by their names in the log. In a grid every head's metrics are logged, and the selected head's also as
    those of the run."""
    row = (
        {}
        if selecting in METRIC_PREFIXES
        else {f"val/{key}": value for key, value in reports[selecting].metrics.items()}
    )
    for weights, report in reports.items():
        prefix = METRIC_PREFIXES[weights] if weights in METRIC_PREFIXES else f"{HEADS_PREFIX}/{weights}"
        row |= {f"{prefix}/{key}": value for key, value in report.metrics.items()}
    return row


def training_line(epoch: float, metrics: Mapping[str, float]) -> str:
    shown = (f"{key} {metrics[key]:.4f}" for key in ("loss", "top1", "f1_micro") if key in metrics)
    line = f"epoch {epoch:.4g}: train " + ", ".join(shown)
    if "loss_scale" not in metrics:
        return line
    return f"{line}; fp16: {metrics['skipped_steps']} steps skipped, loss scale {metrics['loss_scale']:g}"


def validation_lines(
    epoch: float, reports: Mapping[str, Evaluation], monitor: str, selecting: str, improved: bool
) -> list[str]:
    """A console line for each report, or in a grid only for the best head. The report named `selecting` selects the
    best checkpoint."""
    lines = []
    is_grid = selecting not in METRIC_PREFIXES
    for weights, report in {selecting: reports[selecting]}.items() if is_grid else reports.items():
        shown = dict.fromkeys((*CONSOLE_METRICS, monitor))
        values = ", ".join(f"{key} {report.metrics[key]:.4f}" for key in shown if key in report.metrics)
        best = f" (best {monitor})" if improved and weights == selecting else ""
        name = f"val, {weights} of {len(reports)} heads:" if is_grid else METRIC_PREFIXES[weights]
        lines.append(f"epoch {epoch:.4g}: {name} {values}, coverage {report.coverage}{best}")
    return lines
