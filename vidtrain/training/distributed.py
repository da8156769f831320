"""One process or many: what torchrun says, and the few collectives that the loop needs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from vidtrain.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process's place among the processes of the run, and the device it works on."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def agree(self, value: object) -> object:
        """Rank 0's `value`, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def on_main(self, make: Callable[[], object]) -> object:
        """What `make()` gives on rank 0, on every rank; a `UserError` there is raised on every rank, so that none
        waits for one that has gone."""
        value, refusal = None, None
        if self.is_main:
            try:
                value = make()
            except UserError as error:
                refusal = str(error)
        value, refusal = self.agree((value, refusal))
        if refusal is not None:
            raise UserError(refusal)
        return value

    def gather(self, value: object) -> list:
        """Every rank's `value`, in the order of the ranks, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, on every rank; `tensor` itself is left alone."""
        if self.world_size == 1:
            return tensor
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    def share_buffers(self, model: torch.nn.Module) -> None:
        """Gives every rank rank 0's buffers, such as the running statistics of batch norms, which differ by rank."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def join_ranks(device: str) -> Iterator[Ranks]:
    """Joins the process group that torchrun describes in the environment, if it does, and leaves it after.

    `device` is auto, cpu, cuda or a torch device. NCCL serves CUDA tensors and gloo the rest.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    place = _device(device, local_rank)
    if world_size == 1:
        yield Ranks(place)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield Ranks(
            device=place,
            rank=dist.get_rank(),
            world_size=world_size,
            local_rank=local_rank,
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        )
    finally:
        dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"trainer.device={name} is not a device: choose auto, cpu or cuda") from error
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise UserError(f"trainer.device={name}, but torch sees no CUDA device; choose auto or cpu")
        device = torch.device("cuda", local_rank if device.index is None else device.index)
        if device.index >= torch.cuda.device_count():
            raise UserError(
                f"trainer.device={name} on local rank {local_rank} asks for GPU {device.index}, but this machine "
                f"has {torch.cuda.device_count()}; start fewer processes or name another device"
            )
        torch.cuda.set_device(device)
    return device
