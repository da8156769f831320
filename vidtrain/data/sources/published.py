"""Sources: UCF-101, HMDB51, Kinetics and Something-Something v2, read by their published annotations."""

import logging
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar, NamedTuple

from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest, one_spelling, spelled_list
from vidtrain.data.manifest.splitting import SPLITS, check_splits, complete, group_in, hold_out
from vidtrain.data.sources.folders import ClassFolders, VideoFiles, check_missing
from vidtrain.data.sources.labels import class_list, in_order
from vidtrain.data.sources.tables import Faults, numbered_lines, read_json, read_rows, read_table
from vidtrain.errors import UserError, check_share

HMDB_SPLITS = {"1": "train", "2": "test", "0": None}  # 0: not used in this fold
NEW_SPLIT = (0.8, 0.1, 0.1)
KINETICS_COLUMNS = ("label", "youtube_id", "time_start", "time_end", "split")
KINETICS_SPLITS = {
    "train": "train", "val": "val", "validate": "val", "validation": "val", "test": "test"
}  # fmt: skip
ALLOW_SHARE = "dataset.source.max_missing_share=0.1, or as it is"

logger = logging.getLogger(__name__)


class Listed(NamedTuple):
    """A video of the annotations, without suffix; the `places` where its file may be, in order of preference; and those
    of the `uncut` video of which it is the part from `start` to `end` (seconds)."""

    name: str
    places: Sequence[str]
    label: int
    group: str | None = None
    uncut: Sequence[str] = ()
    start: float = math.nan
    end: float = math.nan


def _located(
    listed: Iterable[tuple[str, Listed]], classes: Sequence[str], root: str, max_missing: float, allow: str
) -> dict[str, Manifest]:
    """The videos of each split that exist below `root`. Raises `UserError` if more than a share of `max_missing` are
    missing; the message names the setting `allow` that permits it."""
    files, missing, total = VideoFiles(root), [], 0
    builders: dict[str, ColumnsBuilder] = {}
    for split, video in listed:
        total += 1
        builder = builders.setdefault(split, ColumnsBuilder())
        path, cut = files.find(*video.places), (math.nan, math.nan)
        if path is None and video.uncut:
            path, cut = files.find(*video.uncut), (video.start, video.end)
        if path is None:
            missing.append(video.name)
        else:
            builder.extend([path], [video.label], [video.group or path], cut[:1], cut[1:])
    check_missing(missing, total, root, max_missing, allow)
    return {split: Manifest(builders[split].build(), classes) for split in SPLITS if split in builders}


@dataclass(frozen=True, kw_only=True)
class OfficialSplits(ABC):
    """The common part of UCF-101 and HMDB51.

    Videos lie at `root/<class>/<video>` or `root/<video>`, with any suffix. `annotations` is the folder of the split
    files, and `fold` is 1, 2 or 3; with null, a new split 80/10/10 of the videos in class folders is made, without
    splitting groups.

    The official splits have no val: with `val` "train", `val_share` of train is held out, without splitting groups,
    drawn from `seed`; with "test" the best checkpoint is selected on test, so test metrics are too high.

    Raises `UserError` for invalid split files, and for missing videos unless `allow_missing`.
    """

    GROUP_PATTERN: ClassVar[str]  # finds a video's group in its path

    root: str
    annotations: str
    fold: int | None = 1
    val: str = "train"
    val_share: float = 0.1
    seed: int = 0
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if self.fold not in (None, 1, 2, 3):
            raise UserError(f"dataset.source.fold={self.fold}: choose 1, 2 or 3, or null for a new split")
        if self.val not in ("train", "test"):
            raise UserError(f"dataset.source.val={self.val}: choose train (val_share of it), or test")

    def manifests(self) -> dict[str, Manifest]:
        if self.fold is None:
            pattern = self.GROUP_PATTERN
            return ClassFolders(self.root, split=NEW_SPLIT, group_pattern=pattern, seed=self.seed).manifests()
        if not Path(self.annotations).is_dir():
            raise UserError(f"no folder {self.annotations} of split files: dataset.source.annotations")
        allow = (float(self.allow_missing), "dataset.source.allow_missing=true")
        classes, listed = self._read_lists()
        manifests = _located(listed, classes, self.root, *allow)
        check_splits(manifests)
        if self.val == "test":
            logger.warning("val is the test split: metrics of the checkpoint that is selected on it are too high")
            return {**manifests, "val": manifests["test"], "test": manifests["test"]}
        return hold_out(manifests, self.val_share, self.seed)

    @abstractmethod
    def _read_lists(self) -> tuple[Sequence[str], list[tuple[str, Listed]]]:
        """The class names, and the videos of train and test, each with its split."""


def _in_class(name: str, class_name: str, label: int, group: str) -> Listed:
    bare = PurePosixPath(name).name
    return Listed(name, (f"{class_name}/{bare}", name, bare), label, group)


