"""DataLoaders over the samplers: processes that decode, one thread each, and die only with their parent."""

import signal

import torch
from torch.utils.data import DataLoader

from vidtrain.data.dataset import VideoDataset, collate
from vidtrain.data.samplers import EvalShard, TrainStream

# A scheduler or Ctrl-C signals every process of a job. Workers leave the answer to the main process, which would
# else go down with "worker exited unexpectedly".
LEFT_TO_MAIN = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


def _start_worker(worker: int) -> None:
    for number in LEFT_TO_MAIN:
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def _loader(
    dataset: VideoDataset, batches: TrainStream | EvalShard, num_workers: int, pin_memory: bool, keep: bool
) -> DataLoader:
    workers = num_workers > 0
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers else None,
        persistent_workers=keep and workers,
        # fork shares the manifest's memory and starts in milliseconds
        multiprocessing_context="fork" if workers else None,
    )


def train_loader(
    dataset: VideoDataset, stream: TrainStream, num_workers: int, pin_memory: bool
) -> DataLoader:
    """Micro-batches of one whole phase: the workers start once, not once an epoch."""
    return _loader(dataset, stream, num_workers, pin_memory, keep=False)


def eval_loader(dataset: VideoDataset, shard: EvalShard, num_workers: int, pin_memory: bool) -> DataLoader:
    """A rank's share of a split, with workers that stay for the next evaluation."""
    return _loader(dataset, shard, num_workers, pin_memory, keep=True)
