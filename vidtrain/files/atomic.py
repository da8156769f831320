"""Files that are either the old one or the new one, at any instant, and strict JSON to put in them."""

import errno
import json
import math
from collections.abc import Mapping
from pathlib import Path

from vidtrain.errors import UserError
from vidtrain.files.fsync import replacing
from vidtrain.files.masking import masked

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, one's share of it, or the largest file allowed


def write_text_atomic(path: Path, text: str) -> None:
    """Replace `path` by a file that holds `text`, durably: a crash leaves the old file or the new one. Secrets
    are masked.

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
    """Write `value` as indented strict JSON, see `strict_json`."""
    write_text_atomic(path, strict_json(value, indent=2) + "\n")


def strict_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader accepts: NaN and the infinities, which JSON lacks, become null."""
    return json.dumps(_without_non_finite(value), indent=indent, allow_nan=False)


def _without_non_finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_non_finite(item) for item in value]
    return value
