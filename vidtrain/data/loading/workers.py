"""Processes that read batches ahead of their use, and may crash, hang or be killed.

Each worker has a connection of its own, so that one which ends in the middle of a word leaves nobody waiting but its
owner: it is replaced, and what it owed is read again. Batches come in the order of the tasks, whoever reads them.
"""

import atexit
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import NamedTuple, Protocol

import torch

from vidtrain.data.loading.dataset import Batch, Sample, collate
from vidtrain.data.loading.quarantine import Losses, Quarantine
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.processes import memory, watchdog
from vidtrain.errors import UserError

# A scheduler or Ctrl-C signals every process of a job. Workers leave the answer to the main process.
LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PREFETCH = 4  # batches for each worker that are read and not yet used, or being read
TICK = 0.5  # seconds between looks at whether to stop
ORPHAN_SECONDS = 2.0  # between looks at whether the owner lives
END_SECONDS = 10.0


class Readable(Protocol):
    """What workers read from; it consults its `quarantine` for every file."""

    quarantine: Quarantine

    def __getitem__(self, key: SampleKey) -> Sample: ...


class _Failure(NamedTuple):
    """What was raised in a worker, in words."""

    text: str
    is_users: bool

    def throw(self) -> None:
        raise UserError(self.text) if self.is_users else RuntimeError(f"a loader worker raised:\n{self.text}")


class WorkerPool:
    """Worker processes for `dataset`, until `close`. `start_method` is one of multiprocessing's.

    Workers are started when the pool is made, and once for every one that is lost. None outlives its owner by more
    than the file that it has in hand, or the time limit (s).
    """

    def __init__(self, dataset: Readable, num_workers: int, time_limit: float, start_method: str):
        self.stopping = False  # may be set by another thread; ends `batches`
        self._dataset = dataset
        self._time_limit = time_limit
        self._context = multiprocessing.get_context(start_method)
        self._owner = os.getpid()
        self._losses = Losses(dataset.quarantine, time_limit)
        self._owed: dict[int, list[SampleKey]] = {}  # tasks by their number: given, and not yet delivered
        self._ready: dict[int, Batch | _Failure] = {}  # those of them that are read
        self._workers: list[_Worker] = []
        atexit.register(self.close)  # multiprocessing would wait at exit for workers that ignore SIGTERM
        self._workers = [self._start() for _ in range(num_workers)]

    def batches(self, tasks: Iterable[list[SampleKey]], first: int) -> Iterator[Batch]:
        """A batch for every task, in order. The tasks are numbered from `first` on; the same task must have the same
        number in a resumed run.

        Raises what reading one raised, `UserError` or else `RuntimeError`, and `UserError` when too many workers
        are lost. A pool that has raised, or was not read to the end, is good for nothing but `close`.
        """
        numbered = enumerate(tasks, first)
        due = first
        while True:
            while self._collect(0):
                continue
            room = PREFETCH * len(self._workers) - len(self._owed)
            for _, (number, keys) in zip(range(room), numbered, strict=False):
                self._give(number, keys)
            if not self._owed:
                return
            while due not in self._ready:
                if self.stopping:
                    return
                self._collect(TICK)
            self._dataset.quarantine.flush()
            batch = self._ready.pop(due)
            del self._owed[due]
            if isinstance(batch, _Failure):
                batch.throw()
            yield batch
            due += 1

    def close(self) -> None:
        """Ends the workers at once: there is nothing that they must finish."""
        if os.getpid() != self._owner:  # a worker's copy of its owner
            return
        atexit.unregister(self.close)
        for worker in self._workers:
            worker.end()
        self._workers = []
        self._dataset.quarantine.flush(now=True)

    def _start(self) -> "_Worker":
        return _Worker(self._context, self._dataset, self._time_limit)

    def _give(self, number: int, keys: list[SampleKey]) -> None:
        self._owed[number] = keys
        min(self._workers, key=lambda worker: len(worker.numbers)).give(number, keys)

    def _collect(self, seconds: float) -> bool:
        """Takes a batch from every worker that has one and replaces those that are lost; whether there were any.
        Waits for the first at most so long."""
        heard = wait([worker.connection for worker in self._workers], seconds)
        for worker in list(self._workers):
            if worker not in self._workers:  # ended with all of them, a moment ago
                continue
            if worker.connection in heard:
                try:
                    number, batch = worker.receive()
                except TimeoutError:
                    self._replace(worker, -signal.SIGALRM)
                except (EOFError, OSError):  # it ended, perhaps within a word
                    self._replace(worker)
                else:
                    self._ready[number] = batch
            elif worker.hangs():  # it was stopped, or is where no signal reaches it
                self._replace(worker, -signal.SIGALRM)
            elif not (heard or worker.is_alive() or worker.connection.poll()):
                self._replace(worker)  # and some other process has inherited its end of the connection
        return bool(heard)

    def _replace(self, lost: "_Worker", status: int | None = None) -> None:
        """Puts a new worker in the place of one that has ended, or that is to be ended as if by signal `-status`."""
        at = lost.numbers[0] if lost.numbers else -1
        if status is None:
            status = lost.last_status()
        else:
            lost.end()
        if self._losses.add(status, watchdog.current_path(lost.note), at):
            # Whether others had already read that file for a later batch was a matter of time: all later batches
            # are read again, by workers that know of it
            for worker in self._workers:
                worker.end()
            self._workers = [self._start() for _ in self._workers]
            self._ready = {number: batch for number, batch in self._ready.items() if number < at}
            again = [number for number in self._owed if number not in self._ready]
        else:
            self._workers[self._workers.index(lost)] = self._start()
            again = list(lost.numbers)
        for number in again:
            self._give(number, self._owed[number])


