"""The file of a manifest: a header, then its columns as they lie in memory, so that opening it reads none of them.

8 bytes   magic
uint32    length of the header; uint32 its CRC-32
header    JSON: classes and the like, and for every array its type, length and place
arrays    each at a multiple of 64 bytes; numbers are little-endian
"""

import hashlib
import json
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vidtrain.data.manifest.columns import Columns, Strings
from vidtrain.errors import UserError

MAGIC = b"vidman\r\n"  # a transfer that changes line ends shows
FORMAT = 1
ALIGNMENT = 64
STRINGS = ("paths", "group_names")
CHECKED_AT_A_TIME = 1 << 20


def write_columns(path: Path, head: dict[str, Any], columns: Columns) -> str:
    """Writes `columns` and what else `head` says, whole or not at all; returns a digest of both."""
    arrays, prefixes = _arrays_of(columns)
    digest = hashlib.blake2b(json.dumps([head, prefixes]).encode(), digest_size=16)
    for name, values in arrays.items():
        digest.update(name.encode())
        digest.update(memoryview(values).cast("B") if len(values) else b"")
    places, at = {}, 0
    for name, values in arrays.items():
        places[name] = [values.dtype.str, len(values), at]
        at += -(-values.nbytes // ALIGNMENT) * ALIGNMENT
    full = {
        **head,
        "format": FORMAT,
        "prefixes": prefixes,
        "digest": digest.hexdigest(),
        "arrays": places,
        "bytes": at,
    }
    text = json.dumps(full).encode()
    text += b" " * (-(len(MAGIC) + 8 + len(text)) % ALIGNMENT)
    # not named after the process alone: another machine may write into the same folder
    number, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text)
            for values in arrays.values():
                file.write(memoryview(values).cast("B") if len(values) else b"")
                file.write(b"\0" * (-values.nbytes % ALIGNMENT))
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)  # made for this user alone, but others may share the cache
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return full["digest"]


def read_columns(path: Path) -> tuple[dict[str, Any], Columns]:
    """The header and the columns, mapped into memory.

    Raises `UserError` where the file cannot be read, is something else or is damaged, as far as its header, its
    length, and the order of its offsets show.
    """
    head, data = _map(path)
    try:
        if head["format"] != FORMAT:
            raise UserError(
                f"{path} has the manifest format {head['format']}, not {FORMAT}; delete it to have it made anew"
            )
        if len(data) != head["bytes"]:
            raise _damaged(path, f"{len(data)} bytes follow its header, not {head['bytes']}")
        arrays = {
            name: data[at : at + count * np.dtype(dtype).itemsize].view(dtype)
            for name, (dtype, count, at) in head["arrays"].items()
        }
        columns = _columns_of(arrays, head["prefixes"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header says {error}") from error
    _check_offsets(path, arrays)
    return head, columns


def _map(path: Path) -> tuple[dict[str, Any], np.ndarray]:
    """The header, and the bytes after it."""
    try:
        if path.stat().st_size < len(MAGIC) + 8:
            raise UserError(f"{path} is no manifest: it has {path.stat().st_size} bytes")
        # a plain array over the map: indexing np.memmap itself costs microseconds
        data = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    except OSError as error:
        raise UserError(f"the manifest {path} cannot be opened: {error.strerror}") from error
    if data[: len(MAGIC)].tobytes() != MAGIC:
        raise UserError(f"{path} is no manifest of this package")
    first = len(MAGIC) + 8
    length, checksum = struct.unpack("<II", data[len(MAGIC) : first].tobytes())
    text = data[first : first + length].tobytes()
    if len(text) < length or zlib.crc32(text) != checksum:
        raise _damaged(path, "its header does not fit its checksum")
    return json.loads(text), data[first + length :]


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"the manifest {path} is damaged ({why}); delete it to have it made anew")


def _check_offsets(path: Path, arrays: dict[str, np.ndarray]) -> None:
    for name, values in (
        ("paths", "paths.blob"),
        ("group_names", "group_names.blob"),
        ("label", "all_labels"),
    ):
        offsets = f"{name}_offsets" if name == "label" else f"{name}.offsets"
        if offsets not in arrays:
            continue
        if arrays[offsets][0] != 0 or arrays[offsets][-1] != len(arrays[values]):
            raise _damaged(path, f"{offsets} do not span {values}")
        for first in range(0, len(arrays[offsets]), CHECKED_AT_A_TIME):
            part = arrays[offsets][first : first + CHECKED_AT_A_TIME + 1]
            if np.any(part[1:] < part[:-1]):
                raise _damaged(path, f"{offsets} do not increase")


def _arrays_of(columns: Columns) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    arrays, prefixes = {}, {}
    for name, values in vars(columns).items():
        if isinstance(values, Strings):
            arrays[f"{name}.blob"], arrays[f"{name}.offsets"] = values.blob, values.offsets
            prefixes[name] = values.prefix
        elif values is not None:
            arrays[name] = values
    return dict(_plain(arrays)), prefixes


def _plain(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for name, values in arrays.items():
        yield name, np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))


def _columns_of(arrays: dict[str, np.ndarray], prefixes: dict[str, str]) -> Columns:
    columns: dict[str, Any] = {name: values for name, values in arrays.items() if "." not in name}
    for name in STRINGS:
        if name in prefixes:
            columns[name] = Strings(arrays[f"{name}.blob"], arrays[f"{name}.offsets"], prefixes[name])
    return Columns(**columns)
