"""Which samples a step reads: pure functions of the seed and the step, whatever the ranks or workers."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from vidtrain.errors import UserError


class SampleKey(NamedTuple):
    """What a sampler yields: the pass over the data and the record's index in the manifest."""

    epoch: int
    index: int


@lru_cache(maxsize=2)  # a batch touches at most two passes unless the dataset is smaller than a batch
def _order(num_samples: int, seed: int, epoch: int) -> np.ndarray:
    # spawn_key: a stream of its own, apart from those that the samples' draws are keyed by
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch,))).permutation(num_samples)


@dataclass(frozen=True)
class TrainStream:
    """One endless shuffled stream of samples, cut into the micro-batches of this rank.

    Pass p of the stream is the permutation keyed by (seed, p), and optimizer step s reads its positions
    [s * batch_size, (s + 1) * batch_size). Batches cross the border between passes, so nothing is
    dropped, and resuming is naming another `start_step`. `batch_size` counts the samples of one optimizer
    step over all ranks: the set of samples of a step depends on neither `world_size` nor `accumulation`.

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

    def __post_init__(self) -> None:
        shares = self.accumulation * self.world_size
        if self.batch_size % shares:
            nearest = max(shares, round(self.batch_size / shares) * shares)
            raise UserError(
                f"trainer.batch_size={self.batch_size} cannot be shared by {self.world_size} rank(s) x "
                f"{self.accumulation} accumulation step(s); choose a multiple of {shares}, such as {nearest}"
            )

    @property
    def steps_per_pass(self) -> int:
        return max(1, self.num_samples // self.batch_size)

    def __len__(self) -> int:
        return (self.stop_step - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[SampleKey]]:
        micro = self.batch_size // (self.accumulation * self.world_size)
        for step in range(self.start_step, self.stop_step):
            for part in range(self.accumulation):
                first = step * self.batch_size + (part * self.world_size + self.rank) * micro
                yield [self._key(position) for position in range(first, first + micro)]

    def _key(self, position: int) -> SampleKey:
        epoch, place = divmod(position, self.num_samples)
        return SampleKey(epoch, int(_order(self.num_samples, self.seed, epoch)[place]))


@dataclass(frozen=True)
class EvalShard:
    """This rank's share of an evaluation: every index exactly once over all ranks, in order, no padding.

    With `every` = k it takes only each k-th index, for a quick look.
    """

    num_samples: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    every: int = 1

    def __len__(self) -> int:
        return -(-len(self._mine()) // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        mine = self._mine()
        for first in range(0, len(mine), self.batch_size):
            yield [SampleKey(0, index) for index in mine[first : first + self.batch_size]]

    def _mine(self) -> range:
        return range(self.rank * self.every, self.num_samples, self.world_size * self.every)
