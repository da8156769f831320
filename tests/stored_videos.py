"""The generated videos of dataset=motion, which the processes of all tests encode once."""

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from vidtrain.data.sources.motion import Motion

write_videos = Motion._write_videos


def _copy_videos(motion: Motion, root: Path) -> None:
    """Writes what `_write_videos` does; a copy, as some tests damage their files."""
    folder = Path(_FOLDER)
    stored = folder / "-".join(map(str, motion._marker().values()))
    if not stored.is_dir():
        made = Path(tempfile.mkdtemp(dir=folder)) / "videos"
        write_videos(motion, made)
        with suppress(OSError):  # another process was faster
            made.rename(stored)
    shutil.copytree(stored, root)


_FOLDER = ""


def store_videos() -> None:
    """From now on videos are copied that another test has had encoded."""
    global _FOLDER
    _FOLDER = os.environ["VIDTRAIN_TEST_VIDEOS"]  # now, as programs that tests start have another environment
    Motion._write_videos = _copy_videos
