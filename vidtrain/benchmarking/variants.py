"""Other settings of a run, measured where they could make it faster: workers, threads, precision, batches, a prepared
copy. Nothing is advised that was not measured here."""

import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch._dynamo.exc import TorchDynamoException

from vidtrain.benchmarking.advice import Advice, Measured, verdict
from vidtrain.benchmarking.measure import Meter, PhaseSteps, changed
from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.config.schemas import PrepareConfig
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.prepared.copy import PreparedCopy, prepared_folder
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file
from vidtrain.errors import UserError
from vidtrain.runs.assemble import open_data
from vidtrain.training.ranks.distributed import Ranks, autocast
from vidtrain.training.run import Console

KEEPS_UP = 1.2  # times the model's rate: more workers than that need no measuring
VIDEOS = 6  # that a prepared copy is tried on
READINGS = 3  # of each, in turn
CROWDED_BY_OTHERS = 0.85  # share of the cores asked for, below which others use the machine
HALF_FREE = 0.5  # share of a GPU's memory that must be free before twice the batch is tried


def explore(
    meter: Meter, phase: PhaseSteps, batch: Batch, found: dict[str, Any]
) -> tuple[Measured, list[str]]:
    """What was measured, with the variants that bear on what bounds the run; and what could not be tried."""
    cfg, ranks = meter.cfg, meter.ranks
    memory = found["memory"][found["slowest_rank"]]
    m = Measured(
        device=ranks.device.type,
        cores=build.share_of_cores(ranks),
        workers=meter.workers,
        threads=torch.get_num_threads() if ranks.device.type == "cpu" else 0,
        served=_served(meter),
        parts={name: each["mean"] for name, each in found["parts"].items() if name != "step"},
        run=found["clips_per_s"],
        compute=found["alone"]["compute"],
        loaders={meter.workers: found["alone"]["loader"]},
        checkpointing=bool(OmegaConf.select(cfg, "model.encoder.activation_checkpointing")),
        free_memory=1 - memory["gpu_reserved"] / memory["gpu_total"] if memory["gpu_total"] else None,
    )
    bound, notes = verdict(m).bound, []
    got = found["alone"]["cores_got"]
    if got is not None and got < CROWDED_BY_OTHERS:
        notes.append(
            f"computing alone got {got:.0%} of the cores that it asked for: others use this machine, all rates are "
            "lower than it can do, and those that were measured a while apart compare badly"
        )
    if bound in ("decoding", "cores", "balanced"):
        m = replace(m, loaders=_loaders(meter, m))
        if cfg.data.prepared is None:
            gain, name, exists, note = ranks.on_main(lambda: prepared_trial(cfg, meter))
            m = replace(m, prepared=gain, prepared_name=name, prepared_exists=exists)
            notes += [note] if note else []
    if bound in ("compute", "cores", "balanced"):
        m = replace(m, threaded=_threaded(meter, phase, batch, m))
        computes, more = _computes(meter, phase, batch, m)
        m, notes = replace(m, computes=computes), notes + more
    served = _served(meter) if m.served is not None and m.cores > 1 else None
    if m.served is not None and served is not None:
        m = replace(m, served=min(m.served, served))  # what others use now they may use then
    return m, notes


def _served(meter: Meter) -> float | None:
    """The cores that there are for this rank while all ranks want theirs; on a GPU it does not matter."""
    if meter.ranks.device.type != "cpu":
        return None
    meter.ranks.barrier()
    with meter.console.phase("trying the cores", 1):
        return min(meter.ranks.gather_objects(cores_served(build.share_of_cores(meter.ranks))))


def _loaders(meter: Meter, m: Measured) -> dict[int, float]:
    """The loader alone with 1, 2, 4, ... workers, up to the cores, until it is well ahead of the model."""
    counts = sorted({1, m.cores, *(2**n for n in range(10) if 2**n <= m.cores)} - {m.workers})
    found = dict(m.loaders)
    for workers in counts:
        found[workers] = m.loader * meter.loader_gain(workers)
        if found[workers] >= KEEPS_UP * m.compute and workers >= m.workers:
            break
    return found


