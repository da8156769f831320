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
from vidtrain.training.heartbeat import LINGER_SECONDS, RankMonitor, RefusedByMain, exit_status, is_lost_connection
from vidtrain.training.process import EXIT_STOPPED, LaunchInfo, Stopped, launch_info, leave_at_exit, master_address

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
        objects: list[Any] = [value]
        dist.broadcast_object_list(objects, src=0)
        return objects[0]

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
        """Whether `value` is true on any rank, on every rank. The CPU reduces it, so no rank waits for its GPU."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(int(value), dtype=torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def all_reduce_sum(self, *numbers: int) -> list[int]:
        """The sum over ranks of each of `numbers`, on every rank. The CPU reduces them, too."""
        if self.world_size == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(totals)
        return totals.tolist()

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Copies rank 0's buffers, such as running statistics of batch norms, to every rank."""
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
    for `rank_timeout` seconds, all ranks end. After an exception the process group is not destroyed, because destroying
    it could wait for a rank that has ended.
    """
    launch = launch_info()
    torch_device = _device(device, launch)
    if launch.world_size == 1:
        yield Ranks(torch_device)
        return
    address, port = master_address()
    start = timedelta(seconds=START_SECONDS)

    def connect() -> dist.Store:
        return dist.TCPStore(address, port, is_master=False, timeout=start)

    backend = "cpu:gloo,cuda:nccl" if torch_device.type == "cuda" else "gloo"
    started = time.monotonic()
    try:
        if launch.launcher == "torchrun":
            dist.init_process_group(backend)
        else:
            store = dist.TCPStore(address, port, launch.world_size, is_master=launch.rank == 0, timeout=start)
            dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world_size)
        monitor = RankMonitor(connect, launch.rank, launch.world_size, rank_timeout)
    except RuntimeError as error:
        if not isinstance(error, dist.DistNetworkError | dist.DistStoreError) and not is_lost_connection(error):
            raise
        _end_unconnected(launch, f"{address}:{port}", error, time.monotonic() - started)
    try:
        yield Ranks(torch_device, launch.rank, launch.world_size, launch.local_rank, launch.local_world_size, monitor)
    except BaseException as error:
        run_end = monitor.end_after(error, exit_status(error))
        leave_at_exit(run_end.status, LINGER_SECONDS)
        if isinstance(error, SystemExit | Stopped) or monitor.should_report(error, run_end):
            # After a stop, every rank has received the signal itself and needs no message about another rank
            raise
        print(shown_lines(f"error: rank {launch.rank} ends, as {run_end.message}"), file=sys.stderr, flush=True)
        sys.exit(run_end.status)
    dist.barrier()
    monitor.close()
    try:
        dist.barrier()  # rank 0 holds the store, so it must not exit before all monitors are closed
    except RuntimeError as error:
        # The first rank to leave this barrier may close its connection before the others learn that it arrived. That
        # is harmless, as every rank had finished at the first barrier
        if not is_lost_connection(error):
            raise
    dist.destroy_process_group()


def _end_unconnected(launch: LaunchInfo, address: str, error: RuntimeError, waited: float) -> NoReturn:
    """Ends this rank after a failed start: with status 75 under SLURM if requeueing the job may help, else by a
    `UserError`."""
    cause = str(error).splitlines()[0]
    port_taken, port_set = "EADDRINUSE" in cause, "MASTER_PORT" in os.environ
    if launch.launcher == "slurm" and not (port_taken and port_set) and waited < START_SECONDS / 2:
        # A requeued job gets another port and perhaps other nodes, so it can succeed
        reason = "another program listens there" if port_taken else f"one of them was lost: {cause}"
        print(f"error: the ranks cannot connect at {address}, as {reason}; requeue the job", file=sys.stderr)
        sys.exit(EXIT_STOPPED)
    if port_taken:
        raise UserError(
            f"another program listens at {address}, where rank 0 must listen: set MASTER_PORT to a free port"
        ) from error
    raise UserError(
        f"rank {launch.rank} cannot connect to rank 0 at {address} ({cause}): check that every rank is "
        "started and that the nodes can reach this address, or set another one in MASTER_ADDR and MASTER_PORT"
    ) from error


def _device(name: str, launch: LaunchInfo) -> torch.device:
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
        sees_own_gpu_only = launch.launcher == "slurm" and torch.cuda.device_count() == 1
        number = 0 if sees_own_gpu_only else launch.local_rank
        device = torch.device("cuda", number if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"trainer.device={name} on local rank {launch.local_rank} asks for GPU {device.index}, but this "
                f"machine has {torch.cuda.device_count()}; start fewer processes or name another device"
            )
        torch.cuda.set_device(device)
    return device


def autocast(ranks: Ranks, precision: str) -> torch.autocast:
    """The autocast context of forward passes; it is disabled in fp32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(ranks.device.type, dtype, enabled=dtype != torch.float32)
