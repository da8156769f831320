"""PyTorch files, read without running code from them, and verified by the checksums of their zip archive.

Earlier versions wrote another checksum into the comment of the archive, which is ignored now.
"""

import argparse
import math
import pathlib
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from vidtrain.errors import UserError


class _Dtype:
    """Replaces NumPy's dtype while a file is read: only numbers, text and bytes, never objects or fields.

    With NumPy's own class, a file could declare an array of bytes as objects, and the bytes would be used as addresses.
    """

    CODES = re.compile(r"[?biufc]\d{0,2}|[SU]\d{1,6}")

    def __init__(self, code: str, align: bool = False, copy: bool = True):
        if not isinstance(code, str) or not self.CODES.fullmatch(code):
            raise pickle.UnpicklingError(f"an array of dtype {code!r}")
        self._code, self._order = code, "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order, *more = state[1:5]
        if order not in ("<", ">", "|", "=") or any(field is not None for field in more):
            raise pickle.UnpicklingError(f"an array of a dtype with fields, {self._code!r}")
        self._order = order

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self._order + self._code)


class _Array(np.ndarray):
    """An array of numbers, text or bytes, whose number of bytes is checked."""

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        is_valid = isinstance(kind, _Dtype) and isinstance(data, bytes) and min(shape, default=0) >= 0
        if not is_valid or math.prod(shape) * kind.dtype.itemsize != len(data):
            raise pickle.UnpicklingError("an array whose bytes are not those of its shape and dtype")
        # NumPy's type stub wants numpy.bool here, its code a Python bool
        super().__setstate__((1, shape, kind.dtype, bool(fortran), data))  # type: ignore[arg-type]


class _Kind:
    """Replaces the class numpy.ndarray where a file names it."""


def _scalar(kind: _Dtype, data: bytes) -> Any:
    if not isinstance(kind, _Dtype) or not isinstance(data, bytes) or len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a number whose bytes are not those of its dtype")
    return np.frombuffer(data, kind.dtype)[0]


def _reconstruct(kind: type, shape: Any, code: Any) -> _Array:
    return np.ndarray.__new__(_Array, (0,), np.int8)


# Classes that published checkpoints hold beside tensors. They are plain data: unpickling them runs no code. NumPy's
# functions that rebuild scalars and arrays, which are in two modules depending on its version, are replaced by ours.
PLAIN: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    pathlib.PosixPath,
    _Array,
    _Dtype,
    (_Dtype, "numpy.dtype"),
    (_Kind, "numpy.ndarray"),
    *((_scalar, f"numpy.{home}.multiarray.scalar") for home in ("core", "_core")),
    *((_reconstruct, f"numpy.{home}.multiarray._reconstruct") for home in ("core", "_core")),
]

# A file may need at most MAX_GROWTH times its size in memory, plus SMALL bytes
MAX_GROWTH, SMALL = 10, 1 << 28
MAX_CONTAINERS, MAX_DEPTH = 2_000_000, 200


def write_torch_file(payload: Mapping[str, Any], file: BinaryIO) -> None:
    """`torch.save`, which writes a zip archive with a CRC-32 of every entry. Raises OSError if the disk is full."""
    try:
        torch.save(payload, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # PyTorch's writer hides it behind an error of its own
            raise error.__context__ from error
        raise


def verify(path: Path) -> None:
    """Raises `UserError` naming the file when it cannot be read, or its checksums do not match."""
    try:
        with open(path, "rb") as file:
            if not _is_archive(file):
                raise UserError(f"checkpoint {path} is truncated or not a PyTorch file")
            _check_archive(file, path, checksums=True)
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error


def read_torch_file(path: Path, lazy: bool = False) -> Any:
    """The content of a file of `torch.save`, on the CPU. All checksums are verified, unless `lazy`: then tensors stay
    in the file until they are used, so that nothing is verified.

    Raises `UserError` naming the file when it is absent, truncated or damaged, or holds objects whose unpickling could
    run code.
    """
    if not path.is_file():
        raise UserError(f"checkpoint {path} is not a file{'' if path.exists() else ': there is nothing at this path'}")
    try:
        with open(path, "rb") as file:
            payload = _load(file, path, lazy)
            _check_bounds(payload, path, file.seek(0, 2))
    except OSError as error:
        raise UserError(f"checkpoint {path} cannot be read: {error.strerror}") from error
    return payload


def _is_archive(file: BinaryIO) -> bool:
    try:
        return zipfile.is_zipfile(file)
    except zipfile.BadZipFile:  # the record at the end of the archive is damaged
        return False


def _check_archive(file: BinaryIO, path: Path, checksums: bool) -> None:
    """Raises `UserError` for an archive that is damaged, or would need far more memory than its size.

    With `checksums`, every byte is read and verified. PyTorch's own reader verifies no checksum.
    """
    size = file.seek(0, 2)
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked_size = sum(entry.file_size for entry in entries)
            too_large = unpacked_size > MAX_GROWTH * size + SMALL
            damaged = checksums and (any(map(_is_misread, entries)) or (not too_large and archive.testzip()))
    except Exception as error:  # a damaged directory of the archive can make zipfile raise any exception
        raise UserError(f"checkpoint {path} is damaged: {error}; copy it again") from error
    if damaged:
        raise UserError(f"checkpoint {path} is damaged: its content does not match its checksum; copy it again")
    if too_large:
        raise UserError(
            f"checkpoint {path} is refused: it has {size:,} bytes, and {unpacked_size:,} when it is unpacked"
        )


def _is_misread(entry: zipfile.ZipInfo) -> bool:
    """Whether PyTorch's reader would read an entry differently from `zipfile`: as a folder, or with another size."""
    stored = entry.compress_type == zipfile.ZIP_STORED
    return entry.external_attr & 0x10 != 0 or (stored and entry.compress_size != entry.file_size)


def _check_bounds(payload: Any, path: Path, size: int) -> None:
    """Raises `UserError` for content that is far larger than the `size` bytes of its file: a tensor that repeats a
    number by its strides, or containers that hold one another."""
    waiting: list[tuple[Any, int]] = [(payload, 0)]
    containers = 0
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, torch.Tensor):
            # A sparse tensor counts with its dense size
            if node.numel() * node.element_size() > MAX_GROWTH * size + SMALL:
                raise UserError(
                    f"checkpoint {path} is refused: it has {size:,} bytes, and a tensor of {list(node.shape)}"
                )
        elif isinstance(node, Mapping | list | tuple):
            containers += 1
            if containers > MAX_CONTAINERS or depth > MAX_DEPTH:
                raise UserError(
                    f"checkpoint {path} is refused: it holds more than {MAX_CONTAINERS:,} lists and dictionaries, or "
                    f"is nested deeper than {MAX_DEPTH}"
                )
            items = node.values() if isinstance(node, Mapping) else node
            kinds = (torch.Tensor, Mapping, list, tuple)
            waiting += [(item, depth + 1) for item in items if isinstance(item, kinds)]


def _load(file: BinaryIO, path: Path, lazy: bool) -> Any:
    file.seek(0)
    pickled = file.read(1) == b"\x80"  # the format of old versions of PyTorch, without an archive
    archive = _is_archive(file)
    if not archive and not pickled:
        raise UserError(f"checkpoint {path} is truncated or not a PyTorch file")
    if archive:
        _check_archive(file, path, checksums=not lazy)
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
    except Exception as error:  # a damaged pickle can make its reader raise any exception
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"checkpoint {path} is damaged: {reason}; copy it again") from error
