"""In which numbers forward passes run."""

import torch

from vidtrain.training.ranks.distributed import Ranks

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(ranks: Ranks, precision: str) -> torch.autocast:
    """The context in which forward passes run; bf16 means bfloat16."""
    dtype = PRECISIONS[precision]
    return torch.autocast(ranks.device.type, dtype, enabled=dtype != torch.float32)