def _threaded(meter: Meter, phase: PhaseSteps, batch: Batch, m: Measured) -> dict[int, float]:
    """The model alone with other numbers of threads, on a CPU."""
    if m.device != "cpu":
        return {}
    found = {}
    counts = {1, m.cores // 2, m.cores - m.workers, m.cores} - {m.threads}
    for threads in sorted(count for count in counts if 1 <= count <= m.cores):
        what = f", {build.pluralize(threads, 'thread')}"
        found[threads] = m.compute * meter.compute_gain(phase, batch, what, partial(_threads, threads))
    return found


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _computes(
    meter: Meter, phase: PhaseSteps, batch: Batch, m: Measured
) -> tuple[dict[str, float], list[str]]:
    """The model alone with other settings that leave the model as it is, and why some were not tried."""
    cfg, ranks = meter.cfg, meter.ranks
    found, notes = {}, []

    def try_it(setting: str, what: str, variant: Callable, other: Batch | None = None) -> None:
        found[setting] = m.compute * meter.compute_gain(phase, batch, what, variant, other)

    if cfg.trainer.precision == "fp32":
        in_bf16 = partial(phase.using, autocast=autocast(ranks, "bf16"))
        try_it("trainer.precision=bf16", ", bf16", in_bf16)
    if m.free_memory is None or m.free_memory > HALF_FREE:
        twice = f"trainer.batch_size={2 * cfg.trainer.batch_size}"
        if cfg.trainer.accumulation > 1 and cfg.trainer.accumulation % 2 == 0:
            twice = f"trainer.accumulation={cfg.trainer.accumulation // 2}"
        try_it(twice, ", twice the micro-batch", nullcontext, doubled(batch))
    else:
        free = f"{m.free_memory:.0%} of the GPU's memory is free at the peak"
        notes.append(f"a larger batch was not tried: {free}")
    on_gpu = ranks.device.type == "cuda"
    if not cfg.trainer.compile and (on_gpu if cfg.compile_trial is None else cfg.compile_trial):
        try:
            compiled = partial(phase.using, forward=torch.compile(phase.phase.forward))
            try_it("trainer.compile=true", ", compiled", compiled)
        except (RuntimeError, TorchDynamoException) as error:  # no compiler, or a model beyond it
            notes.append(f"trainer.compile=true was tried and fails: {str(error).splitlines()[0]}")
    return found, notes


def doubled(batch: Batch) -> Batch:
    """The samples of a batch twice."""

    def twice(values: torch.Tensor) -> torch.Tensor:
        both = torch.cat([values, values])
        return both.pin_memory() if values.is_pinned() else both

    return Batch(
        twice(batch.clips), twice(batch.labels), twice(batch.indices), twice(batch.seeds), batch.faults
    )


# --- following advice -------------------------------------------------------------------------------------


def follow(meter: Meter, advice: Advice, rounds: int) -> dict[str, Any]:
    """Steps of the run as it is and as `advice` has it, in turn, each time begun anew: clips per second of every
    round, and their medians."""
    after_cfg = changed(meter.cfg, dict(advice.settings))
    data = meter.data
    if any(key.startswith(("data.", "dataset.")) for key in advice.settings):
        data = open_data(after_cfg, meter.ranks, meter.console)
    after = Meter(after_cfg, data, meter.ranks, meter.console)
    found: dict[str, list[float]] = {"before": [], "after": []}
    for _ in range(rounds):
        for name, each in (("before", meter), ("after", after)):
            found[name].append(each.run())
    medians = {name: statistics.median(values) for name, values in found.items()}
    ratios = [later / earlier for earlier, later in zip(found["before"], found["after"], strict=True)]
    return {
        "followed": advice.text,
        "expected_clips_per_s": advice.clips_per_s,
        "expected_gain": advice.gain,
        **found,
        "median_before": medians["before"],
        "median_after": medians["after"],
        "gain": statistics.median(ratios),
    }


# --- a prepared copy --------------------------------------------------------------------------------------


def prepared_trial(cfg: DictConfig, meter: Meter) -> tuple[float | None, str | None, bool, str | None]:
    """(how many times as fast a prepared copy is read, its name, whether it exists, or why it was not tried), from a
    few videos, read by this process with none beside it: of a copy there is, else of one made for the trial."""
    train = meter.data.splits["train"]
    if train.columns.sources is not None:
        return None, None, False, "a prepared copy was not tried: the dataset is a mixture"
    few = train.subset(np.random.default_rng(0).permutation(len(train))[:VIDEOS].tolist())
    parent = prepared_folder(cfg.data_root, cfg.dataset.name, "any").parent
    for facts in sorted(parent.glob("*/prepared.json")):
        try:
            copies = PreparedCopy.open(facts.parent).redirect(few)
        except UserError:  # a copy of other videos, or not complete
            continue
        return _gain(cfg, few, copies, meter.console), facts.parent.name, True, None
    settings = PrepareConfig()
    short_side = max(settings.short_side, -(-8 * min(build.clip_size(cfg)) // 14) * 2)
    encode = EncodeSettings(short_side, settings.gop, settings.b_frames, settings.crf, settings.preset)
    name = f"short{short_side}_gop{settings.gop}"
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        with meter.console.phase("preparing a few videos", len(few)):
            for number, path in enumerate(few.paths):
                made = prepare_file(Job(path, Path(folder) / f"{number}.mp4", encode, few.frame_rate))
                if made.cause or made.refusal:
                    return None, None, False, f"a prepared copy was not tried: {made.cause or made.refusal}"
                paths.append(str(Path(folder) / f"{number}.mp4"))
                meter.console.advance(number + 1, {})
        return _gain(cfg, few, few.with_paths(paths), meter.console), name, False, None


def _gain(cfg: DictConfig, sources: Manifest, copies: Manifest, console: Console) -> float:
    """How many times as fast the clips of `copies` are read, by medians of readings in turn."""
    alone = {"trainer.num_workers": 0, "trainer.batch_size": len(sources), "trainer.accumulation": 1}
    reading = build_data.Reading(VideoIndex(None, cfg.data.max_pixels, cfg.clip.sample_aspect), None)
    here = Ranks(torch.device("cpu"))
    streams = []
    for manifest in (sources, copies):
        make, _ = build_data.train_batches(changed(cfg, alone), manifest, reading, here)
        streams.append(iter(make(0, READINGS + 1)))
    seconds: tuple[list[float], list[float]] = ([], [])
    with console.phase("reading them", READINGS):
        for number in range(READINGS + 1):
            for stream, times in zip(streams, seconds, strict=True):
                started = time.perf_counter()
                next(stream)
                times.append(time.perf_counter() - started)
            console.advance(number, {})
    # the first reading looks into the files as well
    before, after = (statistics.median(times[1:]) for times in seconds)
    return before / after


# --- cores: others may use the machine too ----------------------------------------------------------------


def cores_served(processes: int, seconds: float = 0.4, rounds: int = 3) -> float:
    """How many times as much `processes` busy processes get done at once as one does: medians of `rounds`, in turn.

    It is their number where each has a core to itself, and less where others use the machine, or where cores share
    their arithmetic.
    """
    if processes == 1:
        return 1.0
    ratios = []
    for _ in range(rounds):
        alone = _work_done(1, seconds)
        ratios.append(_work_done(processes, seconds) / alone)
    return min(float(processes), max(1.0, statistics.median(ratios)))


def _work_done(processes: int, seconds: float) -> int:
    context = multiprocessing.get_context("fork")  # which takes milliseconds
    connections, workers = [], []
    for _ in range(processes):
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_count, args=(theirs, seconds), daemon=True)
        worker.start()
        theirs.close()
        connections.append(ours)
        workers.append(worker)
    done = sum(connection.recv() for connection in connections)
    for worker in workers:
        worker.join()
    return done


def _count(connection: Connection, seconds: float) -> None:
    """Sends how often a small sum is done within `seconds`."""
    done, end = 0, time.perf_counter() + seconds
    while time.perf_counter() < end:
        sum(range(2000))
        done += 1
    connection.send(done)
