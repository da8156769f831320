"""Measures a run: its training steps with their parts, the loader alone, the model alone, and the free processor cores.

A step is `vidtrain.training.loop.train_step` itself, without the log, validation and checkpoints that a run has between
its steps. All ranks measure at the same time, as they share cores and disks in training.
"""

import copy
import itertools
import multiprocessing
import statistics
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
from vidtrain.config.references import to_phases
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.dataset import Batch, StoreUse
from vidtrain.data.loading.loaders import PREFETCH
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError, pluralize
from vidtrain.evaluation.views import view_table
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.masked_models import MaskedModel
from vidtrain.models.masks import WithMasks
from vidtrain.runs.assemble import Record, RunData, assemble, make_parts
from vidtrain.tracking.run_log import NullRunLog
from vidtrain.training.distributed import Ranks, autocast
from vidtrain.training.loop import train_step
from vidtrain.training.phases import Phase, TrainState
from vidtrain.training.profiling import PARTS, StepClock
from vidtrain.training.run import Console, Run
from vidtrain.training.stages import check_phases, prepare_batch_norm, set_train_mode
from vidtrain.training.validation import kept_average

Advance = Callable[[int], object]  # takes the number of steps, or batches, so far
Batches = Iterator[Batch]
ENDLESS = 2**40  # number of steps of a loader that never ends
ALONE_SECONDS = 1.5  # duration of each measurement of the loader alone or the model alone
READINGS = 3  # number of readings of the sources and of the copies, taking turns


