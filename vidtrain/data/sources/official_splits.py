"""Sources: UCF-101 and HMDB51, in the formats that their official splits come in."""

import logging
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from vidtrain.data.manifest.checks import check_splits
from vidtrain.data.manifest.class_names import one_spelling, spelled_list
from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import hold_out
from vidtrain.data.sources.class_folders import ClassFolders
from vidtrain.data.sources.tables import Faults, open_text
from vidtrain.data.sources.video_files import VideoFiles, check_missing
from vidtrain.errors import UserError

UCF_GROUP = r"v_(\w+)_g(\d+)_"
HMDB_TRAIN, HMDB_TEST = "1", "2"  # "0" marks what a fold leaves out
NEW_SPLIT = (0.8, 0.1, 0.1)

logger = logging.getLogger(__name__)


class Listed(NamedTuple):
    """A video of an official split: `name` as listed, without suffix."""

    name: str
    label: int
    group: str


@dataclass(frozen=True, kw_only=True)
class OfficialSplits(ABC):
    """What the two datasets share.

    Videos lie at `root/<class>/<video>` or `root/<video>`, with any suffix; `annotations` is the folder of the split
    files, and `fold` is 1, 2 or 3. With fold null no split files are read: videos in class folders are split anew,
    80/10/10, groups kept whole.

    The official splits have no val. `val` says where it comes from: "train" holds out `val_share` of it, groups
    kept whole, drawn from `seed`; "test" selects on the test videos, so that what is then reported is too high.

    Raises `UserError` for split files that do not hold what they should, and for videos that are not on disk,
    unless `allow_missing`.
    """

    root: str
    annotations: str
    fold: int | None = 1
    val: str = "train"
    val_share: float = 0.1
    seed: int = 0
    allow_missing: bool = False

    def __post_init__(self) -> None:
        if self.fold not in (None, 1, 2, 3):
            raise UserError(f"dataset.source.fold={self.fold}: choose 1, 2 or 3, or null to split anew")
        if self.val not in ("train", "test"):
            raise UserError(
                f"dataset.source.val={self.val}: choose train, to hold out dataset.source.val_share of it, or test, to "
                "select on test"
            )

    def manifests(self) -> dict[str, Manifest]:
        if self.fold is None:
            return self._split_anew()
        if not Path(self.annotations).is_dir():
            raise UserError(
                f"no folder {self.annotations} of split files; name it with dataset.source.annotations="
            )
        classes, listed = self._read_lists()
        files, missing, total = VideoFiles(self.root), [], 0
        found = {}
        for split, videos in listed.items():
            total += len(videos)
            builder = ColumnsBuilder()
            for video in videos:
                name = PurePosixPath(video.name).name
                path = files.find(f"{classes[video.label]}/{name}", video.name, name)
                if path is None:
                    missing.append(video.name)
                else:
                    builder.extend([path], [video.label], [video.group])
            found[split] = builder
        allowed = 1.0 if self.allow_missing else 0.0
        check_missing(missing, total, self.root, allowed, "dataset.source.allow_missing=true")
        return self._with_val(
            {split: Manifest.from_columns(builder.build(), classes) for split, builder in found.items()}
        )

    def _with_val(self, found: dict[str, Manifest]) -> dict[str, Manifest]:
        check_splits(found)
        if self.val == "test":
            logger.warning("val is the test split: what is selected on it is reported too high on it")
            return {"train": found["train"], "val": found["test"], "test": found["test"]}
        return hold_out(found, self.val_share, self.seed)

    def _split_anew(self) -> dict[str, Manifest]:
        pool = ClassFolders(self.root, split=NEW_SPLIT, group_pattern=self._group_pattern(), seed=self.seed)
        return pool.manifests()

    @abstractmethod
    def _group_pattern(self) -> str:
        """A regular expression that finds a video's group in its path."""

    @abstractmethod
    def _read_lists(self) -> tuple[Sequence[str], dict[str, list[Listed]]]:
        """The class names, and the videos of "train" and "test"."""


