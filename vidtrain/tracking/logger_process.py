"""The interface of a logger, and the process in which each logger runs, so that its failure cannot stop training.

A process is safer than a thread: a service that hangs blocks a thread forever, even at the interpreter's exit, while a
process can be killed. It has its own GIL, and data workers may be forked at any time, which threads with locks forbid.

The process runs python -m vidtrain.tracking.logger_process FD, the file descriptor of a socket. It receives pickled
calls, and sends each answer as a line of JSON.
"""

import importlib.util
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import IO, Any, Protocol

from vidtrain.errors import UserError
from vidtrain.files.escaping import hidden, hide_these, map_texts, mask_streams, shown
from vidtrain.files.folders import install_hint

log = logging.getLogger(__name__)

MAX_QUEUED_BYTES = 8 << 20  # of calls that may wait for the other process: about 5,000 rows
STALL_SECONDS = 60.0  # a process that has read no call for so long counts as hanging
LEAVE_SECONDS = 5.0  # a process may take so long to exit after its last answer
NOTICE_SECONDS = 3.0  # after waiting so long at the end, a message says for which logger
COMPLETE_COPY = "metrics.jsonl has all"

Metric = float | int | str | None


@dataclass(frozen=True)
class LoggedRun:
    """The description of a run that a logger gets at its start."""

    folder: Path
    id: str  # the same when the run is resumed
    name: str
    group: str  # name of the sweep or experiment that the run belongs to
    settings: Mapping[str, Any]  # the resolved configuration, by dotted key
    step: int = 0  # step that the run starts from; a resumed run may log later steps again


class Logger(Protocol):
    """The interface of a logger. It runs in a process of its own (`LoggerProcess`), so any call may raise or hang.

    It is constructed in the training process and pickled to the other before `start`, so it must be picklable until
    then. Only its constructor and `start` may raise UserError.
    """

    label: str  # its name in messages
    waits_for_start: bool  # whether training waits for `start`, so that its UserError can end the run
    start_seconds: float  # time limit of `start`
    close_seconds: float  # time limit for all calls that are left when the run ends

    def start(self, run: LoggedRun) -> None:
        """Starts logging. If a run with the same id exists, logging continues there."""

    def log(self, metrics: Mapping[str, Metric], step: int) -> None: ...
    def image(self, name: str, path: Path, step: int) -> None: ...
    def page(self, name: str, path: Path, step: int) -> None:
        """Shows or stores a self-contained HTML file."""

    def checkpoint(self, name: str, path: Path) -> None:
        """Stores a checkpoint file, if the logger is configured to."""

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self, status: str) -> str | None:
        """Ends the run; `status` is "finished" if it reached its end. Returns a hint how to view it, or None."""


def require_packages(names: Sequence[str], option: str, extra: str) -> None:
    """Raises UserError if a package of `names` is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"logger={option} needs {', '.join(missing)}: {install_hint(extra)}")


def check_artifacts(logger: str, artifacts: str | None) -> None:
    if artifacts not in (None, "best"):
        raise UserError(f'logger.{logger}.artifacts is "{artifacts}": it must be best, or null for none.')


class Loggers:
    """Passes every call on to each of `loggers`, by name. None of them can delay or stop the caller or one another."""

    def __init__(self, loggers: Mapping[str, Logger]):
        self._processes = [LoggerProcess(name, logger) for name, logger in loggers.items()]

    def start(self, run: LoggedRun) -> None:
        """Starts all loggers. Raises UserError if one refuses to start, such as W&B online without a key."""
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
        """Returns once all calls are made or given up, after at most `close_seconds` of the slowest logger."""
        self._send("close", status)
        for process in self._processes:
            process.close()

    def _send(self, call: str, *arguments: Any) -> None:
        for process in self._processes:
            process.send(call, *arguments)


def escape_texts(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy with all texts escaped, so that every tracker can store them: paths and class names may hold control
    characters, or bytes that are not UTF-8."""
    return {shown(key): map_texts(value, shown) for key, value in values.items()}


