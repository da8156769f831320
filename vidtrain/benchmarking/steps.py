"""Where the time of training goes: the loop's own steps under a clock, the loader alone, and the model alone.

The steps are `vidtrain.training.loop.train_step` itself, without what a run does between them: the log, validation,
checkpoints.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.training.ema import WeightAverage
from vidtrain.training.guards import check_phases
from vidtrain.training.loop import train_step
from vidtrain.training.phases import Phase
from vidtrain.training.profiling import PARTS, StepClock
from vidtrain.training.ranks.distributed import autocast
from vidtrain.training.run import Run
from vidtrain.training.stages import prepare_batch_norm, set_train_mode
from vidtrain.training.state import TrainState

Advance = Callable[[int], None]


class PhaseSteps:
    """The optimizer steps of the phase `name` of `run`, one at a time, as the loop makes them.

    The evaluation and the checkpoints of `run` are not used. Raises `UserError` as the loop does for what cannot be
    trained.
    """

    def __init__(self, run: Run, name: str):
        settings = run.settings
        check_phases(run.model, run.phases, settings.epochs, run.steps_per_epoch)
        self.run = run
        self.model = prepare_batch_norm(run.model, settings.batch_norm, run.ranks)
        average = (
            None if settings.ema is None else WeightAverage(self.model, settings.ema, settings.ema_warmup)
        )
        self.phase = Phase.make(run, self.model, name, average)
        self.state = TrainState()
        self._compiled: torch.nn.Module | None = None

    @property
    def trained(self) -> torch.nn.Module:
        """What trains: the model, or heads on its encoder."""
        return self.phase.task.model

    @property
    def failed_reads(self) -> int:
        return int(self.phase.sums.faults)

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Within it steps run compiled."""
        plain = self.phase.forward
        if self._compiled is None:
            self._compiled = torch.compile(plain)
        self.phase.forward = self._compiled
        try:
            yield
        finally:
            self.phase.forward = plain

    @contextmanager
    def precise(self, precision: str) -> Iterator[None]:
        """Within it forward passes run in another precision."""
        before, self.phase.autocast = self.phase.autocast, autocast(self.run.ranks, precision)
        try:
            yield
        finally:
            self.phase.autocast = before

    def step(self, batches: Iterator, clock: StepClock) -> int:
        """One optimizer step on the next micro-batches; returns the clips that this rank saw."""
        self.phase.batches = batches
        # schedules end with the phase, and a measurement may take longer: its last step is repeated
        self.state.step = min(self.state.step, self.phase.total - 1)
        result = train_step(self.phase, self.state, clock)
        clock.end_step()
        return result.clips


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
    """Makes `warmup` steps, then times `count` more; `advance` gets the number of steps so far."""
    device = phase.run.ranks.device
    set_train_mode(phase.trained, phase.run.settings.batch_norm)
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
    """Steps on the same `batch`, for about `seconds`, 3 to `most` steps: as nothing is read, this is the rate of the
    model alone. All ranks make the same number of steps."""
    same = itertools.repeat(batch)
    trial = time_steps(phase, same, max(1, warmup), 1, advance)
    slowest = max(phase.run.ranks.gather_objects(trial.seconds))
    count = min(max(3, most), max(3, round(seconds / slowest)))
    return time_steps(phase, same, 0, count, advance)


def time_loader(
    batches: Iterator, workers: int, accumulation: int, seconds: float, advance: Advance
) -> Timed:
    """Takes batches as fast as they come, for about `seconds`, and at least two of each worker.

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
    """The rank that the others wait for, from the summary of each.

    Ranks wait for each other while gradients cross, in the backward pass: the slowest is the one that takes longest
    outside of it.
    """
    outside = [each["step"]["mean"] - each["backward"]["mean"] for each in by_rank]
    return int(np.argmax(outside))


def rate(by_rank: Sequence[tuple[int, float]]) -> float:
    """Clips per second of all ranks in step with the slowest, from (clips, seconds) of each."""
    return len(by_rank) * min(clips / seconds for clips, seconds in by_rank)


def nbytes(batch: object) -> int:
    """The number of bytes of a batch that are copied to the device."""
    return sum(field.nbytes for field in batch if isinstance(field, Tensor))
