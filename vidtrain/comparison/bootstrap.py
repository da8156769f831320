"""How sure a difference is: the paired bootstrap over videos, and McNemar's exact test.

The bootstrap (Efron, 1979) draws as many videos as there are, with replacement, again and again; what the numbers do
from one draw to the next is what they would do on other videos of the same kind. It is paired: every run is scored on
the same draw, so what makes a video hard for all of them cancels out. Where videos come in groups (one person, one
long recording) whole groups are drawn, as the videos of a group are no independent witnesses.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

CELLS = 1 << 22  # of the weights that are held at a time


def resampled_means(values: np.ndarray, groups: np.ndarray | None, draws: int, rng) -> np.ndarray:
    """Means [draws r] of `values` [r v] over videos drawn with replacement, the same for all r rows.

    Videos on which all rows are the same are exchangeable, so it draws how often each distinct column comes, which is
    the same distribution and far fewer numbers than there are videos. `groups` [v] numbers what is drawn whole.
    """
    sums, sizes = _by_unit(values.astype(np.float64), groups)
    columns, counts = np.unique(np.vstack([sums, sizes]), axis=1, return_counts=True)
    means = [
        (weights @ columns[:-1].T) / (weights @ columns[-1])[:, None]
        for weights in _weights(counts, draws, rng)
    ]
    return np.concatenate(means)


def _by_unit(values: np.ndarray, groups: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sums [r u] and sizes [u] of the units that are drawn: groups, or single videos."""
    if groups is None:
        return values, np.ones(values.shape[1])
    return np.stack([np.bincount(groups, row) for row in values]), np.bincount(groups).astype(np.float64)


def _weights(counts: np.ndarray, draws: int, rng) -> Iterator[np.ndarray]:
    """How often each kind of unit is drawn [b m], of which there are `counts` [m], in parts that fit into memory."""
    total, step = counts.sum(), max(1, CELLS // len(counts))
    for start in range(0, draws, step):
        yield rng.multinomial(total, counts / total, size=min(step, draws - start))


# --- scores that are no mean over videos ------------------------------------------------------------------

# From hits, labels and predictions of each class [b k] to a score [b]. As vidtrain.evaluation.metrics and multi_label
# define them: what is undefined counts 0, and a class that is neither labeled nor predicted does not count.
Score = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def _mean_over(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (values * weights).sum(axis=1) / weights.sum(axis=1)


def _recall(hits, labeled, predicted):
    return _ratio(hits, labeled)


def _precision(hits, labeled, predicted):
    return _ratio(hits, predicted)


def _f1(hits, labeled, predicted):
    return _ratio(2 * hits, labeled + predicted)


def _macro(of: Score) -> Score:
    return lambda hits, labeled, predicted: _mean_over(
        of(hits, labeled, predicted), (labeled + predicted > 0).astype(np.float64)
    )


def _micro(of: Score) -> Score:
    return lambda *counts: of(*(each.sum(axis=1, keepdims=True) for each in counts))[:, 0]


def _weighted(of: Score) -> Score:
    return lambda hits, labeled, predicted: _mean_over(of(hits, labeled, predicted), labeled)


SCORES: dict[str, Score] = {
    "balanced_accuracy": lambda hits, labeled, predicted: _mean_over(
        _ratio(hits, labeled), (labeled > 0).astype(np.float64)
    ),
    **{
        f"{name}_{average}": averaged(of)
        for name, of in (("precision", _precision), ("recall", _recall), ("f1", _f1))
        for average, averaged in (("macro", _macro), ("weighted", _weighted), ("micro", _micro))
    },
}


def scores(metric: str, labels: np.ndarray, predictions: Sequence[np.ndarray], k: int, weights) -> np.ndarray:
    """A score of `SCORES` [b r] of r runs on videos that count `weights` [b v] times.

    `labels` and every run's `predictions` are sorted marks video * k + class, one for each label of a video.
    """
    labeled = _sum_by_class(weights, labels, k)
    found = []
    for marks in predictions:
        hits = np.intersect1d(marks, labels, assume_unique=True)
        counts = (_sum_by_class(weights, hits, k), labeled, _sum_by_class(weights, marks, k))
        found.append(SCORES[metric](*counts))
    return np.stack(found, axis=1)


def resampled_scores(
    metric: str,
    labels: np.ndarray,
    predictions: Sequence[np.ndarray],
    k: int,
    units: np.ndarray,
    draws: int,
    rng,
) -> np.ndarray:
    """`scores` [draws r] over units drawn with replacement; `units` [v] says of each video which it belongs to."""
    counts = np.ones(units.max() + 1, dtype=np.int64)
    step = max(1, CELLS // len(units))
    found = []
    for start in range(0, draws, step):
        weights = rng.multinomial(len(counts), counts / len(counts), size=min(step, draws - start))
        found.append(scores(metric, labels, predictions, k, weights[:, units].astype(np.float64)))
    return np.concatenate(found)


def _sum_by_class(weights: np.ndarray, marks: np.ndarray, k: int) -> np.ndarray:
    """Sums [b k] over the marks of each class of their videos' `weights` [b v]."""
    videos, classes = np.divmod(marks, k)
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(weights), k))
    if len(present):
        sums[:, present] = np.add.reduceat(weights[:, videos[order]], starts, axis=1)
    return sums


# --- what is made of the draws ----------------------------------------------------------------------------


def seed_noise(scores: np.ndarray, draws: int, rng) -> np.ndarray:
    """How far the mean of n runs [n] may lie from that of all seeds: [draws].

    By Student's t of n - 1 degrees of freedom times the standard error. The difference of two such draws has Behrens'
    and Fisher's distribution, which asks for no equal spread (Fisher, 1935). Drawing the runs themselves with
    replacement would, of three seeds, give little more than a third of the width that is due.
    """
    n = len(scores)
    return rng.standard_t(n - 1, draws) * scores.std(ddof=1) / np.sqrt(n)


def percentile_interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of `samples`, without what rounding leaves of a 0."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return round(float(low), 12) + 0.0, round(float(high), 12) + 0.0


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(videos that only the first got right, only the second, p) from correctness bool [v] of two runs.

    p is two-sided and exact (McNemar, 1947, with the binomial distribution): were both runs equally good, each video
    on which just one is right would fall to either like a coin. In whole numbers, so that none is rounded away.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways, tail = 1, 0
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return only_first, only_second, min(1.0, 2 * tail / 2**n)