class LoggerProcess:
    """Runs a logger in another process. `send` passes a call to it without waiting.

    The output of that process goes to .NAME.log in the run folder, which is deleted unless the logger fails. If the
    process fails, hangs or does not keep up, there is one warning, and the caller goes on.
    """

    def __init__(self, name: str, logger: Logger):
        self._name = name
        self._logger = logger
        self._process: subprocess.Popen[bytes] | None = None  # None before it starts and after it has ended
        self._answer = b""  # the bytes received of an incomplete answer
        self._outbox = bytearray()  # calls that wait until the socket accepts them
        self._started = False  # whether `start` has returned there
        self._refusal: str | None = None
        self._dropped_rows = 0

    def launch(self, run: LoggedRun) -> None:
        """Starts the process, which then starts the logger."""
        self._launched_at = self._taken_at = time.monotonic()  # _taken_at: when the process last read a call
        run.folder.mkdir(parents=True, exist_ok=True)
        self._connection, theirs = socket.socketpair()
        self._connection.setblocking(False)
        self._output = run.folder / f".{self._name}.log"
        try:
            with theirs, open_output(self._output) as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "vidtrain.tracking.logger_process", str(theirs.fileno())],
                    # the other process must find all modules that this one can import
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # so that Ctrl-C on the terminal does not reach it
                )
        except OSError as error:
            log.warning("%s is switched off for this run: %s", self._logger.label, error)
            return
        self.send("start", self._logger, run, hidden())

    def wait_for_start(self) -> None:
        """Waits for the logger's start if `waits_for_start`. Raises UserError if it refused to start."""
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
        """Passes a call to the process. If too many bytes wait already, a row is dropped and counted."""
        if self._process is None:
            return
        if len(self._outbox) > MAX_QUEUED_BYTES and call in ("log", "image", "page"):
            self._dropped_rows += 1
        else:
            self._outbox += pickle.dumps((call, arguments))
        self._exchange(0.0)
        # A logger reads no calls before `start` has returned, which may take `start_seconds`
        limit = STALL_SECONDS if self._started else max(STALL_SECONDS, self._logger.start_seconds)
        if self._dropped_rows and time.monotonic() - self._taken_at > limit:
            self._give_up(f"it has taken nothing for {limit:g} s")

    def close(self) -> None:
        """Waits until the process has made all calls, the last of which is `close`; kills it if that takes too long."""
        started, limit, notice_shown = time.monotonic(), self._logger.close_seconds, False
        while self._process is not None:
            self._exchange(0.2)
            waited = time.monotonic() - started
            if waited > limit:
                self._give_up(f"it did not end within {limit:g} s, and lacks the calls that it had not read")
            elif self._process is not None and not notice_shown and waited > NOTICE_SECONDS:
                log.info("waiting for %s, at most %g s", self._logger.label, limit)
                notice_shown = True

    def _exchange(self, seconds: float) -> None:
        """Waits at most `seconds` until the socket is ready, then sends and receives as much as is possible now."""
        with suppress(OSError):  # the process has ended, but its last answers can still be read below
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
                self._handle(*json.loads(line))

    def _handle(self, kind: str, text: str | None) -> None:
        match kind:
            case "started":
                self._started = True
            case "warning":
                log.warning("%s", text)
            case "failed":
                self._give_up(str(text), LEAVE_SECONDS)
            case "refused":
                self._refusal = text
                if not self._logger.waits_for_start:
                    log.warning("%s is switched off for this run: %s", self._logger.label, text)
            case "closed":
                if self._dropped_rows:
                    missing_rows = f"it lacks {self._dropped_rows} rows; {COMPLETE_COPY}"
                    log.warning("%s did not keep up: %s", self._logger.label, missing_rows)
                if text:
                    log.info("%s: %s", self._logger.label, text)
        if kind in ("refused", "closed"):
            self._end(LEAVE_SECONDS)
            self._output.unlink(missing_ok=True)

    def _give_up(self, reason: str, patience: float = 0.0) -> None:
        if self._process is None:  # the same failure was handled already
            return
        self._end(patience)
        has_output = self._output.is_file() and self._output.stat().st_size > 0
        hint = f" (it said more in {self._output})" if has_output else ""
        log.warning("%s is switched off for this run: %s%s; %s", self._logger.label, reason, hint, COMPLETE_COPY)
        if not has_output:
            self._output.unlink(missing_ok=True)

    def _end(self, patience: float) -> None:
        """Ends the process: it has `patience` seconds to exit by itself, and is killed then, with all its descendants,
        as W&B's service may hang, too."""
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
    """Opens a file for the output of trackers, which would break the progress bar; /dev/null if it cannot be opened."""
    try:
        return path.open("ab")
    except OSError:
        return open(os.devnull, "wb")


def descendants(process: int) -> list[int]:
    """The ids of all descendants of `process`; empty on systems without /proc."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            text = stat.read_text(encoding="utf-8", errors="replace")
            # The parent is the second field after the name in parentheses, which may itself hold any character
            parents[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    family = [process]
    for member in family:
        family += [child for child, parent in parents.items() if parent == member]
    return family[1:]


# --- the logger's process: it makes the calls that the training process sends, one after another -----------

# A scheduler signals every process of a job; this one ignores the signals and ends after the training process
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PARENT_CHECK_SECONDS = 2.0  # seconds between two checks whether the training process is alive


class Relay(logging.Handler):
    """Sends the warnings of a logger to the training process, which has a console."""

    def __init__(self, connection: socket.socket):
        super().__init__(logging.WARNING)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        answer(self._connection, "warning", record.getMessage())


def serve(connection: socket.socket) -> None:
    """Makes every call, the first of which is `start`. After a failure it answers with the error and returns."""
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
        logger.close("killed")  # the training process has ended, so there is no answer
    except UserError as error:
        answer(connection, "refused", str(error))
    except Exception as error:  # any failure of a logger: training goes on, and the run folder has all
        traceback.print_exc()
        answer(connection, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}")


def calls(connection: socket.socket) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yields the calls of the training process until it ends."""
    Thread(target=shut_down_after, args=(os.getppid(), connection), daemon=True).start()
    with connection.makefile("rb") as stream, suppress(EOFError, OSError, pickle.UnpicklingError):
        while True:
            yield pickle.load(stream)


def shut_down_after(parent: int, connection: socket.socket) -> None:
    """Shuts the socket for reading once `parent` has ended. Its forked workers may keep the other end open, so reading
    would not stop by itself."""
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_SECONDS)
    connection.shutdown(socket.SHUT_RD)


def answer(connection: socket.socket, kind: str, text: str | None = None) -> None:
    with suppress(OSError):  # the training process may have ended
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
    os._exit(0)  # threads that trackers left running must not delay the exit; all files are written by now


if __name__ == "__main__":
    main()
