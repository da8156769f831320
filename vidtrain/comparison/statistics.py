"""How sure a difference is, and what explains differences between runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np

from vidtrain.evaluation.resampling import draw_weights

MOST_BINS = 4
RUNS_PER_BIN = 3


# --- scores that are no mean over videos ------------------------------------------------------------------


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


# From hits, labels and predictions of each class [b k] to ratios [b k]
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
    """One of `SCORES` [b], as vidtrain.evaluation defines them: what is undefined counts 0, and a class that is neither
    labeled nor predicted does not count."""
    ratio, _, mean = metric.rpartition("_")
    if metric == "balanced_accuracy":
        ratio, weights = "recall", (labeled > 0).astype(np.float64)
    elif mean == "micro":
        hits, labeled, predicted = (of.sum(axis=1, keepdims=True) for of in (hits, labeled, predicted))
        return RATIOS[ratio](hits, labeled, predicted)[:, 0]
    else:
        weights = labeled if mean == "weighted" else (labeled + predicted > 0).astype(np.float64)
    return (RATIOS[ratio](hits, labeled, predicted) * weights).sum(axis=1) / weights.sum(axis=1)


def scores(
    metric: str, labels: np.ndarray, predictions: Sequence[np.ndarray], k: int, weights: np.ndarray
) -> np.ndarray:
    """A score of `SCORES` [b r] of r runs on videos that count `weights` [b v] times.

    `labels` and every run's `predictions` are sorted marks video * k + class, one for each label of a video.
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
    """`scores` [draws r] over units drawn with replacement; `units` [v] says of each video which it belongs to."""
    once = np.ones(units.max() + 1, dtype=np.int64)
    return np.concatenate(
        [
            scores(metric, labels, predictions, k, weights[:, units].astype(np.float64))
            for weights in draw_weights(once, draws, len(units), rng)
        ]
    )


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


def seed_noise(scores: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How far the mean of n runs [n] may lie from that of all seeds: [draws].

    By Student's t of n - 1 degrees of freedom times the standard error. The difference of two such draws has Behrens'
    and Fisher's distribution, which asks for no equal spread (Fisher, 1935). Drawing the runs themselves with
    replacement would, of three seeds, give little more than a third of the width that is due.
    """
    n = len(scores)
    return rng.standard_t(n - 1, draws) * scores.std(ddof=1) / np.sqrt(n)


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


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation of runs; of a single one there is no deviation."""
    return fmean(values), stdev(values) if len(values) > 1 else None


# --- what a setting accounts for --------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """One setting. `share` is eta squared, the part of the variance between runs that lies between the setting's
    values; `adjusted` is epsilon squared (Kelley, 1935), which takes away what as many values explain by chance, and
    is cut at 0. `adjusted` is None where no value was run twice.

    Settings are taken one at a time: what two do only together is credited to neither, and where settings were not
    varied independently one gets credit for another.
    """

    key: str
    values: int  # or bins of values, where numbers hardly repeat
    runs: int
    binned: bool
    share: float
    adjusted: float | None


def importance(metric: Sequence[float], settings: Mapping[str, Sequence[Any]]) -> list[Importance]:
    """The importance of every setting, the greatest first; empty where the runs do not differ in `metric`."""
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
    """A number for each run's value, or for numbers that hardly repeat one of up to four bins of equal size."""
    names, codes = np.unique([str(value) for value in row], return_inverse=True)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in row)
    if numbers and 2 * len(names) > len(row) and len(row) >= 2 * RUNS_PER_BIN:
        bins = min(MOST_BINS, len(row) // RUNS_PER_BIN)
        column = np.array(row, dtype=np.float64)
        edges = np.quantile(column, np.arange(1, bins) / bins)
        return np.unique(np.searchsorted(edges, column), return_inverse=True)[1], True
    return codes, False
