"""What a split held at some time: enough to tell later whether it still does, and to name what differs.

A record is a compressed .npz of columns, some bytes a video. Files are looked at (size, time of modification), not
read; of a split of millions, `MOST_LOOKED_AT` spread over it are.
"""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from vidtrain.data.decoding.metadata import image_names
from vidtrain.data.manifest.columns import Columns, Strings
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError
from vidtrain.files.atomic import flush_folder

MOST_LOOKED_AT = 200_000
LOOKING = 16  # threads: what takes time is waiting for storage
AT_A_TIME = 1_000
IMAGES_LOOKED_AT = 8  # of a folder
GONE, NOT_LOOKED_AT = -1, -2  # in place of a size
COLUMNS = ("blob", "offsets", "labels", "sizes", "times")
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
        paths = manifest.paths
        look = partial(_look_at, paths, manifest.frame_rate is not None)
        parts = [chosen[first : first + AT_A_TIME] for first in range(0, len(chosen), AT_A_TIME)]
        with ThreadPoolExecutor(LOOKING) as pool:
            for part, found in zip(parts, pool.map(look, parts), strict=True):
                sizes[part], times[part] = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return cls(manifest.columns, manifest.classes, sizes, times)

    @property
    def digest(self) -> str:
        """BLAKE2b (32 hex digits) of all of it but times, and but the folder that all files have in common."""
        columns = self.columns
        whole = hashlib.blake2b("\n".join(self.classes).encode("utf-8", "surrogateescape"), digest_size=16)
        arrays = [columns.paths.blob, np.asarray(columns.paths.offsets, np.int64), columns.labels, self.sizes]
        arrays += [columns.all_labels, columns.starts, columns.ends, columns.sources]
        for each in arrays:
            whole.update(b"|" if each is None else np.ascontiguousarray(each).data)
        return whole.hexdigest()

    def labels_of(self, place: int) -> tuple[str, ...]:
        """The names of the classes of a record."""
        columns = self.columns
        if columns.label_offsets is None:
            return (self.classes[columns.labels[place]],)
        first, last = columns.label_offsets[place : place + 2].tolist()
        return tuple(self.classes[label] for label in columns.all_labels[first:last])

    def cut_of(self, place: int) -> tuple[float | None, float | None, int]:
        """Start and end in seconds, None where the file is not cut, and the number of the source."""
        columns = self.columns
        start, end = (
            None if each is None or np.isnan(each[place]) else float(each[place])
            for each in (columns.starts, columns.ends)
        )
        return start, end, 0 if columns.sources is None else int(columns.sources[place])

    # --- files --------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes it whole or not at all. Raises `UserError` where it cannot be written."""
        columns = self.columns
        held = {"blob": columns.paths.blob, "offsets": columns.paths.offsets, "labels": columns.labels}
        held |= {"sizes": self.sizes, "times": self.times}
        held |= {name: getattr(columns, name) for name in OPTIONAL if getattr(columns, name) is not None}
        for name, texts in (("prefix", [columns.paths.prefix]), ("classes", self.classes)):
            held[name] = np.frombuffer("\0".join(texts).encode("utf-8", "surrogateescape"), np.uint8)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
                for name, array in held.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                        np.lib.format.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
            temporary.replace(path)
            flush_folder(path.parent)
        except OSError as error:
            raise UserError(f"cannot write {path} ({error.strerror}): free some space.") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def open(cls, path: Path) -> "SplitRecord":
        """One that was saved. Raises `UserError` where it is damaged, or something else."""
        try:
            with np.load(path, allow_pickle=False) as held:
                whole = sum(each.file_size for each in held.zip.infolist())
                if whole > MOST_GROWTH * path.stat().st_size + SMALL:
                    raise ValueError(f"it would become {whole:,} bytes")
                found = {name: held[name] for name in held.files}
            texts = {
                name: str(bytes(found[name]), "utf-8", "surrogateescape") for name in ("prefix", "classes")
            }
            paths = Strings(found["blob"], found["offsets"], texts["prefix"])
            more = {name: found[name] for name in OPTIONAL if name in found}
            classes = tuple(texts["classes"].split("\0"))
            record = cls(Columns(paths, found["labels"], **more), classes, found["sizes"], found["times"])
            record._check()
            return record
        except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile,
                zlib.error) as error:  # fmt: skip
            raise UserError(
                f"{path}, which says what the data of the run were, cannot be read ({error}): put a good copy in its "
                "place, or delete it, and nothing is held against it"
            ) from error

    def _check(self) -> None:
        columns, count = self.columns, len(self.columns.labels)
        offsets = np.asarray(columns.paths.offsets, dtype=np.int64)
        if any(
            each.dtype.kind not in "iu" or each.ndim != 1 for each in (offsets, columns.labels, self.sizes)
        ):
            raise ValueError("its columns are of another kind")
        if not len(self.sizes) == len(self.times) == count == len(offsets) - 1:
            raise ValueError("its columns are of different lengths")
        if (np.diff(offsets) < 0).any() or offsets[0] != 0 or offsets[-1] != columns.paths.blob.nbytes:
            raise ValueError("its paths are not whole")
        labels = columns.labels if columns.all_labels is None else columns.all_labels
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
            raise ValueError("its labels have no classes")


def _look_at(paths: Strings, images: bool, places: np.ndarray) -> list[tuple[int, int]]:
    return [_look(paths[place], images) for place in places.tolist()]


def _look(path: str, images: bool) -> tuple[int, int]:
    try:
        status = os.stat(path)
        return (_measure(path) if images else status.st_size), status.st_mtime_ns
    except (OSError, ValueError):  # ValueError: a zero byte, which no path has
        return GONE, 0


def _measure(folder: str) -> int:
    """A number from the names of all images of a folder and the bytes of a few, spread over it."""
    names = sorted(image_names(folder))
    whole = hashlib.blake2b("\n".join(names).encode("utf-8", "surrogateescape"), digest_size=8)
    for name in names[:: max(1, -(-len(names) // IMAGES_LOOKED_AT))]:
        whole.update(f" {os.stat(os.path.join(folder, name)).st_size}".encode())
    return int.from_bytes(whole.digest()) >> 2


def spread(places: Sequence[int], most: int) -> list[int]:
    """At most `most` of `places`, evenly."""
    return list(places)[:: max(1, -(-len(places) // most))]
