"""The loop's state: `Trainer` is the state of the whole run, `Phase` that of one phase; `TrainState` is stored.

Each phase makes new optimizers, which start without state, and a new DDP wrapper, which reads requires_grad only when
it is constructed.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vidtrain.data.loading.dataset import Batch
from vidtrain.errors import UserError, pluralize
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.files.escaping import shown_some
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.training.checkpoint import Saver
from vidtrain.training.distributed import Ranks, autocast
from vidtrain.training.losses import EpochSums, Objective
from vidtrain.training.optimizers import OptimizerSet
from vidtrain.training.profiling import NoProfiler, StepProfiler, step_profiler
from vidtrain.training.run import PhaseSettings, PhaseTask, Run
from vidtrain.training.schedules import Schedule, every, in_steps, steps, too_long
from vidtrain.training.stages import (
    EMA,
    RAW,
    Heads,
    apply_phase,
    check_phases,
    freeze_batch_norm,
    parameter_table,
    prepare_batch_norm,
    set_train_mode,
)
from vidtrain.training.validation import WeightAverage, kept_average, selecting_weights, settings_lines

MAX_NAMED = 8  # at most this many parameters are named in an error message
# Old names of fields of `TrainState` in stored checkpoints
RENAMED = {"stale": "evals_since_best", "due": "eval_pending"}


@dataclass
class TrainState:
    """The counters of a run and its best evaluation so far: with weights, optimizer state and `EpochSums` all that a
    resumed run needs. `step` counts the optimizer steps of this phase."""

    phase: int = 0
    step: int = 0
    total_step: int = 0  # over all phases
    best: float | None = None  # best value of trainer.monitor
    best_step: int | None = None  # total_step at which it was measured
    evals_since_best: int = 0  # in this phase
    # whether the evaluation after this step is still to do: in a checkpoint, because a signal interrupted it
    eval_pending: bool = False
    loss: float | None = None  # of the last step, on this rank
    seconds: float = 0.0  # of training, over all attempts

    @classmethod
    def load(cls, stored: Mapping[str, Any]) -> Self:
        """The state that a checkpoint stores, maybe under old names (`RENAMED`)."""
        return cls(**{RENAMED.get(name, name): value for name, value in stored.items()})

    def next_phase(self) -> None:
        self.phase, self.step, self.evals_since_best = self.phase + 1, 0, 0

    def record(self, value: float, direction: str) -> bool:
        """Records the `value` of an evaluation; returns whether it is finite and better than the best so far."""
        better = self.best is None or (value < self.best if direction == "min" else value > self.best)
        improved = better and math.isfinite(value)
        if improved:
            self.best, self.best_step = value, self.total_step
        self.evals_since_best = 0 if improved else self.evals_since_best + 1
        return improved


class StepResult(NamedTuple):
    """The results of one optimizer step on this rank."""

    total_step: int  # counted over all phases, this step included
    loss: float  # the mean over micro-batches, and in a grid over the heads whose loss is finite
    grad_norm: float  # before clipping
    terms: dict[str, float]  # parts of the loss, by name (`HeadOutputs.terms`)
    rates: dict[str, float]  # learning rate of each parameter group, and the largest weight decay
    clips: int  # number of clips that this rank trained on
    data_seconds: float  # time spent waiting for the loader
    store_seconds: float  # the part of `data_seconds` in which the loader waited for a store of videos


@dataclass
class Phase:
    """The parts of one phase's optimizer steps. The benchmark times steps of the same parts."""

    run: Run
    name: str
    settings: PhaseSettings
    total: int  # optimizer steps of the phase
    task: PhaseTask
    heads: Heads
    objective: Objective
    optimizers: OptimizerSet
    lr: Schedule
    weight_decay: Schedule
    average: WeightAverage | None
    ddp: DistributedDataParallel | None  # wraps the task's model; None with one rank
    forward: Callable[[Tensor], Tensor]  # `ddp` or the task's model, compiled if trainer.compile is set
    autocast: AbstractContextManager
    sums: EpochSums
    # Whether the run evaluates or saves after a step of the phase. After the last step it always does both
    evaluate_at: Callable[[int], bool]
    save_at: Callable[[int], bool]
    keep_at: Callable[[int], bool]
    profiler: StepProfiler = field(default_factory=NoProfiler)
    batches: Iterator[Batch] = field(default_factory=lambda: iter(()))
    ended: bool = False
    epoch_started: float = 0.0  # by time.perf_counter

    @classmethod
    def make(cls, run: Run, model: EncoderWithHead, name: str, average: WeightAverage | None) -> Self:
        """The phase `name` of `run`. `model` is the run's model after `prepare_batch_norm`."""
        settings, trainer_settings, ranks = run.phases[name], run.settings, run.ranks
        total = steps(settings.duration, trainer_settings.epochs * run.steps_per_epoch, run.steps_per_epoch)
        apply_phase(model, settings)
        freeze_batch_norm(model, trainer_settings.batch_norm)
        task = run.task(model, settings)
        selecting = selecting_weights(trainer_settings.monitor_weights, trainer_settings.ema)
        precision = trainer_settings.precision

        def when(duration: str | None) -> Callable[[int], bool]:
            return every(duration, total, run.steps_per_epoch) if duration else lambda step: False

        ddp = None
        if ranks.world_size > 1:
            ddp = DistributedDataParallel(task.model, [ranks.device.index] if ranks.device.type == "cuda" else None)
        forward = ddp or task.model
        return cls(
            run=run,
            name=name,
            settings=settings,
            total=total,
            task=task,
            heads=Heads(settings.heads, selecting),
            objective=run.objective,
            optimizers=OptimizerSet.make(run.optimizer, task.model, settings, ranks.device.type, precision),
            lr=in_steps(run.lr, total, run.steps_per_epoch),
            weight_decay=in_steps(run.weight_decay, total, run.steps_per_epoch),
            average=average,
            ddp=ddp,
            forward=torch.compile(forward) if trainer_settings.compile else forward,
            autocast=autocast(ranks, precision),
            sums=run.objective.zero_sums(ranks.device),
            evaluate_at=when(trainer_settings.eval_every),
            save_at=when(trainer_settings.save_every),
            keep_at=when(trainer_settings.keep_every),
        )

    def next_batch(self, step: int) -> Batch:
        """The next micro-batch of optimizer step `step`. Raises `UserError` if its `refusal` tells to end training."""
        batch = next(self.batches)
        for path, cause in batch.faults:
            self.run.log.fault(path, cause, step=step, split="train")
        if batch.refusal:
            raise UserError(batch.refusal)
        self.sums.faults += len(batch.faults)
        return batch

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """A context that lets DDP average gradients over ranks only with the `last` micro-batch of a step."""
        return nullcontext() if last or self.ddp is None else self.ddp.no_sync()

    def start_epoch(self) -> None:
        self.sums = self.objective.zero_sums(self.run.ranks.device)
        self.epoch_started = time.perf_counter()


