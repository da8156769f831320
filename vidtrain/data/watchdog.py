"""Watching the processes that read videos: which file each has in hand, for how long, and what becomes of it.

Before the first byte of a file is read, a worker notes its path in memory that outlives it, and sets a timer of the
kernel, whose signal ends the process when the file takes longer than the time limit. That works wherever it hangs,
inside a C library that holds the interpreter's lock too, and while nobody looks on. Whoever started the worker then
finds the path in its note.
"""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

TIME_LIMIT = 60.0  # seconds for one file
LONGEST_PATH = 4096  # bytes, what Linux opens


def new_note(context: BaseContext) -> Any:
    """Memory for the path that a worker has in hand, shared with it by whatever start method `context` has."""
    return context.RawArray(ctypes.c_char, LONGEST_PATH)


def noted(note: Any) -> str | None:
    """The path that a worker had in hand when it ended, if any."""
    return os.fsdecode(note.value) or None


class _Watch(NamedTuple):
    note: Any
    time_limit: float


_watch: _Watch | None = None  # this process's, where it is a worker


def begin(note: Any, time_limit: float) -> None:
    """Has this process, a worker, watched from now on; the time limit (s) counts anew for every file."""
    global _watch
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # which ends the process
    _watch = _Watch(note, time_limit)
    resume()


def resume() -> None:
    """Starts the clock, also for work between files: a fork can hang on a lock that it has inherited."""
    signal.setitimer(signal.ITIMER_REAL, _watch.time_limit)


def progress() -> None:
    """Starts the clock anew where a long file is being worked through: a hang is no progress, not much work."""
    if _watch is not None:
        resume()


def rest() -> None:
    """Stops the clock: nothing to do."""
    signal.setitimer(signal.ITIMER_REAL, 0)


@contextmanager
def reading(video: str) -> Iterator[None]:
    """Put around the reading of a file. Outside of a worker process it does nothing: there is no time limit."""
    if _watch is None:
        yield
        return
    _watch.note.value = os.fsencode(video)[: LONGEST_PATH - 1]
    resume()
    try:
        yield
    finally:
        _watch.note.value = b""
        resume()


def exit_words(status: int | None) -> str:
    """How a process ended; multiprocessing gives a signal as a negative status."""
    if status is None or status >= 0:
        return f"exit status {status}"
    names = {each.value: each.name for each in signal.Signals}
    return f"signal {-status} ({names[-status]})" if -status in names else f"signal {-status}"


def spell(status: int | None, time_limit: float) -> str:
    """What a worker's end says of the file that it had in hand."""
    if status == -signal.SIGALRM:
        return f"hung: over {time_limit:g} s"
    if status == -signal.SIGKILL:
        return f"killed: {exit_words(status)}, perhaps for want of memory"
    return f"crashed: {exit_words(status)}"
