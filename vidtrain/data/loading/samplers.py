"""Samplers: the samples of a step are a function of seed and step, independent of the number of ranks and workers."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError, pluralize


class SampleKey(NamedTuple):
    """The key of a sample: the record's index in the manifest, and an epoch, with which the same record is augmented
    differently each time.

    In a `TrainStream` the epoch is the pass over the data. With a balance, and in a `MixtureStream`, it is the position
    in the stream, as a record may be drawn several times in a pass or step.
    """

    epoch: int
    record: int


class _Stream:
    """Optimizer steps of `batch_size` samples, divided among ranks and their accumulation steps."""

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
        """The samples of a step that this rank reads, for each micro-batch."""
        size = self.batch_size // (self.accumulation * self.world_size)
        starts = [(part * self.world_size + self.rank) * size for part in range(self.accumulation)]
        return [range(first, first + size) for first in starts]


@dataclass(frozen=True, eq=False)
class ClassBalance:
    """Draws classes more evenly than the n videos of a dataset do.

    A class with n_c videos gets a share of the draws proportional to n_c^(1 - `balance`): 0 is as in the dataset, 1 is
    equal for all classes. `labels` are int [n], below `num_classes`.

    A pass has n draws and depends on (seed, number of the pass). It has each class's share up to rounding, which later
    passes compensate. The videos of a class are drawn in turns over all passes, shuffled for each turn, so no video is
    drawn again before all others of its class.
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
        """The number of videos of each class in the first `number` passes together, int64 [k].

        Cumulative sums are rounded, so that the classes of a pass add up to its length. No class has a share below 1 /
        n, so the numbers never decrease.
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
    # three numbers, as a `TrainStream`'s pass has a key of one, and a `MixtureStream`'s step a key of two
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).permutation(values)


def class_balance(manifest: Manifest, balance: float) -> ClassBalance | None:
    """The class balance for training; None for 0. Raises `UserError` for a `balance` out of range, for several labels a
    video, and for mixtures."""
    setting = f"data.class_balanced_sampling={balance}"
    if not 0 <= balance <= 1:
        raise UserError(f"{setting} must be between 0 (as in the dataset) and 1 (all classes equally)")
    if balance == 0:
        return None
    conflict, loss = "", ""
    if manifest.multi_label:
        conflict, loss = "videos here may have several", "loss.pos_weight=balanced"
    elif manifest.columns.sources is not None:
        conflict, loss = "a mixture draws by the weights of its parts", "loss.class_weights=balanced"
    if conflict:
        raise UserError(f"{setting} draws by class, but {conflict}; set data.class_balanced_sampling=0 and {loss}")
    return ClassBalance(manifest.columns.labels, len(manifest.classes), balance)


def class_shares(manifest: Manifest, balance: float) -> np.ndarray:
    """The share of each class in the samples of training, float64 [k], by `balance` or the weights of a mixture's
    sources. If videos have several labels, the shares add up to more than 1."""
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
    """A sentence for the log."""
    present = shares[shares > 0]
    missing = len(shares) - len(present)
    absent = f"; no training video is of {pluralize(missing, 'class')}" if missing else ""
    low, high = f"{present.min():.1%}", f"{present.max():.1%}"
    each = f"{low} of the samples" if low == high else f"{low} to {high} of the samples"
    return f"each class has {each} (data.class_balanced_sampling={balance:g}){absent}"


@dataclass(frozen=True)
class TrainStream(_Stream):
    """An endless shuffled stream of samples, divided into the micro-batches of this rank.

    Pass p of the stream is the permutation keyed by (seed, p), or the draws of a `balance`. Optimizer step s reads
    positions [s * batch_size, (s + 1) * batch_size), also across passes. To resume, set another `start_step`.
    `batch_size` counts the samples of a step over all ranks: the samples of a step depend on neither `world_size` nor
    `accumulation`.

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
        """The records that a pass reads, in order: int32 [num_samples]."""
        if self.balance is not None:
            return self.balance.order(self.seed, epoch)
        order = np.arange(self.num_samples, dtype=np.int32)
        # spawn_key makes it independent of the random numbers of samples
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
    """An endless stream of samples from several sources, divided into the micro-batches of this rank.

    Every sample is drawn with replacement: its source by weight, then one of the source's records. Sample p of
    optimizer step s is keyed by (seed, s, p), so it depends on neither `world_size` nor `accumulation`; to resume, set
    another `start_step`. The epoch of a key is s * batch_size + p, so that a record is augmented differently each time.

    The clips of a batch must have the same number of frames. So a step first draws a number of frames, by the sum of
    the weights of its sources, and then samples only from these sources; over many steps each source has its share.

    Iterating yields, for every step, `accumulation` lists of `SampleKey`. Raises `UserError` for a source without
    records, and for invalid weights.
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
        """The source of each sample of the step, and its index among the source's records."""
        # a key of two numbers, as the passes of a `TrainStream` have one
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(step, 0)))
        shares, groups = self._groups
        members, shares_within, counts = groups[int(np.searchsorted(shares, rng.random(), side="right"))]
        which, where = rng.random((self.batch_size, 2)).T
        chosen = np.searchsorted(shares_within, which, side="right")
        places = (where * counts[chosen]).astype(np.int64)
        return members[chosen].tolist(), places.tolist()

    @cached_property
    def _groups(self) -> tuple[np.ndarray, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """The cumulative share of each number of frames; and for each its sources, their cumulative shares and their
        numbers of records."""
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
    """The k for which taking every k-th of `total` samples gives at most `most`; 1 for None."""
    return math.ceil(total / (most or total))


@dataclass(frozen=True)
class EvalShard:
    """This rank's share of an evaluation: all indices, or each `every`-th, are read exactly once over all ranks, in
    order, without padding."""

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

    The last bit of logits depends on the number of videos in a batch, which here depends on the split alone. Units that
    are not `done` are distributed over the ranks in turn. Iterating yields the keys of this rank's `units`, in order.
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
