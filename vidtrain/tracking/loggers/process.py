"""Loggers in processes of their own: whatever they do there, the run that they show goes on. Both sides are here.

A process and not a thread, because a service that was stopped hangs its caller forever, also at the interpreter's
exit; because a process can be ended; because the interpreter's lock is not shared; and because data workers may be
forked at any time, which threads that hold locks make unsafe.

The other side is python -m vidtrain.tracking.loggers.process DESCRIPTOR, that of a socket: calls come in, pickled, and
answers go out, a line of JSON for each.
"""

import json
import logging
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import IO, Any

from vidtrain.errors import UserError
from vidtrain.files.escaping import hidden, hide_these, map_texts, mask_streams, shown
from vidtrain.tracking.loggers.logger import LoggedRun, Logger, Metric

log = logging.getLogger(__name__)

MOST_WAITING = 8 << 20  # bytes of calls that the other process has not taken: about 5,000 rows
STALL_SECONDS = 60.0  # without taking any of them, after which it counts as hanging
LEAVE_SECONDS = 5.0  # for a process that has given its last answer
NOTICE_SECONDS = 3.0  # of waiting at the end before one is told why
TRUTH = "metrics.jsonl has all"


class Loggers:
    """Repeats every call to each of `loggers`, by name; none can stop, slow or hang the caller, or another."""

    def __init__(self, loggers: Mapping[str, Logger]):
        self._processes = [LoggerProcess(name, logger) for name, logger in loggers.items()]

    def start(self, run: LoggedRun) -> None:
        """Raises UserError where a tracker refuses to start, such as W&B online without a key."""
        settings = escape_texts(run.settings)
        run = replace(run, settings=settings, name=shown(run.name), group=shown(run.group))
        for process in self._processes:
            process.launch(run)
        for process in self._processes:
            process.wait_for_start()

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        self._send("log", escape_texts(metrics), step)

    def image(self, name: str, path: Path, step: int) -> None:
        self._send("image", name, path, step)

    def page(self, name: str, path: Path, step: int) -> None:
        self._send("page", name, path, step)

    def checkpoint(self, name: str, path: Path) -> None:
        self._send("checkpoint", name, path)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._send("summary", escape_texts(values))

    def close(self, status: str) -> None:
        """Returns once all is logged, or given up: at most `close_seconds` of the slowest later."""
        self._send("close", status)
        for process in self._processes:
            process.close()

    def _send(self, call: str, *arguments: Any) -> None:
        for process in self._processes:
            process.send(call, *arguments)


