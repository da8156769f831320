"""The uncertainty of a difference, and the share of differences between runs that each setting explains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from vidtrain.evaluation.resampling import draw_weights

MOST_BINS = 4  # numbers that hardly repeat are put into at most so many bins
RUNS_PER_BIN = 3  # at least


# --- scores that are not means over videos ----------------------------------------------------------------


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


# Functions of the counts of hits, labels and predictions of each class [b k], to ratios [b k]
RATIOS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "precision": lambda hits, labeled, predicted: _ratio(hits, predicted),
    "recall": lambda hits, labeled, predicted: _ratio(hits, labeled),
    "f1": lambda hits, labeled, predicted: _ratio(2 * hits, labeled + predicted),
}
SCORES = (
    "balanced_accuracy",
    *(f"{ratio}_{mean}" for ratio in RATIOS for mean in ("macro", "weighted", "micro")),
)


def _score(metric: str, hits: np.ndarray, labeled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """One of `SCORES` [b], as vidtrain.evaluation defines them: an undefined ratio is 0, and a class that is neither
    labeled nor predicted is left out of the mean."""
    ratio, _, mean = metric.rpartition("_")
    if metric == "balanced_accuracy":
        ratio, weights = "recall", (labeled > 0).astype(np.float64)
    elif mean == "micro":
        hits, labeled, predicted = (
            counts.sum(axis=1, keepdims=True) for counts in (hits, labeled, predicted)
        )
        return RATIOS[ratio](hits, labeled, predicted)[:, 0]
    else:
        weights = labeled if mean == "weighted" else (labeled + predicted > 0).astype(np.float64)
    return (RATIOS[ratio](hits, labeled, predicted) * weights).sum(axis=1) / weights.sum(axis=1)


def scores(
    metric: str, labels: np.ndarray, predictions: Sequence[np.ndarray], k: int, weights: np.ndarray
) -> np.ndarray:
    """A score of `SCORES` [b r], of r runs, for b weightings of the v videos: `weights` [b v].

    `labels` and every run's `predictions` are sorted numbers video * k + class, one for each label of a video.
    """
    labeled = _sum_by_class(weights, labels, k)
    columns = []
    for marks in predictions:
        hits = _sum_by_class(weights, np.intersect1d(marks, labels, assume_unique=True), k)
        columns.append(_score(metric, hits, labeled, _sum_by_class(weights, marks, k)))
    return np.stack(columns, axis=1)


def resampled_scores(
    metric: str,
    labels: np.ndarray,
    predictions: Sequence[np.ndarray],
    k: int,
    units: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """`scores` [draws r] over units drawn with replacement; `units` [v] is the unit of each video."""
    once = np.ones(units.max() + 1, dtype=np.int64)
    return np.concatenate(
        [
            scores(metric, labels, predictions, k, weights[:, units].astype(np.float64))
            for weights in draw_weights(once, draws, len(units), rng)
        ]
    )


def _sum_by_class(weights: np.ndarray, marks: np.ndarray, k: int) -> np.ndarray:
    """For each of k classes, the sum [b k] of the `weights` [b v] of the videos that `marks` give the class."""
    videos, classes = np.divmod(marks, k)
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(weights), k))
    if len(present):
        sums[:, present] = np.add.reduceat(weights[:, videos[order]], starts, axis=1)
    return sums


# --- tests and spread -------------------------------------------------------------------------------------


def seed_noise(scores: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws [draws] of the error of the mean of n runs, `scores` [n], as an estimate of the mean over all seeds.

    They are Student's t with n - 1 degrees of freedom times the standard error. The difference of two such draws has
    the Behrens-Fisher distribution, which does not assume equal variances (Fisher, 1935). A bootstrap over the runs
    would, with three seeds, give little more than a third of the correct width.
    """
    n = len(scores)
    return rng.standard_t(n - 1, draws) * scores.std(ddof=1) / np.sqrt(n)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(videos on which only the first is correct, only the second, p) from correctness bool [v] of two runs.

    p is two-sided and exact (McNemar, 1947, with the binomial distribution): if both runs are equally good, each video
    on which only one is correct falls to either with probability 1/2. Whole numbers avoid rounding of tiny terms.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways, tail = 1, 0
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return only_first, only_second, min(1.0, 2 * tail / 2**n)


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation of runs; for a single run the deviation is None."""
    return fmean(values), stdev(values) if len(values) > 1 else None


# --- importance of settings -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """The importance of one setting. `share` is eta squared, the part of the variance between runs that lies between
    the setting's values. `adjusted` is epsilon squared (Kelley, 1935), which subtracts what as many values explain by
    chance, and is cut at 0. It is None if no value was run twice.

    Each setting is considered alone: an effect that two settings have only together is credited to neither, and if
    settings were not varied independently, one may get the credit of another.
    """

    key: str
    values: int  # number of values, or of bins if numbers hardly repeat
    runs: int
    binned: bool
    share: float
    adjusted: float | None


def importance(metric: Sequence[float], settings: Mapping[str, Sequence[Any]]) -> list[Importance]:
    """The importance of every setting, the greatest first; empty if all runs have the same `metric`."""
    values = np.array(metric, dtype=np.float64)
    total = ((values - values.mean()) ** 2).sum() if len(values) else 0.0
    if total <= 0:
        return []
    rows = [_importance_of(key, values, total, row) for key, row in settings.items()]
    return sorted(rows, key=lambda row: -1.0 if row.adjusted is None else row.adjusted, reverse=True)


def _importance_of(key: str, metric: np.ndarray, total: float, row: Sequence[Any]) -> Importance:
    codes, binned = _values_or_bins(row)
    counts = np.bincount(codes)
    means = np.bincount(codes, metric) / counts
    within = float(((metric - means[codes]) ** 2).sum())
    adjusted = None
    if len(metric) > len(counts):
        between = total - within - (len(counts) - 1) * within / (len(metric) - len(counts))
        adjusted = max(0.0, float(between / total))
    return Importance(key, len(counts), len(metric), binned, float(1 - within / total), adjusted)


def _values_or_bins(row: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """An integer code for each run's value, and whether the values, as numbers that hardly repeat, were put into at
    most `MOST_BINS` bins of equal size first."""
    names, codes = np.unique([str(value) for value in row], return_inverse=True)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in row)
    if numbers and 2 * len(names) > len(row) and len(row) >= 2 * RUNS_PER_BIN:
        bins = min(MOST_BINS, len(row) // RUNS_PER_BIN)
        column = np.array(row, dtype=np.float64)
        edges = np.quantile(column, np.arange(1, bins) / bins)
        return np.unique(np.searchsorted(edges, column), return_inverse=True)[1], True
    return codes, False
