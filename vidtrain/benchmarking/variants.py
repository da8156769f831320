"""Measures other settings of a run that could make it faster: workers, threads, precision, batch size, a prepared
copy. Only what was measured here is advised."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch._dynamo.exc import TorchDynamoException

from vidtrain.benchmarking.advice import Advice, Measured, Prepared, verdict
from vidtrain.benchmarking.measure import Meter, PhaseSteps, Timed, changed
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.config.dataset_schemas import PrepareConfig
from vidtrain.data.augment.geometry import ANTIALIASED
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.prepared.copy import PreparedCopy, prepared_folder
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file
from vidtrain.errors import UserError
from vidtrain.runs.assemble import open_data
from vidtrain.training.distributed import Ranks, autocast
from vidtrain.training.run import Console

KEEPS_UP = 1.2  # once a loader is this many times as fast as the model, more workers are not measured
VIDEOS = 6  # number of videos on which a prepared copy is tried
READINGS = 3  # number of readings of the sources and of the copies, taking turns
CROWDED_BY_OTHERS = 0.85  # if less than this share of the cores is free, other programs use the machine
HALF_FREE = 0.5  # share of a GPU's memory that must be free for a trial of twice the batch


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
            prepared, reasons = ranks.on_main(lambda: prepared_trial(cfg, meter))
            m, notes = replace(m, prepared=prepared), notes + reasons
    if bound in ("compute", "cores", "balanced"):
        computes, reasons = _computes(meter, phase, batch, m)
        m = replace(m, threaded=_threaded(meter, phase, batch, m), computes=computes)
        notes += reasons
    if m.free_cores is not None:
        # Others may use the machine at one time or the other
        free_cores = min(m.free_cores, _free_cores(meter) or m.free_cores)
        m = replace(m, free_cores=free_cores)
        if free_cores < CROWDED_BY_OTHERS * m.cores:
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
        as_set, trial = partial(meter.new_loader, m.workers), partial(meter.new_loader, workers)
        rates[workers] = m.loader * meter.gain(as_set, trial)
        if rates[workers] >= KEEPS_UP * m.compute and workers >= m.workers:
            break
    return rates


def _threaded(meter: Meter, phase: PhaseSteps, batch: Batch, m: Measured) -> dict[int, float]:
    """Rates of the model alone with other numbers of threads, on a CPU."""
    if m.device != "cpu":
        return {}
    counts = {1, m.cores // 2, m.cores - m.workers, m.cores} - {m.threads}
    as_set, rates = partial(meter.compute, phase, batch), {}
    for threads in sorted(count for count in counts if 1 <= count <= m.cores):
        trial = partial(meter.compute, phase, batch, f", {build.pluralize(threads, 'thread')}")
        rates[threads] = m.compute * meter.gain(as_set, partial(_with_threads, threads, trial))
    return rates


def _with_threads(count: int, trial: Callable[[], Timed]) -> Timed:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return trial()
    finally:
        torch.set_num_threads(before)


def _computes(meter: Meter, phase: PhaseSteps, batch: Batch, m: Measured) -> tuple[dict[str, float], list[str]]:
    """Rates of the model alone with other settings that do not change the model, and notes on those not tried."""
    trainer, ranks, notes = meter.cfg.trainer, meter.ranks, []
    trials: dict[str, Callable[[], Timed]] = {}
    if trainer.precision == "fp32":
        in_bf16 = phase.variant(autocast=autocast(ranks, "bf16"))
        trials["trainer.precision=bf16"] = partial(meter.compute, in_bf16, batch, ", bf16")
    if m.free_memory is None or m.free_memory > HALF_FREE:
        twice = f"trainer.batch_size={2 * trainer.batch_size}"
        if trainer.accumulation > 1 and trainer.accumulation % 2 == 0:
            twice = f"trainer.accumulation={trainer.accumulation // 2}"
        trials[twice] = partial(meter.compute, phase, doubled(batch), ", twice the micro-batch")
    else:
        notes.append(f"a larger batch was not tried: {m.free_memory:.0%} of the GPU's memory is free at the peak")
    wanted = ranks.device.type == "cuda" if meter.cfg.compile_trial is None else meter.cfg.compile_trial
    if wanted and not trainer.compile:
        compiled = phase.variant(forward=torch.compile(phase.phase.forward))
        trials["trainer.compile=true"] = partial(meter.compute, compiled, batch, ", compiled")
    as_set, rates = partial(meter.compute, phase, batch), {}
    for setting, trial in trials.items():
        try:
            rates[setting] = m.compute * meter.gain(as_set, trial)
        except (RuntimeError, TorchDynamoException) as error:
            if setting != "trainer.compile=true":
                raise
            # There is no C++ compiler, or torch.compile does not support the model
            notes.append(f"{setting} was tried and fails: {str(error).splitlines()[0]}")
    return rates, notes


def doubled(batch: Batch) -> Batch:
    """A batch with all samples of `batch` twice."""

    def twice(values: torch.Tensor) -> torch.Tensor:
        both = torch.cat([values, values])
        return both.pin_memory() if values.is_pinned() else both

    clips, labels, indices, seeds = (
        twice(values) for values in (batch.clips, batch.labels, batch.indices, batch.seeds)
    )
    return batch._replace(clips=clips, labels=labels, indices=indices, seeds=seeds)


# --- following advice -------------------------------------------------------------------------------------


def follow(meter: Meter, advice: Advice, rounds: int) -> dict[str, Any]:
    """Tests `advice`: new runs without and with it take turns. Returns the clips per second of every round, and their
    medians."""
    changed_cfg, data = changed(meter.cfg, advice.settings), meter.data
    if any(key.startswith(("data.", "dataset.")) for key in advice.settings):
        data = open_data(changed_cfg, meter.ranks, meter.console)
    other = Meter(changed_cfg, data, meter.ranks, meter.console)
    before, after = [], []
    for _ in range(rounds):
        before.append(meter.run())
        after.append(other.run())
    return {
        "followed": advice.text,
        "expected_clips_per_s": advice.clips_per_s,
        "expected_gain": advice.gain,
        "before": before,
        "after": after,
        "median_before": statistics.median(before),
        "median_after": statistics.median(after),
        "gain": statistics.median(later / earlier for earlier, later in zip(before, after, strict=True)),
    }


# --- a prepared copy --------------------------------------------------------------------------------------


def prepared_trial(cfg: DictConfig, meter: Meter) -> tuple[Prepared | None, list[str]]:
    """Measures how much faster a prepared copy is read, or returns notes why it was not tried. This process alone reads
    a few videos, of an existing copy or of one that is made for the trial."""
    train = meter.data.train
    if train.columns.sources is not None:
        return None, ["a prepared copy was not tried: the dataset is a mixture"]
    if cfg.clip.resize != ANTIALIASED:
        return None, [f"a prepared copy was not tried: clip.resize={cfg.clip.resize} needs the original files"]
    few = train.subset(np.random.default_rng(0).permutation(len(train))[:VIDEOS].tolist())
    parent = prepared_folder(cfg.data_root, cfg.dataset.name, "any").parent
    for description in sorted(parent.glob("*/prepared.json")):
        try:
            copies = PreparedCopy.open(description.parent).redirect(few)
        except UserError:  # the copy is of other videos, or incomplete
            continue
        return Prepared(description.parent.name, _gain(cfg, few, copies, meter.console), exists=True), []
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
        gain = _gain(cfg, few, few.with_paths(paths), meter.console)
    return Prepared(f"short{short_side}_gop{settings.gop}", gain, exists=False), []


def _gain(cfg: DictConfig, sources: Manifest, copies: Manifest, console: Console) -> float:
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


# --- cores: other programs may use them, too --------------------------------------------------------------


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