@dataclass(frozen=True, kw_only=True)
class UCF101(OfficialSplits):
    """UCF-101: classInd.txt, trainlist0N.txt (`Class/v_Class_g01_c01.avi 1`) and testlist0N.txt (no label).

    The clips of one g number of a class are cut from one video, and so are a group.
    """

    def _group_pattern(self) -> str:
        return UCF_GROUP

    def _read_lists(self) -> tuple[Sequence[str], dict[str, list[Listed]]]:
        folder = Path(self.annotations)
        classes = self._classes(folder / "classInd.txt")
        codes = {name: label for label, name in enumerate(classes)}
        return classes, {
            split: list(self._listed(folder / f"{split}list{self.fold:02d}.txt", codes))
            for split in ("train", "test")
        }

    def _classes(self, path: Path) -> list[str]:
        faults, classes = Faults(path), []
        for number, line in _lines(path):
            code, _, name = line.partition(" ")
            if code != str(len(classes) + 1) or not name:
                faults.add(number, f"{line!r} should be {len(classes) + 1} and a class name")
            classes.append(name)
        faults.raise_if_any()
        return list(spelled_list(classes, path))

    def _listed(self, path: Path, codes: dict[str, int]) -> Iterator[Listed]:
        faults = Faults(path)
        for number, line in _lines(path):
            name, _, label = one_spelling(line).partition(" ")
            class_name = name.partition("/")[0]
            group = re.search(UCF_GROUP, name)
            if class_name not in codes:
                faults.add(number, f"{line!r} does not begin with a class of classInd.txt")
            elif label and label != str(codes[class_name] + 1):
                faults.add(number, f"{line!r}: label {label}, but {class_name} is {codes[class_name] + 1}")
            elif group is None:
                faults.add(number, f"{line!r} is not named like v_Class_g01_c01.avi")
            else:
                yield Listed(_without_suffix(name), codes[class_name], "/".join(group.groups()))
        faults.raise_if_any()


@dataclass(frozen=True, kw_only=True)
class HMDB51(OfficialSplits):
    """HMDB51: `<class>_test_split<N>.txt` for every class, lines of `video.avi` and 1 (train), 2 (test) or 0 (neither).

    A name begins with the film that the clip is from, then comes its class; the clips of a film are a group.
    """

    def _group_pattern(self) -> str:
        # the film's name ends where the class begins: the folder that the clip lies in
        return r"^([^/]+)/(?:.*/)?(.+)_\1_[^/]*$"

    def _read_lists(self) -> tuple[Sequence[str], dict[str, list[Listed]]]:
        ending = f"_test_split{self.fold}.txt"
        paths = sorted(Path(self.annotations).glob(f"*{ending}"))
        if not paths:
            raise UserError(
                f"no files *{ending} in {self.annotations}; name their folder with dataset.source.annotations="
            )
        classes = list(spelled_list([path.name.removesuffix(ending) for path in paths], self.annotations))
        found: dict[str, list[Listed]] = {"train": [], "test": []}
        for label, path in enumerate(paths):
            faults = Faults(path)
            for number, line in _lines(path):
                name, _, code = line.rpartition(" ")
                if not name or code not in ("0", HMDB_TRAIN, HMDB_TEST):
                    faults.add(number, f"{line!r} should be a video and 0, 1 or 2")
                elif code != "0":
                    stem = one_spelling(_without_suffix(name.strip()))
                    group = f"{classes[label]}/{film(stem, classes[label])}"
                    split = "train" if code == HMDB_TRAIN else "test"
                    found[split].append(Listed(f"{classes[label]}/{stem}", label, group))
            faults.raise_if_any()
        return classes, found


def film(stem: str, class_name: str) -> str:
    """What a clip of HMDB51 is from: its name up to the class; without it, up to the number of the clip."""
    head, found, _ = stem.rpartition(f"_{class_name}_")
    return head if found else stem.rpartition("_")[0] or stem


def _without_suffix(name: str) -> str:
    return os.path.splitext(name)[0]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line.strip()
