"""The views of one unit of work after another, appended so that a process killed at any instant loses none before."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vidtrain.errors import UserError
from vidtrain.evaluation.views import BatchViews
from vidtrain.files.atomic import flush_folder

MARK = b"VIEWS\0\0\1"
SMALL = 1 << 20
HEADER = struct.Struct("<8sqqI")  # mark, unit, bytes that follow, their CRC-32


@dataclass(frozen=True)
class Unit:
    """What was kept of one unit: as `BatchViews`, and `frames` int32 [b n t], the frame indices of each clip."""

    indices: np.ndarray
    labels: np.ndarray
    logits: np.ndarray
    frames: np.ndarray
    missing: list[tuple[str, str]]


@dataclass(frozen=True)
class Place:
    """Where in which file a unit lies."""

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
            if whole > 2 * self.size + SMALL:  # nothing in it is compressed
                raise ValueError(f"they would become {whole:,} bytes")
            missing = [(str(path), str(cause)) for path, cause in json.loads(arrays["missing"].tobytes())]
            return Unit(arrays["indices"], arrays["labels"], arrays["logits"], arrays["frames"], missing)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, MemoryError, RecursionError,
                zipfile.BadZipFile, zlib.error) as error:  # fmt: skip
            raise UserError(
                f"{self.path} holds something else than views ({error}); make the table again with overwrite=true"
            ) from error


class ShardWriter:
    """Appends units to a file of its own, each on the disk before `append` returns."""

    def __init__(self, path: Path):
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: BinaryIO = open(path, "ab")  # noqa: SIM115
            flush_folder(path.parent)
        except OSError as error:
            raise UserError(
                f"cannot write {path}: {error.strerror}; choose another folder with out="
            ) from error

    def append(self, unit: int, views: BatchViews, frames: np.ndarray) -> None:
        """Raises `UserError` where the disk is full, say; what was appended before stays."""
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
                f"cannot write {self._path}: {error.strerror}; what was judged before is kept, and the same command "
                "goes on from there"
            ) from error

    def close(self) -> None:
        self._file.close()


def find_units(folder: Path) -> dict[int, Place]:
    """The whole units in the files of a folder, by number; what a killed process left half-written at the end of one
    is cut off, so that more can be appended."""
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
