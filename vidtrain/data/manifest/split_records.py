"""Records the files of a split, so that a later run can check whether they changed, and name the differences.

A record is a compressed .npz of columns, some bytes a video. It has the size and modification time of every file, or,
for a split of millions, of `MOST_LOOKED_AT` evenly spaced files.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vidtrain.data.decoding.metadata import image_names
from vidtrain.data.manifest.columns import Columns, Strings
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.stores.files import ask_statuses, file_status
from vidtrain.errors import UserError
from vidtrain.files.atomic import replacing_path

T = TypeVar("T")
MOST_LOOKED_AT = 200_000
LOOKING = 16  # threads: storage is what limits the speed
AT_A_TIME = 1_000
IMAGES_LOOKED_AT = 8  # of a folder
GONE, NOT_LOOKED_AT = -1, -2  # stored instead of a size
OPTIONAL = ("label_offsets", "all_labels", "starts", "ends", "sources")
# The largest allowed ratio of a record's size in memory to its size on disk, except for small ones
MOST_GROWTH, SMALL = 50, 1 << 28
FAST: Any = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
MIX = 0x5BD1E995  # an odd multiplier, to combine numbers with few collisions


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """The records of a split in order, as `columns`, with the bytes and modification time (ns) of each file, int64 [n].
    The size is `GONE` for a missing file and `NOT_LOOKED_AT` for an unchecked one. For a folder of images it is a hash
    of the names of its images and the bytes of some."""

    columns: Columns
    classes: tuple[str, ...]
    sizes: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    @classmethod
    def of(cls, manifest: Manifest, most: int = MOST_LOOKED_AT) -> "SplitRecord":
        """Reads sizes and times of the files of `manifest`; of more than `most` files, of `most` evenly spaced ones."""
        chosen = np.arange(0, len(manifest), max(1, -(-len(manifest) // most)))
        sizes = np.full(len(manifest), NOT_LOOKED_AT, dtype=np.int64)
        times = np.zeros(len(manifest), dtype=np.int64)

        def look(places: np.ndarray) -> list[tuple[int, int]]:
            images = manifest.frame_rate is not None
            ask_statuses(manifest.paths[place] for place in places.tolist())
            return [_look(manifest.paths[place], images) for place in places.tolist()]

        parts = [chosen[first : first + AT_A_TIME] for first in range(0, len(chosen), AT_A_TIME)]
        with ThreadPoolExecutor(LOOKING) as pool:
            for part, statuses in zip(parts, pool.map(look, parts), strict=True):
                sizes[part], times[part] = np.array(statuses, dtype=np.int64).reshape(-1, 2).T
        return cls(manifest.columns, manifest.classes, sizes, times)

    @property
    def digest(self) -> str:
        """BLAKE2b (32 hex digits) of everything except times and the folder that all files have in common."""
        columns = self.columns
        digest = hashlib.blake2b("\n".join(self.classes).encode("utf-8", "surrogateescape"), digest_size=16)
        arrays = (
            columns.paths.blob, np.asarray(columns.paths.offsets, np.int64), columns.labels, self.sizes,
            columns.all_labels, columns.starts, columns.ends, columns.sources,
        )  # fmt: skip
        for array in arrays:
            digest.update(b"|" if array is None else np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def labels_of(self, place: int) -> tuple[str, ...]:
        """The names of the classes of a record."""
        return tuple(self.classes[label] for label in self.columns.labels_of(place))

    def save(self, path: Path) -> None:
        """Writes the record atomically. Raises `UserError` if it cannot be written."""
        columns = self.columns
        arrays = {"blob": columns.paths.blob, "offsets": columns.paths.offsets, "labels": columns.labels}
        arrays |= {"sizes": self.sizes, "times": self.times}
        arrays |= {name: column for name in OPTIONAL if (column := getattr(columns, name)) is not None}
        for name, texts in (("prefix", [columns.paths.prefix]), ("classes", self.classes)):
            arrays[name] = np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing_path(path) as temporary, zipfile.ZipFile(temporary, "w", **FAST) as archive:
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): free some space.") from error

    @classmethod
    def open(cls, path: Path) -> "SplitRecord":
        """Reads a saved record. Raises `UserError` if it is damaged or not a record."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                whole = sum(member.file_size for member in archive.zip.infolist())
                if whole > MOST_GROWTH * path.stat().st_size + SMALL:
                    raise ValueError(f"it would become {whole:,} bytes")
                arrays = {name: archive[name] for name in archive.files}
            texts = (bytes(arrays[name]) for name in ("prefix", "classes"))
            prefix, classes = (str(text, "utf-8", "surrogateescape") for text in texts)
            paths = Strings(arrays["blob"], arrays["offsets"], prefix)
            optional = {name: arrays[name] for name in OPTIONAL if name in arrays}
            columns = Columns(paths, arrays["labels"], **optional)
            record = cls(columns, tuple(classes.split("\0")), arrays["sizes"], arrays["times"])
            record._check()
            return record
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile,
                zlib.error) as error:  # fmt: skip
            raise UserError(
                f"{path}, the record of the run's data, cannot be read ({error}): put a good copy in its "
                "place, or delete it, and nothing is compared with it"
            ) from error

    def _check(self) -> None:
        self.columns.check()
        if not self.sizes.shape == self.times.shape == (len(self),):
            raise ValueError("its columns are of different lengths")
        labels = self.columns.every_label
        if {labels.dtype.kind, self.sizes.dtype.kind} - set("iu"):
            raise ValueError("its columns are of another kind")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError("its labels have no classes")


