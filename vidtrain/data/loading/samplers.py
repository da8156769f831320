"""Which samples a step reads: pure functions of the seed and the step, whatever the ranks or workers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError


class SampleKey(NamedTuple):
    """What a sampler yields: the record's index in the manifest, and the epoch, so that samples to be augmented
    differently have different keys.

    The epoch of a `TrainStream` is its pass over the data. With a balance, and of a `MixtureStream`, it is the place in
    the stream, as a record may come again in the same pass or step.
    """

    epoch: int
    record: int


class _Stream:
    """Optimizer steps of `batch_size` samples, shared by ranks and their accumulation steps."""

    batch_size: int
    start_step: int
    stop_step: int
    accumulation: int
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        shares = self.accumulation * self.world_size
        if self.batch_size % shares:
            nearest = max(shares, round(self.batch_size / shares) * shares)
            raise UserError(
                f"trainer.batch_size={self.batch_size} cannot be shared by {self.world_size} rank(s) x "
                f"{self.accumulation} accumulation step(s); choose a multiple of {shares}, such as {nearest}"
            )

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulation

    def _micro_batches(self) -> list[range]:
        """Which samples of a step this rank reads, one micro-batch after the other."""
        size = self.batch_size // (self.accumulation * self.world_size)
        firsts = [(part * self.world_size + self.rank) * size for part in range(self.accumulation)]
        return [range(first, first + size) for first in firsts]


@dataclass(frozen=True, eq=False)
class ClassBalance:
    """Draws classes more evenly than the n videos of a dataset do.

    A class of n_c videos has a share of the draws proportional to n_c^(1 - `balance`): with 0 as in the dataset, with 1
    the same as every other class. `labels` are int [n], of classes below `num_classes`.

    A pass is n draws, a function of (seed, number of the pass). It holds each class's share but for rounding, which
    later passes make good. The videos of a class take turns over all passes, shuffled each time round; so no video
    comes again before all others of its class have.
    """

    labels: np.ndarray
    num_classes: int
    balance: float

    @cached_property
    def counts(self) -> np.ndarray:
        """Videos of each class, int64 [k]."""
        return np.bincount(self.labels, minlength=self.num_classes)

    @cached_property
    def shares(self) -> np.ndarray:
        """The share of each class in the draws, float64 [k]; 0 for a class without videos."""
        raised = np.where(self.counts > 0, np.maximum(self.counts, 1.0) ** (1 - self.balance), 0.0)
        return raised / raised.sum()

    def order(self, seed: int, number: int) -> np.ndarray:
        """The videos that pass `number` (from 0) draws, int32 [n]."""
        drawn, after = self._drawn_before(number), self._drawn_before(number + 1)
        pieces = []
        for label in np.flatnonzero(after > drawn).tolist():
            members, start, stop = self._members[label], int(drawn[label]), int(after[label])
            first, last = start // len(members), (stop - 1) // len(members)
            rounds = [_shuffled(members, seed, (turn, label, 1)) for turn in range(first, last + 1)]
            pieces.append(np.concatenate(rounds)[start - first * len(members) : stop - first * len(members)])
        return _shuffled(np.concatenate(pieces), seed, (number, 0, 0))

    def _drawn_before(self, number: int) -> np.ndarray:
        """How many videos of each class the first `number` passes hold together, int64 [k].

        Running sums are rounded, so that the classes of a pass add up to its length. No class has a share below 1 / n,
        so a pass never adds fewer than 0.
        """
        total = len(self.labels) * number
        ends = np.floor(np.cumsum(self.shares) * total + 0.5).astype(np.int64)
        ends[np.flatnonzero(self.counts)[-1] :] = total
        return np.diff(ends, prepend=0)

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """The videos of each class."""
        order = np.argsort(self.labels, kind="stable").astype(np.int32)
        return np.split(order, np.cumsum(self.counts)[:-1])


def _shuffled(values: np.ndarray, seed: int, key: tuple[int, int, int]) -> np.ndarray:
    # a key of three numbers belongs to neither a `TrainStream`'s pass nor a `MixtureStream`'s step
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).permutation(values)


def class_balance(manifest: Manifest, balance: float) -> ClassBalance | None:
    """The balance that training draws with; None where it takes videos as they come. Raises `UserError` for a `balance`
    out of bounds, and where a video's class does not say how often to draw it."""
    setting = f"data.class_balanced_sampling={balance}"
    if not 0 <= balance <= 1:
        raise UserError(f"{setting} must lie between 0 (as the videos are) and 1 (all classes alike)")
    if balance == 0:
        return None
    why, loss = "", ""
    if manifest.multi_label:
        why, loss = "videos here may have several", "loss.pos_weight=balanced"
    elif manifest.columns.sources is not None:
        why, loss = "a mixture draws by the weights of its parts", "loss.class_weights=balanced"
    if why:
        raise UserError(f"{setting} draws by class, and {why}; set data.class_balanced_sampling=0 and {loss}")
    return ClassBalance(manifest.columns.labels, len(manifest.classes), balance)


