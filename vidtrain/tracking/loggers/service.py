"""The process of a logger: it does what the training process tells it, one call after another.

python -m vidtrain.tracking.loggers.service DESCRIPTOR, started by vidtrain.tracking.loggers.process.
"""

import logging
import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.masking import hide_these, mask_streams
from vidtrain.tracking.loggers.channel import RECEIVED, Frames, frame

# A scheduler signals every process of a job; this one ends when the training process has
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
LOOK_EVERY = 2.0  # seconds between looks at whether the training process lives


class Relay(logging.Handler):
    """Hands what a logger has to say to the training process, whose console it is."""

    def __init__(self, connection: socket.socket):
        super().__init__(logging.WARNING)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        answer(self._connection, "warning", record.getMessage())


def serve(connection: socket.socket) -> None:
    """Does every call; a failure is the last thing that the training process hears of."""
    logger = None
    try:
        for call, arguments in calls(connection):
            if call == "hide":
                hide_these(*arguments)
            elif call == "start":
                logger, run = arguments
                logger.start(run)
                answer(connection, "started")
            elif call == "close":
                answer(connection, "closed", logger.close(*arguments))
                return
            else:
                getattr(logger, call)(*arguments)
        if logger is not None:
            logger.close("killed")  # nobody is left to hear of it
    except UserError as error:
        answer(connection, "refused", str(error))
    except Exception as error:  # whatever fails in a logger, the run folder holds the truth
        traceback.print_exc()
        answer(connection, "failed", f"{type(error).__name__}: {' '.join(str(error).split())}")


def calls(connection: socket.socket) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """What the training process says until it has ended, which its forked workers may hide for a while."""
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


def answer(connection: socket.socket, *words: Any) -> None:
    with suppress(OSError):  # nobody is left to hear it
        connection.sendall(frame(words))


def main() -> None:
    for each in IGNORED:
        signal.signal(each, signal.SIG_IGN)
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
