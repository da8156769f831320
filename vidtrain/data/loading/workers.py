"""Worker processes that call a function for one task after another, and may crash, hang or be killed.

Each worker has its own connection, so a worker that ends in the middle of a message blocks no other. The owner gets the
tasks of a lost worker: `guarded` reports them, the loader reads them again. Tensors are sent in anonymous memory
(memfd), which has no size limit, while /dev/shm has 64 MB in containers.
"""

import atexit
import ctypes
import gc
import mmap
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkServerContext, SpawnContext
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.watchdog import START_SECONDS, describe_exit
from vidtrain.errors import UserError

# A scheduler or Ctrl-C signals every process of a job. Workers ignore these signals; the main process handles them
LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
TICK = 0.5  # seconds between checks for hanging workers
ORPHAN_SECONDS = 2.0  # between checks whether the owner still runs
END_SECONDS = 10.0
INLINE_BYTES = 16 << 10  # tensors up to this size are sent within the message

# Options of glibc's malloc.h. Freed blocks above the mmap threshold, at most 32 MiB, are always returned to the kernel
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_KEPT = 32 << 20  # bytes of a block
KEPT_BY_WORKERS, KEPT_BY_NETWORKS = 512 << 20, (2 << 30) - 1  # bytes in all

Task = TypeVar("Task")
Value = TypeVar("Value")
StartMethod = Literal["fork", "spawn", "forkserver"]
Context = ForkContext | SpawnContext | ForkServerContext


class Raised(NamedTuple):
    """The exception of a worker's function as text; `is_users` says whether it was a `UserError`."""

    kind: str
    message: str
    trace: str
    is_users: bool


class Answer(NamedTuple, Generic[Task, Value]):
    """The result of a task."""

    task: Task
    value: Value | Raised


class Lost(NamedTuple, Generic[Task]):
    """A worker that ended before it finished `tasks`; it was working on the first, and reading the file `path`, if any.

    `status` is multiprocessing's exit code, -SIGALRM for a worker that hung. `came_up` is False if the process ended
    before it had started.
    """

    tasks: list[Task]
    status: int | None
    path: str | None
    came_up: bool


class Workers(Generic[Task, Value]):
    """Up to `count` worker processes that call `function` for each given task, until `close`.

    Workers start when there are tasks, also to replace lost ones. A worker without progress for `time_limit` seconds is
    ended. After its owner has ended, a worker finishes at most its current task, within the time limit. `preload` names
    modules that a fork server imports once for all workers.
    """

    def __init__(
        self,
        function: Callable[[Task], Value],
        count: int,
        time_limit: float,
        start_method: StartMethod,
        preload: Sequence[str] = (),
    ):
        self._context: Context = multiprocessing.get_context(start_method)  # type: ignore[assignment]  # of any text
        self._context.set_forkserver_preload([__name__, *preload])
        self._function = function
        self._count = count
        self._time_limit = time_limit
        self._owner = os.getpid()
        self._workers: list[_Worker[Task, Value]] = []
        atexit.register(self.close)  # multiprocessing would wait at exit for workers that ignore SIGTERM

    def give(self, task: Task) -> None:
        """Gives the task to the worker with the fewest tasks."""
        worker = min(self._workers, key=lambda worker: len(worker.tasks), default=None)
        if worker is None or (worker.tasks and len(self._workers) < self._count):
            worker = _Worker(self._context, self._function, self._time_limit)
            self._workers.append(worker)
        worker.give(task)

    def collect(self, seconds: float) -> list[Answer[Task, Value] | Lost[Task]]:
        """Returns one answer of every worker that has one, and lost workers; waits up to `seconds` for the first."""
        ready = wait([worker.connection for worker in self._workers], seconds)
        events = [(worker, worker.poll(worker.connection in ready)) for worker in self._workers]
        self._workers = [worker for worker, event in events if not isinstance(event, Lost)]
        return [event for _, event in events if event is not None]

    def end_all(self) -> None:
        """Kills all workers; their tasks are lost."""
        for worker in self._workers:
            worker.end()
        self._workers = []

    @property
    def is_owner(self) -> bool:
        """Whether this process started the workers, and is not one of them."""
        return os.getpid() == self._owner

    def close(self) -> None:
        if self.is_owner:
            atexit.unregister(self.close)
            self.end_all()


