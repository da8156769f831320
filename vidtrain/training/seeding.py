"""A step's own randomness: there is no generator state to keep."""

import numpy as np
import torch

from vidtrain.training.ranks.distributed import Ranks


def seed_step(seed: int, step: int, ranks: Ranks) -> None:
    """Seeds what a step draws from: the CPU's generator and this rank's device's, no others (that takes longer)."""
    number = int(np.random.SeedSequence([seed, step, ranks.rank]).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(number)
    if ranks.device.type == "cuda":
        torch.cuda.manual_seed(number)
