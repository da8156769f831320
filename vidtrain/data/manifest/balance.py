"""Class balance: how often training draws each class, and the order in which it does."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError


@dataclass(frozen=True, eq=False)
class ClassBalance:
    """Draws classes more evenly than the n videos of a dataset do.

    Class c, which n_c of them are of, has a share of the draws proportional to n_c^(1 - `balance`): with 0 as in the
    dataset, with 1 the same as every other class. `labels` are int [n], of classes below `num_classes`.

    A pass is n draws. Its order is a function of (seed, number of the pass): how many videos of each class it holds is
    the class's share but for rounding, which later passes make good. The videos of a class take turns over all passes,
    in an order that is shuffled each time round; so no video comes again before all others of its class have.
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
        """The videos that pass `number` (from 0) draws, int32 [n] (int64 above 2^31)."""
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

        Rounding running sums, and not each class by itself, lets the classes of a pass add up to its length. No class
        has a share below 1 / n, so that what is added by a pass never falls below 0.
        """
        total = len(self.labels) * number
        ends = np.floor(np.cumsum(self.shares) * total + 0.5).astype(np.int64)
        ends[np.flatnonzero(self.counts)[-1] :] = total
        return np.diff(ends, prepend=0)

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """The videos of each class."""
        order = np.argsort(self.labels, kind="stable").astype(
            np.int32 if len(self.labels) <= 2**31 else np.int64
        )
        return np.split(order, np.cumsum(self.counts)[:-1])


def _shuffled(values: np.ndarray, seed: int, key: tuple[int, int, int]) -> np.ndarray:
    # a key of three numbers belongs to neither a `TrainStream`'s pass nor a `MixtureStream`'s step
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key)).permutation(values)


def class_balance(manifest: Manifest, balance: float) -> ClassBalance | None:
    """The balance that training draws with; None where it takes videos as they come.

    Raises `UserError` for a `balance` out of bounds, and where a video's class does not say how often to draw it.
    """
    if not 0 <= balance <= 1:
        raise UserError(
            f"data.class_balanced_sampling={balance} must lie between 0 (as the videos are) and 1 (all classes alike)"
        )
    if balance == 0:
        return None
    if manifest.multi_label:
        raise UserError(
            f"data.class_balanced_sampling={balance} draws by class, and videos here may have several; set "
            "data.class_balanced_sampling=0, and "
            "balance the loss with loss.pos_weight=balanced"
        )
    if manifest.columns.sources is not None:
        raise UserError(
            f"data.class_balanced_sampling={balance} draws by class, and a mixture draws by the weights of its parts; "
            "set data.class_balanced_sampling=0, and balance the loss with loss.class_weights=balanced"
        )
    return ClassBalance(manifest.columns.labels, len(manifest.classes), balance)


def class_shares(manifest: Manifest, balance: float) -> np.ndarray:
    """Which share of the samples that training draws holds each class, float64 [k], with what says how often videos
    are drawn: `balance`, or the weights of a mixture's sources. Of several labels a video they add up to more than 1.
    """
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
