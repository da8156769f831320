"""Signals that ask a run to stop: it saves at the next step, leaves with a status that says so, and can be resumed.

A handler only sets a flag while training steps are taken, and raises `Stopped` where there is nothing to save. Needs
no torch, so that it can be in place before anything else.
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
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: what failed may succeed when it is tried again
EXIT_INTERRUPTED = 130  # what shells give for Ctrl-C
# A scheduler's: SLURM sends TERM when it preempts, requeues or ends a job, and others ahead of that on request
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """A signal has ended the run before its time. Not an `Exception`, so that nothing takes it for a fault."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED


class PreemptionHandler:
    """Listens for the signals in `STOP_SIGNALS` while it is entered, in place of whatever listened before.

    The first one counts, and later ones change nothing, so that saving is not disturbed; only a Ctrl-C after another
    signal ends the process at once. Outside the main thread, where Python takes no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # of the signal that has come
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
        """Within it, a signal only sets the flag, which the code within must look at. Raises `Stopped` at its end if
        the flag is set."""
        self._deferred = True
        yield  # after an exception it stays so: ending is not to be disturbed either
        self._deferred = False
        self.stop_if(self.stop_requested)

    def hold(self) -> None:
        """From here on signals only set the flag: the run is ending anyway."""
        self._deferred = True

    def stop_if(self, agreed: bool) -> None:
        """Raises `Stopped` if all ranks have `agreed` to."""
        if agreed:
            raise Stopped(signal.SIGTERM if self.number is None else self.number)

    def until_stop_requested(self, items: Iterable[T]) -> Iterator[T]:
        """`items` up to the signal: they may not be all."""
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
    """Ends the process with `status` when Python exits, `seconds` later: Python's own end could wait for ranks that
    have gone, and a caller could have turned a failure into success."""

    def leave() -> None:
        time.sleep(seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