def changed(cfg: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """A copy of `cfg` with `settings`."""
    copy_of_cfg = cfg.copy()
    for key, value in settings.items():
        OmegaConf.update(copy_of_cfg, key, value, force_add=True)
    return copy_of_cfg


@dataclass(frozen=True)
class Timed:
    """Timings of this rank: the seconds of each part of each step, the number of clips, the total wall time, and what
    each batch of the loader took of stores."""

    parts: list[dict[str, float]]
    clips: int
    seconds: float
    stores: tuple[StoreUse, ...] = ()

    def __add__(self, other: "Timed") -> "Timed":
        return Timed(
            self.parts + other.parts, self.clips + other.clips, self.seconds + other.seconds, self.stores + other.stores
        )


class PhaseSteps:
    """Makes optimizer steps of the phase `name` of `run`, one at a time, just as the loop does.

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
        self.trained = self.phase.task.model  # the run's model, or heads on its encoder
        self.state = TrainState()

    def variant(self, **parts: Any) -> Self:
        """The same steps with another `forward` or `autocast`, on the same weights."""
        variant = copy.copy(self)
        variant.phase = replace(self.phase, **parts)
        return variant

    def step(self, batches: Batches, clock: StepClock) -> int:
        """Makes one optimizer step on the next micro-batches; returns the number of clips of this rank."""
        self.phase.batches = batches
        # Schedules end with the phase; if the measurement is longer, it repeats the phase's last step
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


def time_compute(phase: PhaseSteps, batch: Batch, warmup: int, seconds: float, most: int, advance: Advance) -> Timed:
    """Times the model alone: 3 to `most` steps on the same `batch`, in about `seconds`, so that nothing is read. All
    ranks make the same number of steps."""
    same = itertools.repeat(batch)
    trial = time_steps(phase, same, max(1, warmup), 1, advance)
    slowest = max(phase.run.ranks.gather_objects(trial.seconds))
    return time_steps(phase, same, 0, max(3, min(most, round(seconds / slowest))), advance)


def time_loader(batches: Batches, workers: int, accumulation: int, seconds: float, advance: Advance) -> Timed:
    """Times the loader alone: takes batches as fast as they come, for about `seconds`, at least two of each worker.

    The first batch of each worker is not counted: workers start together, so their first batches arrive together. When
    this returns, all batches that were read ahead are taken. It takes all micro-batches of the last step, too.
    """
    rounds = whole(max(1, workers), accumulation)
    for _ in range(rounds):
        next(batches)
    clips, taken, started = 0, 0, time.perf_counter()
    stores: list[StoreUse] = []
    while taken < 2 * rounds or taken % rounds or time.perf_counter() - started < seconds:
        batch = next(batches)
        if batch.refusal:
            raise UserError(batch.refusal)
        clips += batch.clips.shape[0] * batch.clips.shape[1]
        stores.append(batch.store)
        taken += 1
        advance(taken)
    return Timed([], clips, time.perf_counter() - started, tuple(stores))


def whole(count: int, multiple: int) -> int:
    """`count`, rounded up to a multiple of `multiple`."""
    return -(-count // multiple) * multiple


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def doubled(batch: Batch) -> Batch:
    """A batch with all samples of `batch` twice."""

    def twice(values: Tensor) -> Tensor:
        both = torch.cat([values, values])
        return both.pin_memory() if values.is_pinned() else both

    clips, labels, indices, seeds = (
        twice(values) for values in (batch.clips, batch.labels, batch.indices, batch.seeds)
    )
    return batch._replace(clips=clips, labels=labels, indices=indices, seeds=seeds)


# --- numbers ----------------------------------------------------------------------------------------------


def summarize(steps: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean, median and quartiles, over `steps`, of the seconds of every part and of the whole `step`; `share` is a
    part's mean divided by that of the step."""
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
    """The rank that the others wait for, from the summary of each rank.

    Ranks wait for each other in the backward pass, where gradients are averaged. So the slowest rank is the one with
    the most time outside of it.
    """
    return int(np.argmax([parts["step"]["mean"] - parts["backward"]["mean"] for parts in by_rank]))


def rate(by_rank: Sequence[tuple[int, float]]) -> float:
    """Clips per second of all ranks together, if all are as slow as the slowest, from (clips, seconds) of each."""
    return len(by_rank) * min(clips / seconds for clips, seconds in by_rank)


def store_use(by_rank: Sequence[Timed]) -> dict[str, float] | None:
    """The `share` of their time that loaders wait for a store of videos, with requests and MB a clip; None where no
    video lies in one."""
    uses = [use for timed in by_rank for use in timed.stores]
    clips = sum(timed.clips for timed in by_rank)
    requests = sum(use.requests for use in uses)
    if not requests:
        return None
    return {
        "share": sum(use.waited for use in uses) / sum(use.seconds for use in uses),
        "requests_per_clip": requests / clips,
        "mb_per_clip": sum(use.bytes for use in uses) / clips / 1e6,
    }


def count_free_cores(processes: int, seconds: float = 0.4, rounds: int = 3) -> float:
    """How many times as much work `processes` busy processes do at once as one alone: the median of `rounds`.

    It is their number if each has a core to itself, and less if other programs use the machine, or if hardware threads
    share a core.
    """
    if processes == 1:
        return 1.0
    with multiprocessing.get_context("fork").Pool(processes) as pool:  # forking takes only milliseconds
        ratios = []
        for _ in range(rounds):
            alone = pool.apply(_sums_within, (seconds,))
            ratios.append(sum(pool.map(_sums_within, [seconds] * processes, chunksize=1)) / alone)
    return min(float(processes), max(1.0, statistics.median(ratios)))


def _sums_within(seconds: float) -> int:
    """How many times a small sum is computed within `seconds`."""
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(2000))
        done += 1
    return done


# --- a run and its variants -------------------------------------------------------------------------------


def open_phase(cfg: DictConfig, data: RunData, ranks: Ranks, console: Console) -> PhaseSteps:
    """The phase to measure, made of the same parts as in training."""
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    model = build.trained_model(cfg, len(data.classes), ranks)
    if isinstance(model, VideoClassifier):
        build.start_adapters(model, to_phases(cfg.stage), build.StartingPoint("from scratch"), cfg.seed, ranks, console)
    record = Record(log=NullRunLog(), console=console)
    run = assemble(cfg, data, make_parts(cfg, data, ranks, console), model, None, ranks, record)
    return PhaseSteps(run, cfg.phase or next(iter(cfg.stage)))


