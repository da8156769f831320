"""The bottleneck of a run, and which settings to change; only settings that were measured are advised.

All rates are clips per second over all ranks: of the loader alone, of the model alone, and of the run, which has both.
The run is slower if one waits for the other, or both compete for the same cores. Expected rates are computed like this:
without workers, loading and computing take turns, so their times add up. With workers, the rate is the lower of the
two, and on a CPU at most what the cores allow for both. If the run now reaches only a share of the rate computed for
its present settings, it is expected to reach the same share with others.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch._dynamo.exc import TorchDynamoException

from vidtrain.benchmarking.measure import Meter, PhaseSteps, Timed, count_free_cores, doubled, reading_gain
from vidtrain.build import parts as build
from vidtrain.config.dataset_schemas import PrepareConfig
from vidtrain.data.augment.geometry import ANTIALIASED
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.prepared.copy import PreparedCopy, prepared_folder
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file
from vidtrain.errors import UserError, pluralize
from vidtrain.training.distributed import autocast

Setting = int | float | str | bool
DATA_BOUND = 0.10  # if waiting for data takes at least this share of a step, the data are a bottleneck
EQUAL_WITHIN = 0.10  # rates that differ by less than this share count as equal
CROWDED_BELOW = 0.80  # below this share of the slower one's rate alone, loader and model compete for the cores
MIN_GAIN = 1.05  # a change is advised if it makes the run at least this many times as fast
TRANSFER_BOUND = 0.40  # if copying to the device takes at least this share of a step's work, it is the bottleneck
STORE_BOUND = 0.5  # if loaders wait at least this share of their time for a store, it is the bottleneck, not decoding
KEEPS_UP = 1.2  # once a loader is this many times as fast as the model, more workers are not measured
TRIED_VIDEOS = 6  # number of videos on which a prepared copy is tried
MIN_FREE_CORES = 0.85  # if less than this share of the cores is free, other programs use the machine
MIN_FREE_MEMORY = 0.5  # share of a GPU's memory that must be free before more of it is used


@dataclass(frozen=True)
class Prepared:
    """A prepared copy of the videos: its `name`, how many times as fast it is read, and whether it exists already."""

    name: str
    gain: float
    exists: bool


@dataclass(frozen=True)
class Measured:
    """The measurements of a run. Threads, workers and cores are those of one rank; rates are clips/s of all ranks."""

    device: str  # cpu, cuda
    cores: int
    workers: int
    threads: int  # number of computing threads on a CPU
    parts: Mapping[str, float]  # mean seconds of each part of a step
    run: float  # rate of the run
    compute: float  # rate of the model alone
    loaders: Mapping[int, float]  # rate of the loader alone, by number of workers
    free_cores: float | None = None  # the number of cores that are free for this rank; None: all
    # Rate of the model alone, by trainer.cpu_threads
    threaded: Mapping[int, float] = field(default_factory=dict)
    computes: Mapping[str, float] = field(default_factory=dict)  # rate of the model alone, by other settings
    prepared: Prepared | None = None
    checkpointing: bool = False  # whether activation checkpointing is on
    free_memory: float | None = None  # share of the GPU's memory that is free at the peak
    store: Mapping[str, float] | None = None  # waits for a store of videos, and its requests: see `measure.store_use`

    @property
    def capacity(self) -> float:
        return self.cores if self.free_cores is None else self.free_cores

    @property
    def loader(self) -> float:
        return self.loaders[self.workers]


@dataclass(frozen=True)
class Verdict:
    """The bottleneck: `bound` is store, decoding, cores, transfer, compute or balanced; `text` gives its figures."""

    bound: str
    text: str


@dataclass(frozen=True)
class Advice:
    """A change of settings, and the rate that is expected of it.

    `first` is a program that must be run before. `changes` says how the settings affect training itself, or is None if
    only its speed changes. `basis` names the measurements from which the rate is computed.
    """

    settings: Mapping[str, Setting]
    clips_per_s: float
    gain: float
    basis: str
    first: str | None = None
    changes: str | None = None

    @property
    def text(self) -> str:
        return " ".join(
            f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in self.settings.items()
        )


# --- the bottleneck ---------------------------------------------------------------------------------------


def verdict(m: Measured) -> Verdict:
    """The bottleneck of the run, from its time waiting for data and the rates of loader and model alone."""
    work = sum(m.parts.values()) - m.parts["load"]
    waits = m.parts["load"] / (work + m.parts["load"])
    waiting = f"a step waits {waits:.0%} of its time for data"
    alone = f"alone the loader delivers {m.loader:.4g} clips/s and the model takes {m.compute:.4g}"
    parts = {part: seconds / work for part, seconds in m.parts.items() if part != "load" and seconds}
    shares = "a step's work is " + ", ".join(f"{part} {share:.0%}" for part, share in parts.items())
    crowded = (
        f"the cores are the bottleneck: {alone}, together they reach {m.run:.4g}; workers ({m.workers}) and computing "
        f"threads ({m.threads}) share the cores ({m.cores}), and {waiting}"
    )
    if waits >= DATA_BOUND:
        if m.store is not None and m.store["share"] >= STORE_BOUND and (m.workers == 0 or m.loader < m.compute):
            taken = f"{m.store['requests_per_clip']:.3g} requests and {m.store['mb_per_clip']:.3g} MB a clip"
            loaders = f"loaders wait {m.store['share']:.0%} of their time for it, with {taken}"
            return Verdict("store", f"the store of the videos is the bottleneck: {loaders}; {waiting}; {alone}")
        if m.workers == 0:
            reads = f"without workers a step spends {waits:.0%} of its time reading"
            return Verdict("decoding", f"decoding is the bottleneck: {reads}; {alone}, together {m.run:.4g}")
        if m.loader <= (1 - EQUAL_WITHIN) * m.compute:
            return Verdict("decoding", f"decoding is the bottleneck: {waiting}; {alone}")
        if m.run < CROWDED_BELOW * min(m.loader, m.compute):
            return Verdict("cores", crowded)
        return Verdict("balanced", f"loader and model are balanced: a step waits {waits:.0%} for data; {alone}")
    if m.device == "cpu" and m.workers > 0 and m.run < CROWDED_BELOW * m.compute:
        return Verdict("cores", crowded)
    if m.parts["transfer"] >= TRANSFER_BOUND * work:
        return Verdict("transfer", f"copying to the device is the bottleneck: {shares}; {alone}")
    if m.workers > 0 and m.loader < (1 + EQUAL_WITHIN) * m.compute:
        return Verdict("balanced", f"the model is the bottleneck, and the loader just keeps up: {alone}; {shares}")
    return Verdict("compute", f"the model is the bottleneck: {alone}; {shares}")


# --- what to change ---------------------------------------------------------------------------------------


def expected(m: Measured, workers: int, loader: float, compute: float, threads: int, decoding: float = 1.0) -> float:
    """Expected clips per second of a run with this number of workers and threads.

    `loader` and `compute` are the rates of its loader alone and its model alone. `decoding` is the cost of decoding a
    clip, relative to its cost now.
    """
    reached = min(1.0, m.run / _together(m, m.workers, m.loader, m.compute, m.threads, 1.0))
    return reached * _together(m, workers, loader, compute, threads, decoding)


def _together(m: Measured, workers: int, loader: float, compute: float, threads: int, decoding: float) -> float:
    if workers == 0:
        return 1 / (1 / loader + 1 / compute)
    slower = min(loader, compute)
    if m.device != "cpu":
        return slower
    # Core-seconds to decode a clip, measured with the fewest workers, which compete least for the cores
    fewest = min(m.loaders)
    core_seconds = min(max(1, fewest), m.capacity) / m.loaders[fewest] * decoding
    return min(slower, m.capacity / (core_seconds + min(threads, m.capacity) / compute))


def advise(m: Measured) -> list[Advice]:
    """Changes that are expected to make the run at least `MIN_GAIN` times as fast, the fastest first. Those that also
    change the result of training come last. Only settings that were measured are advised."""
    advice = [*_processes(m), *_prepared(m), *_variants(m), *_kept_activations(m)]
    worth = [change for change in advice if change.gain >= MIN_GAIN]
    if verdict(m).bound == "transfer":
        worth = [change for change in worth if "trainer.num_workers" not in change.settings]
    return sorted(worth, key=lambda change: (change.changes is not None, -change.clips_per_s))


def _processes(m: Measured) -> Iterator[Advice]:
    """Advises another number of workers, of computing threads, or both. Among those within 3% of the best, it takes the
    one with the fewest changes and workers."""
    computes = {**m.threaded, m.threads: m.compute}
    candidates = []
    for workers, threads in itertools.product(m.loaders, computes):
        new = {"trainer.num_workers": workers, "trainer.cpu_threads": threads}
        now = {"trainer.num_workers": m.workers, "trainer.cpu_threads": m.threads}
        settings: dict[str, Setting] = {key: value for key, value in new.items() if value != now[key]}
        if settings:
            rate = expected(m, workers, m.loaders[workers], computes[threads], threads)
            candidates.append((rate, len(settings), workers, threads, settings))
    if not candidates:
        return
    best = max(rate for rate, *_ in candidates)
    near_best = [candidate for candidate in candidates if candidate[0] >= 0.97 * best]
    rate, _, workers, threads, settings = min(near_best, key=lambda candidate: candidate[1:4])
    basis = f"measured alone: workers ({workers}) deliver {m.loaders[workers]:.4g} clips/s"
    if threads != m.threads:
        basis += f", computing threads ({threads}) take {computes[threads]:.4g}"
    if m.device == "cpu":
        basis += f"; {m.cores} cores do the work of {m.capacity:.2g} free ones"
    yield Advice(settings, rate, rate / m.run, basis)


def _prepared(m: Measured) -> Iterator[Advice]:
    if m.prepared is not None:
        gain = m.prepared.gain
        rate = expected(m, m.workers, m.loader * gain, m.compute, m.threads, 1 / gain)
        first = None if m.prepared.exists else "vidtrain.prepare"
        basis = f"measured on a few videos: the copy is read {gain:.2g} times as fast"
        yield Advice({"data.prepared": m.prepared.name}, rate, rate / m.run, basis, first)


CHANGES = {
    "trainer.precision": "forward passes compute in bfloat16",
    "trainer.batch_size": "a larger batch may need another learning rate",
}


def _variants(m: Measured) -> Iterator[Advice]:
    """Advises the settings with which the model alone was measured."""
    for setting, compute in m.computes.items():
        key, _, text = setting.partition("=")
        value: Setting = {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)
        rate = expected(m, m.workers, m.loader, compute, m.threads)
        basis = f"measured alone: the model takes {compute:.4g} clips/s"
        yield Advice({key: value}, rate, rate / m.run, basis, changes=CHANGES.get(key))


def _kept_activations(m: Measured) -> Iterator[Advice]:
    if m.checkpointing and m.free_memory is not None and m.free_memory > MIN_FREE_MEMORY:
        # With activation checkpointing, the backward pass repeats the forward pass
        work = sum(m.parts.values()) - m.parts["load"]
        faster = m.compute * work / (work - m.parts["forward"])
        rate = expected(m, m.workers, m.loader, faster, m.threads)
        basis = f"{m.free_memory:.0%} of the GPU's memory is free; forward passes would not run twice"
        yield Advice({"model.encoder.activation_checkpointing": False}, rate, rate / m.run, basis)


# --- measurements of other settings -----------------------------------------------------------------------


def explore(meter: Meter, phase: PhaseSteps, batch: Batch, rates: dict[str, Any]) -> tuple[Measured, list[str]]:
    """Measures the variants that could relieve the bottleneck of the run, whose own measurements are `rates`.

    Returns all measurements, and notes on what could not be tried."""
    cfg, ranks = meter.cfg, meter.ranks
    notes: list[str] = []
    memory = rates["memory"][rates["slowest_rank"]]
    m = Measured(
        device=ranks.device.type,
        cores=build.share_of_cores(ranks),
        workers=meter.workers,
        threads=torch.get_num_threads() if ranks.device.type == "cpu" else 0,
        free_cores=_free_cores(meter),
        parts={name: seconds["mean"] for name, seconds in rates["parts"].items() if name != "step"},
        run=rates["clips_per_s"],
        compute=rates["alone"]["compute"],
        loaders={meter.workers: rates["alone"]["loader"]},
        store=rates["store"],
        checkpointing=bool(OmegaConf.select(cfg, "model.encoder.activation_checkpointing")),
        free_memory=1 - memory["gpu_reserved"] / memory["gpu_total"] if memory["gpu_total"] else None,
    )
    bound = verdict(m).bound
    if bound in ("store", "decoding", "cores", "balanced"):
        m = replace(m, loaders=_loaders(meter, m))
        if cfg.data.prepared is None:
            prepared, reasons = ranks.on_main(lambda: try_prepared(cfg, meter))
            m, notes = replace(m, prepared=prepared), notes + reasons
    if bound in ("compute", "cores", "balanced"):
        computes, reasons = _computes(meter, phase, batch, m)
        m = replace(m, threaded=_threaded(meter, phase, batch, m), computes=computes)
        notes += reasons
    if m.free_cores is not None:
        # Others may use the machine at one time or the other
        free_cores = min(m.free_cores, _free_cores(meter) or m.free_cores)
        m = replace(m, free_cores=free_cores)
        if free_cores < MIN_FREE_CORES * m.cores:
            notes.append(
                f"{m.cores} cores do the work of {free_cores:.2g} free ones, as other programs use this machine: "
                "all rates are too low, and rates measured at different times are not comparable"
            )
    return m, notes


def _free_cores(meter: Meter) -> float | None:
    """The number of cores that are free for this rank while all ranks are busy; None with a GPU, where it does not
    matter."""
    if meter.ranks.device.type != "cpu":
        return None
    meter.ranks.barrier()
    with meter.console.phase("trying the cores", 1):
        return min(meter.ranks.gather_objects(count_free_cores(build.share_of_cores(meter.ranks))))


def _loaders(meter: Meter, m: Measured) -> dict[int, float]:
    """Rates of the loader alone with 1, 2, 4, ... workers, up to the number of cores, until it is `KEEPS_UP` times as
    fast as the model."""
    counts = sorted({1, m.cores, *(2**n for n in range(10) if 2**n <= m.cores)} - {m.workers})
    rates = dict(m.loaders)
    for workers in counts:
        base, variant = partial(meter.new_loader, m.workers), partial(meter.new_loader, workers)
        rates[workers] = m.loader * meter.gain(base, variant)
        if rates[workers] >= KEEPS_UP * m.compute and workers >= m.workers:
            break
    return rates


def _threaded(meter: Meter, phase: PhaseSteps, batch: Batch, m: Measured) -> dict[int, float]:
    """Rates of the model alone with other numbers of threads, on a CPU."""
    if m.device != "cpu":
        return {}
    counts = {1, m.cores // 2, m.cores - m.workers, m.cores} - {m.threads}
    base, rates = partial(meter.compute, phase, batch), {}
    for threads in sorted(count for count in counts if 1 <= count <= m.cores):
        variant = partial(meter.compute, phase, batch, f", {pluralize(threads, 'thread')}")
        rates[threads] = m.compute * meter.gain(base, partial(_with_threads, threads, variant))
    return rates


def _with_threads(count: int, measure: Callable[[], Timed]) -> Timed:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return measure()
    finally:
        torch.set_num_threads(before)


def _computes(meter: Meter, phase: PhaseSteps, batch: Batch, m: Measured) -> tuple[dict[str, float], list[str]]:
    """Rates of the model alone with other settings that do not change the model, and notes on those not tried."""
    trainer, ranks, notes = meter.cfg.trainer, meter.ranks, []
    variants: dict[str, Callable[[], Timed]] = {}
    if trainer.precision == "fp32":
        in_bf16 = phase.variant(autocast=autocast(ranks, "bf16"))
        variants["trainer.precision=bf16"] = partial(meter.compute, in_bf16, batch, ", bf16")
    if m.free_memory is None or m.free_memory > MIN_FREE_MEMORY:
        twice = f"trainer.batch_size={2 * trainer.batch_size}"
        if trainer.accumulation > 1 and trainer.accumulation % 2 == 0:
            twice = f"trainer.accumulation={trainer.accumulation // 2}"
        variants[twice] = partial(meter.compute, phase, doubled(batch), ", twice the micro-batch")
    else:
        notes.append(f"a larger batch was not tried: {m.free_memory:.0%} of the GPU's memory is free at the peak")
    wanted = ranks.device.type == "cuda" if meter.cfg.compile_trial is None else meter.cfg.compile_trial
    if wanted and not trainer.compile:
        compiled = phase.variant(forward=torch.compile(phase.phase.forward))
        variants["trainer.compile=true"] = partial(meter.compute, compiled, batch, ", compiled")
    base, rates = partial(meter.compute, phase, batch), {}
    for setting, variant in variants.items():
        try:
            rates[setting] = m.compute * meter.gain(base, variant)
        except (RuntimeError, TorchDynamoException) as error:
            if setting != "trainer.compile=true":
                raise
            # There is no C++ compiler, or torch.compile does not support the model
            notes.append(f"{setting} was tried and fails: {str(error).splitlines()[0]}")
    return rates, notes


def try_prepared(cfg: DictConfig, meter: Meter) -> tuple[Prepared | None, list[str]]:
    """Measures how much faster a prepared copy is read, or returns notes why it was not tried. This process alone reads
    a few videos, of an existing copy or of one that is made for the trial."""
    train = meter.data.train
    if train.columns.sources is not None:
        return None, ["a prepared copy was not tried: the dataset is a mixture"]
    if cfg.clip.resize != ANTIALIASED:
        return None, [f"a prepared copy was not tried: clip.resize={cfg.clip.resize} needs the original files"]
    few = train.subset(np.random.default_rng(0).permutation(len(train))[:TRIED_VIDEOS].tolist())
    parent = prepared_folder(cfg.data_root, cfg.dataset.name, "any").parent
    for description in sorted(parent.glob("*/prepared.json")):
        try:
            copies = PreparedCopy.open(description.parent).redirect(few)
        except UserError:  # the copy is of other videos, or incomplete
            continue
        return Prepared(description.parent.name, reading_gain(cfg, few, copies, meter.console), exists=True), []
    settings = PrepareConfig()
    short_side = max(settings.short_side, -(-8 * min(build.clip_size(cfg)) // 14) * 2)
    encode = EncodeSettings(short_side, settings.gop, settings.b_frames, settings.crf, settings.preset)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder) / f"{number}.mp4") for number in range(len(few))]
        with meter.console.phase("preparing a few videos", len(few)):
            for number, (source, path) in enumerate(zip(few.paths, paths, strict=True), start=1):
                job = prepare_file(Job(source, Path(path), encode, few.frame_rate))
                if job.cause or job.refusal:
                    return None, [f"a prepared copy was not tried: {job.cause or job.refusal}"]
                meter.console.advance(number, {})
        gain = reading_gain(cfg, few, few.with_paths(paths), meter.console)
    return Prepared(f"short{short_side}_gop{settings.gop}", gain, exists=False), []
