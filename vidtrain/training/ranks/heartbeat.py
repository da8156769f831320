"""Ranks that watch over each other, so that none waits for one that has gone.

Every rank counts up a beat of its own in the store where the ranks have met. Rank 0 looks at all of them, the others
at rank 0. A rank that fails leaves the cause there, as does one that misses another's beat, and every rank ends with
the first cause. It holds wherever the main thread is, in a collective too.
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
from vidtrain.training.ranks.signals import EXIT_INTERRUPTED, EXIT_STOPPED, Stopped

BEAT_SECONDS = 0.5
MISSED = 4  # beats, before a rank is under suspicion
PEER_SECONDS = 5.0  # in which a rank whose connection is lost may say why
LINGER_SECONDS = (
    2.0  # after the end of a run is known, so that every rank hears it before the store goes down with rank 0
)
GRACE_SECONDS = 15.0  # in which a rank's main thread may end by itself then
EXIT_FAILED, EXIT_USER_ERROR = 1, 2


@dataclass(frozen=True)
class RunEnd:
    """Why a run's processes end: `cause` of `rank` on `host`, with exit `status`."""

    rank: int
    host: str
    cause: str
    status: int

    @property
    def message(self) -> str:
        return f"rank {self.rank} on {self.host} {self.cause}"


class RefusedByMain(UserError):
    """What rank 0 refuses, on the other ranks."""


