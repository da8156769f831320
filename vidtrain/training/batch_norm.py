"""What batch norms do in fine-tuning: follow the batches, stay as they are, or count over all ranks."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidtrain.errors import UserError
from vidtrain.training.ranks.distributed import Ranks

BATCH_NORMS = {
    "train": "normalize by the batch of each rank",
    "sync": "normalize by the batch of all ranks",
    "frozen_statistics": "keep their running statistics; scale and shift train",
    "frozen": "keep their running statistics, scale and shift",
}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def prepare_batch_norm(model: nn.Module, mode: str, ranks: Ranks) -> nn.Module:
    """`model` with batch norms that can do as `mode` says, their parameters and buffers the same.

    Raises `UserError` where they shall count over ranks that are not on GPUs, which PyTorch cannot.
    """
    if mode != "sync" or ranks.world_size == 1 or not batch_norms(model):
        return model
    if ranks.device.type != "cuda":
        raise UserError(
            f"trainer.batch_norm=sync needs a GPU for each of the {ranks.world_size} ranks, and this is a "
            f"{ranks.device.type}; choose train or frozen, or start one process"
        )
    # timm's, as PyTorch's would lose the activations that its norms hold; imported here, as it takes seconds
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def freeze_batch_norm(model: nn.Module, mode: str) -> None:
    """After a phase has said what trains: scales and shifts do not, where `mode` is frozen."""
    if mode == "frozen":
        for norm in batch_norms(model):
            norm.requires_grad_(False)
