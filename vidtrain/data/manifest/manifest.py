"""The manifest: records with path, label and group, and class names. All other code sees a dataset in this form."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, overload

import numpy as np

from vidtrain.data.manifest.columns import CHUNK, OWN_PATH, Columns, ColumnsBuilder, Strings
from vidtrain.errors import UserError, pluralize
from vidtrain.files.atomic import replacing
from vidtrain.files.escaping import is_utf8, shown_some

HEAD = "manifest.json"  # beside a .npy file for each column


@dataclass(frozen=True, slots=True)
class Record:
    """One video: its path, and the indices of its classes, `labels`, of which `label` is the first.

    Videos of one `group` (a person, a recording) are similar, so they must be in the same split. The record is the part
    of the file from `start` to `end` (seconds); None means the file's start or end. `source` indexes
    `Manifest.sources`.
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
    """One of several sources: the weight with which its videos are drawn, and its frames per clip (None: the run's)."""

    name: str
    weight: float = 1.0
    frames: int | None = None


class Manifest(Sequence[Record]):
    """The videos of one split and the class names that their labels index.

    Data are stored in columns, and `Record` objects are created on access. A saved manifest is memory-mapped: all
    processes share its pages, and it is pickled as the name of its folder. With `frame_rate`, every record is a folder
    of images with that many images per second.

    Raises `UserError` if there are no records or no classes, a class name occurs twice, or a label has no class.
    """

    def __init__(
        self,
        records: Iterable[Record] | Columns,
        classes: Sequence[str],
        frame_rate: float | None = None,
        sources: Sequence[SourceInfo] = (),
    ):
        if not isinstance(records, Columns):
            records = tuple(records)
            records = columns_of(records, multi_label=any(len(record.labels) > 1 for record in records))
        self.columns = records
        self.classes = spelled_classes(classes)
        self.frame_rate = frame_rate
        self.sources = tuple(sources) or (SourceInfo("all"),)
        self._saved: tuple[Path, str] | None = None  # the folder and the digest
        if not self.classes:
            raise UserError("the dataset names no classes")
        twice = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        if twice:
            raise UserError(f"the dataset names a class more than once: {', '.join(twice)}")
        if not len(self.columns):
            raise UserError(f"the dataset holds no videos of its {pluralize(len(self.classes), 'class')}")
        self._check_labels()

    def _check_labels(self) -> None:
        labels, largest = self.columns.every_label, len(self.classes) - 1
        if labels.min() >= 0 and labels.max() <= largest:
            return
        place = int(np.flatnonzero((labels < 0) | (labels > largest))[0])
        record = int(np.searchsorted(np.cumsum(self.columns.label_counts), place, side="right"))
        raise UserError(f"{self.paths[record]}: label {labels[place]} is outside 0..{largest}")

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Manifest": ...
    def __getitem__(self, index: int | slice) -> "Record | Manifest":
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        place = range(len(self))[index]  # negative ones count from the end
        columns, path, labels = self.columns, self.columns.paths[place], self.columns.labels_of(place)
        group, code = path, OWN_PATH if columns.groups is None else int(columns.groups[place])
        if columns.group_names is not None and code != OWN_PATH:
            group = columns.group_names[code]
        source = 0 if columns.sources is None else int(columns.sources[place])
        return Record(path, labels[0], group, labels, *columns.cut_of(place), source)

    @property
    def paths(self) -> Strings:
        """The path of every record; the strings are created on access."""
        return self.columns.paths

    @property
    def labels(self) -> np.ndarray:
        """The (first) label of every record, int64 [len(self)]."""
        return self.columns.labels.astype(np.int64)

    @property
    def groups(self) -> list[str] | None:
        """The group of every record; None if no record has one."""
        return None if self.columns.groups is None else [record.group for record in self]

    @property
    def multi_label(self) -> bool:
        """Whether records may have several labels."""
        return self.columns.label_offsets is not None

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Manifest":
        """A manifest of the records at `indices`, in that order; it is in memory, not saved."""
        columns = self.columns.take(np.asarray(indices, dtype=np.int64))
        return Manifest(columns, self.classes, self.frame_rate, self.sources)

    def with_paths(self, paths: Sequence[str], shifts: np.ndarray | None = None) -> "Manifest":
        """The same records with files at other `paths`, whose times are increased by `shifts` (seconds [n])."""
        return Manifest(self.columns.with_paths(paths, shifts), self.classes, sources=self.sources)

    # --- files --------------------------------------------------------------------------------------------

    def save(self, folder: Path) -> str:
        """Writes the manifest into a new `folder`, with a .npy file for each column; returns a digest of the
        content."""
        head: dict[str, Any] = {name: getattr(self, name) for name in ("classes", "frame_rate", "sources")}
        head["prefixes"] = {}
        arrays: dict[str, np.ndarray] = {}
        for name, column in vars(self.columns).items():
            if isinstance(column, Strings):
                head["prefixes"][name] = column.prefix
                arrays |= {name: column.blob, f"{name}.offsets": column.offsets}
            elif column is not None:
                arrays[name] = column
        head["arrays"] = list(arrays)
        digest = hashlib.blake2b(json.dumps(head).encode(), digest_size=16)
        folder.mkdir()
        for name, values in arrays.items():
            digest.update(np.ascontiguousarray(values).data)
            with open(folder / f"{name}.npy", "wb") as file:
                np.save(file, values)
                file.flush()
                os.fsync(file.fileno())
        with replacing(folder / HEAD) as head_file:
            json.dump({**head, "digest": digest.hexdigest()}, head_file)
        return digest.hexdigest()

    @classmethod
    def open(cls, folder: Path) -> "Manifest":
        """Memory-maps a saved manifest. Raises `UserError` if it is damaged or no manifest."""
        folder = Path(folder).absolute()  # a worker that opens it again may have another current folder
        try:
            head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
            maps = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in head["arrays"]}
            # as plain arrays, since indexing np.memmap costs microseconds
            arrays: dict[str, Any] = {name: values.view(np.ndarray) for name, values in maps.items()}
            for name, prefix in head["prefixes"].items():
                arrays[name] = Strings(arrays[name], arrays.pop(f"{name}.offsets"), prefix)
            columns = Columns(**arrays)
            columns.check()
            sources = [SourceInfo(*source) for source in head["sources"]]
            manifest = cls(columns, head["classes"], head["frame_rate"], sources)
            manifest._saved = folder, head["digest"]
        except FileNotFoundError as error:
            raise UserError(f"the manifest {folder} cannot be opened: {error.strerror}") from error
        except (OSError, EOFError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"the manifest {folder} is damaged ({error}); delete it") from error
        return manifest

    def __reduce__(self):
        if self._saved is not None:
            return _reopen, self._saved
        return Manifest, (self.columns, self.classes, self.frame_rate, self.sources)


