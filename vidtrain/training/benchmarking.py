"""Where the time of training goes: the loop's own steps under a clock, the loader without them, and they without it.

`PhaseSteps` makes the steps that `vidtrain.training.loop.fit` makes, of the same parts and in the same order, and so
moves the weights by the same bits. It leaves out what a run does between steps: the log, validation, checkpoints.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from vidtrain.errors import UserError
from vidtrain.evaluation.fusion import fuse
from vidtrain.training.batch_norm import freeze_batch_norm, prepare_batch_norm
from vidtrain.training.clock import PARTS, StepClock
from vidtrain.training.ema import WeightAverage
from vidtrain.training.learning import make_updates, set_all_rates
from vidtrain.training.optim import clip_gradients
from vidtrain.training.precision import autocast
from vidtrain.training.refusals import check_phases
from vidtrain.training.run import Run
from vidtrain.training.schedules import steps
from vidtrain.training.seeding import seed_step
from vidtrain.training.stages import apply_phase, set_train_mode
from vidtrain.training.state import EpochSums

Advance = Callable[[int], None]


class PhaseSteps:
    """The optimizer steps of the phase `name` of `run`, one at a time, as the loop makes them.

    Of `run` the log, the evaluation and the checkpoints are not used. Raises `UserError` as the loop does for what
    cannot be trained.
    """

    def __init__(self, run: Run, name: str):
        settings, ranks = run.settings, run.ranks
        check_phases(run.model, run.phases, settings.epochs, run.steps_per_epoch)
        phase = run.phases[name]
        self.run = run
        self.context = autocast(ranks, settings.precision)
        self.model = prepare_batch_norm(run.model, settings.batch_norm, ranks)
        self.done = 0
        self.faults = 0
        self._average = (
            None if settings.ema is None else WeightAverage(self.model, settings.ema, settings.ema_warmup)
        )
        self.total = steps(phase.duration, settings.epochs * run.steps_per_epoch, run.steps_per_epoch)
        apply_phase(self.model, phase)
        freeze_batch_norm(self.model, settings.batch_norm)
        self._learning = run.learning(self.model, phase)
        self.learner = self._learning.learner
        self._updates = make_updates(
            run.optimizer, self.learner, phase, ranks.device.type, settings.precision
        )
        self._lr = run.lr.in_steps(self.total, run.steps_per_epoch)
        self._weight_decay = run.weight_decay.in_steps(self.total, run.steps_per_epoch)
        self._sums = EpochSums.zeros(self.model.num_classes, run.multi_label, ranks.device)
        self._compiled = None
        self._wrapped = self.learner
        if ranks.world_size > 1:
            where = [ranks.device.index] if ranks.device.type == "cuda" else None
            self._wrapped = DistributedDataParallel(self.learner, where)
        if settings.compile:
            self._wrapped = torch.compile(self._wrapped)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Within it steps run compiled."""
        plain = self._wrapped
        if self._compiled is None:
            self._compiled = torch.compile(plain)
        self._wrapped = self._compiled
        try:
            yield
        finally:
            self._wrapped = plain

    @contextmanager
    def precise(self, precision: str) -> Iterator[None]:
        """Within it forward passes run in another precision."""
        before, self.context = self.context, autocast(self.run.ranks, precision)
        try:
            yield
        finally:
            self.context = before

    def judge(self, clip_logits: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The fused logits and the loss of each head."""
        run, every = self.run, clip_logits.split(self.model.num_classes, dim=-1)
        logits = [fuse(each, self.model.fusion, run.loss.independent) for each in every]
        return [(each, run.loss(each, targets, run.class_weights)) for each in logits]

    def step(self, batches: Iterator, clock: StepClock) -> int:
        """One optimizer step on the next micro-batches; returns the clips that this rank saw."""
        run, settings, ranks, learning = self.run, self.run.settings, self.run.ranks, self._learning
        device, clips_seen, step = ranks.device, 0, min(self.done + 1, self.total)
        seed_step(run.seed, self.done, ranks)
        set_all_rates(self._updates, self._lr, self._weight_decay, step, self.total)
        for micro in range(settings.accumulation):
            batch = next(batches)
            clock.mark("load")
            if batch.refusal:
                raise UserError(batch.refusal)
            self.faults += len(batch.faults)
            clips = batch.clips.to(device, non_blocking=True)
            labels = batch.labels.to(device, non_blocking=True)
            clock.mark("transfer")
            clips = learning.transform(clips, batch.seeds)
            clips, targets = learning.mix(clips, labels, (run.seed, self.done, micro, ranks.rank))
            clock.mark("augment")
            sync = ranks.world_size == 1 or micro == settings.accumulation - 1
            with nullcontext() if sync else self._wrapped.no_sync():
                with self.context:
                    judged = self.judge(self._wrapped(clips), targets)
                clock.mark("forward")
                scaled = [
                    each.scaler.scale(loss / settings.accumulation)
                    for each, (_, loss) in zip(self._updates, judged, strict=True)
                ]
                sum(scaled).backward()
            torch.stack([loss.detach() for _, loss in judged]).tolist()
            for logits, loss in judged:
                self._sums.add(loss.detach(), logits.detach(), labels)
            clips_seen += batch.clips.shape[0] * batch.clips.shape[1]
            clock.mark("backward")
        norms = []
        for parameters, optimizer, scaler in self._updates:
            scaler.unscale_(optimizer)
            norms.append(clip_gradients(parameters, settings.clip_grad, settings.clip_grad_by))
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        torch.stack(norms).tolist()
        self.done += 1
        if self._average is not None:
            self._average.update(self.done)
        clock.mark("optimizer")
        clock.end_step()
        return clips_seen


@dataclass(frozen=True)
class Timed:
    """Steps that were timed on this rank: seconds of their parts, the clips they saw, the wall time of all, and the
    processor time of this process without its workers."""

    parts: list[dict[str, float]]
    clips: int
    seconds: float
    cpu_seconds: float

    def __add__(self, other: "Timed") -> "Timed":
        return Timed(
            self.parts + other.parts,
            self.clips + other.clips,
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
        )


def time_steps(phase: PhaseSteps, batches: Iterator, warmup: int, count: int, advance: Advance) -> Timed:
    """Makes `warmup` steps, then times `count` more; `advance` is told how many steps are made."""
    device = phase.run.ranks.device
    set_train_mode(phase.learner, phase.run.settings.batch_norm)
    unused = StepClock(device)
    for number in range(warmup):
        phase.step(batches, unused)
        advance(number + 1)
    _synchronize(device)
    clock, clips, started, cpu = StepClock(device), 0, time.perf_counter(), time.process_time()
    clock.begin()
    for number in range(count):
        clips += phase.step(batches, clock)
        advance(warmup + number + 1)
    _synchronize(device)
    return Timed(clock.seconds(), clips, time.perf_counter() - started, time.process_time() - cpu)


def time_compute(phase: PhaseSteps, batch, warmup: int, seconds: float, most: int, advance: Advance) -> Timed:
    """Steps on the same `batch` again and again, for about so many `seconds`, 3 to `most` steps: as nothing is read,
    it is the rate that the model could take. All ranks make as many."""
    same = itertools.repeat(batch)
    trial = time_steps(phase, same, max(1, warmup), 1, advance)
    slowest = max(phase.run.ranks.gather(trial.seconds))
    count = min(max(3, most), max(3, round(seconds / slowest)))
    return time_steps(phase, same, 0, count, advance)


def time_loader(
    batches: Iterator, workers: int, accumulation: int, seconds: float, advance: Advance
) -> Timed:
    """Takes batches as fast as they come, for about so many `seconds`, and at least two of each worker.

    The first of each worker is not counted: workers begin together, so theirs come together. What is left is a
    steady stream, and nothing is read ahead when this returns. It takes whole steps.
    """
    rounds = whole(max(1, workers), accumulation)
    for _ in range(rounds):
        next(batches)
    clips, taken, started, cpu = 0, 0, time.perf_counter(), time.process_time()
    while True:
        batch = next(batches)
        if batch.refusal:
            raise UserError(batch.refusal)
        clips += batch.clips.shape[0] * batch.clips.shape[1]
        taken += 1
        advance(taken)
        if taken % rounds == 0 and taken >= 2 * rounds and time.perf_counter() - started >= seconds:
            return Timed([], clips, time.perf_counter() - started, time.process_time() - cpu)


def whole(count: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `count`."""
    return -(-count // multiple) * multiple


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- numbers ----------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> dict[str, float]:
    """Mean, median and quartiles."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"mean": float(np.mean(values)), "median": float(median), "p25": float(low), "p75": float(high)}


def summarize(timed: Timed) -> dict[str, dict[str, float]]:
    """Seconds of every part and of the whole `step`, and their `share` of it (by means)."""
    whole = [sum(parts.values()) for parts in timed.parts]
    found = {part: spread([parts[part] for parts in timed.parts]) for part in PARTS}
    found["step"] = spread(whole)
    mean = found["step"]["mean"]
    return {name: {**values, "share": values["mean"] / mean} for name, values in found.items()}


def slowest_rank(by_rank: Sequence[Mapping[str, Mapping[str, float]]]) -> int:
    """The rank that the others wait for, of what `summarize` says of each.

    Ranks wait for each other while gradients cross, in the backward pass: the slowest is the one that takes longest
    outside of it.
    """
    outside = [each["step"]["mean"] - each["backward"]["mean"] for each in by_rank]
    return int(np.argmax(outside))


def rate(by_rank: Sequence[tuple[int, float]]) -> float:
    """Clips per second of all ranks in step with the slowest, from (clips, seconds) of each."""
    return len(by_rank) * min(clips / seconds for clips, seconds in by_rank)


def nbytes(batch: object) -> int:
    """What is copied to the device of a batch."""
    return sum(field.nbytes for field in batch if isinstance(field, Tensor))
