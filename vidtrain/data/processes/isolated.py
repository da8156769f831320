"""Calling a function on many files where any of them may crash the process or never come back.

Worker processes live long, as starting one costs more than reading most files, and each has one file at a time.
One that dies or makes no progress within the time limit is replaced, and that is the result of its file alone.

Workers are forked from a fork server: a process that has only imported what they need. Forking the caller itself
would copy its threads' locks and hand every worker the pipes of the others, so that none could see the caller die;
starting afresh (spawn) would import everything anew for every replacement.
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from vidtrain.data.processes import watchdog
from vidtrain.data.processes.watchdog import START_SECONDS, exit_status_text

JOIN_SECONDS = 10.0


@dataclass(frozen=True)
class TaskResult:
    """What became of one item: the function's `value`, or in `failure` the words for why there is none."""

    item: Any
    value: Any
    failure: str
    seconds: float


def guarded(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    num_workers: int,
    time_limit: float,
    preload: Sequence[str] = (),
) -> Iterator[TaskResult]:
    """The result of `function` for every item, in the order in which they end.

    A failure reads `crashed: signal 11 (SIGSEGV)`, `crashed: exit status 3`, `hung: over 60 s` or, for what the
    function raised, `failed: ValueError: ...`. `time_limit` is in seconds of wall time without a call of
    `watchdog.progress`. `function` and items are pickled, so the function is one that can be imported; `preload`
    names modules that it needs, which are then imported once. Workers end with the iterator, and do not outlive a
    caller that is killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    waiting = iter(items)
    workers: list[_Worker] = []
    try:
        for _, item in zip(range(num_workers), waiting, strict=False):
            workers.append(_Worker(context, function, time_limit, item))
        while workers:
            wait([worker.connection for worker in workers], min(worker.seconds_left for worker in workers))
            for worker in list(workers):
                result = worker.poll()
                if result is None:
                    continue
                try:
                    item = next(waiting)
                except StopIteration:
                    worker.end()
                    workers.remove(worker)
                else:
                    if worker.alive:
                        worker.give(item)
                    else:
                        workers[workers.index(worker)] = _Worker(context, function, time_limit, item)
                yield result
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One worker process and the item that it has, which is sent as soon as the process is up."""

    def __init__(
        self,
        context: multiprocessing.context.ForkServerContext,
        function: Callable[[Any], Any],
        time_limit: float,
        item: Any,
    ):
        self.connection, theirs = context.Pipe()
        self.alive = True
        self._note = watchdog.new_note(context)
        arguments = (theirs, function, self._note, time_limit)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._time_limit = time_limit
        self._item = item
        self._up = False
        self._since = time.monotonic()

    @property
    def seconds_left(self) -> float:
        # its imports are not the item's time
        if not self._up:
            return max(0.0, self._since + START_SECONDS - time.monotonic())
        return watchdog.seconds_left(self._note, self._since, self._time_limit)

    def give(self, item: Any) -> None:
        self._item, self._since = item, time.monotonic()
        with suppress(BrokenPipeError):  # it died while idle; polling finds out how
            self.connection.send(item)

    def poll(self) -> TaskResult | None:
        """What became of the item, if anything has."""
        if self.connection.poll():
            try:
                message = self.connection.recv()
            except (EOFError, OSError):
                return self._died()
            if not self._up:
                self._up = True
                self.give(self._item)
                return None
            return TaskResult(self._item, *message, self._seconds)
        if self.seconds_left > 0:
            return None
        seconds = self._seconds
        self.end()
        if not self._up:
            raise RuntimeError(f"a worker process was not up within {START_SECONDS:g} s")
        return TaskResult(self._item, None, watchdog.hung(self._time_limit), seconds)

    def _died(self) -> TaskResult:
        seconds = self._seconds
        self._process.join(JOIN_SECONDS)
        status = self._process.exitcode
        self.end()
        if not self._up:
            raise RuntimeError(
                f"a worker process did not come up: {exit_status_text(status)}; its words are above"
            )
        failure = (
            watchdog.hung(self._time_limit)
            if status == -signal.SIGALRM
            else f"crashed: {exit_status_text(status)}"
        )
        return TaskResult(self._item, None, failure, seconds)

    def end(self) -> None:
        if self.alive:
            self.alive = False
            self._process.kill()
            self._process.join(JOIN_SECONDS)
            self.connection.close()

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._since


def _serve(
    connection: Connection, function: Callable[[Any], Any], note: watchdog.Note, time_limit: float
) -> None:
    """A worker's life: until the caller closes the pipe, or is gone."""
    # Ctrl-C reaches the whole group; the caller ends its workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    watchdog.arm(note, time_limit)
    watchdog.disarm()
    connection.send(None)
    while True:
        try:
            item = connection.recv()
        except EOFError:
            return
        watchdog.rearm()  # should the caller be killed while this hangs in a decoder, the kernel still ends it
        try:
            message = (function(item), "")
        except Exception as error:  # whatever a file provokes is that file's result
            message = (None, f"failed: {type(error).__name__}: {error}")
        watchdog.disarm()
        connection.send(message)