def _reopen(folder: Path, digest: str) -> Manifest:
    manifest = Manifest.open(folder)
    if manifest._saved != (folder, digest):
        raise UserError(f"{folder} was replaced while it was in use; start again")
    return manifest


def columns_of(records: Iterable[Record], multi_label: bool) -> Columns:
    """The columns of `records`; `multi_label` says whether one may have several labels."""
    builder, waiting = ColumnsBuilder(multi_label), iter(records)
    while part := list(islice(waiting, CHUNK)):
        builder.extend(
            [record.path for record in part],
            [label for record in part for label in record.labels],
            [record.group for record in part],
            [np.nan if record.start is None else record.start for record in part],
            [np.nan if record.end is None else record.end for record in part],
            [record.source for record in part],
            [len(record.labels) for record in part],
        )
    return builder.build()


class Source(Protocol):
    """A source of a dataset's videos, such as class folders, listings, or a generator.

    A source that reads only certain files may also have `inputs() -> Sequence[Path | str] | None`, which returns these
    files or their URLs: its manifests are cached while these are unchanged (`manifest.files.open_manifests`)."""

    def manifests(self) -> dict[str, Manifest]:
        """One manifest for each split, with the keys "train", "val" and optionally "test"."""
        ...


def in_order_of(manifest: Manifest, classes: Sequence[str]) -> Manifest:
    """The same records with the classes in the order of `classes`, a permutation of the manifest's."""
    if manifest.classes == tuple(classes):
        return manifest
    order = np.array([classes.index(name) for name in manifest.classes], dtype=np.int32)
    return Manifest(manifest.columns.relabeled(order), classes, manifest.frame_rate, manifest.sources)


