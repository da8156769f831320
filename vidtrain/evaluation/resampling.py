"""Metrics over resampled videos, for intervals; the error that is due to seeds; and McNemar's test."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vidtrain.evaluation.calibration import BINNINGS, calibration_error, gaps, outcomes
from vidtrain.evaluation.metrics import draw_weights, resampled_means

# Functions of the counts of hits, labels and predictions of each class [b k], to ratios [b k]
RATIOS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "precision": lambda hits, labeled, predicted: _ratio(hits, predicted),
    "recall": lambda hits, labeled, predicted: _ratio(hits, labeled),
    "f1": lambda hits, labeled, predicted: _ratio(2 * hits, labeled + predicted),
}
SCORES = ("balanced_accuracy", *(f"{ratio}_{mean}" for ratio in RATIOS for mean in ("macro", "weighted", "micro")))
MEANS = ("top1", "top5", "exact_match")
FROM_PREDICTIONS = (*MEANS, *SCORES)  # metrics that follow from predictions.csv
COSTS = {"loss": "nll", "brier": "brier"}  # fields of `Outcomes`
PRECISIONS = ("map", "map_micro")
PRECISION_DRAWS = 1000  # at most: a draw of these takes a hundred times as long as one of the others
FROM_LOGITS = (*COSTS, *BINNINGS, *PRECISIONS)  # metrics that need logits.npz too; the others get no interval

Answers = tuple[Tensor, Tensor, bool]  # logits [v k] of a run, labels [v] or [v k], and whether classes are independent

# --- metrics that follow from predictions.csv -------------------------------------------------------------


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def _score(metric: str, hits: np.ndarray, labeled: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """One of `SCORES` [b], as vidtrain.evaluation defines them: an undefined ratio is 0, and a class that is neither
    labeled nor predicted is left out of the mean."""
    ratio, _, mean = metric.rpartition("_")
    if metric == "balanced_accuracy":
        ratio, weights = "recall", (labeled > 0).astype(np.float64)
    elif mean == "micro":
        hits, labeled, predicted = (counts.sum(axis=1, keepdims=True) for counts in (hits, labeled, predicted))
        return RATIOS[ratio](hits, labeled, predicted)[:, 0]
    else:
        weights = labeled if mean == "weighted" else (labeled + predicted > 0).astype(np.float64)
    return (RATIOS[ratio](hits, labeled, predicted) * weights).sum(axis=1) / weights.sum(axis=1)


def scores(
    metric: str, labels: np.ndarray, predictions: Sequence[np.ndarray], k: int, weights: np.ndarray
) -> np.ndarray:
    """A score of `SCORES` [b r], of r runs, for b weightings of the v videos: `weights` [b v]. `labels` and every run's
    `predictions` are sorted numbers video * k + class, one for each label of a video."""
    labeled = _sum_by_class(weights, labels, k)
    columns = []
    for codes in predictions:
        hits = _sum_by_class(weights, np.intersect1d(codes, labels, assume_unique=True), k)
        columns.append(_score(metric, hits, labeled, _sum_by_class(weights, codes, k)))
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


def _sum_by_class(weights: np.ndarray, codes: np.ndarray, k: int) -> np.ndarray:
    """For each of k classes, the sum [b k] of the `weights` [b v] of the videos whose `codes` name the class."""
    videos, classes = np.divmod(codes, k)
    order = np.argsort(classes, kind="stable")
    present, starts = np.unique(classes[order], return_index=True)
    sums = np.zeros((len(weights), k))
    if len(present):
        sums[:, present] = np.add.reduceat(weights[:, videos[order]], starts, axis=1)
    return sums


# --- metrics that follow from logits.npz ------------------------------------------------------------------


def sampled_logits(
    metric: str, runs: Sequence[Answers], groups: np.ndarray | None, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One of `FROM_LOGITS` of each of r `runs` on their v videos [r], and on resampled ones [draws r]. `groups` [v] are
    drawn whole."""
    if metric in PRECISIONS:
        return _sampled_precision(metric, runs, groups, draws, rng)
    costs = [outcomes(*run) for run in runs]
    if metric in COSTS:
        values = np.stack([getattr(cost, COSTS[metric]) for cost in costs])
        return values.mean(axis=1), resampled_means(values, groups, draws, rng)
    bins = [BINNINGS[metric](cost.confidence) for cost in costs]
    pairs = list(zip(costs, bins, strict=True))
    values = np.array([calibration_error(cost.confidence, cost.right, numbers) for cost, numbers in pairs])
    by_run = [gaps(cost, numbers) for cost, numbers in pairs]
    means = resampled_means(np.concatenate(by_run), groups, draws, rng)
    columns = np.split(means, np.cumsum([len(rows) for rows in by_run])[:-1], axis=1)
    # Mirrored, as in `calibration.reliability`: drawing with replacement raises calibration errors
    return values, 2 * values - np.stack([np.abs(column).sum(axis=1) for column in columns], axis=1)