@dataclass(frozen=True, kw_only=True)
class UCF101(OfficialSplits):
    """UCF-101: classInd.txt, trainlist0N.txt (`Class/v_Class_g01_c01.avi 1`) and testlist0N.txt (no label).

    The clips with one g number of a class are from one video, and form a group.
    """

    GROUP_PATTERN = r"v_(\w+)_g(\d+)_"

    def _read_lists(self) -> tuple[Sequence[str], list[tuple[str, Listed]]]:
        folder = Path(self.annotations)
        classes = self._classes(folder / "classInd.txt")
        codes = {name: label for label, name in enumerate(classes)}
        return classes, [
            (split, video)
            for split in ("train", "test")
            for video in self._listed(folder / f"{split}list{self.fold:02d}.txt", codes)
        ]

    def _classes(self, path: Path) -> tuple[str, ...]:
        faults = Faults(path)
        classes: list[str] = []
        for number, line in numbered_lines(path):
            code, _, name = line.strip().partition(" ")
            if code != str(len(classes) + 1) or not name:
                faults.add(number, f"{line.strip()!r} should be {len(classes) + 1} and a class name")
            classes.append(name)
        faults.raise_if_any()
        return spelled_list(classes, path)

    def _listed(self, path: Path, codes: dict[str, int]) -> Iterator[Listed]:
        faults = Faults(path)
        for number, line in numbered_lines(path):
            name, _, label = one_spelling(line).partition(" ")
            class_name = name.partition("/")[0]
            group = group_in(self.GROUP_PATTERN, name)
            if class_name not in codes:
                faults.add(number, f"{line.strip()!r} does not begin with a class of classInd.txt")
            elif label and label != str(codes[class_name] + 1):
                right = f"{class_name} is {codes[class_name] + 1}"
                faults.add(number, f"{line.strip()!r}: label {label}, but {right}")
            elif group is None:
                faults.add(number, f"{line.strip()!r} is not named like v_Class_g01_c01.avi")
            else:
                stem = os.path.splitext(name)[0]
                yield _in_class(stem, class_name, codes[class_name], group)
        faults.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class HMDB51(OfficialSplits):
    """HMDB51: `<class>_test_split<N>.txt` for every class, lines of `video.avi` and 1 (train), 2 (test) or 0 (neither).

    A file name starts with the film's name, followed by the class; the clips of a film are a group.
    """

    # the film's name ends where the class, which is the name of the clip's folder, begins
    GROUP_PATTERN = r"^([^/]+)/(?:.*/)?(.+)_\1_[^/]*$"

    def _read_lists(self) -> tuple[Sequence[str], list[tuple[str, Listed]]]:
        ending = f"_test_split{self.fold}.txt"
        paths = sorted(Path(self.annotations).glob(f"*{ending}"))
        if not paths:
            raise UserError(f"no files *{ending} in dataset.source.annotations={self.annotations}")
        classes = spelled_list([path.name.removesuffix(ending) for path in paths], self.annotations)
        listed = []
        for label, (class_name, path) in enumerate(zip(classes, paths, strict=True)):
            faults = Faults(path)
            for number, line in numbered_lines(path):
                name, _, code = line.strip().rpartition(" ")
                if not name or code not in HMDB_SPLITS:
                    faults.add(number, f"{line.strip()!r} should be a video and 0, 1 or 2")
                    continue
                split, stem = HMDB_SPLITS[code], one_spelling(os.path.splitext(name.strip())[0])
                if split is not None:
                    group = f"{class_name}/{film(stem, class_name)}"
                    listed.append((split, _in_class(f"{class_name}/{stem}", class_name, label, group)))
            faults.raise_if_any()
        return classes, listed


def film(stem: str, class_name: str) -> str:
    """The film of a clip of HMDB51: its name up to the class; without it, up to the number of the clip."""
    head, mark, _ = stem.rpartition(f"_{class_name}_")
    return head if mark else stem.rpartition("_")[0] or stem


@dataclass(frozen=True, kw_only=True)
class Kinetics:
    """Videos named by CSV files with the columns label, youtube_id, time_start, time_end and split.

    A trimmed file `<youtube_id>_<start>_<end>` (seconds of six digits) is used whole; of an untrimmed `<youtube_id>`,
    the part from time_start to time_end. Files are in `root`, in a folder of their split (as named in the CSV), of
    their label (with spaces or underscores), or both, with any suffix. A YouTube video is a group.

    The classes are the labels of train, sorted, or `classes`. `val_share` and `seed` hold out val if there is none, as
    in a `Listing`. Raises `UserError` if more than `max_missing_share` of the videos are missing.
    """

    root: str
    annotations: Sequence[str]
    classes: str | Sequence[str] | None = None
    max_missing_share: float = 0.0
    val_share: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_share(**{"dataset.source.max_missing_share": self.max_missing_share})

    def manifests(self) -> dict[str, Manifest]:
        rows = [
            (Path(path), line, fields | {"label": one_spelling(fields["label"])})
            for path in self.annotations
            for line, fields in read_table(Path(path), ",", KINETICS_COLUMNS)
        ]
        trained = {fields["label"] for _, _, fields in rows if fields["split"] == "train"}
        if not trained:
            raise UserError(f"no rows of split train in {', '.join(self.annotations)}")
        classes = sorted(trained) if self.classes is None else class_list(self.classes)
        listed = self._listed(rows, classes)
        manifests = _located(listed, classes, self.root, self.max_missing_share, ALLOW_SHARE)
        return complete(manifests, self.val_share, self.seed)

    def _listed(
        self, rows: Sequence[tuple[Path, int, dict[str, str]]], classes: Sequence[str]
    ) -> Iterator[tuple[str, Listed]]:
        codes = {name: code for code, name in enumerate(classes)}
        faults = {path: Faults(path) for path, _, _ in rows}
        for path, line, fields in rows:
            why = _kinetics_fault(fields, codes)
            if why is not None:
                faults[path].add(line, why)
                continue
            split, label, name = fields["split"], fields["label"], fields["youtube_id"]
            start, end = float(fields["time_start"]), float(fields["time_end"])
            trimmed = f"{name}_{int(start):06d}_{int(end):06d}"
            folders = _kinetics_folders(split, label)
            places, uncut = ([os.path.join(folder, stem) for folder in folders] for stem in (trimmed, name))
            yield KINETICS_SPLITS[split], Listed(name, places, codes[label], name, uncut, start, end)
        for faults_of_file in faults.values():
            faults_of_file.raise_if_any()


