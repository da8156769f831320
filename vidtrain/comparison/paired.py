"""Two recipes, each run once or over several seeds, compared on the videos that all their runs share."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vidtrain.evaluation.metrics import (
    CLOSING_DIRECTIONS,
    bootstrap_interval,
    count_units,
    percentile_interval,
    resampled_means,
)
from vidtrain.evaluation.predictions import Aligned, Predictions, align, logits_and_labels
from vidtrain.evaluation.resampling import (
    FROM_LOGITS,
    MEANS,
    mcnemar,
    resampled_scores,
    sampled_logits,
    scores,
    seed_noise,
)

MOST_DRAWN = 1000  # with more classes, those whose videos change alike share their draws

Interval = tuple[float, float]


@dataclass(frozen=True)
class Pair:
    """McNemar's test of two single runs of the same seed, on which videos they classify correctly."""

    baseline: int  # index among the baseline's runs
    other: int  # index among the other recipe's runs
    only_baseline: int  # number of videos that only the baseline's run classifies correctly
    only_other: int
    p: float


@dataclass(frozen=True)
class ClassChange:
    """Recall and F1 of one class in both recipes, averaged over their runs. `interval` is the confidence interval of
    the difference in recall, over samples of videos and, if both recipes have several runs, over seeds; None if the
    videos of the class are one group, or one video."""

    name: str
    support: int  # number of videos with this label
    recall_baseline: float
    recall_other: float
    recall_difference: float
    interval: Interval | None
    f1_baseline: float
    f1_other: float
    f1_difference: float


@dataclass(frozen=True)
class Video:
    """A video in both recipes: the share of runs that classify it correctly, and the most frequent prediction."""

    path: str
    label: str
    baseline: float
    other: float
    prediction_baseline: str
    prediction_other: str

    @property
    def flipped(self) -> bool:
        """Whether more than half of the runs are correct on it in only one of the recipes."""
        return (self.baseline > 0.5) != (self.other > 0.5)


@dataclass(frozen=True)
class Comparison:
    """The comparison of two recipes on the videos that their runs share. Differences are other minus baseline.

    `interval` is the confidence interval of `difference` over samples of videos, `interval_with_seeds` over samples of
    videos and over seeds. The latter is None if a recipe has only one run. Runs of pretraining share no predictions:
    `interval` is None, and `interval_with_seeds` is over seeds alone. If the shared videos are one group, the variation
    over samples of videos is not known: both are None.
    """

    metric: str
    of_baseline: list[float]  # the metric of each run of the baseline
    of_other: list[float]
    difference: float
    interval: Interval | None
    interval_with_seeds: Interval | None
    shared: int = 0  # number of videos
    units: int = 0  # number of units that were resampled: groups of videos, or videos
    relabeled: int = 0  # number of videos left out, as their labels differ between runs
    unshared: list[int] = field(default_factory=list)  # for each run, number of videos that not all other runs have
    below_folders: bool = False  # whether videos were matched by their paths below the runs' folders of videos
    pairs: list[Pair] = field(default_factory=list)
    classes: list[ClassChange] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)

    @property
    def widest(self) -> Interval | None:
        """The interval from which conclusions are drawn: the one with seeds, if there is one."""
        return self.interval_with_seeds or self.interval

    @property
    def verdict(self) -> str:
        low, high = self.widest or (-np.inf, np.inf)
        if low <= 0 <= high:
            return "not told apart"
        return "better" if (self.difference > 0) == (CLOSING_DIRECTIONS[self.metric] == "max") else "worse"


def compare(
    baseline: Sequence[Predictions],
    other: Sequence[Predictions],
    same_seed: Sequence[tuple[int, int]],
    metric: str,
    draws: int,
    confidence: float,
    seed: int,
) -> Comparison | None:
    """Compares `metric` (one of `FROM_PREDICTIONS` or, if all runs have logits, `FROM_LOGITS`) of two recipes' runs.
    None if they share no video. `same_seed` holds the pairs of run indices (baseline, other) that McNemar's test
    compares."""
    runs = [*baseline, *other]
    shared = align(runs)
    if not shared.paths:
        return None
    n, rng = len(baseline), np.random.default_rng(seed)
    observed, sampled = _observe(shared, runs, metric, draws, rng)
    over_videos, with_seeds = _difference(sampled, n), None
    if n > 1 and len(other) > 1 and shared.units > 1:
        noise = seed_noise(observed[n:], draws, rng) - seed_noise(observed[:n], draws, rng)
        with_seeds = percentile_interval(over_videos + noise, confidence)
    correct = shared.correct
    return Comparison(
        metric=metric,
        shared=len(shared.paths),
        units=shared.units,
        relabeled=shared.relabeled,
        unshared=shared.unshared,
        below_folders=shared.below_folders,
        of_baseline=observed[:n].tolist(),
        of_other=observed[n:].tolist(),
        difference=float(_difference(observed, n)),
        interval=bootstrap_interval(over_videos, confidence, shared.units),
        interval_with_seeds=with_seeds,
        pairs=[Pair(a, b, *mcnemar(correct[a], correct[n + b])) for a, b in same_seed],
        classes=class_changes(shared, n, draws, confidence, rng),
        videos=video_changes(shared, n),
    )


