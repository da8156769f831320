"""Whole videos from stores, kept on a disk of this machine for all its processes; the least recently used go first."""

import re

from vidtrain.errors import UserError

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", re.IGNORECASE)


def bytes_in(text: str) -> int:
    """The bytes of a size such as 500GiB, 1.5 GB or 1000000. Raises `UserError` for what is none, or no byte."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise UserError(f"{text!r} is no size; write it as 500MB, 1GiB or 2TiB")
    return size
