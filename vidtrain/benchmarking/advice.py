"""What bounds a run, and which setting to change: pure functions of measured rates.

All rates are clips per second of all ranks: those of the loader alone, of the model alone, and of both together. The
last is lower where one waits for the other, or where both want the same cores. Expected rates follow a model: with
workers, the lower rate of the two, and on a CPU no more than the cores allow for the work of both; without workers, one
after the other. A run that reaches a share of this now is expected to reach the same share after the change.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Setting = int | float | str | bool
WAITS = 0.10  # share of a step spent waiting for data, from which on the model is held up
NEAR = 0.10  # rates that differ by less are level
CROWDED = 0.80  # of what the slower of both does alone: below it they are in each other's way
WORTH = 1.05  # times as fast, from which on a change is advised
COPIES = 0.40  # share of a step's work that copying to the device takes when it is what bounds
LARGE_OPTIMIZER = 0.25  # share of a step's work from which on larger batches are named for it


@dataclass(frozen=True)
class Prepared:
    """A prepared copy: its `name`, how many times as fast it is read, and whether there is one already."""

    name: str
    gain: float
    exists: bool


@dataclass(frozen=True)
class Measured:
    """What was measured of a run. Threads, workers and cores are those of one rank.

    `loaders` and `computes` hold the rates of the loader alone, by number of workers, and of the model alone, by the
    settings that were tried (`trainer.cpu_threads` by their number in `threaded`). `served` is how many cores' work as
    many busy processes get done here, None for all.
    """

    device: str  # cpu, cuda
    cores: int
    workers: int
    threads: int  # that compute on a CPU
    parts: Mapping[str, float]  # mean seconds of each part of a step
    run: float
    compute: float
    loaders: Mapping[int, float]
    served: float | None = None
    threaded: Mapping[int, float] = field(default_factory=dict)
    computes: Mapping[str, float] = field(default_factory=dict)
    prepared: Prepared | None = None
    checkpointing: bool = False
    free_memory: float | None = None  # share of the GPU's that is free at the peak

    @property
    def capacity(self) -> float:
        return self.cores if self.served is None else self.served

    @property
    def loader(self) -> float:
        return self.loaders[self.workers]


@dataclass(frozen=True)
class Verdict:
    """`bound` is decoding, cores, transfer, compute or balanced; `text` says what it rests on."""

    bound: str
    text: str


@dataclass(frozen=True)
class Advice:
    """A change of settings and the rate expected of it. `first` is a command that must be run before.

    `changes` says what of training itself another value changes; `resting` on what the expectation rests.
    """

    settings: Mapping[str, Setting]
    clips_per_s: float
    gain: float
    resting: str
    first: str | None = None
    changes: str | None = None

    @property
    def text(self) -> str:
        return " ".join(
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in self.settings.items()
        )


# --- what bounds it ---------------------------------------------------------------------------------------


def verdict(m: Measured) -> Verdict:
    """What bounds the run, by how long it waits for data, and by what loader and model do alone."""
    total = sum(m.parts.values())
    work = total - m.parts["load"]
    waits = m.parts["load"] / total
    alone = f"alone the loader delivers {m.loader:.4g} clips/s and the model takes {m.compute:.4g}"
    shares = {part: seconds / work for part, seconds in m.parts.items() if part != "load" and seconds}
    spent = "of a step's work " + ", ".join(f"{part} {share:.0%}" for part, share in shares.items())
    crowded = (
        f"the cores bound: {alone}, together they make {m.run:.4g}; workers ({m.workers}) and computing threads "
        f"({m.threads}) share the cores ({m.cores}), and a step waits {waits:.0%} of its time for data"
    )
    if waits >= WAITS:
        if m.workers == 0:
            reads = f"without workers a step spends {waits:.0%} of its time reading"
            return Verdict("decoding", f"decoding bounds: {reads}; {alone}, together {m.run:.4g}")
        if m.loader <= (1 - NEAR) * m.compute:
            waiting = f"a step waits {waits:.0%} of its time for data"
            return Verdict("decoding", f"decoding bounds: {waiting}; {alone}")
        if m.run < CROWDED * min(m.loader, m.compute):
            return Verdict("cores", crowded)
        level = f"loader and model are balanced: a step waits {waits:.0%} for data; {alone}"
        return Verdict("balanced", level)
    if m.device == "cpu" and m.workers > 0 and m.run < CROWDED * m.compute:
        return Verdict("cores", crowded)
    if m.parts["transfer"] >= COPIES * work:
        return Verdict("transfer", f"copying to the device bounds: {spent}; {alone}")
    if m.workers > 0 and m.loader < (1 + NEAR) * m.compute:
        return Verdict("balanced", f"the model bounds, and the loader just keeps up: {alone}; {spent}")
    return Verdict("compute", f"the model bounds: {alone}; {spent}")


# --- what to change ---------------------------------------------------------------------------------------


def expected(
    m: Measured, workers: int, loader: float, compute: float, threads: int, decoding: float = 1.0
) -> float:
    """Clips per second of a run with this number of workers and threads.

    `loader` and `compute` are the rates of its loader and its model alone; `decoding` is what a clip costs to decode,
    as a share of what it costs now.
    """
    reached = min(1.0, m.run / _together(m, m.workers, m.loader, m.compute, m.threads, 1.0))
    return reached * _together(m, workers, loader, compute, threads, decoding)


def _together(
    m: Measured, workers: int, loader: float, compute: float, threads: int, decoding: float
) -> float:
    if workers == 0:
        return 1 / (1 / loader + 1 / compute)
    slower = min(loader, compute)
    if m.device != "cpu":
        return slower
    # seconds of a core that a clip costs: of decoding by the fewest workers measured, which crowd each other least
    fewest = min(m.loaders)
    core_seconds = min(max(1, fewest), m.capacity) / m.loaders[fewest] * decoding
    return min(slower, m.capacity / (core_seconds + min(threads, m.capacity) / compute))


def advise(m: Measured) -> list[Advice]:
    """Changes that are expected to make the run at least `WORTH` times as fast, the best first; those that change
    what is trained come after those that do not. All rest on what was measured; what was not is not advised."""
    advice = [*_processes(m), *_prepared(m), *_variants(m), *_kept_activations(m)]
    worth = [change for change in advice if change.gain >= WORTH]
    if verdict(m).bound == "transfer":
        worth = [change for change in worth if "trainer.num_workers" not in change.settings]
    return sorted(worth, key=lambda change: (change.changes is not None, -change.clips_per_s))


def _processes(m: Measured) -> Iterator[Advice]:
    """Another number of workers or of computing threads, or both, as far as they were measured; the fewest changes
    and workers of those that are about as good as the best."""
    computes = {**m.threaded, m.threads: m.compute}
    tried = []
    for workers, threads in itertools.product(m.loaders, computes):
        new = {"trainer.num_workers": workers, "trainer.cpu_threads": threads}
        now = {"trainer.num_workers": m.workers, "trainer.cpu_threads": m.threads}
        settings: dict[str, Setting] = {key: value for key, value in new.items() if value != now[key]}
        if settings:
            rate = expected(m, workers, m.loaders[workers], computes[threads], threads)
            tried.append((rate, len(settings), workers, threads, settings))
    if not tried:
        return
    best = max(rate for rate, *_ in tried)
    as_good = [trial for trial in tried if trial[0] >= 0.97 * best]
    rate, _, workers, threads, settings = min(as_good, key=lambda trial: trial[1:4])
    resting = f"measured alone: workers ({workers}) deliver {m.loaders[workers]:.4g} clips/s"
    if threads != m.threads:
        resting += f", computing threads ({threads}) take {computes[threads]:.4g}"
    if m.device == "cpu":
        resting += f"; {m.cores} cores do the work of {m.capacity:.2g}"
    yield Advice(settings, rate, rate / m.run, resting)


def _prepared(m: Measured) -> Iterator[Advice]:
    if m.prepared is not None:
        gain = m.prepared.gain
        rate = expected(m, m.workers, m.loader * gain, m.compute, m.threads, 1 / gain)
        first = None if m.prepared.exists else "vidtrain.prepare"
        resting = f"measured on a few videos: the copy is read {gain:.2g} times as fast"
        yield Advice({"data.prepared": m.prepared.name}, rate, rate / m.run, resting, first)


CHANGES = {
    "trainer.precision": "forward passes compute in bfloat16",
    "trainer.batch_size": "a larger batch may need another learning rate",
}


def _variants(m: Measured) -> Iterator[Advice]:
    """Settings of the model alone that were tried."""
    for setting, compute in m.computes.items():
        key, _, text = setting.partition("=")
        value: Setting = {"true": True, "false": False}.get(text, int(text) if text.isdigit() else text)
        rate = expected(m, m.workers, m.loader, compute, m.threads)
        resting = f"measured alone: the model takes {compute:.4g} clips/s"
        yield Advice({key: value}, rate, rate / m.run, resting, changes=CHANGES.get(key))


def _kept_activations(m: Measured) -> Iterator[Advice]:
    if m.checkpointing and m.free_memory is not None and m.free_memory > 0.5:
        # the backward pass makes the forward pass once more
        work = sum(m.parts.values()) - m.parts["load"]
        faster = m.compute * work / (work - m.parts["forward"])
        rate = expected(m, m.workers, m.loader, faster, m.threads)
        resting = f"{m.free_memory:.0%} of the GPU's memory is free; forward passes would not run twice"
        yield Advice({"model.encoder.activation_checkpointing": False}, rate, rate / m.run, resting)


NOTHING = {
    "decoding": "no setting tried would be faster. What would: fewer frames to decode (clip.frame_step, clip.frames), "
    "clip.repeated_augmentation=2, which trains on each decoded clip twice, smaller sources, or more cores",
    "cores": "no setting tried would be faster: the cores are used up. What would: more cores, or a smaller run",
    "transfer": "what is copied is uint8 from page-locked memory already; fewer or smaller frames (clip) would be less",
    "balanced": "loader and model keep pace: a faster run needs both a faster loader and a faster model",
    "compute": "no setting tried would be faster: a smaller model or smaller clips, or another device",
}


def nothing_to_change(m: Measured, bound: str) -> str:
    """What is left where no setting that was tried makes the run faster."""
    share = m.parts["optimizer"] / (sum(m.parts.values()) - m.parts["load"])
    if bound == "compute" and share > LARGE_OPTIMIZER:
        return (
            f"the optimizer takes {share:.0%} of a step's work, which a larger trainer.batch_size would spread over "
            "more clips"
        )
    return NOTHING[bound]
