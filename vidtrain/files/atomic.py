"""Atomic replacement of files: after a crash, a file is either the old one or the new one. And strict JSON."""

import errno
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vidtrain.errors import UserError
from vidtrain.files.escaping import map_leaves, masked

TEMPORARY = ".tmp"  # suffix of unfinished files
# The disk or the user's quota is full, or the file is too large
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """A context that yields a temporary path to write to, and renames it to `path` at its end.

    A crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A context that yields a text file, which is flushed to the disk and renamed to `path` at its end."""
    # A path in the text may not be UTF-8; surrogateescape writes its bytes unchanged
    with (
        replacing_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flushes a folder to the disk: only then does a new or renamed file in it survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces `path` by a file with `text`, in which secrets are masked.

    Raises `UserError` if the disk is full; the old file stays.
    """
    try:
        with replacing(path) as file:
            file.write(masked(text))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"cannot write {path} ({error.strerror}): free some space.") from error


def write_json_atomic(path: Path, value: object) -> None:
    """Writes `value` as indented strict JSON, see `strict_json`."""
    write_text_atomic(path, strict_json(value, indent=2) + "\n")


def read_json(path: Path, advice: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a JSON file, which must have the keys `needed`.

    Raises `UserError` if the file is absent or damaged, or lacks a key; `advice` tells the user what to do then.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} cannot be read (it holds no mapping); {advice}")
    for key in needed:
        if key not in record:
            raise UserError(f"{path} has no {key}: another program wrote it, or it was changed; {advice}")
    return record


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as sha256sum gives it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strict_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader accepts: NaN and infinities, which JSON does not have, become null."""
    return json.dumps(map_leaves(value, _finite), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