def escape_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that every tracker can store and show: settings hold paths and class names, which may hold bytes that are
    no UTF-8, or characters that act."""
    return {shown(key): map_texts(value, shown) for key, value in values.items()}


class LoggerProcess:
    """Runs a logger in another process. `send` hands a call over without waiting.

    What is printed there goes to .NAME.log in the run folder, which stays where the logger failed. Where that process
    fails, hangs or does not keep up, there is one warning, and the caller goes on.
    """

    def __init__(self, name: str, logger: Logger):
        self._name = name
        self._logger = logger
        self._process: subprocess.Popen[bytes] | None = None  # before it starts, and once it has been ended
        self._answer = b""  # the part of one that has come
        self._outbox = bytearray()  # calls that wait until the socket takes them
        self._started = False  # `start` has returned there
        self._refusal: str | None = None
        self._dropped_rows = 0

    def launch(self, run: LoggedRun) -> None:
        """Starts the process, which starts the logger."""
        self._launched_at = self._taken_at = time.monotonic()  # taken: the process last read a call
        run.folder.mkdir(parents=True, exist_ok=True)
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        self._output = run.folder / f".{self._name}.log"
        try:
            with theirs, open_output(self._output) as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vidtrain.tracking.loggers.process", str(theirs.fileno())],
                    # what can be imported here must be there
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # a Ctrl-C on the terminal is not for it
                )
        except OSError as error:
            log.warning("%s is switched off for this run: %s", self._logger.label, error)
            return
        self.send("start", self._logger, run, hidden())

    def wait_for_start(self) -> None:
        """Waits for the logger's start, where that may refuse. Raises UserError where it did."""
        if not self._logger.waits_for_start:
            return
        limit = self._logger.start_seconds
        while self._process is not None and not self._started:
            if time.monotonic() > self._launched_at + limit:
                self._give_up(f"it has not started within {limit:g} s")
            else:
                self._exchange(0.2)
        if self._refusal is not None:
            raise UserError(self._refusal)

    def send(self, call: str, *arguments: Any) -> None:
        """Hands a call over. When too much waits already, a row is dropped and counted."""
        if self._process is None:
            return
        if len(self._outbox) > MOST_WAITING and call in ("log", "image", "page"):
            self._dropped_rows += 1
        else:
            self._outbox += pickle.dumps((call, arguments))
        self._exchange(0.0)
        # what starts up may not take anything for as long as it is allowed to
        limit = STALL_SECONDS if self._started else max(STALL_SECONDS, self._logger.start_seconds)
        if self._dropped_rows and time.monotonic() - self._taken_at > limit:
            self._give_up(f"it has taken nothing for {limit:g} s")

    def close(self) -> None:
        """Waits until the process has made all calls, the last being `close`; ends it where that takes too long."""
        began, limit, told = time.monotonic(), self._logger.close_seconds, False
        while self._process is not None:
            self._exchange(0.2)
            waited = time.monotonic() - began
            if waited > limit:
                self._give_up(f"it did not end within {limit:g} s, and lacks what it had not taken")
            elif self._process is not None and not told and waited > NOTICE_SECONDS:
                log.info("waiting for %s, at most %g s", self._logger.label, limit)
                told = True

    def _exchange(self, seconds: float) -> None:
        """Sends and receives what can be now, after waiting at most `seconds` for the chance."""
        with suppress(OSError):  # the process has ended; its last answers come first
            if seconds:
                poll = select.poll()
                poll.register(self._connection, select.POLLIN | (select.POLLOUT if self._outbox else 0))
                poll.poll(seconds * 1000)
            waiting = len(self._outbox)
            with suppress(BlockingIOError):
                while self._outbox:
                    del self._outbox[: self._connection.send(self._outbox)]
            if len(self._outbox) < waiting or not waiting:
                self._taken_at = time.monotonic()
        while self._process is not None:
            try:
                data = self._connection.recv(1 << 16)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self._give_up("its process has ended")
            *lines, self._answer = (self._answer + data).split(b"\n")
            for line in lines:
                self._hear(*json.loads(line))

    def _hear(self, kind: str, text: str | None) -> None:
        match kind:
            case "started":
                self._started = True
            case "warning":
                log.warning("%s", text)
            case "refused":
                self._refusal = text
                if not self._logger.waits_for_start:
                    log.warning("%s is switched off for this run: %s", self._logger.label, text)
                self._end(LEAVE_SECONDS)
                self._output.unlink(missing_ok=True)
            case "failed":
                self._give_up(str(text), LEAVE_SECONDS)
            case "closed":
                if self._dropped_rows:
                    lacking = f"it lacks {self._dropped_rows} rows; {TRUTH}"
                    log.warning("%s did not keep up: %s", self._logger.label, lacking)
                if text:
                    log.info("%s: %s", self._logger.label, text)
                self._end(LEAVE_SECONDS)
                self._output.unlink(missing_ok=True)

    def _give_up(self, why: str, patience: float = 0.0) -> None:
        if self._process is None:  # the same failure has ended it
            return
        self._end(patience)
        printed = self._output.is_file() and self._output.stat().st_size > 0
        more = f" (it said more in {self._output})" if printed else ""
        log.warning("%s is switched off for this run: %s%s; %s", self._logger.label, why, more, TRUTH)
        if not printed:
            self._output.unlink(missing_ok=True)

    def _end(self, patience: float) -> None:
        """Ends the process, which has `patience` seconds to leave by itself, and those that it started: W&B's service
        may hang, too."""
        process, self._process = self._process, None
        if process is None:
            return
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        if process.poll() is None:
            for number in [*descendants(process.pid), process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            process.wait()
        self._connection.close()


def open_output(path: Path) -> IO[bytes]:
    """A file for what trackers print, which would break the progress bar; none where it cannot be written."""
    try:
        return path.open("ab")
    except OSError:
        return open(os.devnull, "wb")


def descendants(process: int) -> list[int]:
    """The processes that `process` has started, and those that they have; none where the system does not tell."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            text = stat.read_text(encoding="utf-8", errors="replace")
            parents[int(stat.parent.name)] = int(
                text.rpartition(")")[2].split()[1]
            )  # a name may hold anything
    family = [process]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family[1:]


# --- the other process: it makes the calls that the training process sends, one after another --------------

# A scheduler signals every process of a job; this one ends when the training process has
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK_EVERY = 2.0  # seconds between looks at whether the training process lives


class Relay(logging.Handler):
    """Hands the warnings of a logger to the training process, which has a console."""

    def __init__(self, connection: socket.socket):
        super().__init__(logging.WARNING)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        answer(self._connection, "warning", record.getMessage())


def serve(connection: socket.socket) -> None:
    """Makes every call, of which the first is `start`; a failure is the last thing that it answers."""
    messages = calls(connection)
    try:
        first = next(messages, None)
        if first is None:
            return
        logger, run, secrets = first[1]
        hide_these(secrets)
        logger.start(run)
        answer(connection, "started")
        for call, arguments in messages:
            result = getattr(logger, call)(*arguments)
            if call == "close":
                answer(connection, "closed", result)
                return
        logger.close("killed")  # nobody is left to hear of it
    except UserError as error:
        answer(connection, "refused", str(error))
    except Exception as error:  # whatever fails in a logger, the run folder holds the truth
        traceback.print_exc()
        answer(connection, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}")


def calls(connection: socket.socket) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """The calls of the training process until it has ended."""
    Thread(target=hang_up_with, args=(os.getppid(), connection), daemon=True).start()
    with connection.makefile("rb") as stream, suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            yield pickle.load(stream)


def hang_up_with(parent: int, connection: socket.socket) -> None:
    """Ends what can be read once `parent` has ended: its forked workers hold the other end open for a while."""
    while os.getppid() == parent:
        time.sleep(LOOK_EVERY)
    connection.shutdown(socket.SHUT_RD)


def answer(connection: socket.socket, kind: str, text: str | None = None) -> None:
    with suppress(OSError):  # nobody is left to hear it
        connection.sendall(json.dumps([kind, text]).encode() + b"\n")


def main() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    mask_streams()  # what trackers print goes to a file
    connection = socket.socket(fileno=int(sys.argv[1]))
    connection.set_inheritable(False)
    ours = logging.getLogger("vidtrain")
    ours.addHandler(Relay(connection))
    ours.propagate = False
    serve(connection)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # what trackers left behind must not hold it up; all that is worth keeping is written


if __name__ == "__main__":
    main()
