"""Heartbeats between ranks, so that no rank waits forever in a collective for one that has ended.

Every rank increments a counter of its own in the process group's store. Rank 0 watches the counters of all ranks, the
others that of rank 0. A rank that fails, or that sees another's counter stop, writes the cause into the store, and
every rank ends with the first cause. This works in threads, and so also while the main thread is in a collective.
"""

import _thread
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch.distributed as dist

from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_lines
from vidtrain.training.process import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped

BEAT_SECONDS = 0.5
MAX_MISSED_BEATS = 4  # after more missed beats, a lost connection to a rank means that the rank is lost
PEER_SECONDS = 5.0  # how long a rank that lost a connection waits for the other rank to write its cause
# Time between writing the cause and exiting, in which every rank reads it. The store ends with rank 0
LINGER_SECONDS = 2.0
GRACE_SECONDS = 15.0  # how long the main thread has to exit by itself once a run ends
EXIT_FAILED, EXIT_USER_ERROR = 1, 2


@dataclass(frozen=True)
class RunEnd:
    """Why all ranks end: `cause`, which happened to `rank` on `host`. `status` is their exit status."""

    rank: int
    host: str
    cause: str
    status: int

    @property
    def message(self) -> str:
        return f"rank {self.rank} on {self.host} {self.cause}"


class RefusedByMain(UserError):
    """A `UserError` of rank 0, as it is raised on the other ranks."""


