"""Watching the processes that read videos: which file each has in hand, for how long, and what becomes of it.

Before the first byte of a file is read, a worker notes its path in memory that outlives it, and sets a timer of the
kernel, whose signal ends the process when the file takes longer than the time limit. That works wherever it hangs,
also inside a C library that holds the interpreter's lock, and while nobody looks on. The process that started the
worker then finds the path in its note.

A stopped or frozen process gets no signal. So the note also holds when there was progress last, and the process that
waits for the worker ends it where that is too long ago. The time limit is one without progress: a long file may take
longer.
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
# for a worker to come up, by how it is started: a forked one has nothing to import, others may from a slow disk
START_SECONDS = {"fork": 20.0, "forkserver": 120.0, "spawn": 120.0}
LONGEST_PATH = 4096  # bytes, what Linux opens


class Note(NamedTuple):
    """Memory shared with a worker: the `path` that it has in hand, and the `beat` (s, monotonic) of its last progress:
    0 before it is up."""

    path: Any
    beat: Any


def new_note(context: BaseContext) -> Note:
    """A note that is shared by whatever start method `context` has.

    Where /dev/shm cannot be written, it lies in a file in the folder for temporary ones, and a warning says so. Raises
    `UserError` where that cannot be either.
    """
    try:
        return Note(context.RawArray(ctypes.c_char, LONGEST_PATH), context.RawValue(ctypes.c_double, 0.0))
    except OSError as error:
        # where multiprocessing looks before the folder for temporary files
        folders = heap.Arena._dir_candidates  # type: ignore[attr-defined]  # there is no public way
        place = tempfile.gettempdir()
        if not folders:
            raise UserError(
                f"no memory can be shared with worker processes, as {place} cannot be written either ({error}): set "
                "TMPDIR to a folder that can"
            ) from error
        log.warning("/dev/shm cannot be written (%s): what workers share lies in %s", error.strerror, place)
        folders.clear()
        return new_note(context)


def current_path(note: Note) -> str | None:
    """The path that a worker had in hand when it ended, if any."""
    return os.fsdecode(note.path.value) or None


def seconds_left(note: Note, since: float, time_limit: float, start_limit: float) -> float:
    """For how much longer a worker may go without progress that has had something to do `since` (s, monotonic).

    Before it is up that is `start_limit` seconds, afterwards `time_limit` seconds and a little.
    """
    limit = time_limit + GRACE if note.beat.value else start_limit
    return max(0.0, max(note.beat.value, since) + limit - time.monotonic())


_watch: tuple[Note, float] | None = None  # this process's note and time limit, where it is a worker


def arm(note: Note, time_limit: float) -> None:
    """Has this process, a worker, watched from now on; the time limit (s) counts anew for every file."""
    global _watch
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    _watch = note, time_limit
    progress()


def progress() -> None:
    """Starts the clock anew. A hang is no progress, much work is; outside of a worker process nothing happens."""
    if _watch is not None:
        note, time_limit = _watch
        note.beat.value = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, time_limit)


def disarm() -> None:
    """Stops the clock: nothing to do."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def reading(video: str) -> Iterator[None]:
    """Put around the reading of a file. Outside of a worker process it does nothing: there is no time limit."""
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
    """Why there is nothing of the file that a worker had in hand when it ended; multiprocessing gives a signal as a
    negative status."""
    if status == -signal.SIGALRM:
        return f"hung: over {time_limit:g} s"
    if status is None or status >= 0:
        return f"crashed: exit status {status}"
    names = {known.value: f" ({known.name})" for known in signal.Signals}
    cause = f"signal {-status}{names.get(-status, '')}"
    return (
        f"killed: {cause}, perhaps for want of memory" if status == -signal.SIGKILL else f"crashed: {cause}"
    )
