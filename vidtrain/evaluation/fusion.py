"""Clip fusion, by name: from the clip logits of a video to one prediction."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_logits(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the mean over clips, as in PySlowFast's and this project's default."""
    return clip_logits.mean(dim=1)


def mean_probs(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the logarithm of the clips' mean probabilities, as VideoMAE evaluates.

    Its softmax is exactly the mean of the clips' softmaxes, so losses and metrics take it as logits.
    """
    return clip_logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(clip_logits.shape[1])


def mean_sigmoids(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the logits whose sigmoid is the mean of the clips' sigmoids, for classes judged independently.

    Their odds are those of the sums of yes and no, taken in logarithms, which do not round to 0 or 1.
    """
    return F.logsigmoid(clip_logits).logsumexp(dim=1) - F.logsigmoid(-clip_logits).logsumexp(dim=1)


# joint: the model attended over the tokens of all clips, so each row is a spatial view of the whole video;
# V-JEPA averages the probabilities of those
FUSIONS = {"mean_logits": mean_logits, "mean_probs": mean_probs, "joint": mean_probs}
INDEPENDENT = {"mean_logits": mean_logits, "mean_probs": mean_sigmoids, "joint": mean_sigmoids}


def fuse(clip_logits: Tensor, fusion: str, independent: bool = False) -> Tensor:
    """Clip logits [b n k] -> video logits [b k] by the fusion's name.

    Their softmax is the prediction (they are up to a constant) or, where the loss judges classes independently, their
    sigmoid.
    """
    return (INDEPENDENT if independent else FUSIONS)[fusion](clip_logits.float())


def probabilities(clip_logits: Tensor, fusion: str, independent: bool = False) -> Tensor:
    """Clip logits [b n k] -> probabilities [b k] of a video: those of `fuse`, by operations that hold for any n in an
    exported graph."""
    chances = torch.sigmoid if independent else partial(torch.softmax, dim=-1)
    if fusion == "mean_logits":
        return chances(clip_logits.float().mean(dim=1))
    return chances(clip_logits.float()).mean(dim=1)
