"""Signals that ask a run to stop: it saves after the current step, exits with a status for it, and can be resumed.

During training steps the handler only sets a flag; where there is nothing to save, it raises `Stopped`. This module
needs no torch, so that a program can install the handler before its slow imports.
"""

import atexit
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self, TypeVar

T = TypeVar("T")
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: trying again may succeed
EXIT_INTERRUPTED = 130  # the status that shells report after Ctrl-C
# SLURM sends TERM when it preempts, requeues or ends a job, and USR1 or USR2 before that if the job asks for it
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """A signal ends the run early. It is not an `Exception`, so that no handler of errors catches it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED


class PreemptionHandler:
    """A context that handles the signals in `STOP_SIGNALS`, and restores the previous handlers at its end.

    Only the first signal counts, so that later ones do not interrupt saving; but Ctrl-C after another signal ends the
    process at once. Outside the main thread, where Python delivers no signals, the context does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # number of the first signal that came
        self._deferred = False
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}

    @property
    def stop_requested(self) -> bool:
        return self.number is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which a signal only sets the flag `stop_requested`, which the code inside must check. Raises
        `Stopped` at its end if the flag is set."""
        self._deferred = True
        yield  # after an exception, signals stay deferred: they must not interrupt the cleanup either
        self._deferred = False
        self.stop_if(self.stop_requested)

    def hold(self) -> None:
        """From now on signals only set the flag: the run is ending anyway."""
        self._deferred = True

    def stop_if(self, agreed: bool) -> None:
        """Raises `Stopped` if `agreed`, on which all ranks must agree."""
        if agreed:
            raise Stopped(signal.SIGTERM if self.number is None else self.number)

    def until_stop_requested(self, items: Iterable[T]) -> Iterator[T]:
        """Yields `items` until a signal has come; after one, the rest is left out."""
        for item in items:
            if self.stop_requested:
                return
            yield item

    def _take(self, number: int, _: object) -> None:
        if self.stop_requested:
            if number == signal.SIGINT:
                os._exit(EXIT_INTERRUPTED)
            return
        self.number = number
        if not self._deferred:
            raise Stopped(number)


def leave_at_exit(status: int, seconds: float = 0.0) -> None:
    """Makes Python's exit end the process with `status`, after `seconds` more.

    The ordinary exit could wait for ranks that have ended, or a caller could have replaced the status by success."""

    def leave() -> None:
        time.sleep(seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
