"""The bottleneck of a run, and which settings to change: pure functions of measured rates.

All rates are clips per second over all ranks: of the loader alone, of the model alone, and of the run, which has both.
The run is slower if one waits for the other, or both compete for the same cores. Expected rates are computed like this:
without workers, loading and computing take turns, so their times add up. With workers, the rate is the lower of the
two, and on a CPU at most what the cores allow for both. If the run now reaches only a share of the rate computed for
its present settings, it is expected to reach the same share with others.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Setting = int | float | str | bool
WAITS = 0.10  # if waiting for data takes at least this share of a step, the data are a bottleneck
NEAR = 0.10  # rates that differ by less than this share count as equal
CROWDED = 0.80  # below this share of the slower one's rate alone, loader and model compete for the cores
WORTH = 1.05  # a change is advised if it makes the run at least this many times as fast
COPIES = 0.40  # if copying to the device takes at least this share of a step's work, it is the bottleneck
STORE = 0.5  # if loaders wait at least this share of their time for a store, it is the bottleneck, not decoding
LARGE_OPTIMIZER = 0.25  # above this share of a step's work, larger batches are suggested for the optimizer


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
    store: Mapping[str, float] | None = None  # what loaders take of a store of videos: see `measure.store_use`

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
    total = sum(m.parts.values())
    work = total - m.parts["load"]
    waits = m.parts["load"] / total
    alone = f"alone the loader delivers {m.loader:.4g} clips/s and the model takes {m.compute:.4g}"
    shares = {part: seconds / work for part, seconds in m.parts.items() if part != "load" and seconds}
    shares_text = "a step's work is " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    crowded_text = (
        f"the cores are the bottleneck: {alone}, together they reach {m.run:.4g}; workers ({m.workers}) and computing "
        f"threads ({m.threads}) share the cores ({m.cores}), and a step waits {waits:.0%} of its time for data"
    )
    if waits >= WAITS:
        if m.store is not None and m.store["share"] >= STORE and (m.workers == 0 or m.loader < m.compute):
            taken = f"{m.store['requests_per_clip']:.3g} requests and {m.store['mb_per_clip']:.3g} MB a clip"
            waiting = f"loaders wait {m.store['share']:.0%} of their time for it, with {taken}"
            step = f"a step waits {waits:.0%} of its time for data"
            return Verdict("store", f"the store of the videos is the bottleneck: {waiting}; {step}; {alone}")
        if m.workers == 0:
            reads = f"without workers a step spends {waits:.0%} of its time reading"
            return Verdict("decoding", f"decoding is the bottleneck: {reads}; {alone}, together {m.run:.4g}")
        if m.loader <= (1 - NEAR) * m.compute:
            waiting = f"a step waits {waits:.0%} of its time for data"
            return Verdict("decoding", f"decoding is the bottleneck: {waiting}; {alone}")
        if m.run < CROWDED * min(m.loader, m.compute):
            return Verdict("cores", crowded_text)
        balanced_text = f"loader and model are balanced: a step waits {waits:.0%} for data; {alone}"
        return Verdict("balanced", balanced_text)
    if m.device == "cpu" and m.workers > 0 and m.run < CROWDED * m.compute:
        return Verdict("cores", crowded_text)
    if m.parts["transfer"] >= COPIES * work:
        return Verdict("transfer", f"copying to the device is the bottleneck: {shares_text}; {alone}")
    if m.workers > 0 and m.loader < (1 + NEAR) * m.compute:
        return Verdict("balanced", f"the model is the bottleneck, and the loader just keeps up: {alone}; {shares_text}")
    return Verdict("compute", f"the model is the bottleneck: {alone}; {shares_text}")


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
    """Changes that are expected to make the run at least `WORTH` times as fast, the fastest first. Those that also
    change the result of training come last. Only settings that were measured are advised."""
    advice = [*_processes(m), *_prepared(m), *_variants(m), *_kept_activations(m)]
    worth = [change for change in advice if change.gain >= WORTH]
    if verdict(m).bound == "transfer":
        worth = [change for change in worth if "trainer.num_workers" not in change.settings]
    return sorted(worth, key=lambda change: (change.changes is not None, -change.clips_per_s))


def _processes(m: Measured) -> Iterator[Advice]:
    """Advises another number of workers, of computing threads, or both, of those that were measured. Among those within
    3% of the best, it takes the one with the fewest changes and workers."""
    computes = {**m.threaded, m.threads: m.compute}
    candidates = []
    for workers, threads in itertools.product(m.loaders, computes):
        tried = {"trainer.num_workers": workers, "trainer.cpu_threads": threads}
        now = {"trainer.num_workers": m.workers, "trainer.cpu_threads": m.threads}
        settings: dict[str, Setting] = {key: value for key, value in tried.items() if value != now[key]}
        if settings:
            rate = expected(m, workers, m.loaders[workers], computes[threads], threads)
            candidates.append((rate, len(settings), workers, threads, settings))
    if not candidates:
        return
    best = max(rate for rate, *_ in candidates)
    as_good = [trial for trial in candidates if trial[0] >= 0.97 * best]
    rate, _, workers, threads, settings = min(as_good, key=lambda trial: trial[1:4])
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
    if m.checkpointing and m.free_memory is not None and m.free_memory > 0.5:
        # With activation checkpointing, the backward pass repeats the forward pass
        work = sum(m.parts.values()) - m.parts["load"]
        faster = m.compute * work / (work - m.parts["forward"])
        rate = expected(m, m.workers, m.loader, faster, m.threads)
        basis = f"{m.free_memory:.0%} of the GPU's memory is free; forward passes would not run twice"
        yield Advice({"model.encoder.activation_checkpointing": False}, rate, rate / m.run, basis)


NOTHING = {
    "store": "no tried setting is faster. These would be: data.cache=FOLDER on a disk of this machine, from the second "
    "epoch on, smaller videos (python -m vidtrain.prepare), or a store that is nearer",
    "decoding": "no tried setting is faster. These would be: fewer frames to decode (clip.frame_step, clip.frames), "
    "clip.repeated_augmentation=2, which trains on each decoded clip twice, smaller videos, or more cores",
    "cores": "no tried setting is faster, as all cores are busy. More cores or a smaller model would be",
    "transfer": "clips are already copied as uint8 from page-locked memory; fewer or smaller frames (clip) would help",
    "balanced": "loader and model are equally fast: a faster run needs both a faster loader and a faster model",
    "compute": "no tried setting is faster. A smaller model, smaller clips or another device would be",
}


def nothing_to_change(m: Measured, bound: str) -> str:
    """A hint for a run that no tried setting makes faster."""
    share = m.parts["optimizer"] / (sum(m.parts.values()) - m.parts["load"])
    if bound == "compute" and share > LARGE_OPTIMIZER:
        return (
            f"the optimizer takes {share:.0%} of a step's work, which a larger trainer.batch_size would spread over "
            "more clips"
        )
    return NOTHING[bound]