class _Worker(Generic[Task, Value]):
    """A worker process, as its owner sees it. It has `tasks`, and works on the first."""

    def __init__(self, context: Context, function: Callable[[Task], Value], time_limit: float):
        self.tasks: deque[Task] = deque()
        self._time_limit = time_limit
        self._start_limit = max(START_SECONDS[context.get_start_method()], time_limit)
        self._since = time.monotonic()  # start of its first task
        self._note = watchdog.new_note(context)
        self.connection, theirs = context.Pipe()
        parent = None if context.get_start_method() == "forkserver" else os.getpid()
        arguments = (theirs, function, self._note, time_limit, parent)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        # signals stay blocked in the worker until it ignores them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_MAIN)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def give(self, task: Task) -> None:
        if not self.tasks:
            self._since = time.monotonic()
        self.tasks.append(task)
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended; `poll` finds out
            self.connection.send(task)

    def poll(self, has_message: bool) -> Answer[Task, Value] | Lost[Task] | None:
        """The answer to the first task, or the loss of the worker, or None."""
        if has_message:
            try:
                value = receive(self.connection, self._time_limit)
            except TimeoutError:
                return self._lost(-signal.SIGALRM)
            except (EOFError, OSError):  # it ended, perhaps in the middle of a message
                return self._lost()
            self._since = time.monotonic()
            return Answer(self.tasks.popleft(), value)
        left = watchdog.seconds_left(self._note, self._since, self._time_limit, self._start_limit)
        if self.tasks and not left:
            return self._lost(-signal.SIGALRM)  # it was stopped, or hangs where signals are not delivered
        if not self._process.is_alive() and not self.connection.poll():
            return self._lost()  # another process inherited its end of the connection, so there was no EOF
        return None

    def _lost(self, status: int | None = None) -> Lost[Task]:
        if status is None:  # it ends by itself
            self._process.join(END_SECONDS)
        self.end()
        status = self._process.exitcode if status is None else status
        came_up = self._note.beat.value > 0
        return Lost(list(self.tasks), status, watchdog.current_path(self._note), came_up)

    def end(self) -> None:
        self._process.kill()
        self._process.join(END_SECONDS)
        self.connection.close()


def _serve(
    connection: Connection,
    function: Callable[[Task], object],
    note: watchdog.Note,
    time_limit: float,
    parent: int | None,
) -> None:
    """The main loop of a worker, until its owner ends it or has ended. A method `expect` of the function, if any, is
    called for every waiting task."""
    for number in LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_MAIN)
    watchdog.arm(note, time_limit)
    # A full collection would walk over, and so copy, all that was forked: 0.2 s where one falls due
    gc.freeze()
    keep_freed_memory()
    torch.set_num_threads(1)
    watchdog.disarm()
    parent = os.getppid() if parent is None else parent
    waiting: deque[Task] = deque()
    expect = getattr(function, "expect", lambda task: None)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the owner has ended
        while True:
            while not waiting and not connection.poll(ORPHAN_SECONDS):
                if os.getppid() != parent:
                    return
            if os.getppid() != parent:
                return
            while connection.poll():
                waiting.append(connection.recv())
                expect(waiting[-1])
            task = waiting.popleft()
            watchdog.progress()  # if the owner is killed while this hangs in a decoder, the kernel's timer ends it
            answer = _call(function, task)
            watchdog.disarm()
            send(connection, answer)


def _call(function: Callable[[Task], object], task: Task) -> object:
    try:
        return function(task)
    except Exception as error:  # the owner handles any error
        is_users = isinstance(error, UserError)
        return Raised(type(error).__name__, str(error), traceback.format_exc(), is_users)


class TaskResult(NamedTuple, Generic[Task, Value]):
    """The result for one item: the function's `value`, or in `failure` a text that says why there is none."""

    item: Task
    value: Value | None
    failure: str


