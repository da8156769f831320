"""What a split held at some time: enough to tell later whether it still does, and to name what differs.

A record is a compressed .npz of columns, some bytes a video. Files are looked at (size, time of modification), not
read; of a split of millions, `MOST_LOOKED_AT` spread over it are.
"""

import hashlib
import os
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from vidtrain.data.decoding.metadata import image_names
from vidtrain.data.manifest.columns import Columns, Strings
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.stores.files import ask_statuses, file_status
from vidtrain.errors import UserError
from vidtrain.files.atomic import replacing_path

T = TypeVar("T")
MOST_LOOKED_AT = 200_000
LOOKING = 16  # threads: what takes time is waiting for storage
AT_A_TIME = 1_000
IMAGES_LOOKED_AT = 8  # of a folder
GONE, NOT_LOOKED_AT = -1, -2  # in place of a size
OPTIONAL = ("label_offsets", "all_labels", "starts", "ends", "sources")
# How many times its bytes a record may become in memory, beside what is small anyway
MOST_GROWTH, SMALL = 50, 1 << 28


@dataclass(frozen=True, eq=False)
class SplitRecord:
    """The records of a split in order, as `columns`; and of each file its bytes and time of modification (ns), int64
    [n]. `GONE` and `NOT_LOOKED_AT` stand in place of sizes. Of a folder of images, a number made of the names of its
    images and the bytes of some stands for its bytes."""

    columns: Columns
    classes: tuple[str, ...]
    sizes: np.ndarray
    times: np.ndarray

    def __len__(self) -> int:
        return len(self.columns)

    @classmethod
    def of(cls, manifest: Manifest, most: int = MOST_LOOKED_AT) -> "SplitRecord":
        """Looks at the files of `manifest`, `most` of them spread evenly where there are more."""
        chosen = np.arange(0, len(manifest), max(1, -(-len(manifest) // most)))
        sizes = np.full(len(manifest), NOT_LOOKED_AT, dtype=np.int64)
        times = np.zeros(len(manifest), dtype=np.int64)

        def look(places: np.ndarray) -> list[tuple[int, int]]:
            images = manifest.frame_rate is not None
            ask_statuses(manifest.paths[place] for place in places.tolist())
            return [_look(manifest.paths[place], images) for place in places.tolist()]

        parts = [chosen[first : first + AT_A_TIME] for first in range(0, len(chosen), AT_A_TIME)]
        with ThreadPoolExecutor(LOOKING) as pool:
            for part, looks in zip(parts, pool.map(look, parts), strict=True):
                sizes[part], times[part] = np.array(looks, dtype=np.int64).reshape(-1, 2).T
        return cls(manifest.columns, manifest.classes, sizes, times)

    @property
    def digest(self) -> str:
        """BLAKE2b (32 hex digits) of all of it but times, and but the folder that all files have in common."""
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
        """Writes it whole or not at all. Raises `UserError` where it cannot be written."""
        columns = self.columns
        arrays = {"blob": columns.paths.blob, "offsets": columns.paths.offsets, "labels": columns.labels}
        arrays |= {"sizes": self.sizes, "times": self.times}
        arrays |= {name: column for name in OPTIONAL if (column := getattr(columns, name)) is not None}
        for name, texts in (("prefix", [columns.paths.prefix]), ("classes", self.classes)):
            arrays[name] = np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with (
                replacing_path(path) as temporary,
                zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            ):
                for name, array in arrays.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): free some space.") from error

    @classmethod
    def open(cls, path: Path) -> "SplitRecord":
        """One that was saved. Raises `UserError` where it is damaged, or something else."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                whole = sum(member.file_size for member in archive.zip.infolist())
                if whole > MOST_GROWTH * path.stat().st_size + SMALL:
                    raise ValueError(f"it would become {whole:,} bytes")
                arrays = {name: archive[name] for name in archive.files}
            prefix, classes = (
                str(bytes(arrays[name]), "utf-8", "surrogateescape") for name in ("prefix", "classes")
            )
            paths = Strings(arrays["blob"], arrays["offsets"], prefix)
            columns = Columns(
                paths, arrays["labels"], **{name: arrays[name] for name in OPTIONAL if name in arrays}
            )
            record = cls(columns, tuple(classes.split("\0")), arrays["sizes"], arrays["times"])
            record._check()
            return record
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile,
                zlib.error) as error:  # fmt: skip
            raise UserError(
                f"{path}, which says what the data of the run were, cannot be read ({error}): put a good copy in its "
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
    """A number from the names of all images of a folder and the bytes of a few, spread over it."""
    names = sorted(image_names(folder))
    digest = hashlib.blake2b("\n".join(names).encode("utf-8", "surrogateescape"), digest_size=8)
    for name in _spread(names, IMAGES_LOOKED_AT):
        digest.update(f" {os.stat(os.path.join(folder, name)).st_size}".encode())
    return int.from_bytes(digest.digest()) >> 2


def _spread(values: list[T], most: int) -> list[T]:
    """At most `most` of `values`, evenly."""
    return values[:: max(1, -(-len(values) // most))]


# --- what differs between two records of a split ----------------------------------------------------------

# (path, bytes, earlier time): whether the content is the same, if known
Same = Callable[[str, int, int], bool | None]
MOST_READ = 200  # files with another time whose content is looked at
MOST_ROOTS = 16  # that the files of a split may have moved from
MIX = 0x5BD1E995  # an odd number, that keeps what is combined apart
SAMPLED = 200  # files by which it is found where others have moved to
REMOVED, ADDED, REPLACED = "removed", "added", "replaced by another file"
RELABELED, CLASSES, REORDERED = "in another class", "different among the classes", "in another order"


@dataclass
class SplitChanges:
    """What differs, by kind, each named. `touched` files have another time and perhaps the same content: whether they
    have is not known any more."""

    names: dict[str, list[str]] = field(
        default_factory=lambda: {
            kind: [] for kind in (REMOVED, ADDED, REPLACED, RELABELED, CLASSES, REORDERED)
        }
    )
    touched: list[str] = field(default_factory=list)

    @property
    def of_labels(self) -> bool:
        return bool(self.names[RELABELED] or self.names[CLASSES])

    @property
    def any(self) -> bool:
        """Whether something is not what it was; `touched` files are not known to be."""
        return bool(self.kinds())

    def kinds(self) -> dict[str, list[str]]:
        """What there is, by a word for the kind."""
        return {kind: names for kind, names in self.names.items() if names}


@dataclass(frozen=True, eq=False)
class _Matches:
    """Places of records that are the same by path and cut, `first` in one split and `second` in the other; whether
    each lies elsewhere now; and the places that are left in each split."""

    first: np.ndarray
    second: np.ndarray
    moved: np.ndarray
    gone: np.ndarray
    new: np.ndarray


def _unknown(path: str, size: int, modified: int) -> None:
    """No content is known."""


def split_changes(before: SplitRecord, now: SplitRecord, same: Same = _unknown) -> SplitChanges:
    """What differs in `now`. The files may all lie elsewhere: then only their bytes are compared with each other, as
    copies have times of their own. `same` is asked about files that have another time in the same place."""
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


def _compare_files(
    before: SplitRecord, now: SplitRecord, matches: _Matches, same: Same, changes: SplitChanges
) -> None:
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
    if single and before.classes == now.classes:  # fast, where there are millions
        labels = before.columns.labels[matches.first], now.columns.labels[matches.second]
        pairs = np.flatnonzero(labels[0] != labels[1]).tolist()
    for pair in pairs:
        place = int(matches.second[pair])
        labels = before.labels_of(int(matches.first[pair])), now.labels_of(place)
        if labels[0] != labels[1]:
            relabeled.append(f"{now.columns.paths[place]} ({' -> '.join(map(';'.join, labels))})")


def _take_renamed(
    before: SplitRecord, now: SplitRecord, matches: _Matches, relabeled: list[str]
) -> tuple[list[int], list[int]]:
    """Names what nothing but its bytes tells to be the same file, in another class and by another name; returns the
    places that are still left in each split."""
    gone, new = matches.gone.tolist(), matches.new.tolist()
    counts = [Counter(sizes.tolist()) for sizes in (before.sizes[matches.gone], now.sizes[matches.new])]
    alone = {size for size, count in counts[0].items() if count == 1 and size > 0 and counts[1][size] == 1}
    was = {int(before.sizes[place]): place for place in gone if int(before.sizes[place]) in alone}
    for place in [place for place in new if int(now.sizes[place]) in was]:
        old = was[int(now.sizes[place])]
        labels = before.labels_of(old), now.labels_of(place)
        if labels[0] != labels[1]:
            change = " -> ".join(map(";".join, labels))
            relabeled.append(f"{now.columns.paths[place]}, which was {before.columns.paths[old]} ({change})")
            gone.remove(old)
            new.remove(place)
    return gone, new


def _describe(record: SplitRecord, place: int) -> str:
    start, end = record.columns.cut_of(place)
    path = record.columns.paths[place]
    if start is None and end is None:
        return path
    return f"{path} from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"


def _match(before: SplitRecord, now: SplitRecord) -> _Matches:
    """Records that are the same; those of one name are taken in order."""
    gone, new = np.arange(len(before)), np.arange(len(now))
    if _same_paths(before.columns, now.columns):
        moved = before.columns.paths.prefix != now.columns.paths.prefix
        return _Matches(gone, new, np.full(len(now), moved), gone[:0], new[:0])
    pairs: list[tuple[np.ndarray, np.ndarray, bool]] = []
    root: tuple[str, str] | None = ("", "")
    while root is not None and len(pairs) <= MOST_ROOTS:
        moved = root != ("", "")
        of_new, candidates = _keys(now, new, root)
        _, a, b = np.intersect1d(_keys(before, gone, ("", ""))[0], of_new, return_indices=True)
        first, second = gone[a], new[candidates[b]]
        if moved:
            first, second = _likely(before, now, first, second, root[1])
        pairs.append((first, second, moved))
        gone, new = np.setdiff1d(gone, first), np.setdiff1d(new, second)
        root = _root_of_moved(before, now, gone, new) if len(first) or not moved else None
    elsewhere = [np.full(len(first), moved) for first, _, moved in pairs]
    first, second = (np.concatenate([pair[side] for pair in pairs]) for side in (0, 1))
    return _Matches(first, second, np.concatenate(elsewhere), gone, new)


def _same_paths(one: Columns, other: Columns) -> bool:
    """Whether the paths below the common folder, and cuts, are the same in the same order: the ordinary case."""
    arrays = [(one.paths.blob, other.paths.blob), (one.paths.offsets, other.paths.offsets)]
    arrays += [(getattr(one, name), getattr(other, name)) for name in ("starts", "ends", "sources")]
    return all(
        (a is None) == (b is None) and (a is None or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
        for a, b in arrays
    )


def _keys(record: SplitRecord, places: np.ndarray, root: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """A number for each record at `places` whose path begins with root[1], which is taken for root[0]; and which of
    `places` those are. Records of the same path and cut get different numbers, by their order. The numbers mean
    something within this process only."""
    paths, (was, there) = record.columns.paths, root
    whole = len(places) == len(record)  # going through all of them is faster
    numbered = enumerate(paths if whole else (paths[place] for place in places.tolist()))
    keys = [(which, hash(was + path[len(there) :])) for which, path in numbered if path.startswith(there)]
    chosen, numbers = np.array(keys, dtype=np.int64).reshape(-1, 2).T
    for factor, name in ((3, "starts"), (5, "ends"), (7, "sources")):
        column = getattr(record.columns, name)
        if column is None:
            continue
        values = column[places[chosen]]
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), 0.0, values + 1.0).view(np.int64)
        numbers = numbers ^ (values.astype(np.int64) * np.int64(factor * MIX))
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=numbers[order][:1] - 1))
    ranks = np.empty(len(order), dtype=np.int64)
    ranks[order] = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
    return numbers ^ (ranks * np.int64(MIX)), chosen


def _root_of_moved(
    before: SplitRecord, now: SplitRecord, gone: np.ndarray, new: np.ndarray
) -> tuple[str, str] | None:
    """From where to where most of the files that are left have moved, going by the names that paths end with."""
    sample = [now.columns.paths[place] for place in _spread(new.tolist(), SAMPLED)]
    by_name: dict[str, list[str]] = {os.path.basename(path): [] for path in sample}
    for path in (before.columns.paths[place] for place in gone.tolist()):
        name = os.path.basename(path)
        if name in by_name and len(by_name[name]) < MOST_ROOTS:
            by_name[name].append(path)
    votes: Counter[tuple[str, str]] = Counter()
    for path in sample:
        roots = [_apart(other, path) for other in by_name[os.path.basename(path)]]
        if roots:
            votes[min(roots, key=lambda pair: len(pair[1]))] += 1  # most of the path is shared with it
    return votes.most_common(1)[0][0] if votes else None


def _apart(one: str, other: str) -> tuple[str, str]:
    """What is left of two paths without the names that both end with."""
    shared = 0
    for a, b in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if a != b:
            break
        shared += len(a) + 1
    return one[: max(0, len(one) - shared + 1)], other[: max(0, len(other) - shared + 1)]


def _likely(
    before: SplitRecord, now: SplitRecord, first: np.ndarray, second: np.ndarray, root: str
) -> tuple[np.ndarray, np.ndarray]:
    """Without files that share nothing but their own name below `root`, and have other bytes."""
    inside = ["/" in now.columns.paths[place][len(root) :] for place in second.tolist()]
    kept = np.array(inside, dtype=bool) | (before.sizes[first] == now.sizes[second])
    return first[kept], second[kept]
