"""Loads batches with worker processes, which may fail without ending the run.

Batches come in the order of the sampler, whichever worker reads them. The batches of a lost worker are read again.
"""

import logging
import queue
import threading
import time
import weakref
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch

from vidtrain.data.decoding.watchdog import TIME_LIMIT
from vidtrain.data.loading.dataset import Batch, Sample, StoreUse, VideoDataset, collate
from vidtrain.data.loading.quarantine import Losses, Quarantine
from vidtrain.data.loading.samplers import EvalShard, EvalUnits, MixtureStream, SampleKey, TrainStream
from vidtrain.data.loading.workers import TICK, Answer, Lost, Raised, StartMethod, Workers
from vidtrain.data.stores.objects import Use, used
from vidtrain.errors import UserError

log = logging.getLogger(__name__)

PREFETCH = 4  # batches for each worker that are being read, or wait to be used
PINNED_AHEAD = 2  # batches
WHOLE = (
    "%d of the first %d videos were fetched whole from their store to read their metadata; others like them will be, "
    "too, once each. Parts suffice of MP4 files without fragments and fields, such as python -m vidtrain.prepare makes"
)
START_METHOD: StartMethod = "fork"  # shares the manifest's memory and takes milliseconds

Sampler = TrainStream | MixtureStream | EvalShard | EvalUnits | Sequence[list[SampleKey]]
NumberedKeys = tuple[int, list[SampleKey]]


class Readable(Protocol):
    """A dataset from which batches are read; it uses its `quarantine` for every file."""

    @property
    def quarantine(self) -> Quarantine: ...

    def __getitem__(self, key: SampleKey) -> Sample: ...


@dataclass
class _BatchReader:
    """Reads batches of `dataset`, and requests the bytes of later batches from stores."""

    dataset: Readable
    counted: Use | None = None  # the use of stores by batches so far

    def expect(self, task: NumberedKeys) -> None:
        self.counted = self.counted or used()
        if isinstance(self.dataset, VideoDataset):
            self.dataset.ahead.expect(self.dataset, task[1])

    def __call__(self, task: NumberedKeys) -> Batch:
        self.dataset.quarantine.number, keys = task
        began = time.perf_counter()
        samples = []
        for key in keys:
            if isinstance(self.dataset, VideoDataset):
                self.dataset.ahead.ask(self.dataset)
            samples.append(self.dataset[key])
        seconds, now = time.perf_counter() - began, used()
        since = now.since(self.counted or Use())
        self.counted = now
        return collate(samples)._replace(store=StoreUse(seconds, *since))


class BatchWorkers(Workers[NumberedKeys, Batch]):
    """Worker processes that read batches of `dataset`."""

    def __init__(self, dataset: Readable, count: int, time_limit: float, start_method: StartMethod):
        super().__init__(_BatchReader(dataset), count, time_limit, start_method)
        self.stopping = False  # may be set by another thread; ends `batches`
        self._most_owed = PREFETCH * count
        self._quarantine = dataset.quarantine
        self._losses = Losses(dataset.quarantine, time_limit)
        self._owed: dict[int, list[SampleKey]] = {}  # tasks by number that were given and not delivered yet
        self._ready: dict[int, Batch | Raised] = {}  # results of owed tasks that were read

    def batches(self, tasks: Iterable[list[SampleKey]], first: int) -> Iterator[Batch]:
        """Yields a batch for every task, in order. Tasks are numbered from `first`, with the same numbers in a resumed
        run.

        Raises `UserError` or `RuntimeError` if reading raised an error, and `UserError` if too many workers are lost.
        After an error, or if the iteration is not completed, the workers can only be closed.
        """
        waiting = enumerate(tasks, first)
        number = first
        while True:
            while self._receive(0):
                continue
            for task in islice(waiting, self._most_owed - len(self._owed)):
                self._owed[task[0]] = task[1]
                self.give(task)
            if not self._owed:
                return
            while number not in self._ready:
                if self.stopping:
                    return
                self._receive(TICK)
            self._quarantine.flush()
            batch = self._ready.pop(number)
            del self._owed[number]
            if isinstance(batch, Raised):
                if batch.is_users:
                    raise UserError(batch.message)
                raise RuntimeError(f"a loader worker raised:\n{batch.trace}")
            yield batch
            number += 1

    def close(self) -> None:
        if self.is_owner:
            super().close()
            self._quarantine.flush()

    def _receive(self, seconds: float) -> bool:
        """Receives batches, waiting up to `seconds` for the first one; returns whether any event came."""
        events = self.collect(seconds)
        for event in events:
            if isinstance(event, Answer):
                self._ready[event.task[0]] = event.value
            elif self._read_again(event):
                break
        return bool(events)

    def _read_again(self, lost: Lost[NumberedKeys]) -> bool:
        """Gives the tasks of a lost worker to others. Returns whether a file was blamed, so that all later batches are
        read again."""
        tasks = lost.tasks
        at = tasks[0][0] if tasks else -1
        blamed = self._losses.add(lost.status, lost.path, at)
        if blamed:
            # other workers may have read this file for later batches, so new workers, which know of it, read them again
            self.end_all()
            self._ready = {number: batch for number, batch in self._ready.items() if number < at}
            tasks = [task for task in self._owed.items() if task[0] not in self._ready]
        for task in tasks:
            self.give(task)
        return blamed


