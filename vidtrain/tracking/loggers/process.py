"""A tracker in a process of its own: whatever it does there, the run that it shows goes on.

A process and not a thread, because a service that was stopped hangs its caller for ever, also at the interpreter's
exit; because a process can be ended; because the interpreter's lock is not shared; and because data workers may be
forked at any time, which threads that hold locks make unsafe.
"""

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from vidtrain.errors import UserError
from vidtrain.files.masking import hidden
from vidtrain.tracking.loggers.channel import RECEIVED, Frames, Outbox
from vidtrain.tracking.loggers.logger import LoggedRun, Logger

log = logging.getLogger(__name__)

MOST_WAITING = 8 << 20  # bytes of calls that the other process has not taken: about 5,000 rows
STALL_SECONDS = 60.0  # without taking any of them, after which it counts as hanging
LEAVE_SECONDS = 5.0  # for a process that has said its last word
SAID_AFTER = 3.0  # seconds of waiting at the end before one is told why
TRUTH = "metrics.jsonl has all"


class LoggerProcess:
    """Runs a logger in another process. `tell` hands a call over without waiting.

    What is printed there goes to .NAME.log in the run folder, which stays where the logger failed.
    Where that process fails, hangs or does not keep up, there is one warning, and the caller goes on.
    """

    def __init__(self, name: str, logger: Logger):
        self._name = name
        self._logger = logger
        self._process: subprocess.Popen | None = (
            None  # None before the start and once it is given up or closed
        )
        self._answers = Frames()
        self._begun = False  # `start` has returned there
        self._refusal: str | None = None
        self._dropped = 0  # rows
        self._told_at = 0.0  # when the other process last took anything

    def launch(self, run: LoggedRun) -> None:
        """Starts the process, which starts the logger."""
        self._run = run
        self._started_at = self._told_at = time.monotonic()
        run.folder.mkdir(parents=True, exist_ok=True)
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        self._outbox = Outbox(self._connection)
        self._words = run.folder / f".{self._name}.log"
        try:
            with theirs, open_words(self._words) as words:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vidtrain.tracking.loggers.service", str(theirs.fileno())],
                    # what can be imported here must be there
                    env={
                        **os.environ,
                        "PYTHONPATH": os.pathsep.join(os.path.abspath(each) for each in sys.path),
                    },
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=words,
                    start_new_session=True,  # a Ctrl-C on the terminal is not for it
                )
        except OSError as error:
            log.warning("%s is switched off for this run: %s", self._logger.label, error)
            return
        if hidden():
            self.tell("hide", hidden())
        self.tell("start", self._logger, run)

    def wait_for_start(self) -> None:
        """Waits for the logger's start, where that may refuse. Raises UserError where it did."""
        if not self._logger.waits_for_start:
            return
        deadline = self._started_at + self._logger.start_seconds
        while self._process is not None and not self._begun and time.monotonic() < deadline:
            self._exchange(0.2)
        if self._refusal is not None:
            raise UserError(self._refusal)
        if self._process is not None and not self._begun:
            self._give_up(f"it has not started within {self._logger.start_seconds:g} s")

    def tell(self, call: str, *arguments: Any) -> None:
        """Hands a call over. When too much waits already, a row is dropped and counted."""
        if self._process is None:
            return
        if self._outbox.waiting > MOST_WAITING and call in ("log", "image"):
            self._dropped += 1
        else:
            self._outbox.add((call, arguments))
        self._exchange(0.0)
        # what starts up may not take anything for as long as it is allowed to
        patience = STALL_SECONDS if self._begun else max(STALL_SECONDS, self._logger.start_seconds)
        if self._process is not None and self._dropped and time.monotonic() - self._told_at > patience:
            self._give_up(f"it has taken nothing for {patience:g} s")

    def close(self) -> None:
        """Waits until the process has done all it was told, the last being `close`; ends it where that takes too
        long."""
        began = time.monotonic()
        limit, said = self._logger.close_seconds, False
        while self._process is not None and time.monotonic() - began < limit:
            self._exchange(0.2)
            if self._process is not None and not said and time.monotonic() - began > SAID_AFTER:
                log.info("waiting for %s, at most %g s", self._logger.label, limit)
                said = True
        if self._process is not None:
            self._give_up(f"it did not end within {limit:g} s, and lacks what it had not taken")

    # --- the other process ----------------------------------------------------------------------------------

    def _exchange(self, seconds: float) -> None:
        """Sends and hears what can be, waiting at most so long for the chance."""
        try:
            if seconds:
                writing = [self._connection] if self._outbox.waiting else []
                select.select([self._connection], writing, [], seconds)
            if self._outbox.push() or not self._outbox.waiting:
                self._told_at = time.monotonic()
        except OSError:
            pass  # it has ended; its last words come first
        while self._process is not None:
            try:
                data = self._connection.recv(RECEIVED)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._give_up("its process has ended")
                return
            for answer, *words in self._answers.add(data):
                self._hear(answer, words)

    def _hear(self, answer: str, words: list[Any]) -> None:
        match answer:
            case "started":
                self._begun = True
            case "warning":
                log.warning("%s", words[0])
            case "refused":
                self._refusal = words[0]
                if not self._logger.waits_for_start:
                    log.warning("%s is switched off for this run: %s", self._logger.label, words[0])
                self._end(LEAVE_SECONDS)
                self._words.unlink(missing_ok=True)
            case "failed":
                self._give_up(words[0], LEAVE_SECONDS)
            case "closed":
                if self._dropped:
                    log.warning(
                        "%s did not keep up: it lacks %d rows; %s", self._logger.label, self._dropped, TRUTH
                    )
                if words[0]:
                    log.info("%s: %s", self._logger.label, words[0])
                self._end(LEAVE_SECONDS)
                self._words.unlink(missing_ok=True)

    def _give_up(self, why: str, patience: float = 0.0) -> None:
        if self._process is not None:  # it was the same failure that ended it
            self._end(patience)
            said = self._words.is_file() and self._words.stat().st_size > 0
            more = f" (it said more in {self._words})" if said else ""
            log.warning("%s is switched off for this run: %s%s; %s", self._logger.label, why, more, TRUTH)
            if not said:
                self._words.unlink(missing_ok=True)

    def _end(self, patience: float) -> None:
        """Ends the process, which may leave by itself for so long, and what it started: W&B's service may hang, too."""
        process, self._process = self._process, None
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if process.poll() is None:
            for each in [*descendants(process.pid), process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            process.wait()
        self._connection.close()


def open_words(path: Path) -> IO[bytes]:
    """What trackers print, which would break the progress bar; nowhere where that cannot be written."""
    try:
        return path.open("ab")
    except OSError:
        return open(os.devnull, "wb")


def descendants(process: int) -> list[int]:
    """The processes that `process` has started, and those that they have; none where the system does not tell."""
    parents: dict[int, int] = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # the name, in parentheses, may hold anything
            parents[int(each.parent.name)] = int(
                each.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1]
            )
    found = [process]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found[1:]
