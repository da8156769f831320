"""Stores the view table of one evaluation in a folder of plain files.

    views.json   what the axes are, names of orders, clips, crops and classes, coverage, missing videos, identity
    logits.npy   float32 [videos, orders, clips, crops, classes]
    labels.npy   class numbers int64 [videos], or float32 [videos, classes] of 0 and 1
    frames.npy   int32 [videos, clips, frames]: the frame indices that each clip shows, in forward order
    videos.csv   a row per video: its index in the split, path, label, group where videos have one, first and last
                 frame of each clip

`identity.json` is written first and says from what the table is computed. During the evaluation, every rank appends
finished units of work to a file below units/, so a killed process loses at most one unit. At the end the units are
merged in the order of the split and removed.
"""

import io
import json
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.views import BatchViews, ViewTable
from vidtrain.files.atomic import flush_folder, read_json, write_json_atomic
from vidtrain.files.escaping import csv_text, first_lines, read_records

FORMAT = "vidtrain-views/1"
FOLDER = "views"
IDENTITY, VIEWS, UNITS = "identity.json", "views.json", "units"
LOGITS, LABELS, FRAMES, VIDEOS = "logits.npy", "labels.npy", "frames.npy", "videos.csv"
MARK = b"VIEWS\0\0\1"
SMALL = 1 << 20
HEADER = struct.Struct("<8sqqI")  # mark, number of the unit, number of bytes that follow, their CRC-32
MOST_SHOWN = 8  # differences that a message lists
AGAIN = "make the table again with overwrite=true"
AXES = {LOGITS: ["video", "order", "clip", "crop", "class"], FRAMES: ["video", "clip", "frame"]}
READ_WITH = (
    "np.load('logits.npy', mmap_mode='r')[i, j] are the logits [clips, crops, classes] of row i of videos.csv, shown "
    "in order j of orders"
)


@dataclass(frozen=True)
class StoredViews:
    """A complete table. `about` is views.json; `logits` [v o n s k] stay in the file until they are used."""

    folder: Path
    about: Mapping[str, Any]
    logits: np.ndarray
    labels: Tensor
    indices: Tensor
    paths: Mapping[int, str]  # by index
    groups: Mapping[int, str] | None = None  # by index; None without groups

    @property
    def missing(self) -> list[tuple[str, str]]:
        return [(video["path"], video["cause"]) for video in self.about["missing"]]

    def table(self, order: str, clips: Sequence[int], crops: Sequence[int]) -> ViewTable:
        """The views of `clips` and `crops`, numbered from 0, in one order of frames."""
        views = np.array(self.logits[:, self.about["orders"].index(order)])[:, list(clips)][:, :, list(crops)]
        logits = torch.from_numpy(views).flatten(1, 2)
        return ViewTable(self.indices, self.labels, logits, self.missing, self.about["total"])


# --- units of work ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unit:
    """The stored views of one batch: as `BatchViews`, and `frames` int32 [b n t], the frame indices of each clip."""

    indices: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    frames: np.ndarray
    missing: list[tuple[str, str]]


@dataclass(frozen=True)
class Place:
    """The file and byte range of a unit."""

    path: Path
    start: int
    size: int

    def read(self) -> Unit:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            data = io.BytesIO(file.read(self.size))
        try:
            arrays = np.load(data, allow_pickle=False)
            whole = sum(member.file_size for member in arrays.zip.infolist())
            if whole > 2 * self.size + SMALL:  # units are not compressed, so this is a zip bomb
                raise ValueError(f"they would expand to {whole:,} bytes")
            missing = [(str(path), str(cause)) for path, cause in json.loads(arrays["missing"].tobytes())]
            return Unit(arrays["indices"], arrays["labels"], arrays["logits"], arrays["frames"], missing)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, MemoryError, RecursionError,
                zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
            raise UserError(f"{self.path} does not hold views ({error}); {AGAIN}") from error


class ShardWriter:
    """Appends units to a file; a unit is on the disk when `append` returns."""

    def __init__(self, path: Path):
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "ab")  # noqa: SIM115
            flush_folder(path.parent)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another folder with out=") from error

    def append(self, unit: int, views: BatchViews, frames: np.ndarray) -> None:
        """Appends one unit. Raises `UserError` if writing fails, for example on a full disk; earlier units stay."""
        payload = io.BytesIO()
        np.savez(
            payload,
            indices=views.indices.numpy(),
            labels=views.labels.numpy(),
            logits=views.logits.numpy(),
            frames=frames.astype(np.int32),
            missing=np.frombuffer(json.dumps(views.missing).encode(), dtype=np.uint8),
        )
        data = payload.getvalue()
        try:
            self._file.write(HEADER.pack(MARK, unit, len(data), zlib.crc32(data)) + data)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {error.strerror}; finished views are kept, and the same command continues"
            ) from error

    def close(self) -> None:
        self._file.close()