@dataclass(eq=False)
class Loader:
    """The batches of `sampler` in its order, independent of the number of workers; it can be iterated repeatedly.

    `first` is the number of the first batch, for the quarantine. With `keep`, workers stay for the next iteration. A
    file that takes longer than `time_limit` seconds, or ends the process that reads it, is tried once more and then
    counts as unreadable; with `num_workers=0` there is no such protection. Raises as `BatchWorkers.batches` does.
    """

    dataset: Readable
    sampler: Sampler
    num_workers: int
    pin_memory: bool
    keep: bool
    first: int
    time_limit: float
    start_method: StartMethod

    def __post_init__(self) -> None:
        self._kept: list[BatchWorkers] = []
        self._seen, self._told = 0, False
        weakref.finalize(self, _close, self._kept)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        with closing(self._batches()) as batches:
            for batch in batches:
                self._say_whole(batch)
                yield batch

    def _say_whole(self, batch: Batch) -> None:
        """Warns once that videos were fetched whole for their metadata, and how many of those read so far."""
        self._seen += len(batch.indices)
        if batch.store.whole and not self._told:
            self._told = True
            log.warning(WHOLE, batch.store.whole, self._seen)

    def _batches(self) -> Generator[Batch, None, None]:
        if self.num_workers == 0:
            read = _BatchReader(self.dataset)
            for task in enumerate(self.sampler, self.first):
                read.expect(task)
                batch = read(task)
                yield pinned(batch) if self.pin_memory else batch
            return
        settings = (self.dataset, self.num_workers, self.time_limit, self.start_method)
        pool = self._kept.pop() if self._kept else BatchWorkers(*settings)
        whole = False
        try:
            ahead = _pinned_ahead if self.pin_memory else BatchWorkers.batches
            yield from ahead(pool, self.sampler, self.first)
            whole = True
        finally:
            if whole and self.keep:
                self._kept.append(pool)
            else:
                pool.close()


def train_loader(
    dataset: VideoDataset,
    stream: TrainStream | MixtureStream,
    num_workers: int,
    pin_memory: bool,
    time_limit: float = TIME_LIMIT,
    start_method: StartMethod = START_METHOD,
) -> Loader:
    """The micro-batches of a whole phase, so that workers start once and not once per epoch."""
    first = stream.start_step * stream.accumulation
    return Loader(dataset, stream, num_workers, pin_memory, False, first, time_limit, start_method)


def eval_loader(
    dataset: Readable,
    shard: EvalShard | EvalUnits | Sequence[list[SampleKey]],
    num_workers: int,
    pin_memory: bool,
    time_limit: float = TIME_LIMIT,
    start_method: StartMethod = START_METHOD,
) -> Loader:
    """The batches of a rank's share of a split; workers stay for the next evaluation."""
    return Loader(dataset, shard, num_workers, pin_memory, True, 0, time_limit, start_method)


def pinned(batch: Batch) -> Batch:
    """The batch in pinned (page-locked) memory, from which it can be copied to a GPU asynchronously."""
    tensors = {name: getattr(batch, name).pin_memory() for name in ("clips", "labels", "indices", "seeds")}
    return batch._replace(**tensors)


def _pinned_ahead(pool: BatchWorkers, sampler: Sampler, first: int) -> Iterator[Batch]:
    """Pins batches in a thread, as copying them takes milliseconds."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PINNED_AHEAD)
    device = torch.cuda.current_device()  # a new thread starts with device 0

    def put(item: Batch | BaseException | None) -> None:
        while not pool.stopping:
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            torch.cuda.set_device(device)
            for batch in pool.batches(sampler, first):
                put(pinned(batch))
            put(None)
        except BaseException as error:  # raised in the consuming thread
            put(error)

    thread = threading.Thread(target=work, name="pin batches", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        pool.stopping = True
        thread.join()
        pool.stopping = False


def _close(pools: list[BatchWorkers]) -> None:
    for pool in pools:
        pool.close()
