"""Measures a run: the loop's own steps under a clock, the loader without them, and they without it.

The steps are `vidtrain.training.loop.train_step` itself, without what a run does between them: the log, validation,
checkpoints. All ranks measure together, as they share cores and disks in training.
"""

import copy
import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.build.adapters import start_adapters
from vidtrain.config.references import to_phases
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.loading.loaders import PREFETCH
from vidtrain.errors import UserError
from vidtrain.evaluation.views import view_table
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.pretraining.masked_model import MaskedModel
from vidtrain.runs.assemble import Record, RunData, assemble, make_parts
from vidtrain.tracking.run_log import NullRunLog
from vidtrain.training.loop import train_step
from vidtrain.training.masked_prediction import LossAndFeatures, WithMasks
from vidtrain.training.phases import Phase
from vidtrain.training.profiling import PARTS, StepClock, peak_memory, reset_peak
from vidtrain.training.ranks.distributed import Ranks, autocast
from vidtrain.training.run import Console, Run
from vidtrain.training.stages import check_phases, prepare_batch_norm, set_train_mode
from vidtrain.training.state import TrainState
from vidtrain.training.validation import kept_average

Advance = Callable[[int], object]  # takes the number of steps, or batches, so far
Batches = Iterator[Batch]
ENDLESS = 2**40  # steps: more than anybody makes
ALONE_SECONDS = 1.5  # that the loader, or the model, is measured for without the other, each time