def find_units(folder: Path) -> dict[int, Place]:
    """The complete units in the files of a folder, by number. If a killed process left an incomplete unit at the end of
    a file, the file is truncated there, so that more units can be appended."""
    units: dict[int, Place] = {}
    for path in sorted(folder.glob("rank*.bin")):
        whole = 0
        for unit, place in _units_in(path):
            units.setdefault(unit, place)
            whole = place.start + place.size
        if whole < path.stat().st_size:
            os.truncate(path, whole)
    return dict(sorted(units.items()))


def _units_in(path: Path) -> Iterator[tuple[int, Place]]:
    with open(path, "rb") as file:
        while len(header := file.read(HEADER.size)) == HEADER.size:
            mark, unit, size, checksum = HEADER.unpack(header)
            if mark != MARK or size < 0:
                return
            start = file.tell()
            data = file.read(size)
            if len(data) < size or zlib.crc32(data) != checksum:
                return
            yield unit, Place(path, start, size)


# --- the folder ---------------------------------------------------------------------------------------------


def begin(
    folder: Path,
    identity: Mapping[str, Any],
    cpu_threads: int | None,
    default_threads: int,
    overwrite: bool,
    renamed: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> int:
    """Starts a table in `folder`, or continues the one there; returns the number of threads that must compute it.

    That is `cpu_threads` if given, else the number with which the table was started, else `default_threads`: with
    another number of threads, sums differ in the last bit. `renamed` replaces old names in a stored identity. Raises
    `UserError` naming the differences if the folder holds another table, unless `overwrite` is set.
    """
    path = folder / IDENTITY
    if overwrite:
        for name in (VIEWS, IDENTITY, LOGITS, LABELS, FRAMES, VIDEOS):
            (folder / name).unlink(missing_ok=True)
        clean(folder)
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        threads = cpu_threads or default_threads
        write_json_atomic(path, {"format": FORMAT, "identity": dict(identity), "cpu_threads": threads})
        return threads
    stored = read_json(path, AGAIN)
    before, now = renamed(stored["identity"]), json.loads(json.dumps(identity))
    if cpu_threads is not None:
        before, now = before | {"cpu_threads": stored["cpu_threads"]}, now | {"cpu_threads": cpu_threads}
    changed = [
        f"{key}: {_short(before, key)} -> {_short(now, key)}"
        for key in sorted(before.keys() | now.keys())
        if key not in before or key not in now or before[key] != now[key]
    ]
    if changed:
        raise UserError(
            f"{folder} holds the views of another evaluation:\n  "
            + "\n  ".join(first_lines(changed, MOST_SHOWN))
            + "\nChoose another folder with out=, or replace those views with overwrite=true"
        )
    return stored["cpu_threads"]


def is_complete(folder: Path) -> bool:
    return (folder / VIEWS).is_file()


def units_done(folder: Path) -> dict[int, Place]:
    return find_units(folder / UNITS)


def merge(
    folder: Path,
    about: Mapping[str, Any],
    paths: Sequence[str],
    spell: Callable[[np.ndarray], str],
    logits_shape: tuple[int, int, int, int],
    groups: Sequence[str] | None = None,
) -> None:
    """Merges the units in the order of the split, and writes views.json last, which makes the table complete.
    `logits_shape` is [orders, clips, crops, classes]; `spell` turns a label into text; `groups` has one for each video
    of the split. The files do not depend, to the byte, on which process computed which unit."""
    places = units_done(folder).values()
    missing: list[tuple[str, str]] = []
    videos, labels, frames = 0, np.zeros(0, np.int64), np.zeros((0, 0, 0), np.int32)
    for place in places:
        unit = place.read()
        missing += unit.missing
        videos += len(unit.indices)
        if len(unit.indices):
            labels, frames = unit.labels, unit.frames
    arrays = {
        LOGITS: _new_array(folder / LOGITS, np.dtype(np.float32), (videos, *logits_shape)),
        FRAMES: _new_array(folder / FRAMES, np.dtype(np.int32), (videos, *frames.shape[1:])),
        LABELS: _new_array(folder / LABELS, labels.dtype, (videos, *labels.shape[1:])),
    }
    table = _unfinished(folder / VIDEOS)
    with open(table, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        spans = [f"clip{clip + 1}_{end}" for clip in range(frames.shape[1]) for end in ("first", "last")]
        group_column = [] if groups is None else ["group"]
        file.write(csv_text([["index", "path", "label", *group_column, *spans]], end="\r\n"))
        first = 0
        for place in places:
            unit = place.read()
            rows = slice(first, first := first + len(unit.indices))
            if len(unit.indices):
                for name, values in ((LOGITS, unit.logits), (FRAMES, unit.frames), (LABELS, unit.labels)):
                    arrays[name][rows] = values
            file.write(csv_text(_video_rows(unit, paths, spell, groups), end="\r\n"))
    for array in arrays.values():
        if isinstance(array, np.memmap):
            array.flush()
    for name in (*arrays, VIDEOS):
        with open(_unfinished(folder / name), "rb") as written:
            os.fsync(written.fileno())
        os.replace(_unfinished(folder / name), folder / name)
    whole = {
        "format": FORMAT,
        "videos": videos,
        "coverage": f"{videos}/{about['total']}",
        **about,
        "missing": [{"path": path, "cause": cause} for path, cause in missing],
        "axes": AXES,
        "how_to_read": READ_WITH,
        "identity": read_json(folder / IDENTITY, AGAIN, ["identity"])["identity"],
    }
    write_json_atomic(folder / VIEWS, whole)


def _new_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array of zeros in a file beside `path`; it is memory-mapped unless it is empty, as numpy cannot map that."""
    if shape[0]:
        return np.lib.format.open_memmap(_unfinished(path), "w+", dtype, shape)
    with open(_unfinished(path), "wb") as file:
        np.save(file, np.zeros(shape, dtype))
    return np.zeros(shape, dtype)


def _video_rows(
    unit: Unit, paths: Sequence[str], spell: Callable[[np.ndarray], str], groups: Sequence[str] | None
) -> Iterator[list[object]]:
    for index, label, frames in zip(unit.indices.tolist(), unit.labels, unit.frames, strict=True):
        ends = [int(end) for clip in frames for end in (clip.min(), clip.max())]
        yield [index, paths[index], spell(label), *([] if groups is None else [groups[index]]), *ends]


def clean(folder: Path) -> None:
    """Removes the units of a complete table, and temporary files of a killed process."""
    shutil.rmtree(folder / UNITS, ignore_errors=True)
    for stray in folder.glob(".*.tmp"):
        stray.unlink(missing_ok=True)


def open_views(named: Path) -> StoredViews:
    """Opens the complete table in a folder, or in its subfolder views/. Raises `UserError` if there is none, if it is
    not complete yet, or if its files are damaged."""
    folder = named if (named / IDENTITY).is_file() else named / FOLDER
    if not (folder / IDENTITY).is_file():
        raise UserError(f"{named} holds no view table; vidtrain.evaluate makes one in its out folder, below {FOLDER}/")
    if not is_complete(folder):
        raise UserError(f"the view table in {folder} is not complete: repeat the command that began it, to continue")
    about = read_json(folder / VIEWS, AGAIN)
    if about.get("sampling") == "reference":  # the old name
        about["sampling"] = "vjepa2"
    if about["format"] != FORMAT:
        raise UserError(f"{folder} is of format {about['format']}, and this version of vidtrain reads {FORMAT}")
    try:
        logits = np.load(folder / LOGITS, mmap_mode="r" if about["videos"] else None, allow_pickle=False)
        labels = torch.from_numpy(np.load(folder / LABELS, allow_pickle=False))
    except (OSError, ValueError, TypeError, EOFError, MemoryError) as error:
        raise UserError(f"the view table in {folder} is damaged: {error}; {AGAIN}") from error
    rows = read_records(folder / VIDEOS, AGAIN)
    if not len(logits) == len(labels) == len(rows) == about["videos"]:
        raise UserError(f"the files in {folder} do not belong to one table; {AGAIN}")
    paths = {int(row["index"]): row["path"] for row in rows}
    groups = {int(row["index"]): row["group"] for row in rows if "group" in row}
    indices = torch.tensor(list(paths), dtype=torch.int64)
    return StoredViews(folder, about, logits, labels, indices, paths, groups or None)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _short(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."
