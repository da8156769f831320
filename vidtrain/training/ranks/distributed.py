"""One process or many: what torchrun or SLURM says, and the few collectives that the loop needs."""

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
from vidtrain.training.ranks.heartbeat import LINGER_SECONDS, RankMonitor, RefusedByMain, of_peers, status_of
from vidtrain.training.ranks.rendezvous import Place, find_place, meeting_point
from vidtrain.training.ranks.signals import EXIT_STOPPED, Stopped, leave_at_exit

T = TypeVar("T")
RANK_TIMEOUT = 60.0
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
START_SECONDS = 600.0  # in which all ranks must have come to the meeting point


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run, and the device it works on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    monitor: RankMonitor | None = None  # of several ranks

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
        """What `make()` gives on rank 0, on every rank; a `UserError` there is raised on every rank, so that none
        waits for one that has gone."""
        value: T | None = None
        refused: UserError | None = None
        if self.is_main:
            try:
                value = make()
            except UserError as error:
                refused = error
        shared, refusal = self.broadcast_object((value, refused and str(refused)))
        if refused is not None:
            raise refused
        if refusal is not None:
            raise RefusedByMain(refusal)
        return cast(T, shared)  # rank 0 made it, or refused

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's `value`, in the order of the ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank; `tensor` itself is left alone."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def any_rank(self, value: bool) -> bool:
        """Whether it is so on any rank, on every rank. It takes no GPU, so that none waits for its queue."""
        if self.world_size == 1:
            return value
        flag = torch.tensor(int(value), dtype=torch.int32)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def all_reduce_sum(self, *numbers: int) -> list[int]:
        """The sums over ranks of whole numbers, on every rank. It takes no GPU either."""
        if self.world_size == 1:
            return list(numbers)
        totals = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(totals)
        return totals.tolist()

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Gives every rank rank 0's buffers, such as the running statistics of batch norms, which differ by rank."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_ranks(device: str, rank_timeout: float = RANK_TIMEOUT) -> Iterator[Ranks]:
    """Joins the process group that torchrun or SLURM describes in the environment, if one does, and leaves it after.

    `device` is auto, cpu, cuda or a torch device. NCCL serves CUDA tensors and gloo the rest. A rank without a sign of
    life for `rank_timeout` seconds ends all of them. After an exception the group is left as it is: leaving it could
    wait for a rank that has gone, and the process is about to end.
    """
    here = find_place()
    place = _device(device, here)
    if here.world_size == 1:
        yield Ranks(place)
        return
    address, port = meeting_point()
    start = timedelta(seconds=START_SECONDS)

    def connect() -> dist.Store:
        return dist.TCPStore(address, port, is_master=False, timeout=start)

    backend = "cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo"
    began = time.monotonic()
    try:
        if here.launcher == "torchrun":
            dist.init_process_group(backend)
        else:
            store = dist.TCPStore(address, port, here.world_size, is_master=here.rank == 0, timeout=start)
            dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.world_size)
        monitor = RankMonitor(connect, here.rank, here.world_size, rank_timeout)
    except RuntimeError as error:
        if not isinstance(error, dist.DistNetworkError | dist.DistStoreError) and not of_peers(error):
            raise
        _did_not_meet(here, f"{address}:{port}", error, time.monotonic() - began)
    try:
        yield Ranks(place, here.rank, here.world_size, here.local_rank, here.local_world_size, monitor)
    except BaseException as error:
        run_end = monitor.end_after(error, status_of(error))
        leave_at_exit(run_end.status, LINGER_SECONDS)
        if isinstance(error, SystemExit | Stopped) or monitor.should_report(error, run_end):
            raise  # those that were stopped all know
        print(shown_lines(f"error: rank {here.rank} ends, as {run_end.message}"), file=sys.stderr, flush=True)
        sys.exit(run_end.status)
    dist.barrier()
    monitor.close()
    try:
        dist.barrier()  # the store goes with rank 0
    except RuntimeError as error:
        # The barrier before says that every rank has finished; on a busy machine one that leaves this barrier first
        # can close its connection before the others have heard of its arrival. Nothing is lost with it.
        if not of_peers(error):
            raise
    dist.destroy_process_group()


def _did_not_meet(here: Place, where: str, error: RuntimeError, waited: float) -> NoReturn:
    """Ends this rank's attempt: with status 75 under SLURM, if a requeued job may fare better."""
    cause = str(error).splitlines()[0]
    taken, chosen = "EADDRINUSE" in cause, "MASTER_PORT" in os.environ
    if here.launcher == "slurm" and not (taken and chosen) and waited < START_SECONDS / 2:
        # the port follows from how often the job was requeued; and a rank or its node may be lost in start-up, too
        why = "another program listens there" if taken else f"one of them was lost: {cause}"
        print(
            f"error: the ranks did not meet at {where}, as {why}; the job is to be requeued", file=sys.stderr
        )
        sys.exit(EXIT_STOPPED)
    if taken:
        raise UserError(
            f"another program listens at {where}, where the ranks are to meet: set MASTER_PORT"
        ) from error
    raise UserError(
        f"rank {here.rank} did not meet the others at {where}, where rank 0 listens ({cause}): is every rank started, "
        "and may their nodes reach each other there? MASTER_ADDR and MASTER_PORT set another place"
    ) from error


def _device(name: str, here: Place) -> torch.device:
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
        # SLURM may show each task no GPU but its own (--gpus-per-task)
        own = here.launcher == "slurm" and torch.cuda.device_count() == 1
        number = 0 if own else here.local_rank
        device = torch.device("cuda", number if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"trainer.device={name} on local rank {here.local_rank} asks for GPU {device.index}, but this machine "
                f"has {torch.cuda.device_count()}; start fewer processes or name another device"
            )
        torch.cuda.set_device(device)
    return device


def autocast(ranks: Ranks, precision: str) -> torch.autocast:
    """The context in which forward passes run; bf16 means bfloat16."""
    dtype = PRECISIONS[precision]
    return torch.autocast(ranks.device.type, dtype, enabled=dtype != torch.float32)
