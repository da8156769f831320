"""What a dataset is to the rest of the package: records of path, label and group, and the class names."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from vidtrain.data.manifest.class_names import check_appearance, check_text, describe_alike, spelled_classes
from vidtrain.data.manifest.columns import OWN_PATH, Columns, ColumnsBuilder, Strings
from vidtrain.data.manifest.format import read_columns, write_columns
from vidtrain.errors import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """One video: where it lies, the index of its class, and what it must not be split from.

    Videos of one `group` (a person, a recording) are too alike to stand on both sides of a split. `labels` are all
    its labels, of which `label` is the first; where a video has one, that alone. `start` and `end` are seconds: the
    record is that part of the file, open where None. `source` indexes `Manifest.sources`.
    """

    path: str
    label: int
    group: str
    labels: tuple[int, ...] = ()
    start: float | None = None
    end: float | None = None
    source: int = 0

    def __post_init__(self) -> None:
        if not self.labels:
            object.__setattr__(self, "labels", (self.label,))
        elif self.labels[0] != self.label:
            raise ValueError(f"{self.path}: label {self.label} is not the first of {self.labels}")


class SourceInfo(NamedTuple):
    """One of several listings: how often its videos are drawn, relative to the others', and its frames per clip.

    `frames` None means as many as the run's.
    """

    name: str
    weight: float = 1.0
    frames: int | None = None


class Manifest(Sequence[Record]):
    """The videos of one split and the class names that their labels index.

    Records are kept in columns, and made when asked for. One that was saved is a map of its file into memory:
    all processes share the same pages, and it goes to a worker process as the file's name, however that starts.

    Where `frame_rate` is given, every record is a folder of images, that many a second.

    Raises `UserError` where there is no record or no class, a class is named twice, or a label has no class.
    """

    def __init__(
        self,
        records: Iterable[Record],
        classes: Sequence[str],
        frame_rate: float | None = None,
        sources: Sequence[SourceInfo] = (),
    ):
        self._set(_columns_of(tuple(records)), classes, frame_rate, sources)

    @classmethod
    def from_columns(
        cls,
        columns: Columns,
        classes: Sequence[str],
        frame_rate: float | None = None,
        sources: Sequence[SourceInfo] = (),
    ) -> "Manifest":
        manifest = cls.__new__(cls)
        manifest._set(columns, classes, frame_rate, sources)
        return manifest

    def _set(
        self,
        columns: Columns,
        classes: Sequence[str],
        frame_rate: float | None,
        sources: Sequence[SourceInfo],
    ) -> None:
        self.columns = columns
        self.classes = spelled_classes(classes)  # those of sources and files that do not care, too
        self.frame_rate = frame_rate
        self.sources = tuple(sources) or (SourceInfo("all"),)
        self._file: tuple[Path, str] | None = None  # and its digest
        if not self.classes:
            raise UserError("the dataset names no classes")
        if len(set(self.classes)) < len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UserError(f"the dataset names a class more than once: {', '.join(twice)}")
        if not len(columns):
            raise UserError(f"the dataset holds no videos of its {len(self.classes)} classes")
        self._check_labels()

    def _check_labels(self) -> None:
        columns, largest = self.columns, len(self.classes) - 1
        labels = columns.labels if columns.all_labels is None else columns.all_labels
        if labels.min() >= 0 and labels.max() <= largest:
            return
        place = int(np.flatnonzero((labels < 0) | (labels > largest))[0])
        record = place
        if columns.label_offsets is not None:
            record = int(np.searchsorted(columns.label_offsets, place, side="right")) - 1
        raise UserError(
            f"{self.paths[record]}: label {labels[place]} is outside 0..{largest}, "
            f"the labels of the {len(self.classes)} classes"
        )

    def __len__(self) -> int:
        return len(self.columns)

    def __getitem__(self, index: int) -> Record:
        index = range(len(self))[index]
        columns, path = self.columns, self.columns.paths[index]
        label, labels = int(columns.labels[index]), ()
        if columns.label_offsets is not None:
            first, last = columns.label_offsets[index : index + 2].tolist()
            labels = tuple(columns.all_labels[first:last].tolist())
        code = OWN_PATH if columns.groups is None else int(columns.groups[index])
        group = path if code == OWN_PATH else columns.group_names[code]
        start, end = (
            None if times is None or math.isnan(times[index]) else float(times[index])
            for times in (columns.starts, columns.ends)
        )
        source = 0 if columns.sources is None else int(columns.sources[index])
        return Record(path, label, group, labels, start, end, source)

    @property
    def records(self) -> Sequence[Record]:
        """The records, made one at a time: the manifest itself."""
        return self

    @property
    def paths(self) -> Strings:
        """The path of every record, each made when asked for."""
        return self.columns.paths

    @property
    def labels(self) -> np.ndarray:
        """The (first) label of every record, int64 [len(self)]."""
        return self.columns.labels.astype(np.int64)

    @property
    def multi_label(self) -> bool:
        """Whether records may have several labels."""
        return self.columns.label_offsets is not None

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Manifest":
        """The records at `indices`, in that order; in memory, until it is saved."""
        indices = np.asarray(indices, dtype=np.int64)
        return Manifest.from_columns(self.columns.take(indices), self.classes, self.frame_rate, self.sources)

    # --- files --------------------------------------------------------------------------------------------

    def save(self, path: Path) -> str:
        """Writes it to `path`, whole or not at all; returns a digest of the contents."""
        head = {
            "classes": self.classes,
            "frame_rate": self.frame_rate,
            "sources": self.sources,
        }
        return write_columns(Path(path), head, self.columns)

    @classmethod
    def open(cls, path: Path) -> "Manifest":
        """A saved manifest, mapped into memory. Raises `UserError` for a file that is damaged or something else."""
        path = Path(path).absolute()  # a worker that opens it again may stand in another folder
        head, columns = read_columns(path)
        sources = [SourceInfo(*each) for each in head["sources"]]
        manifest = cls.from_columns(columns, head["classes"], head["frame_rate"], sources)
        manifest._file = path, head["digest"]
        return manifest

    def __reduce__(self):
        if self._file is not None:
            return _reopen, self._file
        return Manifest.from_columns, (self.columns, self.classes, self.frame_rate, self.sources)


def _reopen(path: Path, digest: str) -> Manifest:
    manifest = Manifest.open(path)
    if manifest._file[1] != digest:
        raise UserError(f"{path} was replaced while it was in use; start again")
    return manifest


def _columns_of(records: Sequence[Record]) -> Columns:
    multi_label = any(len(record.labels) > 1 for record in records)
    builder = ColumnsBuilder(multi_label)
    for source, alike in groupby(records, key=attrgetter("source")):
        part = list(alike)
        times = [
            [math.nan if time is None else time for time in map(attrgetter(name), part)]
            for name in ("start", "end")
        ]
        builder.extend(
            [record.path for record in part],
            [record.labels if multi_label else record.label for record in part],
            [record.group for record in part],
            *(None if all(map(math.isnan, column)) else column for column in times),
            source=source,
        )
    return builder.build()


class Source(Protocol):
    """Anything that finds a dataset's videos: class folders, listing files, a generator of its own.

    One that is given by files alone also has `inputs() -> Sequence[Path] | None`, those files: what was read is then
    kept for as long as they are the same (`manifest.files.open_manifests`).
    """

    def manifests(self) -> dict[str, Manifest]:
        """One manifest per split, keyed "train", "val" and, where there is one, "test"."""
        ...


def in_order_of(manifest: Manifest, classes: Sequence[str]) -> Manifest:
    """The same records with their classes in the order of `classes`, which has the same ones."""
    if manifest.classes == tuple(classes):
        return manifest
    order = np.array([classes.index(name) for name in manifest.classes], dtype=np.int32)
    columns = manifest.columns.relabeled(order)
    return Manifest.from_columns(columns, classes, manifest.frame_rate, manifest.sources)


def check_same_classes(manifests: Mapping[str, Manifest]) -> None:
    """Raises `UserError` unless all splits name the same classes in the same order, and none of them twice by looks."""
    (first, reference), *others = manifests.items()
    check_text(reference.classes, f"split {first!r}")
    check_appearance(reference.classes, f"split {first!r}")
    for split, manifest in others:
        if manifest.classes == reference.classes:
            continue
        missing = [name for name in reference.classes if name not in manifest.classes]
        extra = [name for name in manifest.classes if name not in reference.classes]
        raise UserError(
            f"the classes of split {split!r} differ from those of {first!r}: "
            f"missing {', '.join(missing) or 'none'}; extra {', '.join(extra) or 'none'}"
            + ("" if missing or extra else "; the same names in another order")
            + describe_alike(missing, extra)
        )
