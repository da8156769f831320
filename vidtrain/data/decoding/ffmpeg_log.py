"""What FFmpeg says in its log: of many faults it says nothing elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager

import av.logging


@contextmanager
def ffmpeg_errors() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg logs as an error meanwhile, as (level, who, words)."""
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else what was said of one file would not be said of the next one
    try:
        with av.logging.Capture(local=True) as log:
            yield log
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)
