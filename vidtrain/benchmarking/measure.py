"""Measures a run: the loop's own steps under a clock, the loader without them, and they without it.

The steps are `vidtrain.training.loop.train_step` itself, without what a run does between them: the log, validation,
checkpoints. All ranks measure together, as they share cores and disks in training.
"""

import itertools
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.build.adapters import start_adapters
from vidtrain.config.schemas import to_phases
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.loading.loaders import PREFETCH
from vidtrain.errors import UserError
from vidtrain.evaluation.views import view_table
from vidtrain.runs.assemble import Record, RunData, assemble, make_parts
from vidtrain.tracking.run_log import NullRunLog
from vidtrain.training.loop import train_step
from vidtrain.training.phases import Phase
from vidtrain.training.profiling import PARTS, StepClock, peak_memory, reset_peak
from vidtrain.training.ranks.distributed import Ranks, autocast
from vidtrain.training.run import Console, Run
from vidtrain.training.stages import Classifier, check_phases, prepare_batch_norm, set_train_mode
from vidtrain.training.state import TrainState
from vidtrain.training.validation import WeightAverage

Advance = Callable[[int], None]
Batches = Iterator[Batch]
ENDLESS = 2**40  # steps: more than anybody makes
ALONE_SECONDS = 3.0  # that the loader, or the model, is measured for without the other


def changed(cfg: DictConfig, settings: Mapping[str, Any]) -> DictConfig:
    """`cfg` with other values."""
    copy = cfg.copy()
    for key, value in settings.items():
        OmegaConf.update(copy, key, value, force_add=True)
    return copy


def phase_name(cfg: DictConfig) -> str:
    return cfg.phase or next(iter(cfg.stage))


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
        average = None
        if settings.ema is not None:
            average = WeightAverage(self.model, settings.ema, settings.ema_warmup)
        self.phase = Phase.make(run, self.model, name, average)
        self.state = TrainState()

    @property
    def trained(self) -> Classifier:
        """What trains: the model, or heads on its encoder."""
        return self.phase.task.model

    @property
    def failed_reads(self) -> int:
        return int(self.phase.sums.faults)

    @contextmanager
    def using(self, **parts: Any) -> Iterator[None]:
        """Within it steps are made with another `forward` or `autocast`."""
        before = {name: getattr(self.phase, name) for name in parts}
        for name, value in parts.items():
            setattr(self.phase, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.phase, name, value)

    def step(self, batches: Batches, clock: StepClock) -> int:
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


def time_steps(phase: PhaseSteps, batches: Batches, warmup: int, count: int, advance: Advance) -> Timed:
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


def time_compute(
    phase: PhaseSteps, batch: Batch, warmup: int, seconds: float, most: int, advance: Advance
) -> Timed:
    """Steps on the same `batch`, for about `seconds`, 3 to `most` steps: as nothing is read, this is the rate of the
    model alone. All ranks make the same number of steps."""
    same = itertools.repeat(batch)
    trial = time_steps(phase, same, max(1, warmup), 1, advance)
    slowest = max(phase.run.ranks.gather_objects(trial.seconds))
    count = min(max(3, most), max(3, round(seconds / slowest)))
    return time_steps(phase, same, 0, count, advance)


def time_loader(batches: Batches, workers: int, accumulation: int, seconds: float, advance: Advance) -> Timed:
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


def nbytes(batch: Batch) -> int:
    """The number of bytes of a batch that are copied to the device."""
    return sum(value.nbytes for value in batch if isinstance(value, Tensor))


# --- a run and its variants -------------------------------------------------------------------------------


