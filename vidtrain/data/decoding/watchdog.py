"""Watching the processes that read videos: which file each has in hand, and for how long without progress.

Before a worker reads a file, it writes the path into a `Note`, memory that outlives it, and sets a timer of the kernel.
Its signal ends the process when the time limit is over, wherever that hangs, also inside a C library that holds the
interpreter's lock. The owner of the worker then finds the path in the note.

A stopped or frozen process gets no signal. So the note also holds the time of the last progress, and the owner ends a
worker whose progress is too long ago.
"""

import ctypes
import logging
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import heap
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from vidtrain.errors import UserError

log = logging.getLogger(__name__)

TIME_LIMIT = 60.0  # seconds without progress in one file
GRACE = 2.0  # seconds beyond the time limit in which a worker ends by itself, if it can
# for a worker to come up: a forked one has nothing to import, others may import from a slow disk
START_SECONDS = {"fork": 20.0, "forkserver": 120.0, "spawn": 120.0}
LONGEST_PATH = 4096  # bytes, what Linux opens


class Note(NamedTuple):
    """Memory shared with a worker: the `path` that it has in hand, and the `beat` (s, monotonic) of its last progress,
    0 before it is up."""

    path: Any
    beat: Any


def new_note(context: BaseContext) -> Note:
    """A note that is shared by whatever start method `context` has. Where /dev/shm cannot be written, it lies in the
    folder for temporary files, with a warning. Raises `UserError` where that cannot be written either."""
    try:
        return Note(context.RawArray(ctypes.c_char, LONGEST_PATH), context.RawValue(ctypes.c_double, 0.0))
    except OSError as error:
        # where multiprocessing looks before the folder for temporary files
        folders = heap.Arena._dir_candidates  # type: ignore[attr-defined]  # there is no public way
        place = tempfile.gettempdir()
        if not folders:
            what = f"neither /dev/shm nor {place}, for memory shared with workers, can be written ({error})"
            raise UserError(f"{what}: set TMPDIR to a folder that can") from error
        log.warning("/dev/shm cannot be written (%s): what workers share lies in %s", error.strerror, place)
        folders.clear()
        return new_note(context)


def current_path(note: Note) -> str | None:
    """The path that a worker had in hand when it ended, if any."""
    return os.fsdecode(note.path.value) or None


def seconds_left(note: Note, since: float, time_limit: float, start_limit: float) -> float:
    """How much longer a worker, which has had a task `since` (s, monotonic), may go without progress: `start_limit`
    seconds before it is up, then `time_limit` and a little."""
    limit = time_limit + GRACE if note.beat.value else start_limit
    return max(0.0, max(note.beat.value, since) + limit - time.monotonic())


_watch: tuple[Note, float] | None = None  # this process's note and time limit, where it is a worker


def arm(note: Note, time_limit: float) -> None:
    """Has this process, a worker, watched from now on, with a time limit in seconds."""
    global _watch
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    _watch = note, time_limit
    progress()


def progress() -> None:
    """Starts the clock anew; does nothing outside of a worker process."""
    if _watch is not None:
        note, time_limit = _watch
        note.beat.value = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, time_limit)


def disarm() -> None:
    """Stops the clock: nothing to do."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def reading(video: str) -> Iterator[None]:
    """Stands around the reading of a file; does nothing outside of a worker process."""
    if _watch is None:
        yield
        return
    note, _ = _watch
    note.path.value = os.fsencode(video)[: LONGEST_PATH - 1]
    progress()
    try:
        yield
    finally:
        note.path.value = b""
        progress()  # also for work between files: a fork can hang on a lock that it has inherited


def describe_exit(status: int | None, time_limit: float) -> str:
    """Why a worker ended, in words; `status` is multiprocessing's, which is negative for a signal."""
    if status == -signal.SIGALRM:
        return f"hung: over {time_limit:g} s"
    if status is None or status >= 0:
        return f"crashed: exit status {status}"
    names = {known.value: f" ({known.name})" for known in signal.Signals}
    cause = f"signal {-status}{names.get(-status, '')}"
    killed = status == -signal.SIGKILL
    return f"killed: {cause}, perhaps for want of memory" if killed else f"crashed: {cause}"