def _kinetics_fault(fields: dict[str, str], codes: dict[str, int]) -> str | None:
    """The fault of a row, or None."""
    split, label = fields["split"], fields["label"]
    if split not in KINETICS_SPLITS:
        return f"split {split!r} is none of {', '.join(KINETICS_SPLITS)}"
    if label not in codes:
        why = "not among the classes" if label else "empty: leave a list without labels out"
        return f"label {label!r} is {why}"
    try:
        start, end = float(fields["time_start"]), float(fields["time_end"])
    except ValueError:
        return f"{fields['time_start']!r} to {fields['time_end']!r} are not times in seconds"
    return None if 0 <= start < end < math.inf else f"{start:g} to {end:g} s is not a part of a video"


def _kinetics_folders(split: str, label: str) -> list[str]:
    labels = dict.fromkeys((label, label.replace(" ", "_")))
    splits = (split, KINETICS_SPLITS[split])
    return [*(os.path.join(folder, name) for folder in splits for name in labels), *labels, *splits, ""]


@dataclass(frozen=True, kw_only=True)
class SomethingSomething:
    """Something-Something v2: videos `root/<id>.webm` named by JSON files; a class is a template without its brackets.

    `labels` numbers the classes ({"Moving something up": "0"}); `train` and `val` list {"id", "template"}, of which
    "Moving [something] up" is one. The test list has no templates: `test_answers` gives its labels, as lines of
    `id;Moving something up`; without, there is no test split.

    Raises `UserError` if more than `max_missing_share` of the videos are missing.
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
            way = "give dataset.source.test_answers (lines of id;label), or dataset.source.test=null"
            raise UserError(f"dataset.source.test={self.test} has no labels: {way}")

    def manifests(self) -> dict[str, Manifest]:
        path = Path(self.labels)
        numbers = read_json(path)
        if not isinstance(numbers, dict):
            raise UserError(f"{path} must hold an object of numbers by label")
        classes = in_order(numbers, path)
        manifests = _located(self._listed(classes), classes, self.root, self.max_missing_share, ALLOW_SHARE)
        check_splits(manifests)
        return manifests

    def _listed(self, classes: Sequence[str]) -> Iterator[tuple[str, Listed]]:
        codes = {name: code for code, name in enumerate(classes)}
        for split, path in (("train", self.train), ("val", self.val), ("test", self.test)):
            if path is None:
                continue
            answers = _answers(Path(str(self.test_answers))) if split == "test" else None
            for video, name in self._videos(Path(path), answers):
                if name not in codes:
                    what = f"{split}: video {video} has the label {name!r}"
                    raise UserError(f"{what}, which {self.labels} does not number")
                yield split, Listed(video, (video,), codes[name])

    def _videos(self, path: Path, answers: dict[str, str] | None) -> Iterator[tuple[str, str]]:
        """The id and the class name of every video that `path` lists."""
        entries = read_json(path)
        if not isinstance(entries, list):
            raise UserError(f"{path} must hold a list of videos")
        needed = ("id", "template") if answers is None else ("id",)
        for number, entry in enumerate(entries):
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in needed):
                raise UserError(f"{path}: entry {number} lacks {' or '.join(needed)}: {str(entry)[:200]}")
            if answers is None:
                yield entry["id"], one_spelling(entry["template"].replace("[", "").replace("]", ""))
            elif entry["id"] in answers:
                yield entry["id"], one_spelling(answers[entry["id"]])
            else:
                raise UserError(f"{path}: video {entry['id']} has no label in {self.test_answers}")


def _answers(path: Path) -> dict[str, str]:
    faults = Faults(path)
    answers: dict[str, str] = {}
    for rows in read_rows(path, ";", 2, faults, header=False):
        answers |= dict(zip(rows.column(0), rows.column(1), strict=True))
    faults.raise_if_any()
    return answers
