"""A run beside a baseline: both on the same videos, and whether the difference is more than chance."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidtrain.baseline_models.store import MOTION, Baselines, find_baselines
from vidtrain.evaluation.predictions import Predictions, align, read_predictions
from vidtrain.evaluation.resampling import percentile_interval, resampled_means

CONFIDENCE = 0.95
DRAWS = 10_000


@dataclass(frozen=True)
class Verdict:
    """A run less a baseline in the share of videos that are right, over the `videos` that both answered for.

    The interval holds 95% of the differences on other videos, drawn in whole groups (`units`, see
    `evaluation.resampling`).
    """

    name: str
    metric: str
    baseline: float
    run: float
    difference: float
    low: float
    high: float
    videos: int
    units: int

    @property
    def is_better(self) -> bool:
        """Whether the run is better by more than chance."""
        return self.low > 0

    @property
    def text(self) -> str:
        return f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def compare_with(run: Predictions, baseline: Predictions, name: str, metric: str) -> Verdict | None:
    """A run's answers beside a baseline's, which names the groups of the videos; None where they share no video."""
    grouped = run if baseline.groups is None else replace(run, groups=run.paths)
    shared = align([baseline, grouped])  # groups are those of the first
    if not shared.paths:
        return None
    correct = shared.correct.astype(np.float64)
    sampled = resampled_means(correct[1:] - correct[:1], shared.groups, DRAWS, np.random.default_rng(0))
    low, high = percentile_interval(sampled[:, 0], CONFIDENCE)
    of_baseline, of_run = correct.mean(axis=1).tolist()
    units = len(shared.paths) if shared.groups is None else int(shared.groups.max()) + 1
    videos = len(shared.paths)
    return Verdict(name, metric, of_baseline, of_run, of_run - of_baseline, low, high, videos, units)


def verdicts(run: Predictions, baselines: Baselines, split: str) -> list[Verdict]:
    """The run beside the best baseline of the split, then beside the motion map where that is another one."""
    names = dict.fromkeys([baselines.best(split), MOTION])
    beside = (
        compare_with(run, baselines.predictions(split, name), name, baselines.metric)
        for name in names
        if name in baselines.results[split]
    )
    return [verdict for verdict in beside if verdict is not None]


def find_verdicts(
    index: Path, digests: Mapping[str, str], split: str, predictions: Path, several: bool
) -> list[Verdict]:
    """The answers of a run in its file `predictions` beside the baselines of the same videos that a dataset's `index`
    folder holds; empty where it holds none. Raises `UserError` where something is damaged."""
    known = find_baselines(index, digests, split)
    return [] if known is None else verdicts(read_predictions(predictions, several), known, split)