def _look(path: str, images: bool) -> tuple[int, int]:
    try:
        size, modified = file_status(path)
        return (_measure(path) if images else size), modified
    except (OSError, ValueError):  # ValueError: a zero byte, which no path has
        return GONE, 0


def _measure(folder: str) -> int:
    """A hash of the names of all images of a folder and of the bytes of a few, evenly spaced."""
    names = sorted(image_names(folder))
    digest = hashlib.blake2b("\n".join(names).encode("utf-8", "surrogateescape"), digest_size=8)
    for name in _spread(names, IMAGES_LOOKED_AT):
        digest.update(f" {os.stat(os.path.join(folder, name)).st_size}".encode())
    return int.from_bytes(digest.digest()) >> 2


def _spread(values: list[T], most: int) -> list[T]:
    """At most `most` evenly spaced `values`."""
    return values[:: max(1, -(-len(values) // most))]


# --- differences between two records of a split -------------------------------------------------------------

# (path, bytes, earlier time): whether the content is the same, if known
Same = Callable[[str, int, int], bool | None]
MOST_READ = 200  # files with another time whose content is compared
REMOVED, ADDED, REPLACED = "removed", "added", "replaced by another file"
RELABELED, CLASSES, REORDERED = "in another class", "different among the classes", "in another order"


@dataclass
class SplitChanges:
    """The differences of two records by kind, each with the names of files. `touched` files have another time; whether
    their content changed is unknown."""

    names: dict[str, list[str]] = field(
        default_factory=lambda: {kind: [] for kind in (REMOVED, ADDED, REPLACED, RELABELED, CLASSES, REORDERED)}
    )
    touched: list[str] = field(default_factory=list)

    @property
    def of_labels(self) -> bool:
        return bool(self.names[RELABELED] or self.names[CLASSES])

    @property
    def any(self) -> bool:
        """Whether there is a difference other than `touched` files."""
        return bool(self.kinds())

    def kinds(self) -> dict[str, list[str]]:
        """The kinds of differences that occur, with the names of files."""
        return {kind: names for kind, names in self.names.items() if names}


@dataclass(frozen=True, eq=False)
class _Matches:
    """Indices of equal records, `first` in one split and `second` in the other; whether each has moved; and the indices
    of the other records of each split."""

    first: np.ndarray
    second: np.ndarray
    moved: np.ndarray
    gone: np.ndarray
    new: np.ndarray


def split_changes(before: SplitRecord, now: SplitRecord, same: Same = lambda *file: None) -> SplitChanges:
    """The differences of `now` from this record. Of files that have moved, only the sizes are compared, as copies have
    other times. `same` is called for files with another time at the same path."""
    changes = SplitChanges()
    names = changes.names
    names[CLASSES] += [f"{name} is gone" for name in before.classes if name not in set(now.classes)]
    names[CLASSES] += [f"{name} is new" for name in now.classes if name not in set(before.classes)]
    if before.classes != now.classes and not names[CLASSES]:
        names[CLASSES].append("the same classes in another order")
    matches = _match(before, now)
    _compare_files(before, now, matches, same, changes)
    _compare_labels(before, now, matches, names[RELABELED])
    gone, new = _take_renamed(before, now, matches, names[RELABELED])
    names[REMOVED] += [_describe(before, place) for place in gone]
    names[ADDED] += [_describe(now, place) for place in new]
    if not changes.any and (np.diff(matches.first[np.argsort(matches.second)]) < 0).any():
        names[REORDERED].append(f"all {len(now)} videos are there")
    return changes


def _compare_files(before: SplitRecord, now: SplitRecord, matches: _Matches, same: Same, changes: SplitChanges) -> None:
    was, size = before.sizes[matches.first], now.sizes[matches.second]
    earlier, paths, names = before.times[matches.first], now.columns.paths, changes.names
    names[REMOVED] += [paths[place] for place in matches.second[(was >= 0) & (size == GONE)].tolist()]
    names[ADDED] += [paths[place] for place in matches.second[(was == GONE) & (size >= 0)].tolist()]
    both = (was >= 0) & (size >= 0)
    for pair in np.flatnonzero(both & (was != size)).tolist():
        names[REPLACED].append(f"{paths[matches.second[pair]]} ({was[pair]} -> {size[pair]} bytes)")
    touched = both & (was == size) & (earlier != now.times[matches.second]) & ~matches.moved
    for pair in _spread(np.flatnonzero(touched).tolist(), MOST_READ):
        path = paths[matches.second[pair]]
        is_same = same(path, int(size[pair]), int(earlier[pair]))
        if is_same is None:
            changes.touched.append(path)
        elif not is_same:
            names[REPLACED].append(f"{path} (of as many bytes)")


def _compare_labels(before: SplitRecord, now: SplitRecord, matches: _Matches, relabeled: list[str]) -> None:
    pairs: Sequence[int] = range(len(matches.first))
    single = before.columns.label_offsets is None and now.columns.label_offsets is None
    if single and before.classes == now.classes:  # vectorized, for splits of millions
        labels = before.columns.labels[matches.first], now.columns.labels[matches.second]
        pairs = np.flatnonzero(labels[0] != labels[1]).tolist()
    for pair in pairs:
        place = int(matches.second[pair])
        if change := _label_change(before, int(matches.first[pair]), now, place):
            relabeled.append(f"{now.columns.paths[place]} ({change})")


def _take_renamed(
    before: SplitRecord, now: SplitRecord, matches: _Matches, relabeled: list[str]
) -> tuple[list[int], list[int]]:
    """Finds files that changed their class or name, by their sizes; returns the remaining ones."""
    gone, new = matches.gone.tolist(), matches.new.tolist()
    was, size_of = (_sole_sizes(*left) for left in ((before, matches.gone), (now, matches.new)))
    for size, place in sorted(size_of.items(), key=lambda pair: pair[1]):
        if size in was and (change := _label_change(before, was[size], now, place)):
            paths = now.columns.paths[place], before.columns.paths[was[size]]
            relabeled.append(f"{paths[0]}, which was {paths[1]} ({change})")
            gone.remove(was[size])
            new.remove(place)
    return gone, new


def _sole_sizes(record: SplitRecord, places: np.ndarray) -> dict[int, int]:
    """The indices of files whose size is unique among `places`, by size."""
    sizes, first, counts = np.unique(record.sizes[places], return_index=True, return_counts=True)
    sole = (counts == 1) & (sizes > 0)
    return dict(zip(sizes[sole].tolist(), places[first[sole]].tolist(), strict=True))


def _label_change(before: SplitRecord, old: int, now: SplitRecord, new: int) -> str:
    labels = before.labels_of(old), now.labels_of(new)
    return "" if labels[0] == labels[1] else " -> ".join(map(";".join, labels))


def _describe(record: SplitRecord, place: int) -> str:
    start, end = record.columns.cut_of(place)
    path = record.columns.paths[place]
    if start is None and end is None:
        return path
    return f"{path} from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"


def _match(before: SplitRecord, now: SplitRecord) -> _Matches:
    """Matches equal records: by path, else by path below the folder that all have in common, else by file name and
    bytes. So files are found even if all or some have moved."""
    gone, new = np.arange(len(before)), np.arange(len(now))
    if _same_paths(before.columns, now.columns):
        elsewhere = before.columns.paths.prefix != now.columns.paths.prefix
        return _Matches(gone, new, np.full(len(now), elsewhere), gone[:0], new[:0])
    pairs = []
    for name_of in (_path, _path_below_prefix, _name_and_size):
        keys = _keys(before, gone, name_of), _keys(now, new, name_of)
        _, a, b = np.intersect1d(*keys, return_indices=True)
        pairs.append((gone[a], new[b], np.full(len(a), name_of is not _path)))
        gone, new = np.delete(gone, a), np.delete(new, b)
    first, second, moved = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    return _Matches(first, second, moved, gone, new)


def _same_paths(one: Columns, other: Columns) -> bool:
    """Whether paths below the common folder, starts and ends are the same in the same order: the usual case."""
    arrays = [(one.paths.blob, other.paths.blob), (one.paths.offsets, other.paths.offsets)]
    arrays += [(getattr(one, name), getattr(other, name)) for name in ("starts", "ends", "sources")]
    return all(
        (a is None) == (b is None) and (a is None or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
        for a, b in arrays
    )


def _path(record: SplitRecord, place: int) -> str:
    return record.columns.paths[place]


def _path_below_prefix(record: SplitRecord, place: int) -> str:
    return record.columns.paths[place][len(record.columns.paths.prefix) :]


def _name_and_size(record: SplitRecord, place: int) -> str:
    return f"{os.path.basename(record.columns.paths[place])} {record.sizes[place]}"


def _keys(record: SplitRecord, places: np.ndarray, name_of: Callable[[SplitRecord, int], str]) -> np.ndarray:
    """A hash for each record at `places`, of its name, start, end, source and number of earlier equal records.

    Equal numbers mean the same within this process only.
    """
    columns, nothing = record.columns, np.zeros(len(record))
    cuts = [
        (nothing if column is None else np.nan_to_num(column + 1))[places].tolist()
        for column in (columns.starts, columns.ends)
    ]
    sources = (nothing if columns.sources is None else columns.sources)[places].tolist()
    names = (name_of(record, place) for place in places.tolist())
    numbers = np.array([hash(row) for row in zip(names, *cuts, sources, strict=True)], dtype=np.int64)
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=numbers[order][:1] - 1))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return numbers ^ (ranks * np.int64(MIX))
