"""Two recipes, each run once or over several seeds, compared on the videos that all their runs share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidtrain.comparison.statistics import (
    SCORES,
    mcnemar,
    resampled_scores,
    scores,
    seed_noise,
)
from vidtrain.evaluation.metrics import DIRECTIONS
from vidtrain.evaluation.predictions import Aligned, Predictions, align
from vidtrain.evaluation.resampling import percentile_interval, resampled_means

MEANS = ("top1", "top5", "exact_match")
RESAMPLED = (*MEANS, *SCORES)  # the metrics that follow from predictions.csv; of others there is no interval

MOST_DRAWN = 1000  # classes, of which each has draws of its own

Interval = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """Two single runs of the same seed, by McNemar's test of how many videos they get right."""

    baseline: int  # which of the baseline's runs
    other: int
    only_baseline: int  # videos that just this one got right
    only_other: int
    p: float


@dataclass(frozen=True)
class ClassChange:
    """A class in both recipes, averaged over their runs.

    `interval` is that of the difference in recall under other videos and, where both recipes were run several times,
    other seeds.
    """

    name: str
    support: int
    recall_baseline: float
    recall_other: float
    recall_difference: float
    interval: Interval
    f1_baseline: float
    f1_other: float
    f1_difference: float


@dataclass(frozen=True)
class Video:
    """A video in both recipes: the share of the runs that got it right, and what most of them took it for."""

    path: str
    label: str
    baseline: float
    other: float
    prediction_baseline: str
    prediction_other: str

    @property
    def flipped(self) -> bool:
        """Whether more than half of the runs got it right in just one of the recipes."""
        return (self.baseline > 0.5) != (self.other > 0.5)


@dataclass(frozen=True)
class Comparison:
    """What is found on the `shared` videos. Differences are the other recipe less the baseline.

    `interval` holds under other videos, `interval_with_seeds` under other videos and other seeds; that is None where a
    recipe was run just once. `of` lists the metric in each run, first the baseline's.
    """

    metric: str
    shared: int
    units: int  # what was drawn: groups, or videos
    relabeled: int
    unshared: list[int]
    below_folders: bool
    of_baseline: list[float]
    of_other: list[float]
    difference: float
    interval: Interval
    interval_with_seeds: Interval | None
    pairs: list[Pair]
    classes: list[ClassChange]
    videos: list[Video]

    @property
    def widest(self) -> Interval:
        """The interval to go by."""
        return self.interval_with_seeds or self.interval

    @property
    def verdict(self) -> str:
        low, high = self.widest
        if low <= 0 <= high:
            return "not told apart"
        return "better" if (self.difference > 0) == (DIRECTIONS[self.metric] == "max") else "worse"


def compare(
    baseline: Sequence[Predictions],
    other: Sequence[Predictions],
    same_seed: Sequence[tuple[int, int]],
    metric: str,
    draws: int,
    confidence: float,
    seed: int,
) -> Comparison | None:
    """Compares `metric` (one of `RESAMPLED`) of two recipes' runs; None where they share no video.

    `same_seed` names the (baseline's, other's) runs that are paired in McNemar's test.
    """
    shared = align([*baseline, *other])
    if not shared.paths:
        return None
    n, rng = len(baseline), np.random.default_rng(seed)
    observed, sampled = _observe(shared, metric, draws, rng)
    over_videos, with_seeds = _difference(sampled, n), None
    if n > 1 and len(other) > 1:
        noise = seed_noise(observed[n:], draws, rng) - seed_noise(observed[:n], draws, rng)
        with_seeds = percentile_interval(over_videos + noise, confidence)
    correct = shared.correct
    return Comparison(
        metric=metric,
        shared=len(shared.paths),
        units=len(shared.paths) if shared.groups is None else int(shared.groups.max()) + 1,
        relabeled=shared.relabeled,
        unshared=shared.unshared,
        below_folders=shared.below_folders,
        of_baseline=observed[:n].tolist(),
        of_other=observed[n:].tolist(),
        difference=float(_difference(observed, n)),
        interval=percentile_interval(over_videos, confidence),
        interval_with_seeds=with_seeds,
        pairs=[Pair(a, b, *mcnemar(correct[a], correct[n + b])) for a, b in same_seed],
        classes=class_changes(shared, n, draws, confidence, rng),
        videos=video_changes(shared, n),
    )