def class_shares(manifest: Manifest, balance: float) -> np.ndarray:
    """The share of each class in the samples that training draws, float64 [k], by `balance` or the weights of a
    mixture's sources. Where videos have several labels the shares add up to more than 1."""
    balanced = class_balance(manifest, balance)
    if balanced is not None:
        return balanced.shares
    columns = manifest.columns
    weights = np.full(len(manifest), 1 / len(manifest))
    if columns.sources is not None:
        per_source = np.array([source.weight for source in manifest.sources], dtype=np.float64)
        counts = np.bincount(columns.sources, minlength=len(per_source))
        weights = (per_source / per_source.sum() / np.maximum(counts, 1))[columns.sources]
    of_labels = np.repeat(weights, columns.label_counts)
    return np.bincount(columns.every_label, weights=of_labels, minlength=len(manifest.classes))


def describe_shares(shares: np.ndarray, balance: float) -> str:
    """A word for the log."""
    held = shares[shares > 0]
    absent = f"; {len(shares) - len(held)} classes have no training video" if len(held) < len(shares) else ""
    drawn = f"data.class_balanced_sampling={balance:g}"
    return f"a class is in {held.min():.3g} to {held.max():.3g} of the samples ({drawn}){absent}"


@dataclass(frozen=True)
class TrainStream(_Stream):
    """One endless shuffled stream of samples, cut into the micro-batches of this rank.

    Pass p of the stream is the permutation keyed by (seed, p), or what a `balance` draws. Optimizer step s reads
    positions [s * batch_size, (s + 1) * batch_size), across the border between passes. Resuming is naming another
    `start_step`. `batch_size` counts the samples of a step over all ranks: which samples a step holds depends on
    neither `world_size` nor `accumulation`.

    Iterating yields, for every step, `accumulation` lists of `SampleKey`.
    """

    num_samples: int
    batch_size: int
    seed: int
    start_step: int
    stop_step: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1
    balance: ClassBalance | None = None

    @property
    def steps_per_pass(self) -> int:
        return max(1, self.num_samples // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        current, order = -1, np.empty(0)
        micro_batches = self._micro_batches()
        for step in range(self.start_step, self.stop_step):
            for micro_batch in micro_batches:
                keys = []
                for sample in micro_batch:
                    place = step * self.batch_size + sample
                    epoch, position = divmod(place, self.num_samples)
                    if epoch != current:
                        current, order = epoch, self._order(epoch)
                    keys.append(SampleKey(place if self.balance else epoch, int(order[position])))
                yield keys

    def _order(self, epoch: int) -> np.ndarray:
        """The records that a pass reads: a permutation, of 4 bytes each."""
        if self.balance is not None:
            return self.balance.order(self.seed, epoch)
        order = np.arange(self.num_samples, dtype=np.int32)
        # spawn_key: a stream of its own, apart from those that the samples' draws are keyed by
        np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(epoch,))).shuffle(order)
        return order


class MixtureSource(NamedTuple):
    """A source to draw from: the manifest indices of its records, its weight relative to the others', and the frames of
    its clips."""

    name: str
    records: Sequence[int] | np.ndarray
    weight: float
    frames: int


def records_by_source(codes: np.ndarray, num_sources: int) -> list[np.ndarray]:
    """The records of each source, int32, given the source [n] of every record."""
    return [np.flatnonzero(codes == source).astype(np.int32) for source in range(num_sources)]


