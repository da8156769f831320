"""Damage to a checkpoint, as storage may do."""

import random
import zipfile
from pathlib import Path


def flip(path: Path, seed: float = 0) -> None:
    """Flips a bit of what a checkpoint holds: not of the padding in its archive, which nobody reads."""
    with zipfile.ZipFile(path) as archive:
        content = archive.read(max(archive.infolist(), key=lambda entry: entry.file_size))
    data = bytearray(path.read_bytes())
    bit = 8 * data.index(content) + random.Random(seed).randrange(8 * len(content))
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)