def _difference(by_run: np.ndarray, n: int) -> np.ndarray:
    """The mean over the last axis, r runs of which the first `n` are the baseline's: the other runs less those."""
    return by_run[..., n:].mean(axis=-1) - by_run[..., :n].mean(axis=-1)


def _observe(
    shared: Aligned, metric: str, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of every run on the shared videos [r], and on videos drawn from them [draws r]."""
    if metric in MEANS:
        hits = shared.top5 if metric == "top5" else shared.correct
        return hits.mean(axis=1), resampled_means(hits, shared.groups, draws, rng)
    units = np.arange(len(shared.paths)) if shared.groups is None else shared.groups
    marks = (metric, shared.labels, shared.predictions, len(shared.classes))
    return scores(*marks, np.ones((1, len(units))))[0], resampled_scores(*marks, units, draws, rng)


def class_changes(
    shared: Aligned, n: int, draws: int, confidence: float, rng: np.random.Generator
) -> list[ClassChange]:
    """A row for every class that is labeled; the first `n` runs are the baseline's."""
    k, changes = len(shared.classes), []
    labeled = _videos_by_class(shared.labels, k)
    predicted = [_videos_by_class(marks, k) for marks in shared.predictions]
    known: dict[tuple[bytes, ...], np.ndarray] = {}

    def resample(change: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Means [draws] of a class. Many of thousands of small classes have the same changes, and so the same draws."""
        if k <= MOST_DRAWN or groups is not None:
            return resampled_means(change[None], groups, draws, rng)[:, 0]
        key = tuple(part.tobytes() for part in np.unique(change, return_counts=True))
        if key not in known:
            if len(known) == MOST_DRAWN:
                known.clear()
            known[key] = resampled_means(change[None], None, draws, rng)[:, 0]
        return known[key]

    for number, name in enumerate(shared.classes):
        videos = labeled[number]
        if not len(videos):
            continue
        hits = np.stack([np.isin(videos, run[number]) for run in predicted])
        recall = hits.mean(axis=1)
        f1 = 2 * hits.sum(axis=1) / np.array([len(videos) + len(run[number]) for run in predicted])
        groups = shared.groups
        if groups is not None:
            groups = np.unique(groups[videos], return_inverse=True)[1]
        sampled = resample(_difference(hits.T, n), groups)
        if min(n, len(hits) - n) > 1:
            sampled = sampled + seed_noise(recall[n:], draws, rng) - seed_noise(recall[:n], draws, rng)
        changes.append(
            ClassChange(
                name=name,
                support=len(videos),
                recall_baseline=float(recall[:n].mean()),
                recall_other=float(recall[n:].mean()),
                recall_difference=float(_difference(recall, n)),
                interval=percentile_interval(sampled, confidence),
                f1_baseline=float(f1[:n].mean()),
                f1_other=float(f1[n:].mean()),
                f1_difference=float(_difference(f1, n)),
            )
        )
    return changes


def _videos_by_class(marks: np.ndarray, k: int) -> list[np.ndarray]:
    """The videos that are marked with each of k classes."""
    videos, classes = np.divmod(marks, k)
    order = np.argsort(classes, kind="stable")
    return np.split(videos[order], np.searchsorted(classes[order], np.arange(1, k)))


def video_changes(shared: Aligned, n: int) -> list[Video]:
    """A row for every shared video, those that changed most first; the first `n` runs are the baseline's."""
    before, after = shared.correct[:n].mean(axis=0), shared.correct[n:].mean(axis=0)
    answers = list(zip(*shared.answers, strict=True))
    return [
        Video(
            path=shared.paths[row],
            label=shared.texts[row],
            baseline=float(before[row]),
            other=float(after[row]),
            prediction_baseline=Counter(answers[row][:n]).most_common(1)[0][0],
            prediction_other=Counter(answers[row][n:]).most_common(1)[0][0],
        )
        for row in np.argsort(-np.abs(after - before), kind="stable").tolist()
    ]
