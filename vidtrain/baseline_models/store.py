"""The answers of baselines in a dataset's index folder, found again by what its splits hold; and a run beside them.

    INDEX/baselines/KEY/
      baselines.json              what they were made of, and what each reaches on each split
      SPLIT/NAME/                 predictions.csv, metrics.json, per_class.csv: as an evaluation writes them

KEY stands for the videos, their labels and the settings.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vidtrain.evaluation.predictions import (
    Predictions,
    align,
    percentile_interval,
    read_predictions,
    resampled_means,
)
from vidtrain.files.atomic import read_json, strict_json, write_json_atomic

FOLDER, FILE = "baselines", "baselines.json"
FORMAT = 2  # to be raised when baselines of the same name are made in another way
KEYS = ("format", "metric", "splits", "results", "seconds")
ADVICE = "delete its folder, and run vidtrain.baselines again"
MOTION = "motion_map logistic"  # what a model that is to see motion has to beat
CONFIDENCE = 0.95
DRAWS = 10_000

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Baselines:
    """What baselines reach: `results` are the metrics of each by split and name, `metric` is the one to go by."""

    folder: Path
    metric: str
    results: Mapping[str, Mapping[str, Metrics]]
    seconds: float

    def best(self, split: str) -> str:
        """The name of the strongest on that split itself, which makes it the harder to beat."""
        results = self.results[split]
        return max(results, key=lambda name: results[name][self.metric])

    def predictions(self, split: str, name: str) -> Predictions:
        """The answers of one. Raises `UserError` where its file is damaged."""
        return read_predictions(self.place(split, name) / "predictions.csv", self.metric != "top1")

    def place(self, split: str, name: str) -> Path:
        return self.folder / split / name.replace(" ", "_")

    def save(self, digests: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        """Writes what `find_baselines` reads, once all answers lie there."""
        facts = {"format": FORMAT, "metric": self.metric, "splits": dict(digests), "settings": dict(settings)}
        results = {split: {name: dict(own) for name, own in of.items()} for split, of in self.results.items()}
        write_json_atomic(self.folder / FILE, facts | {"seconds": self.seconds, "results": results})


def folder_for(index: Path, digests: Mapping[str, str], settings: Mapping[str, Any]) -> Path:
    """Where baselines of splits with these digests (`SplitRecord.digest`), made with these settings, lie."""
    text = strict_json([FORMAT, dict(sorted(digests.items())), dict(sorted(settings.items()))])
    return index / FOLDER / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def open_baselines(folder: Path) -> Baselines | None:
    """What lies in `folder`; None where nothing does, or what was made in another way. Raises `UserError` where it is
    damaged."""
    if not (folder / FILE).is_file():
        return None
    facts = read_json(folder / FILE, ADVICE, KEYS)
    if facts["format"] != FORMAT:
        return None
    return Baselines(folder, facts["metric"], facts["results"], facts["seconds"])


def find_baselines(index: Path, digests: Mapping[str, str], split: str) -> Baselines | None:
    """The newest that learned from the train split and answered for `split` of these digests; None if there is none.
    Raises `UserError` where one is damaged."""
    for file in sorted((index / FOLDER).glob(f"*/{FILE}"), key=lambda path: -path.stat().st_mtime):
        splits = read_json(file, ADVICE, KEYS)["splits"]
        if split in splits and all(splits[name] == digests.get(name) for name in ("train", split)):
            return open_baselines(file.parent)
    return None


# --- a run beside them ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BaselineComparison:
    """A run less a baseline in the share of videos that are right, over the `videos` that both answered for.

    The interval holds 95% of the differences on other videos, drawn in whole groups (`units`, see
    `evaluation.predictions.resampled_means`).
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


def compare_with(run: Predictions, baseline: Predictions, name: str, metric: str) -> BaselineComparison | None:
    """A run's answers beside a baseline's, which names the groups of the videos; None where they share no video."""
    grouped = run if baseline.groups is None else replace(run, groups=run.paths)
    shared = align([baseline, grouped])  # groups are those of the first
    if not shared.paths:
        return None
    correct = shared.correct.astype(np.float64)
    sampled = resampled_means(correct[1:] - correct[:1], shared.groups, DRAWS, np.random.default_rng(0))
    low, high = percentile_interval(sampled[:, 0], CONFIDENCE)
    of_baseline, of_run = correct.mean(axis=1).tolist()
    videos = len(shared.paths)
    return BaselineComparison(name, metric, of_baseline, of_run, of_run - of_baseline, low, high, videos, shared.units)


def compare_with_all(run: Predictions, baselines: Baselines, split: str) -> list[BaselineComparison]:
    """The run beside the best baseline of the split, then beside the motion map where that is another one."""
    results = baselines.results[split]
    names = [name for name in dict.fromkeys([baselines.best(split), MOTION]) if name in results]
    beside = (compare_with(run, baselines.predictions(split, name), name, baselines.metric) for name in names)
    return [comparison for comparison in beside if comparison is not None]


def compare_with_known(
    index: Path, digests: Mapping[str, str], split: str, predictions: Path, several: bool
) -> list[BaselineComparison]:
    """The answers of a run in its file `predictions` beside the baselines of the same videos that a dataset's `index`
    folder holds; empty where it holds none. Raises `UserError` where something is damaged."""
    known = find_baselines(index, digests, split)
    return [] if known is None else compare_with_all(read_predictions(predictions, several), known, split)
