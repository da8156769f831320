"""The files of a run's checkpoints: which there are, and how a new one takes its place. Needs no torch."""

import os
from pathlib import Path

from vidtrain.files.atomic import flush_folder

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
DAMAGED = "damaged_"  # before the name of one that was passed over


def step_file(step: int) -> str:
    """The name of a checkpoint that is kept for good."""
    return f"step_{step:07d}.pt"


def resumable(folder: Path) -> list[Path]:
    """What a run can be resumed from, unread: the last, the one before it, and those kept for good, newest first."""
    latest = [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]
    return latest + sorted(folder.glob("step_*.pt"), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint that is kept for good; -1 where another file was given such a name."""
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def put_in_place(temporary: Path, path: Path, previous: Path | None) -> None:
    """Renames `temporary` to `path`; what stood there becomes `previous`, if one is named.

    At every instant `path` is the old file or the new one, whole, and `previous` is another than `path`. On a file
    system without hard links, `path` is absent for an instant, and `previous` holds what it was.
    """
    if previous is not None and path.exists():
        spare = previous.with_name(f".{previous.name}.tmp")
        spare.unlink(missing_ok=True)
        try:
            os.link(path, spare)
        except OSError:
            os.replace(path, previous)
            os.replace(temporary, path)
        else:
            os.replace(temporary, path)
            os.replace(spare, previous)
    else:
        os.replace(temporary, path)
    flush_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Renames a damaged checkpoint, so that it is never taken for a good one again; gives its new name."""
    aside = path.with_name(DAMAGED + path.name)
    os.replace(path, aside)
    return aside


def remove_strays(folder: Path) -> None:
    """Deletes what a process left that was killed while it saved. Only for who holds the run's folder."""
    for path in folder.glob(".*.tmp"):
        path.unlink(missing_ok=True)