def guarded(
    function: Callable[[Task], Value],
    items: Iterable[Task],
    num_workers: int,
    time_limit: float,
    preload: Sequence[str] = (),
) -> Iterator[TaskResult[Task, Value]]:
    """Yields the result of `function` for every item, in the order in which they finish.

    A failure reads `crashed: signal 11 (SIGSEGV)`, `crashed: exit status 3`, `hung: over 60 s` or, if the function
    raised an error, `failed: ValueError: ...`. `time_limit` is the number of seconds without a call of
    `watchdog.progress`. The function must be importable, as it is pickled; `preload` names modules that it needs.

    Workers are forked from a fork server that has imported only these modules. Forking the caller would copy locks of
    its threads; spawn would import everything again for every replacement.
    """
    workers = Workers(function, num_workers, time_limit, "forkserver", preload)
    waiting = iter(items)
    busy = 0
    results: list[TaskResult[Task, Value]] = []
    try:
        while True:
            for item in islice(waiting, num_workers - busy):
                workers.give(item)
                busy += 1
            yield from results  # while the workers continue
            if not busy:
                return
            events = workers.collect(TICK)
            ended = (event for event in events if isinstance(event, Answer) or event.tasks)
            results = [_result(event, time_limit) for event in ended]
            busy -= len(results)
    finally:
        workers.close()


def _result(event: Answer[Task, Value] | Lost[Task], time_limit: float) -> TaskResult[Task, Value]:
    if isinstance(event, Answer):
        if isinstance(event.value, Raised):
            return TaskResult(event.task, None, f"failed: {event.value.kind}: {event.value.message}")
        return TaskResult(event.task, event.value, "")
    if not event.came_up:
        cause = describe_exit(event.status, START_SECONDS["forkserver"])
        raise RuntimeError(f"a worker process did not start: {cause}; its own message is above")
    return TaskResult(event.tasks[0], None, describe_exit(event.status, time_limit))


def keep_freed_memory(limit: int = KEPT_BY_WORKERS) -> bool:
    """Makes this process keep up to `limit` bytes of freed memory. Returns False and changes nothing without glibc.

    A decoder's pictures for a clip take tens of megabytes. glibc would return them to the kernel, which must zero them
    again for the next clip: a tenth of the time of a 1080p clip (experiments/benchmarks/decoding). On a CPU the
    activations of a network cost the same for each batch (experiments/benchmarks/feature_cache).
    """
    options = {M_MMAP_THRESHOLD: LARGEST_KEPT, M_TRIM_THRESHOLD: limit, M_TOP_PAD: limit // 32}
    libc = ctypes.CDLL(None)
    return hasattr(libc, "mallopt") and all([libc.mallopt(which, size) == 1 for which, size in options.items()])


class _Inline(NamedTuple):
    """A small tensor as an array within a message, as torch would open a file for it."""

    array: np.ndarray


class _Shared(NamedTuple):
    """A placeholder in a message for a tensor whose memory is sent after it."""

    dtype: torch.dtype
    shape: torch.Size
    size: int


def send(connection: Connection, answer: object) -> None:
    """Sends an object. The tensors of a named tuple are copied once."""
    if not (isinstance(answer, tuple) and hasattr(answer, "_fields")):
        connection.send((None, [answer]))
        return
    fields, files = [], []
    for field in answer:
        if isinstance(field, Tensor) and field.nbytes > INLINE_BYTES:
            files.append(_filled(field.contiguous().numpy().data.cast("B")))
            field = _Shared(field.dtype, field.shape, field.nbytes)
        elif isinstance(field, Tensor):
            field = _Inline(field.numpy())
        fields.append(field)
    connection.send((type(answer), fields))
    for file in files:
        send_handle(connection, file, None)
        os.close(file)


def receive(connection: Connection, time_limit: float | None = None) -> Any:
    """Receives an object of `send`. Raises EOFError or OSError if the sender has ended, and TimeoutError if a tensor
    does not follow within `time_limit` seconds, as the sender was stopped."""
    kind, fields = connection.recv()
    for place, field in enumerate(fields):
        if isinstance(field, _Shared):
            if not connection.poll(time_limit):
                raise TimeoutError(f"nothing came for {time_limit} s")
            file = recv_handle(connection)
            memory = mmap.mmap(file, field.size)
            os.close(file)
            fields[place] = torch.frombuffer(memory, dtype=field.dtype).view(field.shape)
        elif isinstance(field, _Inline):
            fields[place] = torch.from_numpy(field.array)
    return fields[0] if kind is None else kind(*fields)


def _filled(content: memoryview) -> int:
    """A file descriptor of memory with the `content`, which is freed with its last user."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("batch")
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    while content:
        content = content[os.write(file, content) :]
    return file