def changed(cfg: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """`cfg` with other values."""
    other = cfg.copy()
    for key, value in settings.items():
        OmegaConf.update(other, key, value, force_add=True)
    return other


@dataclass(frozen=True)
class Timed:
    """What was timed on this rank: seconds of the parts of each step, the clips it saw, and the wall time of all."""

    parts: list[dict[str, float]]
    clips: int
    seconds: float

    def __add__(self, other: "Timed") -> "Timed":
        return Timed(self.parts + other.parts, self.clips + other.clips, self.seconds + other.seconds)


class PhaseSteps:
    """The optimizer steps of the phase `name` of `run`, one at a time, as the loop makes them.

    The evaluation and the checkpoints of `run` are not used. Raises `UserError` as the loop does for what cannot be
    trained.
    """

    def __init__(self, run: Run, name: str):
        settings = run.settings
        check_phases(run.model, run.phases, settings.epochs, run.steps_per_epoch)
        self.run, self.name = run, name
        self.model = prepare_batch_norm(run.model, settings.batch_norm, run.ranks)
        average = kept_average(self.model, settings, run.phases)
        self.phase = Phase.make(run, self.model, name, average)
        self.trained = self.phase.task.model  # the model, or heads on its encoder
        self.state = TrainState()

    def variant(self, **parts: Any) -> Self:
        """The same steps with another `forward` or `autocast`, on the same weights."""
        other = copy.copy(self)
        other.phase = replace(self.phase, **parts)
        return other

    def step(self, batches: Batches, clock: StepClock) -> int:
        """One optimizer step on the next micro-batches; returns the clips that this rank saw."""
        self.phase.batches = batches
        # schedules end with the phase, and a measurement may take longer: its last step is repeated
        self.state.step = min(self.state.step, self.phase.total - 1)
        result = train_step(self.phase, self.state, clock)
        clock.end_step()
        return result.clips


def time_steps(phase: PhaseSteps, batches: Batches, warmup: int, count: int, advance: Advance) -> Timed:
    """Makes `warmup` steps, then times `count` more."""
    device = phase.run.ranks.device
    set_train_mode(phase.trained, phase.run.settings.batch_norm)
    unused = StepClock(device)
    for number in range(warmup):
        phase.step(batches, unused)
        advance(number + 1)
    _synchronize(device)
    clock, clips, started = StepClock(device), 0, time.perf_counter()
    clock.begin()
    for number in range(count):
        clips += phase.step(batches, clock)
        advance(warmup + number + 1)
    _synchronize(device)
    return Timed(clock.seconds(), clips, time.perf_counter() - started)


def time_compute(
    phase: PhaseSteps, batch: Batch, warmup: int, seconds: float, most: int, advance: Advance
) -> Timed:
    """Steps on the same `batch`, for about `seconds`, 3 to `most` steps: as nothing is read, this is the rate of the
    model alone. All ranks make the same number of steps."""
    same = itertools.repeat(batch)
    trial = time_steps(phase, same, max(1, warmup), 1, advance)
    slowest = max(phase.run.ranks.gather_objects(trial.seconds))
    return time_steps(phase, same, 0, max(3, min(most, round(seconds / slowest))), advance)


def time_loader(batches: Batches, workers: int, accumulation: int, seconds: float, advance: Advance) -> Timed:
    """Takes batches as fast as they come, for about `seconds`, and at least two of each worker.

    The first of each worker is not counted: workers begin together, so theirs come together. What is left is a
    steady stream, and nothing is read ahead when this returns. It takes whole steps.
    """
    rounds = whole(max(1, workers), accumulation)
    for _ in range(rounds):
        next(batches)
    clips, taken, started = 0, 0, time.perf_counter()
    while taken < 2 * rounds or taken % rounds or time.perf_counter() - started < seconds:
        batch = next(batches)
        if batch.refusal:
            raise UserError(batch.refusal)
        clips += batch.clips.shape[0] * batch.clips.shape[1]
        taken += 1
        advance(taken)
    return Timed([], clips, time.perf_counter() - started)


def whole(count: int, multiple: int) -> int:
    """The least multiple of `multiple` that is not below `count`."""
    return -(-count // multiple) * multiple


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- numbers ----------------------------------------------------------------------------------------------


def summarize(steps: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, median and quartiles of the seconds of every part and of the whole `step`, from those of each step; and
    their `share` of it (by means)."""
    seconds = {part: [step[part] for step in steps] for part in PARTS}
    seconds["step"] = [sum(step.values()) for step in steps]
    whole_step = float(np.mean(seconds["step"]))
    summary = {}
    for name, values in seconds.items():
        mean = float(np.mean(values))
        low, median, high = map(float, np.percentile(values, (25, 50, 75)))
        summary[name] = {"mean": mean, "median": median, "p25": low, "p75": high, "share": mean / whole_step}
    return summary


def slowest_rank(by_rank: Sequence[Mapping[str, Mapping[str, float]]]) -> int:
    """The rank that the others wait for, from the summary of each.

    Ranks wait for each other while gradients cross, in the backward pass: the slowest is the one that takes longest
    outside of it.
    """
    return int(np.argmax([parts["step"]["mean"] - parts["backward"]["mean"] for parts in by_rank]))


def rate(by_rank: Sequence[tuple[int, float]]) -> float:
    """Clips per second of all ranks in step with the slowest, from (clips, seconds) of each."""
    return len(by_rank) * min(clips / seconds for clips, seconds in by_rank)


# --- a run and its variants -------------------------------------------------------------------------------


def open_phase(cfg: DictConfig, data: RunData, ranks: Ranks, console: Console) -> PhaseSteps:
    """The phase to measure, of the parts that training would assemble."""
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    model = build.trained_model(cfg, len(data.classes), ranks)
    if isinstance(model, VideoClassifier):
        start_adapters(
            model, to_phases(cfg.stage), build.StartingPoint("from scratch"), cfg.seed, ranks, console
        )
    record = Record(log=NullRunLog(), console=console)
    run = assemble(cfg, data, make_parts(cfg, data, ranks, console), model, None, ranks, record)
    return PhaseSteps(run, cfg.phase or next(iter(cfg.stage)))


class Meter:
    """Measures variants of a run by all ranks at once, which share cores and disks as they would in training."""

    def __init__(self, cfg: DictConfig, data: RunData, ranks: Ranks, console: Console):
        self.cfg = cfg
        self.data = data
        self.ranks = ranks
        self.console = console
        self.workers = build.num_workers(cfg.trainer.num_workers, ranks)

    @contextmanager
    def batches(self, workers: int) -> Iterator[Batches]:
        """Micro-batches of training, read by `workers` processes, which end with the context."""
        cfg = changed(self.cfg, {"trainer.num_workers": workers})
        make, _ = build_data.train_batches(cfg, self.data.train, self.data.reading, self.ranks)

        def endless() -> Generator[Batch, None, None]:
            yield from make(0, ENDLESS)

        with closing(endless()) as batches:  # closing it ends the workers
            yield batches

    def loader(self, workers: int, batches: Batches) -> Timed:
        """The loader alone."""
        with self._shown(
            f"loader alone, {build.pluralize(workers, 'worker')}", 2 * max(1, workers)
        ) as advance:
            return time_loader(batches, workers, self.cfg.trainer.accumulation, ALONE_SECONDS, advance)

    def new_loader(self, workers: int) -> Timed:
        """The same, of workers that are started for it."""
        with self.batches(workers) as batches:
            return self.loader(workers, batches)

    def compute(self, phase: PhaseSteps, batch: Batch, what: str = "") -> Timed:
        """The model alone."""
        cfg = self.cfg
        with self._shown(f"model alone{what}", cfg.steps) as advance:
            return time_compute(phase, batch, cfg.warmup, ALONE_SECONDS, cfg.steps, advance)

    def steps(self, phase: PhaseSteps, batches: Batches, count: int) -> Timed:
        with self._shown("training steps", self.cfg.warmup + count) as advance:
            return time_steps(phase, batches, self.cfg.warmup, count, advance)

    def gain(self, base: Callable[[], Timed], other: Callable[[], Timed]) -> float:
        """How many times as fast `other` is as `base`; in turn, as the machine may be busy in between."""
        first, second = (base(), other()), (base(), other())
        return self.rate(first[1] + second[1]) / self.rate(first[0] + second[0])

    def run(self) -> float:
        """Clips per second of a run of these settings from its beginning."""
        phase = open_phase(self.cfg, self.data, self.ranks, self.console)
        with self.batches(self.workers) as batches:
            with self._shown("warming up", self.cfg.warmup) as advance:
                time_compute(phase, next(batches), self.cfg.warmup, 0, 1, advance)
            # what was read ahead meanwhile would make the first steps seem faster than the rest
            for _ in range(whole(PREFETCH * self.workers, self.cfg.trainer.accumulation)):
                next(batches)
            return self.rate(self.steps(phase, batches, self.cfg.steps))

    def evaluation(self, phase: PhaseSteps) -> float:
        """Videos of the val split per second, of all ranks, workers' start included."""
        cfg, ranks = self.cfg, self.ranks
        val = build_data.eval_data(cfg, "val", self.data.splits["val"], self.data.reading, ranks)
        most, seen = min(len(val.loader), 4 * max(1, self.workers)), 0
        context = autocast(ranks, cfg.trainer.precision)
        transform: nn.Module = build.device_transform(cfg, ranks.device)
        with self._shown("validation", most) as advance:

            def some() -> Batches:
                nonlocal seen
                for number, batch in enumerate(itertools.islice(val.loader, most), start=1):
                    seen += len(batch.indices)
                    yield batch
                    advance(number)

            started = time.perf_counter()
            model: Any = phase.trained
            if isinstance(model, MaskedModel):
                model, transform = LossAndFeatures(model), WithMasks(transform, model)
            view_table(model, some(), transform, len(val.manifest), ranks.device, context, val.crops)
            seconds = time.perf_counter() - started
        return sum(ranks.gather_objects(seen)) / max(ranks.gather_objects(seconds))

    def rate(self, timed: Timed) -> float:
        return rate(self.ranks.gather_objects((timed.clips, timed.seconds)))

    @contextmanager
    def _shown(self, what: str, total: int) -> Iterator[Advance]:
        """All ranks begin together, and the progress is shown."""
        self.ranks.barrier()
        with self.console.phase(what, total):
            yield lambda done: self.console.advance(done, {}) if done <= total else None


def measure(meter: Meter, phase: PhaseSteps) -> tuple[dict[str, Any], Batch]:
    """The run as it is set: the model alone, the loader alone, and both together, in turn; and the batch that the model
    alone was measured with. Times are those of the slowest rank."""
    cfg, ranks = meter.cfg, meter.ranks
    with meter.batches(meter.workers) as batches:
        batch = next(batches)
    nothing = Timed([], 0, 0.0)
    compute, loader, timed = nothing, nothing, nothing
    reset_peak(ranks.device)
    for count in (cfg.steps // 2, cfg.steps - cfg.steps // 2):
        # the model while no worker reads ahead beside it; the loader takes all that was read, so that steps begin
        # with nothing in store
        compute += meter.compute(phase, batch)
        with meter.batches(meter.workers) as batches:
            loader += meter.loader(meter.workers, batches)
            timed += meter.steps(phase, batches, count)
            memory = ranks.gather_objects(peak_memory(ranks.device))
    by_rank = ranks.gather_objects(summarize(timed.parts))
    slowest = slowest_rank(by_rank)
    seconds = max(ranks.gather_objects(timed.seconds)) / cfg.steps
    copied = sum(value.nbytes for value in batch if isinstance(value, Tensor)) * cfg.trainer.accumulation
    on_gpu = ranks.device.type == "cuda"
    return {
        "slowest_rank": slowest,
        "parts": by_rank[slowest],
        "by_rank": by_rank,
        "seconds_per_step": seconds,
        "steps_per_s": 1 / seconds,
        "clips_per_s": meter.rate(timed),
        "clips_per_step": sum(ranks.gather_objects(timed.clips)) / cfg.steps,
        "alone": {
            "compute": meter.rate(compute),
            "loader": meter.rate(loader),
            "transfer_bytes_per_s": copied / by_rank[slowest]["transfer"]["mean"] if on_gpu else None,
        },
        "faults": sum(ranks.gather_objects(int(phase.phase.sums.faults))),
        "memory": memory,
        "evaluation_videos_per_s": meter.evaluation(phase),
    }, batch