class _Worker:
    """One worker process, seen from its owner. It owes the tasks `numbers`, and is at the first."""

    def __init__(self, context: BaseContext, dataset: Readable, time_limit: float):
        self.numbers: deque[int] = deque()
        self._time_limit = time_limit
        self._since = time.monotonic()  # it has had its first task
        self.note = watchdog.new_note(context)
        self.connection, theirs = context.Pipe()
        parent = os.getpid() if context.get_start_method() != "forkserver" else None
        arguments = (theirs, dataset, self.note, time_limit, parent)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        # They stay blocked in the worker until it ignores them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_MAIN)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, number: int, keys: list[SampleKey]) -> None:
        if not self.numbers:
            self._since = time.monotonic()
        self.numbers.append(number)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended; `receive` finds out
            self.connection.send((number, keys))

    def receive(self) -> tuple[int, Batch | _Failure]:
        """The number of the first task and its batch. Raises EOFError, or the like, where the worker has ended."""
        batch = memory.receive(self.connection, self._time_limit)
        self._since = time.monotonic()
        return self.numbers.popleft(), batch

    def hangs(self) -> bool:
        """Whether it has made no progress for the time limit, whatever state its process is in."""
        return bool(self.numbers) and not watchdog.seconds_left(self.note, self._since, self._time_limit)

    def is_alive(self) -> bool:
        return self._process.is_alive()

    def last_status(self) -> int | None:
        """The status of a process that is ending by itself."""
        self._process.join(END_SECONDS)
        self.end()
        return self._process.exitcode

    def end(self) -> None:
        """Ends the process at once."""
        self._process.kill()
        self._process.join(END_SECONDS)
        self.connection.close()


def _serve(
    connection: Connection, dataset: Readable, note: watchdog.Note, time_limit: float, parent: int | None
) -> None:
    """A worker's life: until its owner ends it, or is gone."""
    for number in LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_MAIN)
    watchdog.arm(note, time_limit)
    memory.keep_freed_memory()
    torch.set_num_threads(1)
    watchdog.disarm()
    parent = os.getppid() if parent is None else parent
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the owner is gone
        while True:
            while not connection.poll(ORPHAN_SECONDS):
                if os.getppid() != parent:
                    return
            if os.getppid() != parent:
                return
            dataset.quarantine.number, keys = connection.recv()
            watchdog.rearm()
            answer = _read(dataset, keys)
            watchdog.disarm()
            memory.send(connection, answer)


def _read(dataset: Readable, keys: list[SampleKey]) -> Batch | _Failure:
    try:
        return collate([dataset[key] for key in keys])
    except UserError as error:
        return _Failure(str(error), True)
    except Exception:  # a defect, to be raised where it is seen
        return _Failure(traceback.format_exc(), False)