@dataclass(frozen=True)
class Ranking:
    """The answers of one class, or of all together, by falling probability. An answer is a yes or no for a video and a
    class; it is a hit if the video has the class. Hits with equal probability are one point of the curve."""

    videos: np.ndarray  # [n] the video of each answer, down to the last point
    hits: np.ndarray  # [p] the places of the hits
    points: np.ndarray  # [m] the number of answers down to each point
    point_of: np.ndarray  # [p] the point of each hit

    @classmethod
    def of(cls, scores: Tensor, labels: Tensor, videos: np.ndarray) -> "Ranking":
        """From `scores` [n], `labels` [n] of 0 and 1 with a 1 or more, and the video [n] of each."""
        falling, order = scores.sort(descending=True)
        hits = labels[order].nonzero()[:, 0]
        ends = torch.searchsorted(-falling, -falling[hits], right=True)
        points, point_of = np.unique(ends.numpy(), return_inverse=True)
        return cls(videos[order.numpy()][: points[-1]], hits.numpy(), points, point_of)

    def average_precision(self, weights: np.ndarray) -> np.ndarray:
        """The area [b] under the precision-recall curve for b weightings of the videos, `weights` [v b], as in
        `metrics.average_precision`; nan without a hit."""
        drawn = weights[self.videos]
        hits, first_of_point = drawn[self.hits], np.searchsorted(self.point_of, np.arange(len(self.points)))
        found = np.add.reduceat(hits, first_of_point)
        answers = np.add.reduceat(drawn, np.concatenate([[0], self.points[:-1]])).cumsum(axis=0)
        precision = found.cumsum(axis=0) / np.maximum(answers, 1)  # without an answer there is no hit either
        total = found.sum(axis=0)
        return np.divide((found * precision).sum(axis=0), total, out=np.full(len(total), np.nan), where=total > 0)


def _sampled_precision(
    metric: str, runs: Sequence[Answers], groups: np.ndarray | None, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    v, k = runs[0][0].shape
    units = np.arange(v) if groups is None else groups
    once = np.ones(units.max() + 1, dtype=np.int64)
    rankings = [list(_rankings(logits, labels, micro=metric == "map_micro")) for logits, labels, _ in runs]

    def means(weights: np.ndarray) -> np.ndarray:
        """The metric [b r]; a class without a video in a draw is left out of its mean."""
        by_class = [np.stack([ranking.average_precision(weights) for ranking in run]) for run in rankings]
        return np.stack([np.nanmean(precision, axis=0) for precision in by_class], axis=1)

    width = v * k if metric == "map_micro" else v
    drawn = draw_weights(once, draws, width, rng)
    sampled = [means(np.ascontiguousarray(weights.T, dtype=np.int32)[units]) for weights in drawn]
    return means(np.ones((v, 1), dtype=np.int32))[0], np.concatenate(sampled)


def _rankings(logits: Tensor, labels: Tensor, micro: bool) -> Iterator[Ranking]:
    """The ranking of each class that some video has, or of all classes together."""
    v, k = logits.shape
    scores = logits.double().sigmoid()
    if micro:
        yield Ranking.of(scores.flatten(), labels.flatten(), np.repeat(np.arange(v), k))
        return
    for column in labels.any(dim=0).nonzero().flatten().tolist():
        yield Ranking.of(scores[:, column], labels[:, column], np.arange(v))


# --- seeds, and McNemar's test ----------------------------------------------------------------------------


def seed_noise(scores: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Draws [draws] of the error of the mean of n runs, `scores` [n], as an estimate of the mean over all seeds.

    They are Student's t with n - 1 degrees of freedom times the standard error. The difference of two such draws has
    the Behrens-Fisher distribution, which does not assume equal variances (Fisher, 1935). A bootstrap over the runs
    would, with three seeds, give little more than a third of the correct width.
    """
    n = len(scores)
    return rng.standard_t(n - 1, draws) * scores.std(ddof=1) / np.sqrt(n)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(videos on which only the first is correct, only the second, p) from correctness bool [v] of two runs. p is
    two-sided and exact (McNemar, 1947, with the binomial distribution): if both runs are equally good, each video on
    which only one is correct falls to either with probability 1/2. Whole numbers avoid rounding of tiny terms."""
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    n, fewer = only_first + only_second, min(only_first, only_second)
    ways, tail = 1, 0
    for k in range(fewer + 1):
        tail += ways
        ways = ways * (n - k) // (k + 1)
    return only_first, only_second, min(1.0, 2 * tail / 2**n)