def open_phase(cfg: DictConfig, data: RunData, ranks: Ranks, console: Console) -> PhaseSteps:
    """The phase to measure, of the parts that training would assemble."""
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    model = build.model(cfg, len(data.classes), ranks)
    start_adapters(model, to_phases(cfg.stage), build.StartingPoint("from scratch"), cfg.seed, ranks, console)
    record = Record(log=NullRunLog(), console=console)
    run = assemble(cfg, data, make_parts(cfg, data, ranks, console), model, None, ranks, record)
    return PhaseSteps(run, phase_name(cfg))


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
        make, _ = build_data.train_batches(cfg, self.data.splits["train"], self.data.reading, self.ranks)

        def endless() -> Generator[Batch, None, None]:
            yield from make(0, ENDLESS)

        with closing(endless()) as batches:  # closing it ends the workers
            yield batches

    def loader_gain(self, workers: int) -> float:
        """How many times as fast the loader alone is with `workers` as with those of the run."""

        def time_with(count: int) -> Timed:
            with self.batches(count) as batches:
                return self.time_loader(count, batches, ALONE_SECONDS / 2)

        return self._gain(lambda: time_with(self.workers), lambda: time_with(workers))

    def compute_gain(
        self,
        phase: PhaseSteps,
        batch: Batch,
        what: str,
        variant: Callable[[], AbstractContextManager[object]],
        other: Batch | None = None,
    ) -> float:
        """How many times as much the model takes alone within `variant`, on the batch `other` if that is given."""

        def time_variant() -> Timed:
            with variant():
                return self.time_compute(phase, batch if other is None else other, ALONE_SECONDS / 2, what)

        return self._gain(lambda: self.time_compute(phase, batch, ALONE_SECONDS / 2), time_variant)

    def _gain(self, base: Callable[[], Timed], other: Callable[[], Timed]) -> float:
        """In turn, as the machine may be busy in between."""
        first, second = (base(), other()), (base(), other())
        return self.rate(first[1] + second[1]) / self.rate(first[0] + second[0])

    def time_loader(self, workers: int, batches: Batches, seconds: float) -> Timed:
        self.ranks.barrier()
        what = f"loader alone, {build.pluralize(workers, 'worker')}"
        with self._shown(what, 2 * max(1, workers)) as advance:
            return time_loader(batches, workers, self.cfg.trainer.accumulation, seconds, advance)

    def time_compute(self, phase: PhaseSteps, batch: Batch, seconds: float, what: str = "") -> Timed:
        self.ranks.barrier()
        with self._shown(f"model alone{what}", self.cfg.steps) as advance:
            return time_compute(phase, batch, self.cfg.warmup, seconds, self.cfg.steps, advance)

    def time_steps(self, phase: PhaseSteps, batches: Batches, count: int) -> Timed:
        self.ranks.barrier()
        with self._shown("training steps", self.cfg.warmup + count) as advance:
            return time_steps(phase, batches, self.cfg.warmup, count, advance)

    def run(self) -> float:
        """Clips per second of a run of these settings from its beginning."""
        phase = open_phase(self.cfg, self.data, self.ranks, self.console)
        with self.batches(self.workers) as batches:
            with self._shown("warming up", self.cfg.warmup) as advance:
                time_compute(phase, next(batches), self.cfg.warmup, 0, 1, advance)
            # what was read ahead meanwhile would make the first steps seem faster than the rest
            for _ in range(whole(PREFETCH * self.workers, self.cfg.trainer.accumulation)):
                next(batches)
            return self.rate(self.time_steps(phase, batches, self.cfg.steps))

    def evaluation(self, phase: PhaseSteps) -> float:
        """Videos of the val split per second, of all ranks, workers' start included."""
        cfg, ranks = self.cfg, self.ranks
        val = build_data.eval_data(cfg, "val", self.data.splits["val"], self.data.reading, ranks)
        most, seen = 4 * max(1, self.workers), 0

        def some() -> Batches:
            nonlocal seen
            for number, batch in enumerate(val.loader, start=1):
                seen += len(batch.indices)
                yield batch
                advance(number)
                if number == most:
                    return

        ranks.barrier()
        transform, context = build.device_transform(cfg, ranks.device), autocast(ranks, cfg.trainer.precision)
        with self._shown("validation", min(most, len(val.loader))) as advance:
            started = time.perf_counter()
            view_table(phase.trained, some(), transform, len(val.manifest), ranks.device, context, val.crops)
            seconds = time.perf_counter() - started
        return sum(ranks.gather_objects(seen)) / max(ranks.gather_objects(seconds))

    def rate(self, timed: Timed) -> float:
        return rate(self.ranks.gather_objects((timed.clips, timed.seconds)))

    @contextmanager
    def _shown(self, what: str, total: int) -> Iterator[Advance]:
        with self.console.phase(what, total):
            yield lambda done: self.console.advance(done, {}) if done <= total else None


def measure(meter: Meter, phase: PhaseSteps) -> tuple[dict[str, Any], Batch]:
    """The run as it is set: the model alone, the loader alone, and both together, in turn; and the batch that the model
    alone was measured with. Times are those of the slowest rank."""
    cfg, ranks = meter.cfg, meter.ranks
    with meter.batches(meter.workers) as batches:
        batch = next(batches)
    counts = [cfg.steps // 2, cfg.steps - cfg.steps // 2]
    computes, loaders, whole_steps = [], [], []
    reset_peak(ranks.device)
    for count in counts:
        # the model while no worker reads ahead beside it; the loader takes all that was read, so that steps begin
        # with nothing in store
        computes.append(meter.time_compute(phase, batch, ALONE_SECONDS / 2))
        with meter.batches(meter.workers) as batches:
            loaders.append(meter.time_loader(meter.workers, batches, ALONE_SECONDS / 2))
            whole_steps.append(meter.time_steps(phase, batches, count))
            memory = ranks.gather_objects(peak_memory(ranks.device))
    compute, loader, timed = (each[0] + each[1] for each in (computes, loaders, whole_steps))
    by_rank = ranks.gather_objects(summarize(timed))
    slowest = slowest_rank(by_rank)
    seconds = max(ranks.gather_objects(timed.seconds)) / cfg.steps
    copying = by_rank[slowest]["transfer"]["mean"] / cfg.trainer.accumulation
    on_gpu = ranks.device.type == "cuda"
    threads = max(1, torch.get_num_threads())
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
            "transfer_bytes_per_s": nbytes(batch) / copying if on_gpu else None,
            # of the cores that computing asks for, how much it got: less than all where others use the machine
            "cores_got": None if on_gpu else compute.cpu_seconds / (compute.seconds * threads),
        },
        "faults": sum(ranks.gather_objects(phase.failed_reads)),
        "memory": memory,
        "evaluation_videos_per_s": meter.evaluation(phase),
    }, batch
