"""Heartbeats between ranks, so that no rank waits forever in a collective for one that has ended.

Every rank increments a counter of its own in the process group's store. Rank 0 watches the counters of all ranks, the
others that of rank 0. A rank that fails, or that sees another's counter stop, writes the cause into the store, and
every rank ends with the first cause. This works in threads, so also while the main thread is in a collective.
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
from vidtrain.training.signals import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped

BEAT_SECONDS = 0.5
MISSED = 4  # after so many missed beats, a lost connection to a rank counts as the loss of the rank
PEER_SECONDS = 5.0  # after a lost connection, wait so long for the other rank to write its cause
# Between writing the cause and exiting, so that every rank can read it before rank 0 exits and the store with it
LINGER_SECONDS = 2.0
GRACE_SECONDS = 15.0  # once the run is to end, the main thread has so long to exit by itself
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
        # Hooks that a program may set. The first one returns the number of the stop signal that came, if one did
        self.stop_signal: Callable[[], int | None] = lambda: None
        self.lost_status: Callable[[], int] = lambda: EXIT_FAILED  # exit status when another rank is lost
        self.on_lost: Callable[[RunEnd], None] = lambda run_end: None  # records the loss of another rank
        self._watched = [other for other in range(world_size) if other != rank] if rank == 0 else [0]
        self._beats = dict.fromkeys(self._watched, 0)
        self._silent = dict.fromkeys(self._watched, 0.0)  # seconds without a beat
        self._hosts = {rank: socket.gethostname()}
        self._store = connect()  # of the beat thread, whose calls may block
        self._ours = connect()  # of the other threads
        self._ours.set(f"host/{rank}", self._hosts[rank])
        self._hosts |= {other: self._ours.get(f"host/{other}").decode() for other in self._watched}
        self._run_end: RunEnd | None = None
        self._heard = threading.Event()  # set whenever the store has answered
        self._lost_store: str | None = None  # error of the connection to the store, once it is lost
        self._given_up = False  # whether this process was suspended so long that the others count it as lost
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True) for work in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def settle_end(self, rank: int, cause: str, status: int, tell: bool = True) -> RunEnd:
        """Writes into the store that `rank` has failed, and returns why the run ends: this cause, or an earlier one
        that is already there. Without `tell` the store is not used."""
        this_end = RunEnd(rank, self._hosts[rank], cause, status)
        if self._run_end is None and not tell:
            self._run_end = this_end
        if self._run_end is None:
            try:
                self._run_end = _read(self._ours.compare_set("run_end", "", json.dumps(asdict(this_end))))
            except RuntimeError:  # the store is in rank 0's process, which has exited
                self._run_end = this_end
        return self._run_end

    def end_after(self, error: BaseException, status: int) -> RunEnd:
        """Why the run ends, after `error` was raised on this rank, whose exit status is `status`.

        If `error` is a lost connection, another rank has ended, and this one waits for it to write its cause.
        """
        if self._run_end is None and of_peers(error):
            deadline = time.monotonic() + (2 if self.rank else 1) * PEER_SECONDS
            while self._run_end is None and time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 5)
            missing = [other for other in self._watched if self._silent[other] > MISSED * BEAT_SECONDS]
            if self._run_end is None and missing:
                return self.report_lost(missing[0], f"is gone: {_first_line(error)}")
        stopped = isinstance(error, SystemExit | Stopped) and status in (EXIT_STOPPED, EXIT_INTERRUPTED)
        failed_rank = 0 if isinstance(error, RefusedByMain) else self.rank
        cause = "was stopped" if stopped else f"failed: {_first_line(error)}"
        return self.settle_end(failed_rank, cause, status)

    def should_report(self, error: BaseException, run_end: RunEnd) -> bool:
        """Whether this rank prints its own `error` instead of only `run_end`. The first rank to fail does, and rank 0
        does for a user's mistake, which several ranks may have noticed."""
        return run_end.rank == self.rank or (self.rank == 0 and isinstance(error, UserError))

    def close(self) -> None:
        """Ends both threads. Rank 0 must not exit, and the store with it, before all ranks have done this."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    # --- the threads

    def _beat(self) -> None:
        stop_exchanged = False
        while not self._closed.wait(BEAT_SECONDS):
            try:
                self._store.add(f"beat/{self.rank}", 1)
                self._beats = {other: self._store.add(f"beat/{other}", 0) for other in self._watched}
                if self._run_end is None and self._store.check(["run_end"]):
                    self._run_end = _read(self._store.get("run_end"))
                signal_number = self.stop_signal()
                if signal_number is not None and not stop_exchanged:
                    self._store.compare_set("stop", "", str(signal_number))
                    stop_exchanged = True
                elif signal_number is None and not stop_exchanged and self._store.check(["stop"]):
                    # Runs this process's handler of the signal that another rank received
                    _thread.interrupt_main(signal.Signals(int(self._store.get("stop"))))
                    stop_exchanged = True
            except RuntimeError as error:  # whatever the cause, this rank has lost the store
                self._lost_store = " ".join(str(error).split())
                return
            self._heard.set()

    def _watch(self) -> None:
        last_beats: dict[int, int] = {}
        unanswered_seconds = 0.0
        before = time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            # A process that was suspended must not count the others as lost when it continues
            self._given_up |= now - before > self.timeout
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
        cause = f"gave no sign of life for {self.timeout:g} s: it was stopped, hangs, or is gone"
        # It is in the process of rank 0 or of torchrun: both count as rank 0
        if self._lost_store is not None:
            self.report_lost(0, f"is gone ({self._lost_store})", tell=False)
        elif unanswered > self.timeout:
            self.report_lost(0, cause, tell=False)
        elif lost:
            self.report_lost(lost[0], cause, tell=lost[0] != 0)

    def report_lost(self, rank: int, cause: str, tell: bool = True) -> RunEnd:
        """Ends the run because of the loss of `rank`, and records it (`on_lost`), unless another cause came first or
        this process was itself suspended. Without `tell` the store, which may never answer, is not used."""
        run_end = self.settle_end(rank, cause, self.lost_status(), tell)
        if run_end.rank == rank and run_end.cause == cause and not self._given_up:
            self.on_lost(run_end)
        return run_end

    def _end(self, run_end: RunEnd) -> None:
        """Ends this process, unless its main thread does so within `GRACE_SECONDS`."""
        if self._closed.wait(GRACE_SECONDS):
            return
        print(shown_lines(f"error: rank {self.rank} ends, as {run_end.message}"), file=sys.stderr, flush=True)
        time.sleep(LINGER_SECONDS)
        os._exit(run_end.status)


def status_of(error: BaseException) -> int:
    """The exit status of a process that ends with this exception."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    if isinstance(error, Stopped):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED


def of_peers(error: BaseException) -> bool:
    """Whether an exception means that the connection to another rank was lost."""
    signs = ("gloo", "closed by peer", "reset by peer", "NCCL", "TCPStore")
    return isinstance(error, dist.DistError | RuntimeError) and any(sign in str(error) for sign in signs)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def _read(text: bytes) -> RunEnd:
    return RunEnd(**json.loads(text))
