"""Watches worker processes that read videos: which file each one reads, and how long it has made no progress.

Before a worker reads a file, it writes the path into a `Note`, shared memory that outlives it, and sets a timer of the
kernel. After the time limit the timer's signal ends the process, even inside a C library that holds the interpreter's
lock. The owner of the worker then finds the path in the note.

A stopped or frozen process gets no signal. So the note also holds the time of the last progress, and the owner kills a
worker without progress.
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
# time for a worker to start: a forked one imports nothing, others may import from a slow disk
START_SECONDS = {"fork": 20.0, "forkserver": 120.0, "spawn": 120.0}
LONGEST_PATH = 4096  # bytes: Linux's limit


class Note(NamedTuple):
    """Memory shared with a worker: the `path` that it reads, and `beat`, the time of its last progress (s, monotonic),
    0 before it has started."""

    path: Any
    beat: Any


def new_note(context: BaseContext) -> Note:
    """A note in shared memory, for any start method of `context`. If /dev/shm cannot be written, it is in the folder
    for temporary files, with a warning. Raises `UserError` if that cannot be written either."""
    try:
        return Note(context.RawArray(ctypes.c_char, LONGEST_PATH), context.RawValue(ctypes.c_double, 0.0))
    except OSError as error:
        # the folders that multiprocessing tries before that for temporary files
        folders = heap.Arena._dir_candidates  # type: ignore[attr-defined]  # there is no public way
        place = tempfile.gettempdir()
        if not folders:
            what = f"memory shared with workers can be written neither to /dev/shm nor to {place} ({error})"
            raise UserError(f"{what}: set TMPDIR to a folder that can") from error
        log.warning("/dev/shm cannot be written (%s): memory shared with workers is in %s", error.strerror, place)
        folders.clear()
        return new_note(context)


def current_path(note: Note) -> str | None:
    """The path that a worker was reading when it ended, if any."""
    return os.fsdecode(note.path.value) or None


def seconds_left(note: Note, since: float, time_limit: float, start_limit: float) -> float:
    """The remaining time without progress for a worker that has had a task `since` (s, monotonic). The limit is
    `start_limit` seconds until it has started, then `time_limit` and a grace period."""
    limit = time_limit + GRACE if note.beat.value else start_limit
    return max(0.0, max(note.beat.value, since) + limit - time.monotonic())


_watch: tuple[Note, float] | None = None  # the note and time limit of this process if it is a worker


def arm(note: Note, time_limit: float) -> None:
    """Starts watching this process, a worker, with a time limit in seconds."""
    global _watch
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    _watch = note, time_limit
    progress()


def progress() -> None:
    """Restarts the timer; does nothing outside of a worker process."""
    if _watch is not None:
        note, time_limit = _watch
        note.beat.value = time.monotonic()
        signal.setitimer(signal.ITIMER_REAL, time_limit)


def disarm() -> None:
    """Stops the timer, as the worker is idle."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def reading(video: str) -> Iterator[None]:
    """A context for reading a file, which records its path; does nothing outside of a worker process."""
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
        progress()  # the timer also runs between files, as a fork can hang on an inherited lock


def describe_exit(status: int | None, time_limit: float) -> str:
    """Why a worker ended, as text; `status` is multiprocessing's exit code, negative for a signal."""
    if status == -signal.SIGALRM:
        return f"hung: over {time_limit:g} s"
    if status is None or status >= 0:
        return f"crashed: exit status {status}"
    names = {known.value: f" ({known.name})" for known in signal.Signals}
    cause = f"signal {-status}{names.get(-status, '')}"
    killed = status == -signal.SIGKILL
    return f"killed: {cause}, perhaps because memory ran out" if killed else f"crashed: {cause}"
