"""Source: Something-Something v2, by its JSON annotations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidtrain.data.manifest.checks import check_splits
from vidtrain.data.manifest.class_names import one_spelling
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.sources.labels import in_order
from vidtrain.data.sources.tables import Faults, open_text, read_rows
from vidtrain.data.sources.video_files import VideoFiles, check_missing
from vidtrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SomethingSomething:
    """Videos `root/<id>.webm` named by JSON files; a class is a template without its brackets.

    `labels` numbers the classes ({"Moving something up": "0"}); `train` and `val` list {"id", "template"}, of which
    "Moving [something] up" is one. The test list has no templates: `test_answers` gives its labels, as lines of
    `id;Moving something up`; without, there is no test split.

    Raises `UserError` where more than `max_missing_share` of the videos are not on disk.
    """

    root: str
    labels: str
    train: str
    val: str
    test: str | None = None
    test_answers: str | None = None
    max_missing_share: float = 0.0

    def __post_init__(self) -> None:
        if self.test is not None and self.test_answers is None:
            raise UserError(
                f"dataset.source.test={self.test} has no labels: give dataset.source.test_answers (lines of "
                "id;label), or dataset.source.test=null"
            )

    def manifests(self) -> dict[str, Manifest]:
        path = Path(self.labels)
        numbers = _load(path)
        if not isinstance(numbers, dict):
            raise UserError(f"{path} must hold an object of numbers by label")
        classes = in_order(numbers, path)
        listed = {"train": self._listed(Path(self.train)), "val": self._listed(Path(self.val))}
        if self.test is not None:
            listed["test"] = self._listed(Path(self.test), _answers(Path(self.test_answers)))
        codes = {name: code for code, name in enumerate(classes)}
        files, missing, found = VideoFiles(self.root), [], {}
        for split, videos in listed.items():
            paths, labels = [], []
            for video, name in videos:
                if name not in codes:
                    raise UserError(
                        f"{split}: video {video} has the label {name!r}, which {path} does not number"
                    )
                file = files.find(video)
                if file is None:
                    missing.append(video)
                else:
                    paths.append(file)
                    labels.append(codes[name])
            builder = ColumnsBuilder()
            builder.extend(paths, labels)
            found[split] = builder
        total = sum(map(len, listed.values()))
        check_missing(
            missing,
            total,
            self.root,
            self.max_missing_share,
            "dataset.source.max_missing_share=0.1, or as it is",
        )
        manifests = {split: Manifest.from_columns(each.build(), classes) for split, each in found.items()}
        check_splits(manifests)
        return manifests

    def _listed(self, path: Path, answers: dict[str, str] | None = None) -> list[tuple[str, str]]:
        """(id, class name) of every video that `path` lists."""
        found, entries = [], _load(path)
        if not isinstance(entries, list):
            raise UserError(f"{path} must hold a list of videos")
        for number, entry in enumerate(entries):
            wanted = ("id",) if answers is not None else ("id", "template")
            if not isinstance(entry, dict) or not all(
                key in entry and isinstance(entry[key], str) for key in wanted
            ):
                raise UserError(f"{path}: entry {number} lacks {' or '.join(wanted)}: {str(entry)[:200]}")
            video = entry["id"]
            if answers is None:
                found.append((video, one_spelling(entry["template"].replace("[", "").replace("]", ""))))
            elif video in answers:
                found.append((video, one_spelling(answers[video])))
            else:
                raise UserError(f"{path}: video {video} has no label in {self.test_answers}")
        return found


def _answers(path: Path) -> dict[str, str]:
    faults, found = Faults(path), {}
    for rows in read_rows(path, ";", 2, faults, header=False):
        found.update(rows.fields)
    faults.raise_if_any()
    return found


def _load(path: Path) -> Any:
    with open_text(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is no JSON: {error}") from error
