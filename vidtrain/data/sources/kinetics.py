"""Source: Kinetics, by its CSV annotations."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtrain.data.manifest.checks import check_splits
from vidtrain.data.manifest.class_names import describe_alike, one_spelling
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import complete
from vidtrain.data.sources.labels import class_list
from vidtrain.data.sources.tables import Faults, read_table
from vidtrain.data.sources.video_files import VideoFiles, check_missing
from vidtrain.errors import UserError

COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
SPLITS = {"train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"}


@dataclass(frozen=True, kw_only=True)
class Kinetics:
    """Videos named by CSV files with the columns label, youtube_id, time_start, time_end and split.

    A trimmed file `<youtube_id>_<start>_<end>`, both in seconds as six digits, is taken whole; of an untrimmed one,
    `<youtube_id>`, the part from time_start to time_end. Both lie in `root`, in a folder of their split (as
    it is written in the CSV), of their label (with spaces or underscores), or both, with any suffix. A
    YouTube video is a group.

    The classes are the labels of train, sorted, or `classes`. `val_share` and `seed` hold out val where there is none,
    as in a `Listing`. Raises `UserError` where more than `max_missing_share` of the videos are not on disk.
    """

    root: str
    annotations: Sequence[str]
    classes: str | Sequence[str] | None = None
    max_missing_share: float = 0.0
    val_share: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.max_missing_share <= 1:
            raise UserError(
                f"dataset.source.max_missing_share={self.max_missing_share}: must lie between 0 and 1"
            )

    def manifests(self) -> dict[str, Manifest]:
        rows = [
            (Path(path), line, fields | {"label": one_spelling(fields["label"])})
            for path in self.annotations
            for line, fields in read_table(Path(path), ",", COLUMNS)
        ]
        trained = {fields["label"] for _, _, fields in rows if fields["split"] == "train"}
        if not trained:
            raise UserError(f"no rows of split train in {', '.join(self.annotations)}")
        classes = sorted(trained) if self.classes is None else class_list(self.classes)
        codes = {name: code for code, name in enumerate(classes)}
        files, missing = VideoFiles(self.root), []
        faults = {path: Faults(path) for path, _, _ in rows}
        builders: dict[str, ColumnsBuilder] = {}
        for path, line, fields in rows:
            split, times = self._checked(fields, codes, faults[path], line)
            if split is None:
                continue
            builder = builders.setdefault(split, ColumnsBuilder())
            found = self._find(files, fields, *times)
            if found is None:
                missing.append(fields["youtube_id"])
            else:
                video, start, end = found
                builder.extend([video], [codes[fields["label"]]], [fields["youtube_id"]], [start], [end])
        for each in faults.values():
            each.raise_if_any()
        check_missing(
            missing,
            len(rows),
            self.root,
            self.max_missing_share,
            "dataset.source.max_missing_share=0.1, or as it is",
        )
        found = {
            split: Manifest.from_columns(builders[split].build(), classes)
            for split in ("train", "val", "test")
            if split in builders
        }
        found = complete(found, self.val_share, self.seed)
        check_splits(found)
        return found

    def _checked(
        self, fields: dict[str, str], codes: dict[str, int], faults: Faults, line: int
    ) -> tuple[str | None, tuple[float, float]]:
        times = math.nan, math.nan
        if fields["split"] not in SPLITS:
            faults.add(line, f"split {fields['split']!r} is none of {', '.join(SPLITS)}")
        elif fields["label"] not in codes:
            why = "not among the classes" if fields["label"] else "empty: leave a list without labels out"
            why += describe_alike([fields["label"]], codes) if faults.room else ""
            faults.add(line, f"label {fields['label']!r} is {why}")
        else:
            try:
                times = float(fields["time_start"]), float(fields["time_end"])
            except ValueError:
                faults.add(line, f"{fields['time_start']!r} to {fields['time_end']!r} are no seconds")
                return None, times
            if 0 <= times[0] < times[1] < math.inf:
                return SPLITS[fields["split"]], times
            faults.add(line, f"{times[0]:g} to {times[1]:g} s is no part of a video")
        return None, times

    def _find(
        self, files: VideoFiles, fields: dict[str, str], start: float, end: float
    ) -> tuple[str, float, float] | None:
        """The video's file and what part of it to take, NaN for all of it."""
        label = fields["label"]
        labels = dict.fromkeys((label, label.replace(" ", "_")))
        folders = [os.path.join(fields["split"], each) for each in labels]
        folders += [SPLITS[fields["split"]] + os.sep + each for each in labels]
        folders += [*labels, fields["split"], SPLITS[fields["split"]], ""]
        name = fields["youtube_id"]
        trimmed = f"{name}_{int(start):06d}_{int(end):06d}"
        whole = files.find(*(os.path.join(folder, trimmed) for folder in folders))
        if whole is not None:
            return whole, math.nan, math.nan
        untrimmed = files.find(*(os.path.join(folder, name) for folder in folders))
        return None if untrimmed is None else (untrimmed, start, end)