@dataclass
class Trainer:
    """The state of the whole run, which lasts from phase to phase."""

    run: Run
    model: EncoderWithHead
    state: TrainState
    average: WeightAverage | None
    saver: Saver
    started: float  # time.perf_counter() at the start of this attempt, less the seconds of earlier attempts

    @property
    def direction(self) -> str:
        """max or min: whether a higher or a lower value of the monitored metric is better."""
        return DIRECTIONS[self.run.settings.monitor]

    @property
    def out_of_patience(self) -> bool:
        patience = self.run.settings.patience
        return patience is not None and self.state.evals_since_best >= patience

    @classmethod
    def start(cls, run: Run, resume: Mapping[str, Any] | None) -> Self:
        """The state of the checkpoint `resume`, or a new one. Raises `UserError` for phases that cannot be trained."""
        settings = run.settings
        model = prepare_batch_norm(run.model, settings.batch_norm, run.ranks)
        check_phases(model, run.phases, settings.epochs, run.steps_per_epoch)
        state = TrainState.load(resume["state"]) if resume else TrainState()
        average = kept_average(model, settings, run.phases)
        if resume and average is not None:
            average.load(resume["ema"])
        saver = Saver(run.checkpoints, run.metadata, run.ranks, run.log, run.console)
        started = time.perf_counter() - state.seconds
        for line in settings_lines(model, settings, run.phases):
            run.console.info(line)
        return cls(run, model, state, average, saver, started)

    def begin_phase(self, resume: Mapping[str, Any] | None) -> Phase:
        """The current phase of the state, ready for its next step; `resume` is a checkpoint from within it, or None."""
        run, state = self.run, self.state
        phase = Phase.make(run, self.model, list(run.phases)[state.phase], self.average)
        if state.step >= phase.total and not state.eval_pending:
            raise UserError(
                f"the checkpoint is of step {state.step} of phase {phase.name}, but the phase has only {phase.total} "
                "steps with the present training data: restore the data that the run was started with, or start a new "
                "run (with init_from to use its weights)"
            )
        if (warning := too_long(phase.lr, phase.total)) is not None:
            run.console.warn(f"phase {phase.name}: schedule.lr: {warning}")
        if resume and resume["optimizer"] is not None:  # None in a checkpoint between two phases
            phase.optimizers.load(resume["optimizer"], resume["scaler"])
            if phase.settings.heads is not None:
                phase.task.model.head.load_state_dict(resume["heads"])
            phase.sums.restore(resume["sums"], run.ranks.rank, run.ranks.world_size)
        self._preflight(phase)
        folder = run.checkpoints.parent / "profile"
        phase.profiler = step_profiler(folder, run.settings.profile and run.ranks.is_main)
        phase.epoch_started = time.perf_counter()
        return phase

    def _preflight(self, phase: Phase) -> None:
        """Logs what trains, and tests forward and backward on the first batch, which the first step then trains on."""
        run, state, model = self.run, self.state, phase.task.model
        batches = iter(phase.task.train_batches(state.total_step, state.total_step + phase.total - state.step))
        first = next(batches, None)  # None if only the phase's last evaluation is left
        title = f"phase {phase.name} ({state.phase + 1} of {len(run.phases)}): {pluralize(phase.total, 'step')}"
        table = parameter_table(model, phase.optimizers.peak_lrs, phase.heads.names)
        run.console.table(title, ("module", "parameters", "trained", "peak lr"), table)
        if phase.settings.heads is not None:
            run.console.info(phase.heads.describe(model))
        if first is None:
            return
        if first.refusal:
            phase.batches = iter([first])
            phase.next_batch(state.total_step + 1)
        phase.batches = itertools.chain([first], batches)
        set_train_mode(model, run.settings.batch_norm)
        seed_step(run.seed, state.total_step, run.ranks)
        clips = phase.task.transform(first.clips.to(run.ranks.device), first.seeds)
        labels = first.labels.to(run.ranks.device)

        def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
            return phase.objective(logits, targets).losses.mean()

        loss = check_gradients(model, clips, labels, mean_loss, phase.autocast)
        tensors = pluralize(phase.optimizers.num_tensors, "tensor")
        run.console.info(f"preflight passed: loss {loss:.3f}, a finite gradient in {tensors}")

    def checkpoint(self, phase: Phase) -> dict[str, Any]:
        """The content of a checkpoint that a run resumes from. Between two phases its optimizer state is None."""
        run, optimizers = self.run, phase.optimizers.state_dicts()
        if phase.ended:
            optimizers["optimizer"] = None
        return {
            "model": self._without_omitted(self.model.state_dict()),
            "weights": RAW,
            "ema": None if self.average is None else self._without_omitted(self.average.tensors),
            "heads": None if phase.settings.heads is None else phase.task.model.head.state_dict(),
            **optimizers,
            "sums": run.ranks.gather_objects({name: value.cpu() for name, value in phase.sums.tensors().items()}),
            "state": asdict(self.state),
        }

    def best_checkpoint(self, phase: Phase, selected: str, metrics: Mapping[str, float]) -> dict[str, Any]:
        """The content of best.pt. `selected` names the weights whose val report is the best: raw, ema or a head."""
        average = self.average if selected == EMA else None
        return {
            "model": self._without_omitted(self.model.state_dict() if average is None else average.tensors),
            "weights": RAW if average is None else EMA,
            "head": None if phase.settings.heads is None else selected,
            "state": asdict(self.state),
            "metrics": metrics,
        }

    def _without_omitted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` without those that checkpoints omit."""
        return {name: tensor for name, tensor in tensors.items() if name not in self.run.left_out}


def check_gradients(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager,
) -> float:
    """One forward and backward of `clips` float [b n c t h w]; returns the loss, and restores buffers and gradients.

    `loss_of` maps the model's output, clip logits [b n k], and the labels to the loss.

    Raises `UserError` naming the parameters whose gradient is absent or not finite, and if logits and labels do not
    match.
    """
    # The forward pass updates batch statistics: the buffers are restored at the end
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with autocast:
        loss = loss_of(model(clips), labels)
    loss.backward()
    unreached, broken = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                unreached.append(name)
            elif not torch.isfinite(parameter.grad).all():
                broken.append(name)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    if unreached:
        raise UserError(f"trainable parameters that the loss does not reach: {shown_some(unreached, MAX_NAMED)}")
    if broken:
        raise UserError(f"gradients that are not finite before the first step: {shown_some(broken, MAX_NAMED)}")
    return loss.item()


def seed_step(seed: int, step: int, ranks: Ranks) -> None:
    """Seeds the random generators of a step: the CPU's and this rank's GPU's. Seeding all GPUs would be slower."""
    number = int(np.random.SeedSequence([seed, step, ranks.rank]).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(number)
    if ranks.device.type == "cuda":
        torch.cuda.manual_seed(number)
