"""Links in folders that this package writes into: such a folder may be from elsewhere, and a link in it, named as a
file that is to be written, would have another file of the user's overwritten."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from vidtrain.errors import UserError

MOST_SHOWN = 5
# A folder that W&B makes when it starts, and writes into no other time; it holds a link to a log of its own
OF_ONE_START = re.compile(r"(offline-)?run-\d{8}_\d{6}-\w+")


def check_links(folder: Path, below: bool = False, folders: bool = True) -> None:
    """Raises `UserError` for links in `folder`, and with `below` in all that lies below it, that lead out of it.

    `folder` itself may be a link. Without `folders`, only links to files count, and those that lead to nothing.
    """
    home = os.path.realpath(folder)
    outside = []
    for path in _links(home, below):
        target = os.path.realpath(path)
        inside = target == home or target.startswith(os.path.join(home, ""))
        if not inside and (folders or not os.path.isdir(target)):
            outside.append(f"{os.path.join(folder, os.path.relpath(path, home))} -> {os.readlink(path)}")
    if outside:
        more = len(outside) - MOST_SHOWN
        raise UserError(
            f"{folder} is to be written into, and holds links that lead out of it:\n  "
            + "\n  ".join([*outside[:MOST_SHOWN], *([f"and {more} more"] if more > 0 else [])])
            + "\nIn a folder from elsewhere they would have your own files overwritten: put the files in their place, "
            "or remove them. The folder as a whole may be a link to another disk"
        )


def check_inside(path: Path, folder: Path) -> None:
    """Raises `UserError` where `path`, a place below `folder`, is led out of it by a link."""
    place, home = os.path.realpath(path), os.path.realpath(folder)
    if not place.startswith(os.path.join(home, "")):
        raise UserError(
            f"{path} is to be written into, and a link leads from it to {place}, outside of {folder}: put the folder "
            "itself in its place, or choose another with out="
        )


def _links(folder: str, below: bool) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda each: each.name)
    except (FileNotFoundError, NotADirectoryError):  # it is yet to be made, or making it will say so
        return
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; choose another folder") from error
    for entry in entries:
        if entry.is_symlink():
            yield entry.path
        elif below and entry.is_dir(follow_symlinks=False) and not OF_ONE_START.fullmatch(entry.name):
            yield from _links(entry.path, below)


def writable(out: Path) -> None:
    """Makes the output folder; raises `UserError` now, rather than after the work, where it cannot be written, or holds
    links to files that would be written instead."""
    check_links(out, folders=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write into out={out}: {error.strerror}; choose another folder with out="
        ) from error
