"""The process of one logger: it makes the calls that the training process sends, one after another.

python -m vidtrain.tracking.loggers.service DESCRIPTOR, started by process.py. DESCRIPTOR is that of a socket. Messages
are pickled tuples, each after its length: calls come in, answers go out.
"""

import logging
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.escaping import hide_these, mask_streams

# A scheduler signals every process of a job; this one ends when the training process has
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK_EVERY = 2.0  # seconds between looks at whether the training process lives
LENGTH_BYTES = 4
RECEIVED = 1 << 16  # bytes at once


def frame(message: tuple[Any, ...]) -> bytes:
    data = pickle.dumps(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class Frames:
    """Whole messages out of bytes that come in pieces."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, data: bytes) -> list[tuple[Any, ...]]:
        """The messages that `data` completes."""
        self._bytes += data
        messages = []
        while len(self._bytes) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._bytes[:LENGTH_BYTES], "big")
            if len(self._bytes) < end:
                break
            messages.append(pickle.loads(bytes(self._bytes[LENGTH_BYTES:end])))
            del self._bytes[:end]
        return messages


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


def calls(connection: socket.socket) -> Iterator[tuple[Any, ...]]:
    """The calls of the training process until it has ended, which its forked workers may hide for a while."""
    parent, frames = os.getppid(), Frames()
    connection.settimeout(LOOK_EVERY)
    while True:
        try:
            data = connection.recv(RECEIVED)
        except TimeoutError:
            if os.getppid() != parent:
                return
            continue
        except OSError:
            return
        if not data:
            return
        yield from frames.add(data)


def answer(connection: socket.socket, kind: str, text: str | None = None) -> None:
    with suppress(OSError):  # nobody is left to hear it
        connection.sendall(frame((kind, text)))


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