class RankMonitor:
    """Sends this rank's heartbeat and watches that of others, in two threads that run until `close`.

    `connect` returns a new connection to the store. A rank counts as lost after `timeout` seconds without a beat. Time
    during which this process itself was suspended does not count.
    """

    def __init__(self, connect: Callable[[], dist.Store], rank: int, world_size: int, timeout: float):
        self.timeout = timeout
        self.rank = rank
        # Hooks that a program may set. The first one returns the number of the stop signal received, or None
        self.stop_signal: Callable[[], int | None] = lambda: None
        self.lost_status: Callable[[], int] = lambda: EXIT_FAILED  # exit status when another rank is lost
        self.on_lost: Callable[[RunEnd], None] = lambda run_end: None  # records the loss of another rank
        self._watched = [other for other in range(world_size) if other != rank] if rank == 0 else [0]
        self._beats = dict.fromkeys(self._watched, 0)
        self._silent = dict.fromkeys(self._watched, 0.0)  # seconds without a beat
        self._hosts = {rank: socket.gethostname()}
        self._beat_store = connect()  # a connection of the beat thread alone, as its calls may block
        self._store = connect()  # the connection of the other threads
        self._store.set(f"host/{rank}", self._hosts[rank])
        self._hosts |= {other: self._store.get(f"host/{other}").decode() for other in self._watched}
        self._run_end: RunEnd | None = None
        self._heard = threading.Event()  # set whenever the store has answered
        self._lost_store: str | None = None  # error of the connection to the store, once it is lost
        self._was_suspended = False  # for longer than `timeout`, so the other ranks count this one as lost
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def settle_end(self, rank: int, cause: str, status: int, publish: bool = True) -> RunEnd:
        """Writes `cause` into the store as the end of the run, and returns why the run ends: for this cause, or for an
        earlier one in the store. Without `publish` the store is not used."""
        this_end = RunEnd(rank, self._hosts[rank], cause, status)
        if self._run_end is None and not publish:
            self._run_end = this_end
        if self._run_end is None:
            try:
                self._run_end = _parse_run_end(self._store.compare_set("run_end", "", json.dumps(asdict(this_end))))
            except RuntimeError:  # rank 0 has exited, and the store with it
                self._run_end = this_end
        return self._run_end

    def end_after(self, error: BaseException, status: int) -> RunEnd:
        """Why the run ends, after `error` was raised on this rank, whose exit status is `status`.

        If `error` is a lost connection, another rank has ended, and this one waits for it to write its cause.
        """
        if self._run_end is None and is_lost_connection(error):
            deadline = time.monotonic() + (2 if self.rank else 1) * PEER_SECONDS
            while self._run_end is None and time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 5)
            missing = [other for other in self._watched if self._silent[other] > MAX_MISSED_BEATS * BEAT_SECONDS]
            if self._run_end is None and missing:
                return self.report_lost(missing[0], f"is gone: {_first_line(error)}")
        stopped = isinstance(error, SystemExit | Stopped) and status in (EXIT_STOPPED, EXIT_INTERRUPTED)
        failed_rank = 0 if isinstance(error, RefusedByMain) else self.rank
        cause = "was stopped" if stopped else f"failed: {_first_line(error)}"
        return self.settle_end(failed_rank, cause, status)

    def should_report(self, error: BaseException, run_end: RunEnd) -> bool:
        """Whether this rank prints its own `error` instead of only `run_end`. The first rank to fail does. Rank 0 also
        prints a user's mistake, which several ranks may have noticed."""
        return run_end.rank == self.rank or (self.rank == 0 and isinstance(error, UserError))

    def close(self) -> None:
        """Ends both threads. All ranks must have called it before rank 0 exits, since the store ends with rank 0."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    # --- the threads

    def _beat(self) -> None:
        stop_exchanged = False
        while not self._closed.wait(BEAT_SECONDS):
            try:
                self._beat_store.add(f"beat/{self.rank}", 1)
                self._beats = {other: self._beat_store.add(f"beat/{other}", 0) for other in self._watched}
                if self._run_end is None and self._beat_store.check(["run_end"]):
                    self._run_end = _parse_run_end(self._beat_store.get("run_end"))
                signal_number = self.stop_signal()
                if signal_number is not None and not stop_exchanged:
                    self._beat_store.compare_set("stop", "", str(signal_number))
                    stop_exchanged = True
                elif signal_number is None and not stop_exchanged and self._beat_store.check(["stop"]):
                    # Runs this process's handler of the signal that another rank received
                    _thread.interrupt_main(signal.Signals(int(self._beat_store.get("stop"))))
                    stop_exchanged = True
            except RuntimeError as error:  # this rank has lost the store
                self._lost_store = " ".join(str(error).split())
                return
            self._heard.set()

    def _watch(self) -> None:
        last_beats: dict[int, int] = {}
        unanswered_seconds = 0.0
        before = time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            # A process that was suspended must not count the others as lost when it resumes
            self._was_suspended |= now - before > self.timeout
            passed, before = min(now - before, 2 * BEAT_SECONDS), now
            for other, beat in self._beats.items():
                self._silent[other] = self._silent[other] + passed if last_beats.get(other) == beat else 0.0
                last_beats[other] = beat
            unanswered_seconds = 0.0 if self._heard.is_set() else unanswered_seconds + passed
            self._heard.clear()
            if self._run_end is None:
                self._check_for_losses(unanswered_seconds)
            if self._run_end is not None:
                return self._end(self._run_end)

    def _check_for_losses(self, unanswered: float) -> None:
        lost = [other for other in self._watched if self._silent[other] > self.timeout]
        cause = f"sent no heartbeat for {self.timeout:g} s: it was stopped, hangs, or is gone"
        # The store is in the process of rank 0 or of torchrun; the loss of either counts as the loss of rank 0
        if self._lost_store is not None:
            self.report_lost(0, f"is gone ({self._lost_store})", publish=False)
        elif unanswered > self.timeout:
            self.report_lost(0, cause, publish=False)
        elif lost:
            self.report_lost(lost[0], cause, publish=lost[0] != 0)

    def report_lost(self, rank: int, cause: str, publish: bool = True) -> RunEnd:
        """Ends the run because `rank` is lost. Calls `on_lost` unless another cause came first or this process was
        itself suspended. Without `publish` the store, which may never answer, is not used."""
        run_end = self.settle_end(rank, cause, self.lost_status(), publish)
        if run_end.rank == rank and run_end.cause == cause and not self._was_suspended:
            self.on_lost(run_end)
        return run_end

    def _end(self, run_end: RunEnd) -> None:
        """Ends this process, unless its main thread does so within `GRACE_SECONDS`."""
        if self._closed.wait(GRACE_SECONDS):
            return
        print(shown_lines(f"error: rank {self.rank} ends, as {run_end.message}"), file=sys.stderr, flush=True)
        time.sleep(LINGER_SECONDS)
        os._exit(run_end.status)


def exit_status(error: BaseException) -> int:
    """The exit status of a process that ends with this exception."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    if isinstance(error, Stopped):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED


def is_lost_connection(error: BaseException) -> bool:
    """Whether an exception means that the connection to another rank was lost."""
    signs = ("gloo", "closed by peer", "reset by peer", "NCCL", "TCPStore")
    return isinstance(error, dist.DistError | RuntimeError) and any(sign in str(error) for sign in signs)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def _parse_run_end(text: bytes) -> RunEnd:
    return RunEnd(**json.loads(text))