class Meter:
    """Measures a run and variants of it, on all ranks at once, as they share cores and disks in training."""

    def __init__(self, cfg: DictConfig, data: RunData, ranks: Ranks, console: Console):
        self.cfg = cfg
        self.data = data
        self.ranks = ranks
        self.console = console
        self.workers = build.num_workers(cfg.trainer.num_workers, ranks)

    @contextmanager
    def batches(self, workers: int) -> Iterator[Batches]:
        """A context with the micro-batches of training, read by `workers` processes, which end with it."""
        cfg = changed(self.cfg, {"trainer.num_workers": workers})
        make, _ = build_data.train_batches(cfg, self.data.train, self.data.reading, self.ranks)

        def endless() -> Generator[Batch, None, None]:
            yield from make(0, ENDLESS)

        with closing(endless()) as batches:  # closing it ends the workers
            yield batches

    def loader(self, workers: int, batches: Batches) -> Timed:
        """Times the loader alone, on `batches` of `workers` processes."""
        with self._shown(f"loader alone, {pluralize(workers, 'worker')}", 2 * max(1, workers)) as advance:
            return time_loader(batches, workers, self.cfg.trainer.accumulation, ALONE_SECONDS, advance)

    def new_loader(self, workers: int) -> Timed:
        """Times the loader alone, with newly started workers."""
        with self.batches(workers) as batches:
            return self.loader(workers, batches)

    def compute(self, phase: PhaseSteps, batch: Batch, what: str = "") -> Timed:
        """Times the model alone, on one batch."""
        cfg = self.cfg
        with self._shown(f"model alone{what}", cfg.steps) as advance:
            return time_compute(phase, batch, cfg.warmup, ALONE_SECONDS, cfg.steps, advance)

    def steps(self, phase: PhaseSteps, batches: Batches, count: int) -> Timed:
        with self._shown("training steps", self.cfg.warmup + count) as advance:
            return time_steps(phase, batches, self.cfg.warmup, count, advance)

    def gain(self, base: Callable[[], Timed], other: Callable[[], Timed]) -> float:
        """How many times as fast `other` is as `base`. They take turns twice, as the machine may be busy at times."""
        first, second = (base(), other()), (base(), other())
        return self.rate(first[1] + second[1]) / self.rate(first[0] + second[0])

    def run(self) -> float:
        """Clips per second of training steps of a new run with these settings."""
        phase = open_phase(self.cfg, self.data, self.ranks, self.console)
        with self.batches(self.workers) as batches:
            with self._shown("warming up", self.cfg.warmup) as advance:
                time_compute(phase, next(batches), self.cfg.warmup, 0, 1, advance)
            # Drop the batches that were read ahead: they would make the first steps seem faster than the others
            for _ in range(whole(PREFETCH * self.workers, self.cfg.trainer.accumulation)):
                next(batches)
            return self.rate(self.steps(phase, batches, self.cfg.steps))

    def evaluation(self, phase: PhaseSteps) -> float:
        """Videos per second of an evaluation on val, over all ranks, including the start of the workers."""
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
                from vidtrain.runs.pretraining import LossAndFeatures  # which needs scikit-learn

                model, transform = LossAndFeatures(model), WithMasks(transform, model)
            view_table(model, some(), transform, len(val.manifest), ranks.device, context, val.crops)
            seconds = time.perf_counter() - started
        return sum(ranks.gather_objects(seen)) / max(ranks.gather_objects(seconds))

    def rate(self, timed: Timed) -> float:
        return rate(self.ranks.gather_objects((timed.clips, timed.seconds)))

    @contextmanager
    def _shown(self, title: str, total: int) -> Iterator[Advance]:
        """A context that begins on all ranks at the same time, and shows the progress."""
        self.ranks.barrier()
        with self.console.phase(title, total):
            yield lambda done: self.console.advance(done, {}) if done <= total else None


def reading_gain(cfg: DictConfig, sources: Manifest, copies: Manifest, console: Console) -> float:
    """How many times as fast the clips of `copies` are read as those of `sources`, by medians of alternate readings."""
    alone = {"trainer.num_workers": 0, "trainer.batch_size": len(sources), "trainer.accumulation": 1}
    reading = build_data.Reading(VideoIndex(None, cfg.data.max_pixels, cfg.clip.sample_aspect), None)
    this_process = Ranks(torch.device("cpu"))
    streams = []
    for manifest in (sources, copies):
        make, _ = build_data.train_batches(changed(cfg, alone), manifest, reading, this_process)
        streams.append(iter(make(0, READINGS + 1)))
    seconds: tuple[list[float], list[float]] = ([], [])
    with console.phase("reading them", READINGS):
        for number in range(READINGS + 1):
            for stream, times in zip(streams, seconds, strict=True):
                started = time.perf_counter()
                next(stream)
                times.append(time.perf_counter() - started)
            console.advance(number, {})
    # The first reading is left out, as it also indexes the files
    before, after = (statistics.median(times[1:]) for times in seconds)
    return before / after