class RankMonitor:
    """The watch of one rank, in threads of its own until `close`.

    `connect` gives a new connection to the store. A rank is taken for lost after `timeout` seconds without a beat, not
    counting those in which this process was itself stopped.
    """

    def __init__(self, connect: Callable[[], dist.Store], rank: int, world_size: int, timeout: float):
        self.timeout = timeout
        self.rank = rank
        # What a program may set: the signal that this process got, if it did; the status to end with when another rank
        # is lost; and what records that
        self.stop_signal: Callable[[], int | None] = lambda: None
        self.lost_status: Callable[[], int] = lambda: EXIT_FAILED
        self.on_lost: Callable[[RunEnd], None] = lambda run_end: None
        self._watched = [other for other in range(world_size) if other != rank] if rank == 0 else [0]
        self._beats = dict.fromkeys(self._watched, 0)
        self._silent = dict.fromkeys(self._watched, 0.0)  # seconds without a beat
        self._hosts = {rank: socket.gethostname()}
        self._store = connect()  # for the beats, which may be stuck
        self._ours = connect()
        self._ours.set(f"host/{rank}", self._hosts[rank])
        self._hosts |= {other: self._ours.get(f"host/{other}").decode() for other in self._watched}
        self._run_end: RunEnd | None = None
        self._heard = threading.Event()  # an answer of the store
        self._lost_store: str | None = None
        self._given_up = False  # by the others, while this process was suspended
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=work, name=work.__name__, daemon=True)
            for work in (self._beat, self._watch)
        ]
        for thread in self._threads:
            thread.start()

    def settle_end(self, cause: str, status: int, of: int | None = None, tell: bool = True) -> RunEnd:
        """Why the run ends: because rank `of` (this one, if None) has failed, unless another did before it."""
        rank = self.rank if of is None else of
        own = RunEnd(rank, self._hosts[rank], cause, status)
        if self._run_end is None and not tell:
            self._run_end = own
        if self._run_end is None:
            try:
                self._run_end = _read(self._ours.compare_set("run_end", "", json.dumps(asdict(own))))
            except RuntimeError:  # the store went down with rank 0
                self._run_end = own
        return self._run_end

    def end_after(self, error: BaseException, status: int) -> RunEnd:
        """Why the run ends once this rank has met `error`, which comes to the exit `status`.

        What a lost connection tells of is another rank's end, so that one is given time to say what it failed of.
        """
        if self._run_end is None and of_peers(error):
            deadline = time.monotonic() + (2 if self.rank else 1) * PEER_SECONDS
            while self._run_end is None and time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 5)
            missing = [other for other in self._watched if self._silent[other] > MISSED * BEAT_SECONDS]
            if self._run_end is None and missing:
                return self.report_lost(missing[0], f"is gone: {_first_line(error)}")
        stopped = isinstance(error, SystemExit | Stopped) and status in (EXIT_STOPPED, EXIT_INTERRUPTED)
        whose = 0 if isinstance(error, RefusedByMain) else self.rank
        return self.settle_end("was stopped" if stopped else f"failed: {_first_line(error)}", status, whose)

    def should_report(self, error: BaseException, run_end: RunEnd) -> bool:
        """Whether this rank is one to tell of its `error`, and not of the `run_end` alone: the first of all to fail is,
        and rank 0 of a mistake of the user's that several ranks have found."""
        return run_end.rank == self.rank or (self.rank == 0 and isinstance(error, UserError))

    def close(self) -> None:
        """Ends the watch. All ranks must have come here before the store may go."""
        self._closed.set()
        for thread in self._threads:
            thread.join()

    # --- the threads

    def _beat(self) -> None:
        told = False
        while not self._closed.wait(BEAT_SECONDS):
            try:
                self._store.add(f"beat/{self.rank}", 1)
                self._beats = {other: self._store.add(f"beat/{other}", 0) for other in self._watched}
                if self._run_end is None and self._store.check(["run_end"]):
                    self._run_end = _read(self._store.get("run_end"))
                number = self.stop_signal()
                if number is not None and not told:
                    self._store.compare_set("stop", "", str(number))
                    told = True
                elif number is None and not told and self._store.check(["stop"]):
                    _thread.interrupt_main(
                        signal.Signals(int(self._store.get("stop")))
                    )  # as if the signal had come here
                    told = True
            except RuntimeError as error:  # whatever it is, this rank is alone now
                self._lost_store = " ".join(str(error).split())
                return
            self._heard.set()

    def _watch(self) -> None:
        seen: dict[int, int] = {}
        unanswered = 0.0
        before = time.monotonic()
        while not self._closed.wait(BEAT_SECONDS):
            now = time.monotonic()
            # a process that was suspended must not take the others for dead when it goes on
            self._given_up |= now - before > self.timeout
            passed, before = min(now - before, 2 * BEAT_SECONDS), now
            for other, beat in self._beats.items():
                self._silent[other] = self._silent[other] + passed if seen.get(other) == beat else 0.0
                seen[other] = beat
            unanswered = 0.0 if self._heard.is_set() else unanswered + passed
            self._heard.clear()
            if self._run_end is None:
                self._check_for_losses(unanswered)
            if self._run_end is not None:
                return self._end(self._run_end)

    def _check_for_losses(self, unanswered: float) -> None:
        lost = [other for other in self._watched if self._silent[other] > self.timeout]
        silence = f"gave no sign of life for {self.timeout:g} s: it was stopped, hangs, or is gone"
        if self._lost_store is not None:  # it lies in rank 0's process, or in torchrun's
            self.report_lost(0, f"is gone ({self._lost_store})", tell=False)
        elif unanswered > self.timeout:
            self.report_lost(0, silence, tell=False)
        elif lost:
            self.report_lost(lost[0], silence, tell=lost[0] != 0)

    def report_lost(self, rank: int, cause: str, tell: bool = True) -> RunEnd:
        """Claims the loss of another rank; it is recorded by this one, unless that rank had given this one up before.
        Without `tell` the store is not asked, which may never answer."""
        run_end = self.settle_end(cause, self.lost_status(), rank, tell)
        if run_end.rank == rank and run_end.cause == cause and not self._given_up:
            self.on_lost(run_end)
        return run_end

    def _end(self, run_end: RunEnd) -> None:
        """The end of this process, if its main thread does not come to it."""
        if self._closed.wait(GRACE_SECONDS):
            return
        print(shown_lines(f"error: rank {self.rank} ends, as {run_end.message}"), file=sys.stderr, flush=True)
        time.sleep(LINGER_SECONDS)
        os._exit(run_end.status)


def status_of(error: BaseException) -> int:
    """The exit status that an exception comes to."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else EXIT_FAILED
    if isinstance(error, Stopped):
        return error.status
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED


def of_peers(error: BaseException) -> bool:
    """Whether an exception tells of a connection to another rank that was lost."""
    signs = ("gloo", "closed by peer", "reset by peer", "NCCL", "TCPStore")
    return isinstance(error, dist.DistError | RuntimeError) and any(sign in str(error) for sign in signs)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def _read(text: bytes) -> RunEnd:
    return RunEnd(**json.loads(text))
