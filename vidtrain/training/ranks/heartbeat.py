"""Ranks that watch over each other, so that none waits for one that has gone.

Every rank counts up a beat of its own in the store where the ranks have met. Rank 0 looks at all of them, the others
at rank 0. A rank that fails leaves its verdict there, as does one that misses another's beat, and every rank ends with
the first verdict. It holds wherever the main thread is, in a collective too.
"""

import _thread
import json
import os
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
LINGER_SECONDS = 2.0  # after a verdict, so that every rank hears it before the store goes down with rank 0
GRACE_SECONDS = 15.0  # in which a rank's main thread may end by itself after a verdict
EXIT_FAILED, EXIT_USER_ERROR = 1, 2


@dataclass(frozen=True)
class Verdict:
    """Why a run's processes end: `cause` of `rank` on `host`, with exit `status`."""

    rank: int
    host: str
    cause: str
    status: int

    @property
    def words(self) -> str:
        return f"rank {self.rank} on {self.host} {self.cause}"


class RefusedByMain(UserError):
    """What rank 0 refuses, on the other ranks."""


class RankMonitor:
    """The watch of one rank, in threads of its own until `close`.

    `connect` gives a new connection to the store. A rank is taken for lost after `patience` seconds without a beat, not
    counting those in which this process was itself stopped.
    """

    def __init__(self, connect: Callable[[], dist.Store], rank: int, world_size: int, patience: float):
        self.patience = patience
        self.rank = rank
        # What a program may set: the signal that this process got, if it did; the status to end with when another rank
        # is lost; and what records that
        self.stop_signal: Callable[[], int | None] = lambda: None
        self.lost_status: Callable[[], int] = lambda: EXIT_FAILED
        self.on_lost: Callable[[Verdict], None] = lambda verdict: None
        self._watched = [each for each in range(world_size) if each != rank] if rank == 0 else [0]
        self._beats = dict.fromkeys(self._watched, 0)
        self._silent = dict.fromkeys(self._watched, 0.0)  # seconds without a beat
        self._hosts = {rank: socket.gethostname()}
        self._store = connect()  # for the beats, which may be stuck
        self._ours = connect()
        self._ours.set(f"host/{rank}", self._hosts[rank])
        self._hosts |= {each: self._ours.get(f"host/{each}").decode() for each in self._watched}
        self._verdict: Verdict | None = None
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

    def claim(self, cause: str, status: int, of: int | None = None, tell: bool = True) -> Verdict:
        """The verdict that holds: that rank `of` (this one, if None) has failed, if none did before it."""
        rank = self.rank if of is None else of
        mine = Verdict(rank, self._hosts[rank], cause, status)
        if self._verdict is None and not tell:
            self._verdict = mine
        if self._verdict is None:
            try:
                self._verdict = _read(self._ours.compare_set("verdict", "", json.dumps(asdict(mine))))
            except RuntimeError:  # the store went down with rank 0
                self._verdict = mine
        return self._verdict

    def verdict_on(self, error: BaseException, status: int) -> Verdict:
        """The verdict that holds once this rank has met `error`, which comes to the exit `status`.

        What a lost connection tells of is another rank's end, so that one is given time to say what it failed of.
        """
        if self._verdict is None and of_peers(error):
            deadline = time.monotonic() + (2 if self.rank else 1) * PEER_SECONDS
            while self._verdict is None and time.monotonic() < deadline:
                time.sleep(BEAT_SECONDS / 5)
            missing = [each for each in self._watched if self._silent[each] > MISSED * BEAT_SECONDS]
            if self._verdict is None and missing:
                return self.lose(missing[0], f"is gone: {_first_line(error)}")
        stopped = isinstance(error, SystemExit | Stopped) and status in (EXIT_STOPPED, EXIT_INTERRUPTED)
        whose = 0 if isinstance(error, RefusedByMain) else self.rank
        return self.claim("was stopped" if stopped else f"failed: {_first_line(error)}", status, whose)

    def speaks(self, error: BaseException, verdict: Verdict) -> bool:
        """Whether this rank is one to tell of its `error`, and not of the `verdict` alone: the first of all to fail is,
        and rank 0 of a mistake of the user's that several ranks have found."""
        return verdict.rank == self.rank or (self.rank == 0 and isinstance(error, UserError))

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
                self._beats = {each: self._store.add(f"beat/{each}", 0) for each in self._watched}
                if self._verdict is None and self._store.check(["verdict"]):
                    self._verdict = _read(self._store.get("verdict"))
                number = self.stop_signal()
                if number is not None and not told:
                    self._store.compare_set("stop", "", str(number))
                    told = True
                elif number is None and not told and self._store.check(["stop"]):
                    _thread.interrupt_main(int(self._store.get("stop")))  # as if the signal had come here
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
            self._given_up |= now - before > self.patience
            passed, before = min(now - before, 2 * BEAT_SECONDS), now
            for each, beat in self._beats.items():
                self._silent[each] = self._silent[each] + passed if seen.get(each) == beat else 0.0
                seen[each] = beat
            unanswered = 0.0 if self._heard.is_set() else unanswered + passed
            self._heard.clear()
            if self._verdict is None:
                self._look_for_losses(unanswered)
            if self._verdict is not None:
                return self._end(self._verdict)

    def _look_for_losses(self, unanswered: float) -> None:
        lost = [each for each in self._watched if self._silent[each] > self.patience]
        silence = f"gave no sign of life for {self.patience:g} s: it was stopped, hangs, or is gone"
        if self._lost_store is not None:  # it lies in rank 0's process, or in torchrun's
            self.lose(0, f"is gone ({self._lost_store})", tell=False)
        elif unanswered > self.patience:
            self.lose(0, silence, tell=False)
        elif lost:
            self.lose(lost[0], silence, tell=lost[0] != 0)

    def lose(self, rank: int, cause: str, tell: bool = True) -> Verdict:
        """Claims the loss of another rank; it is recorded by this one, unless that rank had given this one up before.
        Without `tell` the store is not asked, which may never answer."""
        verdict = self.claim(cause, self.lost_status(), rank, tell)
        if verdict.rank == rank and verdict.cause == cause and not self._given_up:
            self.on_lost(verdict)
        return verdict

    def _end(self, verdict: Verdict) -> None:
        """The end of this process, if its main thread does not come to it."""
        if self._closed.wait(GRACE_SECONDS):
            return
        print(shown_lines(f"error: rank {self.rank} ends, as {verdict.words}"), file=sys.stderr, flush=True)
        time.sleep(LINGER_SECONDS)
        os._exit(verdict.status)


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
    words = ("gloo", "closed by peer", "reset by peer", "NCCL", "TCPStore")
    return isinstance(error, dist.DistError | RuntimeError) and any(word in str(error) for word in words)


def _first_line(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return line if isinstance(error, UserError) else f"{type(error).__name__}: {line}"


def _read(text: bytes) -> Verdict:
    return Verdict(**json.loads(text))
