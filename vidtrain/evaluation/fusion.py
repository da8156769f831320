"""Clip fusion, by name: from the clip logits of a video to one prediction."""

import math

from torch import Tensor


def mean_logits(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the mean over clips, as in PySlowFast's and this project's default."""
    return clip_logits.mean(dim=1)


def mean_probs(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the logarithm of the clips' mean probabilities, as VideoMAE evaluates.

    Its softmax is exactly the mean of the clips' softmaxes, so losses and metrics take it as logits.
    """
    return clip_logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(clip_logits.shape[1])


# joint: the model attended over the tokens of all clips, so each row is a spatial view of the whole video;
# V-JEPA averages the probabilities of those
FUSIONS = {"mean_logits": mean_logits, "mean_probs": mean_probs, "joint": mean_probs}


def fuse(clip_logits: Tensor, fusion: str) -> Tensor:
    """Clip logits [b n k] -> video logits [b k] (up to a constant) by the fusion's name."""
    return FUSIONS[fusion](clip_logits.float())