def compare_over_seeds(
    baseline: Sequence[float], other: Sequence[float], metric: str, draws: int, confidence: float, seed: int
) -> Comparison:
    """Compares `metric` of two recipes from its values alone, one for each run. The interval is over seeds; None if a
    recipe has only one run."""
    first, second, rng = np.array(baseline), np.array(other), np.random.default_rng(seed)
    difference, interval = float(second.mean() - first.mean()), None
    if min(len(first), len(second)) > 1:
        noise = seed_noise(second, draws, rng) - seed_noise(first, draws, rng)
        interval = percentile_interval(difference + noise, confidence)
    return Comparison(metric, list(baseline), list(other), difference, None, interval)


def _difference(by_run: np.ndarray, n: int) -> np.ndarray:
    """Mean of the other recipe's runs minus that of the baseline's, the first `n` of the last axis [... r]."""
    return by_run[..., n:].mean(axis=-1) - by_run[..., :n].mean(axis=-1)


def _observe(
    shared: Aligned, runs: Sequence[Predictions], metric: str, draws: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The metric of each of the r `runs` on the shared videos [r], and on resampled ones [draws r]."""
    if metric in FROM_LOGITS:
        return sampled_logits(metric, logits_and_labels(runs, shared), shared.groups, draws, rng)
    if metric in MEANS:
        hits = shared.top5 if metric == "top5" else shared.correct
        return hits.mean(axis=1), resampled_means(hits, shared.groups, draws, rng)
    units = np.arange(len(shared.paths)) if shared.groups is None else shared.groups
    codes = (metric, shared.labels, shared.predictions, len(shared.classes))
    return scores(*codes, np.ones((1, len(units))))[0], resampled_scores(*codes, units, draws, rng)


def class_changes(
    shared: Aligned, n: int, draws: int, confidence: float, rng: np.random.Generator
) -> list[ClassChange]:
    """A row for every class that has labeled videos; the first `n` runs are the baseline's."""
    k, changes = len(shared.classes), []
    labeled = _videos_by_class(shared.labels, k)
    predicted = [_videos_by_class(codes, k) for codes in shared.predictions]
    means_by_change: dict[tuple[bytes, ...], np.ndarray] = {}

    def resample(change: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
        """Means [draws] of the changes of a class. With more than `MOST_DRAWN` classes, those with equal changes share
        their draws, as many small classes have equal changes."""
        if k <= MOST_DRAWN or groups is not None:
            return resampled_means(change[None], groups, draws, rng)[:, 0]
        key = tuple(part.tobytes() for part in np.unique(change, return_counts=True))
        if key not in means_by_change:
            if len(means_by_change) == MOST_DRAWN:
                means_by_change.clear()
            means_by_change[key] = resampled_means(change[None], None, draws, rng)[:, 0]
        return means_by_change[key]

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
                interval=bootstrap_interval(sampled, confidence, count_units(len(videos), groups)),
                f1_baseline=float(f1[:n].mean()),
                f1_other=float(f1[n:].mean()),
                f1_difference=float(_difference(f1, n)),
            )
        )
    return changes


def _videos_by_class(codes: np.ndarray, k: int) -> list[np.ndarray]:
    """For each of k classes, the indices of the videos in `codes`, which are video * k + class."""
    videos, classes = np.divmod(codes, k)
    order = np.argsort(classes, kind="stable")
    return np.split(videos[order], np.searchsorted(classes[order], np.arange(1, k)))


def video_changes(shared: Aligned, n: int) -> list[Video]:
    """A row for every shared video, in order of decreasing change; the first `n` runs are the baseline's."""
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
