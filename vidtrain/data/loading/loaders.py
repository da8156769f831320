"""Batches of the samplers, read ahead by worker processes that may fail without ending the run."""

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vidtrain.data.loading.dataset import Batch, VideoDataset, collate
from vidtrain.data.loading.samplers import EvalShard, EvalUnits, MixtureStream, SampleKey, TrainStream
from vidtrain.data.loading.workers import Readable, WorkerPool
from vidtrain.data.processes.watchdog import TIME_LIMIT

PINNED_AHEAD = 2  # batches
START_METHOD = "fork"  # shares the manifest's memory and takes milliseconds

Sampler = TrainStream | MixtureStream | EvalShard | EvalUnits | Sequence[list[SampleKey]]


class Loader:
    """The batches of `sampler`, in its order and the same with any number of workers; iterate as often as you like.

    `first` is the number of the first batch, which the quarantine goes by. With `keep`, workers stay for the next
    time. A file that takes longer than `time_limit` seconds, or ends the process that reads it, is tried once more
    and then counts as unreadable. Without workers nothing guards against either.

    Raises what `WorkerPool.batches` does.
    """

    def __init__(
        self,
        dataset: Readable,
        sampler: Sampler,
        num_workers: int,
        pin_memory: bool,
        keep: bool,
        first: int,
        time_limit: float,
        start_method: str,
    ):
        self._dataset = dataset
        self._sampler = sampler
        self._num_workers = num_workers
        self._pin_memory = pin_memory
        self._keep = keep
        self._first = first
        self._time_limit = time_limit
        self._start_method = start_method
        self._kept: list[WorkerPool] = []
        weakref.finalize(self, _close, self._kept)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Batch]:
        if self._num_workers == 0:
            for number, keys in enumerate(self._sampler, self._first):
                self._dataset.quarantine.number = number
                batch = collate([self._dataset[key] for key in keys])
                yield pinned(batch) if self._pin_memory else batch
            return
        if self._kept:
            pool = self._kept.pop()
        else:
            pool = WorkerPool(self._dataset, self._num_workers, self._time_limit, self._start_method)
        whole = False
        try:
            if self._pin_memory:
                yield from _pinned_ahead(pool, self._sampler, self._first)
            else:
                yield from pool.batches(self._sampler, self._first)
            whole = True
        finally:
            if whole and self._keep:
                self._kept.append(pool)
            else:
                pool.close()


def train_loader(
    dataset: VideoDataset,
    stream: TrainStream | MixtureStream,
    num_workers: int,
    pin_memory: bool,
    time_limit: float = TIME_LIMIT,
    start_method: str = START_METHOD,
) -> Loader:
    """Micro-batches of one whole phase: the workers start once, not once an epoch."""
    first = stream.start_step * stream.accumulation
    return Loader(dataset, stream, num_workers, pin_memory, False, first, time_limit, start_method)


def eval_loader(
    dataset: Readable,
    shard: EvalShard | EvalUnits | Sequence[list[SampleKey]],
    num_workers: int,
    pin_memory: bool,
    time_limit: float = TIME_LIMIT,
    start_method: str = START_METHOD,
) -> Loader:
    """A rank's share of a split, with workers that stay for the next evaluation."""
    return Loader(dataset, shard, num_workers, pin_memory, True, 0, time_limit, start_method)


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, from which it is copied to a GPU while that computes."""
    return Batch(*(field.pin_memory() if isinstance(field, Tensor) else field for field in batch))


def _pinned_ahead(pool: WorkerPool, sampler: Sampler, first: int) -> Iterator[Batch]:
    """Pins batches in a thread, as copying them takes milliseconds."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(PINNED_AHEAD)
    device = torch.cuda.current_device()  # a thread starts on the first one

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
        except BaseException as error:  # is raised where the batches are used
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


def _close(pools: list[WorkerPool]) -> None:
    for pool in pools:
        pool.close()
