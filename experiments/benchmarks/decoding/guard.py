"""Work in a child process that is ended when it hangs, and whose crash is a result like any other."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from vidtrain.data.loading.workers import keep_freed_memory


@dataclass(frozen=True)
class Halt:
    """The child did not finish; `at` is the last action that it announced."""

    at: str
    cause: str


class Pipe:
    """The child's end of the pipe: it announces its next action, and sends its results."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def at(self, what: str) -> None:
        self._connection.send(("at", what))

    def send(self, kind: str, *found: object) -> None:
        self._connection.send((kind, *found))


def run(function: Callable[..., None], arguments: tuple, limit: float, receive: Callable[..., None]) -> Halt | None:
    """Calls `function(pipe, *arguments)` in a fresh process; what it sends goes to `receive`.

    The child is killed where it says nothing for `limit` seconds. None: it finished.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, function, arguments))
    process.start()
    there.close()
    at = ""
    try:
        while True:
            if not here.poll(limit):
                process.kill()
                process.join()
                return Halt(at, f"no answer within {limit:g} s")
            message = here.recv()
            if message[0] == "at":
                at = message[1]
            else:
                receive(*message)
    except EOFError:
        process.join()
        return None if process.exitcode == 0 else Halt(at, f"exit status {process.exitcode}")


def _child(connection: Connection, function: Callable[..., None], arguments: tuple) -> None:
    keep_freed_memory()  # as a worker does; whoever reads gains by it
    function(Pipe(connection), *arguments)
