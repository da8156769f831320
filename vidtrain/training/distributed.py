"""Joining the process group that torchrun or SLURM describes, and the few collectives that the loop needs."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist

from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_lines
from vidtrain.training.heartbeat import LINGER_SECONDS, RankMonitor, RefusedByMain, of_peers, status_of
from vidtrain.training.rendezvous import Place, find_place, meeting_point
from vidtrain.training.signals import EXIT_STOPPED, Stopped, leave_at_exit

T = TypeVar("T")
RANK_TIMEOUT = 60.0
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
START_SECONDS = 600.0  # all ranks must connect to rank 0's store within this time


@dataclass(frozen=True)
class Ranks:
    """This process's rank in the run, its device, and the collectives."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    monitor: RankMonitor | None = None  # None with one rank

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast_object(self, value: T) -> T:
        """Rank 0's `value`, on every rank."""
        if self.world_size == 1:
            return value
        box: list[Any] = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, make: Callable[[], T]) -> T:
        """Calls `make` on rank 0 and returns its result on every rank. A `UserError` that it raises is raised on every
        rank, so that no rank waits in a collective for one that has ended."""
        value: T | None = None
        own_error: UserError | None = None
        if self.is_main:
            try:
                value = make()
            except UserError as error:
                own_error = error
        result, message = self.broadcast_object((value, own_error and str(own_error)))
        if own_error is not None:
            raise own_error
        if message is not None:
            raise RefusedByMain(message)
        return cast(T, result)  # it is a T: rank 0's error would have been raised above

    def gather_objects(self, value: T) -> list[T]:
        """The values of all ranks, in the order of the ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank; `tensor` itself does not change."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any_rank(self, value: bool) -> bool:
        """Whether `value` is true on any rank, on every rank. It runs on the CPU, so that it does not wait for GPUs."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(int(value), dtype=torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def all_reduce_sum(self, *numbers: int) -> list[int]:
        """The sum over ranks of each of `numbers`, on every rank. It runs on the CPU, too."""
        if self.world_size == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(totals)
        return totals.tolist()

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Copies rank 0's buffers to every rank: the running statistics of batch norms, say, differ between ranks."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_ranks(device: str, rank_timeout: float = RANK_TIMEOUT) -> Iterator[Ranks]:
    """A context that joins the process group described in the environment by torchrun or SLURM, if there is one.

    `device` is auto, cpu, cuda or a torch device. CUDA tensors use NCCL, all others gloo. If a rank sends no heartbeat
    for `rank_timeout` seconds, all ranks end. After an exception the process group is not destroyed: that could wait
    for a rank that has ended, and the process is about to end anyway.
    """
    place = find_place()
    torch_device = _device(device, place)
    if place.world_size == 1:
        yield Ranks(torch_device)
        return
    address, port = meeting_point()
    start = timedelta(seconds=START_SECONDS)

    def connect() -> dist.Store:
        return dist.TCPStore(address, port, is_master=False, timeout=start)

    backend = "cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo"
    started = time.monotonic()
    try:
        if place.launcher == "torchrun":
            dist.init_process_group(backend)
        else:
            store = dist.TCPStore(address, port, place.world_size, is_master=place.rank == 0, timeout=start)
            dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.world_size)
        monitor = RankMonitor(connect, place.rank, place.world_size, rank_timeout)
    except RuntimeError as error:
        if not isinstance(error, dist.DistNetworkError | dist.DistStoreError) and not of_peers(error):
            raise
        _did_not_meet(place, f"{address}:{port}", error, time.monotonic() - started)
    try:
        yield Ranks(torch_device, place.rank, place.world_size, place.local_rank, place.local_world_size, monitor)
    except BaseException as error:
        run_end = monitor.end_after(error, status_of(error))
        leave_at_exit(run_end.status, LINGER_SECONDS)
        if isinstance(error, SystemExit | Stopped) or monitor.should_report(error, run_end):
            # After a stop, every rank has received the signal itself and needs no message about another rank
            raise
        print(shown_lines(f"error: rank {place.rank} ends, as {run_end.message}"), file=sys.stderr, flush=True)
        sys.exit(run_end.status)
    dist.barrier()
    monitor.close()
    try:
        dist.barrier()  # rank 0 holds the store, so it must not exit before all monitors are closed
    except RuntimeError as error:
        # After the barrier above every rank has finished. On a busy machine, the first rank to leave this second
        # barrier can close its connection before the others learn that it arrived. That loses nothing.
        if not of_peers(error):
            raise
    dist.destroy_process_group()


def _did_not_meet(place: Place, address: str, error: RuntimeError, waited: float) -> NoReturn:
    """Ends this rank after a failed start: with status 75 under SLURM if requeueing the job may help, else by a
    `UserError`."""
    cause = str(error).splitlines()[0]
    port_taken, port_set = "EADDRINUSE" in cause, "MASTER_PORT" in os.environ
    if place.launcher == "slurm" and not (port_taken and port_set) and waited < START_SECONDS / 2:
        # A requeued job gets another port and perhaps other nodes, so it can succeed
        reason = "another program listens there" if port_taken else f"one of them was lost: {cause}"
        print(f"error: the ranks did not meet at {address}, as {reason}; the job is to be requeued", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    if port_taken:
        raise UserError(
            f"another program listens at {address}, where the ranks are to meet: set MASTER_PORT"
        ) from error
    raise UserError(
        f"rank {place.rank} did not meet the others at {address}, where rank 0 listens ({cause}): is every rank "
        "started, and can their nodes reach each other there? MASTER_ADDR and MASTER_PORT set another address"
    ) from error


def _device(name: str, place: Place) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"trainer.device={name} is not a device: choose auto, cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"trainer.device={name} is not supported: choose auto, cpu or cuda")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"trainer.device={name}, but torch sees no CUDA device; choose auto or cpu")
        # With --gpus-per-task, SLURM shows each task only its own GPU, as number 0
        sees_own_gpu_only = place.launcher == "slurm" and torch.cuda.device_count() == 1
        number = 0 if sees_own_gpu_only else place.local_rank
        device = torch.device("cuda", number if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"trainer.device={name} on local rank {place.local_rank} asks for GPU {device.index}, but this machine "
                f"has {torch.cuda.device_count()}; start fewer processes or name another device"
            )
        torch.cuda.set_device(device)
    return device


def autocast(ranks: Ranks, precision: str) -> torch.autocast:
    """The autocast context of forward passes; it is disabled in fp32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(ranks.device.type, dtype, enabled=dtype != torch.float32)
