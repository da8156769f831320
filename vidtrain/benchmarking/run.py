"""Measures a run: its steps, the loader and the model alone, and other settings of both, which advice rests on."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from vidtrain.benchmarking.steps import (
    PhaseSteps,
    Timed,
    nbytes,
    rate,
    slowest_rank,
    summarize,
    time_compute,
    time_loader,
    time_steps,
    whole,
)
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.data.loading.loaders import PREFETCH
from vidtrain.evaluation.views import view_table
from vidtrain.runs.assemble import Record, RunData, assemble, make_parts
from vidtrain.tracking.run_log import NullRunLog
from vidtrain.training.profiling import peak_memory, reset_peak
from vidtrain.training.ranks.distributed import Ranks, autocast

ENDLESS = 2**40  # steps: more than anybody makes
ALONE_SECONDS = 3.0  # that the loader, or the model, is measured for without the other
KEEPS_UP = 1.2  # times the model's rate: more workers than that need no measuring


def plural(count: int, thing: str) -> str:
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def changed(cfg: DictConfig, settings: dict[str, Any]) -> DictConfig:
    """`cfg` with other values."""
    copy = cfg.copy()
    for key, value in settings.items():
        OmegaConf.update(copy, key, value, force_add=True)
    return copy


def phase_name(cfg: DictConfig) -> str:
    return cfg.phase or next(iter(cfg.stage))


def open_phase(cfg: DictConfig, data: RunData, ranks: Ranks, console: Any) -> PhaseSteps:
    """The phase to measure, of the parts that training would assemble."""
    build.set_cpu_threads(cfg.trainer.cpu_threads, ranks)
    model = build.model(cfg, len(data.classes), ranks)
    record = Record(log=NullRunLog(), console=console)
    run = assemble(cfg, data, make_parts(cfg, data, ranks, console), model, None, ranks, record)
    return PhaseSteps(run, phase_name(cfg))


# --- one measurement each; all ranks make it together ----------------------------------------------------


class Meter:
    """Measures variants of a run by all ranks at once, which share cores and disks as they would in training."""

    def __init__(self, cfg: DictConfig, data: RunData, ranks: Ranks, console: Any):
        self.cfg = cfg
        self.data = data
        self.ranks = ranks
        self.console = console
        self.workers = build.num_workers(cfg.trainer.num_workers, ranks)

    @contextmanager
    def batches(self, workers: int) -> Iterator[Iterator]:
        """Micro-batches of training, read by `workers` processes, which end with the context."""
        cfg = changed(self.cfg, {"trainer.num_workers": workers})
        make, _ = build_data.train_batches(cfg, self.data.splits["train"], self.data.reading, self.ranks)
        batches = iter(make(0, ENDLESS))
        try:
            yield batches
        finally:
            batches.close()

    def loader_gain(self, workers: int) -> float:
        """How many times as fast the loader alone is with `workers` as with those of the run. Both are timed in turn,
        as the machine may be busy in between."""

        def time_with(count: int) -> Timed:
            with self.batches(count) as batches:
                return self.time_loader(count, batches, ALONE_SECONDS / 2)

        return self._gain(lambda: time_with(self.workers), lambda: time_with(workers))

    def compute_gain(
        self,
        phase: PhaseSteps,
        batch: Any,
        what: str,
        variant: Callable[[], AbstractContextManager],
        other: Any = None,
    ) -> float:
        """How many times as much the model takes alone within `variant`, on the batch `other` if that is given."""

        def time_variant() -> Timed:
            with variant():
                return self.time_compute(phase, batch if other is None else other, ALONE_SECONDS / 2, what)

        return self._gain(lambda: self.time_compute(phase, batch, ALONE_SECONDS / 2), time_variant)

    def _gain(self, base: Callable[[], Timed], other: Callable[[], Timed]) -> float:
        first, second = (base(), other()), (base(), other())
        return self.rate(first[1] + second[1]) / self.rate(first[0] + second[0])

    def time_loader(self, workers: int, batches: Iterator, seconds: float) -> Timed:
        self.ranks.barrier()
        with self._shown(f"loader alone, {plural(workers, 'worker')}", 2 * max(1, workers)) as advance:
            return time_loader(batches, workers, self.cfg.trainer.accumulation, seconds, advance)

    def time_compute(self, phase: PhaseSteps, batch: Any, seconds: float, what: str = "") -> Timed:
        self.ranks.barrier()
        with self._shown(f"model alone{what}", self.cfg.steps) as advance:
            return time_compute(phase, batch, self.cfg.warmup, seconds, self.cfg.steps, advance)

    def time_steps(self, phase: PhaseSteps, batches: Iterator, count: int) -> Timed:
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

        def some() -> Iterator:
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
    def _shown(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        with self.console.phase(what, total):
            yield lambda done: self.console.advance(done, {}) if done <= total else None


def measure(meter: Meter, phase: PhaseSteps) -> tuple[dict[str, Any], Any]:
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