@dataclass(frozen=True)
class MixtureStream(_Stream):
    """An endless stream of samples drawn from several sources, cut into the micro-batches of this rank.

    Every sample is drawn with replacement: its source by weight, then one of the source's records. Place p of optimizer
    step s is keyed by (seed, s, p), so it depends on neither `world_size` nor `accumulation`, and resuming is naming
    another `start_step`. The epoch of a key is s * batch_size + p: a record that comes again is augmented differently.

    Clips of a batch have equally many frames. So a step first draws a number of frames, by the sum of the weights, and
    then from its sources alone; each source has its share over many steps.

    Iterating yields, for every step, `accumulation` lists of `SampleKey`. Raises `UserError` for a source without
    records and for weights that are no shares.
    """

    sources: Sequence[MixtureSource]
    batch_size: int
    seed: int
    start_step: int
    stop_step: int
    accumulation: int = 1
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for source in self.sources:
            if not 0 < source.weight < np.inf:
                raise UserError(f"source {source.name}: weight {source.weight} must be above 0")
            if not len(source.records):
                raise UserError(f"source {source.name} holds no videos to draw from; leave it out")
        if not self.sources:
            raise UserError("there is no source to draw from")

    @property
    def steps_per_pass(self) -> int:
        """Steps that draw as many samples as there are records in all sources."""
        return max(1, sum(len(source.records) for source in self.sources) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        micro_batches = self._micro_batches()
        for step in range(self.start_step, self.stop_step):
            sources, places = self._draw(step)
            for micro_batch in micro_batches:
                yield [
                    SampleKey(step * self.batch_size + p, int(self.sources[sources[p]].records[places[p]]))
                    for p in micro_batch
                ]

    def _draw(self, step: int) -> tuple[list[int], list[int]]:
        """The source of each of the step's samples, and its place among the source's records."""
        # a key of two numbers is no pass of a `TrainStream`
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step, 0)))
        shares, groups = self._groups
        members, shares_within, counts = groups[int(np.searchsorted(shares, rng.random(), side="right"))]
        which, where = rng.random((self.batch_size, 2)).T
        chosen = np.searchsorted(shares_within, which, side="right")
        places = (where * counts[chosen]).astype(np.int64)
        return members[chosen].tolist(), places.tolist()

    @cached_property
    def _groups(self) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """The running share of each number of frames; and for each its sources, their running shares and how many
        records they hold."""
        frames = np.array([source.frames for source in self.sources])
        weights = np.array([source.weight for source in self.sources], dtype=np.float64)
        counts = np.array([len(source.records) for source in self.sources])
        groups, totals = [], []
        for count in np.unique(frames):
            members = np.flatnonzero(frames == count)
            groups.append((members, _running_share(weights[members]), counts[members]))
            totals.append(weights[members].sum())
        return _running_share(np.array(totals)), groups


def _running_share(weights: np.ndarray) -> np.ndarray:
    total = np.cumsum(weights)
    return total / total[-1]


def every_for(total: int, most: int | None) -> int:
    """The k for which every k-th of `total` samples makes about `most`; 1 for None."""
    return math.ceil(total / (most or total))


@dataclass(frozen=True)
class EvalShard:
    """This rank's share of an evaluation: every index, or each `every`-th, exactly once over all ranks, in order,
    without padding."""

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    every: int = 1

    def __len__(self) -> int:
        return -(-len(self._samples) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for first in range(0, len(self._samples), self.batch_size):
            yield [SampleKey(0, index) for index in self._samples[first : first + self.batch_size]]

    @property
    def _samples(self) -> range:
        return range(self.rank * self.every, self.num_samples, self.world_size * self.every)


@dataclass(frozen=True)
class EvalUnits:
    """An evaluation in units that are the same at any number of ranks: unit u is one batch, of the samples
    [u * batch_size, (u + 1) * batch_size) of the split, or of each `every`-th of it.

    In the last bit, logits depend on how many videos a batch holds. Here that follows from the split alone. Units that
    are not `done` are dealt to the ranks in turn. Iterating yields the keys of each of this rank's `units`, in order.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    every: int = 1
    done: frozenset[int] = frozenset()

    @property
    def total(self) -> int:
        return -(-len(self._samples) // self.batch_size)

    @cached_property
    def units(self) -> list[int]:
        left = [unit for unit in range(self.total) if unit not in self.done]
        return left[self.rank :: self.world_size]

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        for unit in self.units:
            first = unit * self.batch_size
            yield [SampleKey(0, index) for index in self._samples[first : first + self.batch_size]]

    @property
    def _samples(self) -> range:
        return range(0, self.num_samples, self.every)
