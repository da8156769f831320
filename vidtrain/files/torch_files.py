"""PyTorch files: written with a checksum of every byte, read without running code that they may hold.

The checksum (BLAKE2b, 256 bits) is the comment of the zip archive that `torch.save` writes, so it cannot be parted from
the file, and every other reader of such files reads it as before. `unzip -z FILE` shows it.
"""

import argparse
import hashlib
import math
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from vidtrain.errors import UserError


class _Dtype:
    """Stands for a dtype of NumPy while a file is read: of numbers, text and bytes, and never of objects or fields.

    NumPy itself takes from a file that an array of bytes is one of objects, and would follow them as addresses.
    """

    CODES = re.compile(r"[?biufc]\d{0,2}|[SU]\d{1,6}")

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        if not isinstance(code, str) or not self.CODES.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}")
        self._code, self._order = code, "="

    def __setstate__(self, state: tuple) -> None:
        order, *more = state[1:5]
        if order not in ("<", ">", "|", "=") or any(each is not None for each in more):
            raise pickle.UnpicklingError(f"an array of a dtype with fields, {self._code!r}")
        self._order = order

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._order + self._code)


class _Array(np.ndarray):
    """An array of numbers, text or bytes, made of as many bytes as it takes."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        whole = isinstance(kind, _Dtype) and isinstance(data, bytes) and min(shape, default=0) >= 0
        if not whole or math.prod(shape) * kind.dtype.itemsize != len(data):
            raise pickle.UnpicklingError("an array whose bytes are not those of its shape and dtype")
        super().__setstate__((1, shape, kind.dtype, bool(fortran), data))


class _Kind:
    """Stands for the class of arrays where a file names it."""


def _scalar(kind: _Dtype, data: bytes) -> Any:
    if not isinstance(kind, _Dtype) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a number whose bytes are not those of its dtype")
    return np.frombuffer(data, kind.dtype)[0]


def _reconstruct(kind: type, shape: Any, code: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), np.int8)


# What published checkpoints hold beside tensors. Each is plain data: making one runs nothing. The functions that make
# numbers and arrays of NumPy again have had two homes, and ours stand in their place.
PLAIN = [
    argparse.Namespace,
    pathlib.PosixPath,
    _Array,
    _Dtype,
    (_Dtype, "numpy.dtype"),
    (_Kind, "numpy.ndarray"),
    *((_scalar, f"numpy.{home}.multiarray.scalar") for home in ("core", "_core")),
    *((_reconstruct, f"numpy.{home}.multiarray._reconstruct") for home in ("core", "_core")),
]

CHECKSUM = "checksum"  # in the payload: that the file must end with one
MARK = b"vidtrain blake2b "
DIGEST_BYTES = 64  # as text; it covers everything before it
END_BYTES = (
    22  # the record that ends an archive without a comment; its last two bytes are the comment's length
)
CHUNK = 1 << 20
# How many times its bytes a file may become in memory, beside what is small anyway
MOST_GROWTH, SMALL = 10, 1 << 28
MOST_CONTAINERS, DEEPEST = 2_000_000, 200


def write_torch_file(payload: Mapping[str, Any], file: BinaryIO) -> None:
    """`torch.save` with a checksum at the end. Raises OSError where the file cannot be written."""
    sealed = _Sealed(file)
    try:
        torch.save({**payload, CHECKSUM: "blake2b"}, sealed)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch's writer ends with an error of its own
            raise error.__context__ from error
        raise
    sealed.finish()


class _Sealed:
    """A file that adds up what is written to it, and keeps the archive's last record back until it is complete."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._sum = hashlib.blake2b(digest_size=DIGEST_BYTES // 2)
        self._end = b""

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        if len(view) < END_BYTES:
            view = memoryview(self._end + bytes(view))
        else:
            self._put(self._end)
        self._end = bytes(view[-END_BYTES:])
        self._put(view[:-END_BYTES])
        return len(data)

    def flush(self) -> None:
        pass

    def finish(self) -> None:
        length = len(MARK) + DIGEST_BYTES
        self._put(self._end[:-2] + length.to_bytes(2, "little") + MARK)
        self._file.write(self._sum.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self._sum.update(data)
        self._file.write(data)


def verify(path: Path) -> bool:
    """Whether the file's checksum is right; False where it has none, as files of others and of before.

    Raises `UserError` naming the file when it cannot be read, or is not what was written.
    """
    try:
        with open(path, "rb") as file:
            return _verify(file, path)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error


def _verify(file: BinaryIO, path: Path) -> bool:
    left = file.seek(0, 2) - DIGEST_BYTES
    file.seek(max(0, left - len(MARK)))
    end = file.read()
    if left < len(MARK) or not end.startswith(MARK):
        return False
    found = hashlib.blake2b(digest_size=DIGEST_BYTES // 2)
    file.seek(0)
    while left:
        chunk = file.read(min(CHUNK, left))
        if not chunk:
            raise UserError(f"checkpoint {path} was cut while it was read")
        found.update(chunk)
        left -= len(chunk)
    if found.hexdigest().encode() != end[len(MARK) :]:
        raise UserError(
            f"checkpoint {path} is damaged: its content is not what its checksum says; copy it again"
        )
    return True


def read_torch_file(path: Path, lazy: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU; if `lazy`, tensors stay in the file until they are used.

    Raises `UserError` naming the file when it is absent, truncated, damaged, or holds objects whose unpickling
    could run code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file")
    try:
        with open(path, "rb") as file:
            verified = _verify(file, path)
            payload = _load(file, path, lazy)  # of what was verified, whatever takes its name meanwhile
            _check_bounds(payload, path, file.seek(0, 2))
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    if not verified and isinstance(payload, dict) and CHECKSUM in payload:
        raise UserError(
            f"checkpoint {path} is truncated or damaged: the checksum at its end is gone; copy it again"
        )
    return payload


def _check_archive(file: BinaryIO, path: Path) -> None:
    """`torch.save` compresses nothing. Raises `UserError` for an archive that would fill the memory by far."""
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            whole = sum(each.file_size for each in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"checkpoint {path} is damaged: {error}; copy it again") from error
    if whole > MOST_GROWTH * size + SMALL:
        raise UserError(
            f"checkpoint {path} is refused: it has {size:,} bytes, and would become {whole:,} when it is unpacked"
        )


def _check_bounds(payload: Any, path: Path, size: int) -> None:
    """Raises `UserError` for what stands for far more than the `size` bytes of its file: views that repeat a number,
    and containers that hold one another."""
    waiting, seen = [(payload, 0)], 0
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, torch.Tensor):
            # sparse ones count by what they would be
            if node.numel() * node.element_size() > MOST_GROWTH * size + SMALL:
                raise UserError(
                    f"checkpoint {path} is refused: it has {size:,} bytes, and a tensor of {list(node.shape)}"
                )
        elif isinstance(node, Mapping | list | tuple):
            seen += 1
            if seen > MOST_CONTAINERS or depth > DEEPEST:
                raise UserError(
                    f"checkpoint {path} is refused: it holds more than {MOST_CONTAINERS:,} lists and dictionaries, or "
                    f"is nested deeper than {DEEPEST}"
                )
            waiting += [(each, depth + 1) for each in (node.values() if isinstance(node, Mapping) else node)
                        if isinstance(each, torch.Tensor | Mapping | list | tuple)]  # fmt: skip


def _load(file: BinaryIO, path: Path, lazy: bool) -> Any:
    file.seek(0)
    pickled = file.read(1) == b"\x80"  # as files were before archives
    archive = zipfile.is_zipfile(file)
    if not archive and not pickled:
        raise UserError(f"checkpoint {path} is truncated or not a PyTorch file")
    if archive:
        _check_archive(file, path)
    file.seek(0)
    mapped = lazy and archive
    try:
        with torch.serialization.safe_globals(PLAIN):
            return torch.load(path if mapped else file, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        culprit = re.search(r"GLOBAL (\S+)", str(error))
        if culprit is None and not archive:
            raise UserError(f"checkpoint {path} is truncated or not a PyTorch file") from error
        reason = f"it asks for {culprit[1]}" if culprit else str(error).splitlines()[0]
        raise UserError(
            f"checkpoint {path} is refused: it holds objects other than tensors and plain data, and "
            f"unpickling those can run code ({reason})"
        ) from error
    except Exception as error:  # what is left of a damaged pickle makes its reader raise anything
        said = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"checkpoint {path} is damaged: {said[0]}; copy it again") from error
