"""Files that are either the old one or the new one, whatever happens, and strict JSON to put in them."""

import errno
import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vidtrain.errors import UserError
from vidtrain.files.escaping import map_leaves, masked

TEMPORARY = ".tmp"  # how the names of unfinished files end
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, one's share of it, or the largest file allowed


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """Where to write a file that takes the place of `path` in the end: a crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A text file that takes the place of `path` in the end, on the disk before it does."""
    # a path may be no UTF-8: its bytes are kept
    with (
        replacing_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """A new name or a rename lives in its folder: it survives a power cut only once the folder is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces `path` by a file that holds `text`, with secrets masked.

    Raises `UserError` where the disk is full; whatever stood at `path` stays.
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
    """The mapping that a JSON file holds, with the keys that are `needed`.

    Raises `UserError` for a file that is absent, damaged or without one of them; `advice` says what to do then.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} cannot be read (it holds no mapping); {advice}")
    for key in needed:
        if key not in record:
            raise UserError(f"{path} has no {key}: other code wrote it, or it was changed; {advice}")
    return record


def strict_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader accepts: NaN and the infinities, which JSON lacks, become null."""
    return json.dumps(map_leaves(value, _finite), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
