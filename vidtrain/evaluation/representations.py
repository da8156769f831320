"""How much a set of features tells apart: what shows that pretraining learns, or that its features have collapsed."""

import torch
import torch.nn.functional as F
from torch import Tensor


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the normalized singular values of features [v d], from 1 to min(v, d).

    It is near 1 where all videos have nearly the same features. Source: Roy and Vetterli 2007, section 2.
    """
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum()
    return torch.special.entr(shares).sum().exp().item()


def spread(features: Tensor) -> float:
    """The mean distance of features [v d] of unit length from their mean, from 0 to 1: 0 where all point one way."""
    units = F.normalize(features.double(), dim=1)
    return (units - units.mean(dim=0)).norm(dim=1).mean().item()
