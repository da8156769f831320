"""The FFmpeg of PyAV for peers that look for one, such as torchcodec."""

import os
import sys
from pathlib import Path

import av


def share_ffmpeg(folder: Path) -> None:
    """Starts this program again where torchcodec finds the FFmpeg that PyAV brings, if it was not so started.

    Wheels rename the libraries; links restore the names by which the loader looks for them.
    """
    links = folder / "ffmpeg"
    paths = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    if str(links) in paths:
        return
    links.mkdir(parents=True, exist_ok=True)
    for old in links.iterdir():
        old.unlink()
    for library in (Path(av.__file__).parents[1] / "av.libs").glob("*.so*"):
        stem, _, tail = library.name.partition(".so")
        name, _, _ = stem.rpartition("-")
        (links / library.name).symlink_to(library)
        if name and len(tail) > 1:
            (links / f"{name}.so.{tail.split('.')[1]}").symlink_to(library)
    os.environ["LD_LIBRARY_PATH"] = ":".join([str(links), *filter(None, paths)])
    os.execv(sys.executable, [sys.executable, *sys.argv])
