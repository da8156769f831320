"""The answers of baselines, kept in a dataset's index folder and found again by what its splits hold.

    INDEX/baselines/KEY/
      baselines.json              what they were made of, and what each reaches on each split
      SPLIT/NAME/                 predictions.csv, metrics.json, per_class.csv: as an evaluation writes them

KEY stands for the videos, their labels and the settings.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidtrain.evaluation.predictions import Predictions, read_predictions
from vidtrain.files.atomic import read_json, strict_json, write_json_atomic

FOLDER, FILE = "baselines", "baselines.json"
FORMAT = 2  # to be raised when baselines of the same name are made in another way
KEYS = ("format", "metric", "splits", "results", "seconds")
ADVICE = "delete its folder, and run vidtrain.baselines again"
MOTION = "motion_map logistic"  # what a model that is to see motion has to beat

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
    return _baselines(folder, read_json(folder / FILE, ADVICE, KEYS))


def _baselines(folder: Path, facts: Mapping[str, Any]) -> Baselines | None:
    if facts["format"] != FORMAT:
        return None
    return Baselines(folder, facts["metric"], facts["results"], facts["seconds"])


def find_baselines(index: Path, digests: Mapping[str, str], split: str) -> Baselines | None:
    """The newest that learned from the train split and answered for `split` of these digests; None if there is none.
    Raises `UserError` where one is damaged."""
    files = sorted((index / FOLDER).glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for file in files:
        facts = read_json(file, ADVICE, KEYS)
        made_of = facts["splits"]
        if split in made_of and all(made_of[name] == digests.get(name) for name in ("train", split)):
            return _baselines(file.parent, facts)
    return None
