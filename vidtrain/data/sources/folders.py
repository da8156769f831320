"""Sources: class folders, the simplest, and folders of images; finds the files of annotated videos."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vidtrain.data.decoding.metadata import check_frame_rate
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest, Record, columns_of, one_spelling
from vidtrain.data.manifest.splitting import SPLITS, check_splits, groups_by, shares_of, split_manifest
from vidtrain.data.sources.labels import LabelReader, in_order
from vidtrain.data.sources.tables import Faults, read_json, read_table
from vidtrain.errors import UserError, pluralize
from vidtrain.files.escaping import shown, shown_some

logger = logging.getLogger(__name__)

SUFFIXES = (
    ".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".3g2", ".asf",
    ".divx", ".dv", ".f4v", ".gif", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2ts", ".m2v", ".mts", ".mxf", ".ogg",
    ".ogv", ".rm", ".rmvb", ".vob", ".y4m",
)  # fmt: skip
NAMED = 10  # missing videos
MOST_CLASSES = 2**31
TRUTH_COLUMNS = ("youtube_id", "folder_name", "label")


@dataclass(frozen=True)
class ClassFolders:
    """Videos in class folders: `root/split/class/**/*.suffix`, or, with `split`, `root/class/**/*.suffix`.

    The sorted folder names of a split (`one_spelling`) are its classes, the same in every split. Only "test" may be
    absent. Suffixes are matched in any letter case; hidden files and folders are skipped.

    `split` holds the shares of train, val and test, for a stratified split drawn from `seed`. Groups are not split:
    each video is a group, or the videos with the same `group_pattern` (`group_in`, on the path below `root`).

    Raises `UserError` for invalid shares and patterns; `manifests` raises it if the layout is different.
    """

    root: str
    splits: Sequence[str] = ("train", "val", "test")
    suffixes: Sequence[str] = SUFFIXES
    split: Sequence[float] | None = None
    group_pattern: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split is not None:
            shares_of(self.split)
        groups_by(self.group_pattern, [])

    def manifests(self) -> dict[str, Manifest]:
        if self.split is not None:
            manifests = split_manifest(self.pool(), shares_of(self.split), self.seed)
        else:
            root = self._existing_root()
            there = [split for split in self.splits if split != "test" or (root / split).is_dir()]
            manifests = {split: self._read(root / split, split) for split in there}
        check_splits(manifests)
        return manifests

    def pool(self) -> Manifest:
        """All videos of `root/class/**/*.suffix`, not split."""
        root = self._existing_root()
        named_like_splits = [name for name in self.splits if (root / name).is_dir()]
        if named_like_splits:
            raise UserError(
                f"{root} holds the folders {', '.join(named_like_splits)}: if these are splits, remove "
                "dataset.source.split; if they are classes, set +dataset.source.splits=[]"
            )
        return self._read(root, None)

    def _existing_root(self) -> Path:
        if not Path(self.root).is_dir():
            raise UserError(f"no dataset folder {self.root}; {self._layout()}; dataset.source.root sets it")
        return Path(self.root)

    def _read(self, folder: Path, split: str | None) -> Manifest:
        by_class = self._videos(folder, split)
        # checked here, as the manifest's error could not name the folder
        empty = [name for name, paths in by_class.items() if not paths]
        if len(empty) == len(by_class) or (split in ("train", None) and empty):
            raise UserError(
                f"no videos in {folder} for {', '.join(map(shown, empty))}; "
                f"looked for {shown_some(self.suffixes, 4)}; {self._layout()}"
            )
        builder = ColumnsBuilder()
        for label, paths in enumerate(by_class.values()):
            names = [os.path.relpath(path, self.root) for path in paths] if self.group_pattern else []
            builder.extend(paths, [label] * len(paths), groups_by(self.group_pattern, names))
        return Manifest(builder.build(), tuple(by_class))

    def _videos(self, folder: Path, split: str | None) -> dict[str, list[str]]:
        """The videos of every class."""
        if not folder.is_dir():
            raise UserError(f"no folder {folder} for split {split!r}; {self._layout()}")
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        classes = sorted(path for path in entries if path.is_dir())
        if not classes:
            raise UserError(f"no class folders in {folder}; {self._layout()}")
        passed = [str(path) for path in entries if path.is_file()]
        videos: dict[str, list[str]] = {}
        for path in classes:
            name = one_spelling(path.name)
            if not name:
                raise UserError(f"the name of {path} is invisible, so it cannot be a class; rename the folder")
            if name in videos:
                logger.warning("the class %s of %s lies in two folders that are spelled alike", name, folder)
            videos.setdefault(name, []).extend(sorted(walk(path, self.suffixes, passed)))
        if passed:
            message = "%s in %s skipped, not being videos in a class folder, such as %s"
            logger.warning(message, pluralize(len(passed), "file"), folder, min(passed))
        return dict(sorted(videos.items()))

    def _layout(self) -> str:
        if self.split is not None:
            return f"expected {self.root}/<class>/<video>, to be split"
        return (
            f"expected {self.root}/{{{','.join(self.splits)}}}/<class>/<video>; "
            "if the classes are not split yet, set dataset.source.split=[0.8,0.1,0.1]"
        )


def leads_back(path: str) -> bool:
    """Whether a folder is a link to one of its parents, which would be read endlessly."""
    if not os.path.islink(path):
        return False
    return f"{os.path.realpath(os.path.dirname(path))}/".startswith(f"{os.path.realpath(path).rstrip('/')}/")


def folder_levels(folder: str | Path) -> Iterator[tuple[str, list[str]]]:
    """Every folder in `folder`, and itself, except hidden ones, with the names of its files."""
    for parent, folders, files in os.walk(folder, followlinks=True):  # datasets are often made of links
        visible = (name for name in folders if not name.startswith("."))
        folders[:] = [name for name in visible if not leads_back(os.path.join(parent, name))]
        yield parent, files


def walk(folder: str | Path, suffixes: Sequence[str], passed: list[str] | None = None) -> Iterator[str]:
    """The videos below `folder`, without hidden files and folders. Adds other files to `passed`."""
    endings = tuple(suffix.lower() for suffix in suffixes)
    for parent, files in folder_levels(folder):
        for name in files:
            if name.startswith("."):
                continue
            if name.lower().endswith(endings):
                yield os.path.join(parent, name)
            elif passed is not None:
                passed.append(os.path.join(parent, name))


class VideoFiles:
    """The videos below `root`, by relative path without suffix; paths match in any Unicode normal form."""

    def __init__(self, root: str):
        if not Path(root).is_dir():
            raise UserError(f"no folder {root} of videos")
        # as on disk, and in one normal form, as annotations and disk may differ in it
        self._paths: dict[str, list[str]] = {}
        self._alike: dict[str, list[str]] = {}
        for path in walk(root, SUFFIXES):
            stem = os.path.splitext(path[len(os.path.join(root, "")) :])[0]
            self._paths.setdefault(stem, []).append(path)
            self._alike.setdefault(_path_in_one_spelling(stem), []).append(path)

    def find(self, *stems: str) -> str | None:
        """The file of the first of `stems` that exists. Raises `UserError` if it has two files."""
        as_spelled = [self._paths[stem] for stem in stems if stem in self._paths]
        spellings = map(_path_in_one_spelling, stems if not as_spelled else ())
        for paths in as_spelled or [self._alike[stem] for stem in spellings if stem in self._alike]:
            if len(paths) > 1:
                raise UserError(f"two files of one name: {', '.join(paths)}; remove one")
            return paths[0]
        return None


def _path_in_one_spelling(path: str) -> str:
    return os.sep.join(map(one_spelling, path.split(os.sep)))


def check_missing(missing: Sequence[str], total: int, root: str, max_share: float, allow: str) -> None:
    """Raises `UserError` if more than `max_share` of the `total` annotated videos are `missing`, and names the setting
    `allow` that permits it; warns of fewer."""
    if not missing:
        return
    message = f"{len(missing)} of {total} annotated videos are not in {root}: {shown_some(missing, NAMED)}"
    if len(missing) > max_share * total:
        raise UserError(f"{message}; to continue without them, set {allow}")
    logger.warning("%s", message)


# --- videos that are folders of images ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FrameFolders:
    """Videos that are folders of images below `root`, `frame_rate` images a second.

    One of two files names them. `annotations` is a JSON file as `python -m vidtrain.split` writes it: {"categories":
    {name: number}, "train": [{"video": folder, "target": number, "segment": [first, last]}], "val": ..., "test": ...};
    a segment counts images from 0, both ends included; without one, all are taken. `ground_truth` is a CSV file with
    the columns youtube_id, folder_name and label, whose videos are split here by the shares `split`, stratified, drawn
    from `seed`. Groups are the folders of one youtube_id, or of one `group_pattern` (`group_in`, on their names).

    Raises `UserError` for files with another content, and for missing folders unless `allow_missing`.
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
            raise UserError("give one of dataset.source.annotations and dataset.source.ground_truth")
        for key, what in (("classes", "names the classes"), ("group_pattern", "names the groups")):
            if self.annotations is not None and getattr(self, key) is not None:
                raise UserError(f"dataset.source.annotations {what}; remove dataset.source.{key}")
        shares_of(self.split)
        groups_by(self.group_pattern, [])

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
        rows = list(read_table(path, ",", TRUTH_COLUMNS))
        folders = [self._folder(fields["folder_name"]) for _, fields in rows]
        missing = self._missing(folders)
        kept = [row for row, folder in zip(rows, folders, strict=True) if folder not in missing]
        if not kept:
            raise UserError(f"none of the videos of {path} is in {self.root}")
        names, texts, groups = (
            [fields[column] for _, fields in kept] for column in ("folder_name", "label", "youtube_id")
        )
        labels, faults = LabelReader("names", self.classes, None), Faults(path)
        numbers, _ = labels.read(texts, lambda place, why: faults.add(kept[place][0], why))
        faults.raise_if_any()
        builder = ColumnsBuilder()
        groups = groups_by(self.group_pattern, names) or groups
        builder.extend(list(map(self._folder, names)), numbers, groups)
        return Manifest(*labels.settle(builder.build()), self.frame_rate)

    def _annotated(self, path: Path) -> dict[str, Manifest]:
        content = read_json(path)
        try:
            classes = in_order(content["categories"], path)
            splits = {split: list(map(self._record, content[split])) for split in SPLITS if split in content}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not an annotations file: {error!r}") from error
        absent = [split for split in ("train", "val") if split not in splits or not splits[split]]
        if absent:
            raise UserError(f"{path} lists no videos for {' and '.join(absent)}")
        every = [record for records in splits.values() for record in records]
        missing = self._missing([record.path for record in every])
        multi_label = any(len(record.labels) > 1 for record in every)
        kept = {split: [record for record in splits[split] if record.path not in missing] for split in splits}
        return {
            split: Manifest(columns_of(kept[split], multi_label), classes, self.frame_rate)
            for split in splits
            if splits[split]
        }

    def _record(self, entry: dict[str, Any]) -> Record:
        labels = entry["target"] if isinstance(entry["target"], list) else [entry["target"]]
        labels = [int(label) if type(label) is float and label.is_integer() else label for label in labels]
        if not labels or not all(type(label) is int and 0 <= label < MOST_CLASSES for label in labels):
            raise ValueError(f"target {entry['target']} of {entry['video']}, which must be class numbers")
        start = end = None
        if "segment" in entry:
            first, last = entry["segment"]
            if not 0 <= first <= last:
                raise ValueError(f"segment {entry['segment']} of {entry['video']}")
            # half-way between two images, so that rounding cannot change the frames
            start = (first - 0.5) / self.frame_rate if first else None
            end = (last + 0.5) / self.frame_rate
        folder = self._folder(str(entry["video"]))
        group = str(entry["group"]) if "group" in entry else folder
        return Record(folder, labels[0], group, tuple(labels), start, end)

    def _folder(self, name: str) -> str:
        """The normalized path, as two forms would count as two videos. An empty path stays empty, which is no
        folder."""
        return os.path.normpath(os.path.join(self.root, name)) if name else ""

    def _missing(self, folders: Sequence[str]) -> set[str]:
        """The missing ones of `folders`. Raises `UserError` unless they may be missing."""
        missing = [folder for folder in folders if not os.path.isdir(folder)]
        names = [os.path.relpath(folder or self.root, self.root) for folder in missing]
        allow = "dataset.source.allow_missing=true"
        check_missing(names, len(folders), self.root, float(self.allow_missing), allow)
        return set(missing)
