"""Source: videos as folders of images, with annotations.json or a CSV of ground truth."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidtrain.data.decoding.metadata import check_frame_rate
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import SPLITS, GroupPattern, check_splits, shares_of, split_manifest
from vidtrain.data.sources.class_folders import check_missing
from vidtrain.data.sources.labels import LabelReader, in_order
from vidtrain.data.sources.tables import Faults, read_json, read_table
from vidtrain.errors import UserError

MOST_CLASSES = 2**31
COLUMNS = ("youtube_id", "folder_name", "label")


@dataclass(frozen=True, kw_only=True)
class FrameFolders:
    """Videos that are folders of images below `root`, `frame_rate` images a second.

    They are named by one of two files. `annotations` is a JSON file as `python -m vidtrain.split` writes it:
    {"categories": {name: number}, "train": [{"video": folder, "target": number, "segment": [first, last]}], "val":
    ..., "test": ...}; a segment counts images from 0, both ends included; without one, all are taken.
    `ground_truth` is a CSV file with the columns youtube_id, folder_name and label, whose videos are split here:
    `split` are the shares of train, val and test, dealt out stratified, drawn from `seed`. Folders of one youtube_id
    stay together, or, with `group_pattern`, those of one group (`GroupPattern`, on the folder's name).

    Raises `UserError` for files that do not hold this, and for folders that are not on disk, unless `allow_missing`.
    """

    root: str
    frame_rate: float
    annotations: str | None = None
    ground_truth: str | None = None
    split: Sequence[float] = (0.8, 0.1, 0.1)
    seed: int = 0
    classes: str | Sequence[str] | None = None
    group_pattern: str | None = None
    allow_missing: bool = False

    def __post_init__(self) -> None:
        check_frame_rate(self.frame_rate)
        if (self.annotations is None) == (self.ground_truth is None):
            raise UserError(
                "frame folders need one of dataset.source.annotations and dataset.source.ground_truth, and null for "
                "the other"
            )
        if self.annotations is not None and self.classes is not None:
            raise UserError("dataset.source.annotations names the classes; take dataset.source.classes back")
        if self.annotations is not None and self.group_pattern is not None:
            raise UserError(
                "dataset.source.annotations are split already, and dataset.source.group_pattern groups nothing there; "
                "take it back"
            )
        shares_of(self.split)
        if self.group_pattern is not None:
            GroupPattern(self.group_pattern)

    def manifests(self) -> dict[str, Manifest]:
        if self.annotations is None:
            manifests = split_manifest(self.pool(), shares_of(self.split), self.seed)
        else:
            manifests = self._annotated(Path(self.annotations))
        check_splits(manifests)
        return manifests

    def pool(self) -> Manifest:
        """All videos of the ground truth, not split."""
        path = Path(str(self.ground_truth))
        rows = list(read_table(path, ",", COLUMNS))
        kept = [(line, fields) for line, fields in rows if self._is_folder(fields["folder_name"])]
        missing = [fields["folder_name"] for _, fields in rows if not self._is_folder(fields["folder_name"])]
        self._check_missing(missing, len(rows))
        if not kept:
            raise UserError(f"{path} lists no videos that there are in {self.root}")
        names, texts, groups = (
            [fields[column] for _, fields in kept] for column in COLUMNS[1:] + COLUMNS[:1]
        )
        labels, faults = LabelReader("names", self.classes, None), Faults(path)
        numbers, _ = labels.read(texts, lambda place, why: faults.add(kept[place][0], why))
        faults.raise_if_any()
        if self.group_pattern is not None:
            groups = GroupPattern(self.group_pattern).groups(names)
        builder = ColumnsBuilder()
        builder.extend(list(map(self._folder, names)), numbers, groups)
        return Manifest(*labels.settle(builder.build()), self.frame_rate)

    def _annotated(self, path: Path) -> dict[str, Manifest]:
        content = read_json(path)
        try:
            classes = in_order(content["categories"], path)
            splits = {split: list(map(self._entry, content[split])) for split in SPLITS if split in content}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no annotations file: {error!r}") from error
        absent = [split for split in ("train", "val") if split not in splits or not splits[split]]
        if absent:
            raise UserError(f"{path} lists no videos for {' and '.join(absent)}")
        every = [entry for entries in splits.values() for entry in entries]
        missing = [entry[0] for entry in every if not self._is_folder(entry[0])]
        self._check_missing(missing, len(every))
        gone, multi_label = set(missing), any(len(entry[1]) > 1 for entry in every)
        manifests = {}
        for split, entries in splits.items():
            builder = ColumnsBuilder(multi_label)
            for video, labels, group, start, end in entries:
                if video not in gone:
                    folder = self._folder(video)
                    builder.extend(
                        [folder], labels, [group or folder], [start], [end], label_counts=[len(labels)]
                    )
            if entries:
                manifests[split] = Manifest(builder.build(), classes, self.frame_rate)
        return manifests

    def _entry(self, entry: dict[str, Any]) -> tuple[str, list[int], str | None, float, float]:
        """Folder, labels, group, and the part of it in seconds, NaN for open ends."""
        labels = entry["target"] if isinstance(entry["target"], list) else [entry["target"]]
        labels = [int(label) if type(label) is float and label.is_integer() else label for label in labels]
        if not labels or not all(type(label) is int and 0 <= label < MOST_CLASSES for label in labels):
            raise ValueError(
                f"target {entry['target']} of {entry['video']}, which must be a class's number, or several"
            )
        start = end = float("nan")
        if "segment" in entry:
            first, last = entry["segment"]
            if not 0 <= first <= last:
                raise ValueError(f"segment {entry['segment']} of {entry['video']}")
            # half-way between two images, so that rounding decides nothing
            start = (first - 0.5) / self.frame_rate if first else start
            end = (last + 0.5) / self.frame_rate
        group = str(entry["group"]) if "group" in entry else None
        return str(entry["video"]), labels, group, start, end

    def _folder(self, name: str) -> str:
        """Written one way only: two would pass for two videos."""
        return os.path.normpath(os.path.join(self.root, name))

    def _is_folder(self, name: str) -> bool:
        return bool(name) and os.path.isdir(self._folder(name))

    def _check_missing(self, missing: Sequence[str], total: int) -> None:
        check_missing(
            missing, total, self.root, 1.0 if self.allow_missing else 0.0, "dataset.source.allow_missing=true"
        )