def check_same_classes(manifests: Mapping[str, Manifest]) -> None:
    """Raises `UserError` unless all splits have the same classes in the same order, and no two classes look the
    same."""
    (first, reference), *others = manifests.items()
    check_text(reference.classes, f"split {first!r}")
    check_appearance(reference.classes, f"split {first!r}")
    for split, manifest in others:
        if manifest.classes == reference.classes:
            continue
        missing = [name for name in reference.classes if name not in manifest.classes]
        extra = [name for name in manifest.classes if name not in reference.classes]
        names = [shown_some(part, len(part)) or "none" for part in (missing, extra)]
        order = "" if missing or extra else "; the same names in another order"
        what = f"the classes of split {split!r} differ from those of {first!r}"
        raise UserError(f"{what}: missing {names[0]}; extra {names[1]}{order}")


# --- normalized class names --------------------------------------------------------------------------------

NO_UTF8 = (
    "holds bytes that are not UTF-8: save the file that names it as UTF-8, such as with iconv -f latin1 -t utf-8 OLD > "
    "NEW, or, if it is a folder, rename it"
)
# White space and invisible characters that mean nothing at an end: zero-width space, word joiner, byte-order mark,
# marks of direction. Joiners stay, as Persian, Indic scripts and emoji need them.
_EDGE = r"[\s\u200b\u200e\u200f\u2060\ufeff]+"
_EDGES = re.compile(rf"^{_EDGE}|{_EDGE}$")


def one_spelling(name: str) -> str:
    """`name` in Unicode's composed form (NFC; file names on macOS are decomposed), without white space at its ends."""
    if name.isascii():
        return name.strip()
    # composed before and after stripping, as stripping may leave a combining mark at the end
    return unicodedata.normalize("NFC", _EDGES.sub("", unicodedata.normalize("NFC", name)))


def spelled(names: Sequence[str]) -> list[str]:
    """Each of `names` in one spelling; fast for many names with few distinct ones."""
    if "".join(names).isascii():
        return [name.strip() for name in names]
    known: dict[str, str] = {}
    return [known[name] if name in known else known.setdefault(name, one_spelling(name)) for name in names]


def spelled_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Stored class names in one spelling; unchanged if two of them would become equal."""
    stored = tuple(names)
    spellings = tuple(map(one_spelling, stored))
    return spellings if len(set(spellings)) == len(set(stored)) else stored


def spelled_list(names: Sequence[str], where: object) -> tuple[str, ...]:
    """A list of classes in one spelling. Raises `UserError` if two of them become equal, or if one is not UTF-8."""
    check_text(names, where)
    first_with: dict[str, str] = {}
    for name in names:
        other = first_with.setdefault(one_spelling(name), name)
        if other != name:
            raise UserError(f"{where} names one class in two spellings: {other!a} and {name!a}")
    return tuple(map(one_spelling, names))


def check_text(names: Iterable[str], where: object) -> None:
    """Raises `UserError` for a name that is not UTF-8, as it could not be written to files."""
    for name in names:
        if not is_utf8(name):
            raise UserError(f"{where}: the class {name!r} {NO_UTF8}")


def appearance(name: str) -> str:
    """How a name looks: without invisible characters, and with every white space as one space."""
    seen = (char for char in unicodedata.normalize("NFC", name) if char.isspace() or char.isprintable())
    return " ".join(unicodedata.normalize("NFC", "".join(seen)).split())


def check_appearance(names: Iterable[str], where: str) -> None:
    """Raises `UserError` if two different `names` look the same."""
    first_with: dict[str, str] = {}
    for name in names:
        other = first_with.setdefault(appearance(name), name)
        if other != name:
            raise UserError(f"{where}: the classes {other!a} and {name!a} look the same; spell both in the same way")
