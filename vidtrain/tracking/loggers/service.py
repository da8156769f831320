"""The process of one logger: it makes the calls that the training process sends, one after another.

python -m vidtrain.tracking.loggers.service DESCRIPTOR, started by process.py. DESCRIPTOR is that of a socket: calls
come in, pickled, and answers go out, a line of JSON for each.
"""

import json
import logging
import os
import pickle
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.escaping import hide_these, mask_streams

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
