"""Making names durable, which flushing a file does not."""

import os
from pathlib import Path


def flush_folder(folder: Path) -> None:
    """A new name or a rename lives in its folder: it survives a power cut only once the folder is flushed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
