"""Clip fusion, by name: from the clip logits of a video to one prediction."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_logits(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the mean over clips, this project's default."""
    return clip_logits.mean(dim=1)


def mean_probs(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the logarithm of the clips' mean probabilities, as VideoMAE and PySlowFast evaluate.

    Its softmax is exactly the mean of the clips' softmaxes, so losses and metrics take it as logits.
    """
    return clip_logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(clip_logits.shape[1])


def mean_sigmoids(clip_logits: Tensor) -> Tensor:
    """[b n k] -> [b k]: the logits whose sigmoid is the mean of the clips' sigmoids, for classes judged independently.

    Their odds are those of the sums of yes and no, taken in logarithms, which do not round to 0 or 1.
    """
    return F.logsigmoid(clip_logits).logsumexp(dim=1) - F.logsigmoid(-clip_logits).logsumexp(dim=1)


def vote(clip_logits: Tensor, independent: bool = False) -> Tensor:
    """[b n k] -> float64 [b k]: each view votes for its first class, and the class with the most votes wins.

    Of classes with as many votes, that with the higher mean probability over views wins; of those equal in that too,
    the first. As a prediction, which a loss and a top-5 need: the mean probability counts as one more vote, so the
    shares are (votes + mean probability) / (n + 1). It never outweighs a vote, and no share is 0. The result is their
    logarithms, or the logits of as many sigmoids where classes are judged independently.
    """
    views = clip_logits.double()
    n, num_classes = views.shape[1:]
    first = views.sort(dim=-1, descending=True, stable=True).indices[..., 0]
    votes = F.one_hot(first, num_classes).sum(dim=1)
    chances = views.sigmoid() if independent else views.softmax(dim=-1)
    shares = (votes + chances.mean(dim=1)) / (n + 1)
    # certainty that has rounded to 0 or 1 keeps a finite logarithm
    return shares.logit(eps=1e-15) if independent else shares.clamp_min(1e-300).log()


# joint: the model attended over the tokens of all clips, so each row is a spatial view of the whole video;
# V-JEPA averages the probabilities of those
FUSIONS = {"mean_logits": mean_logits, "mean_probs": mean_probs, "joint": mean_probs}
INDEPENDENT = {"mean_logits": mean_logits, "mean_probs": mean_sigmoids, "joint": mean_sigmoids}
# of one label a video, and only after training: votes have no gradient
VOTE = "vote"
EVALUATION_FUSIONS = (*FUSIONS, VOTE)


def fusions_of(joint: bool, multi_label: bool) -> tuple[str, ...]:
    """The fusions that the views of a table allow: of a model that attended over all clips jointly its own alone, and
    a vote only where a video has one label."""
    if joint:
        return ("joint",)
    return ("mean_logits", "mean_probs") if multi_label else ("mean_logits", "mean_probs", VOTE)


def fuse(clip_logits: Tensor, fusion: str, independent: bool = False) -> Tensor:
    """Clip logits [b n k] -> video logits [b k] by the fusion's name.

    Their softmax is the prediction (they are up to a constant) or, where the loss judges classes independently, their
    sigmoid.
    """
    if fusion == VOTE:
        return vote(clip_logits, independent)
    return (INDEPENDENT if independent else FUSIONS)[fusion](clip_logits.float())


def probabilities(
    clip_logits: Tensor,
    fusion: str,
    independent: bool = False,
    scaling: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Clip logits [b n k] -> probabilities [b k] of a video: those of `fuse`, by operations that hold for any n in an
    exported graph; with a `scaling` of fused logits by scale and bias, of [1] or [k] each."""
    chances = torch.sigmoid if independent else partial(torch.softmax, dim=-1)
    if scaling is not None:
        views = clip_logits.float()
        if fusion == "mean_logits":
            fused = views.mean(dim=1)
        elif independent:
            fused = mean_sigmoids(views)
        else:  # to the logarithm of n, which all classes share
            fused = views.log_softmax(dim=-1).logsumexp(dim=1)
            fused = fused - fused.logsumexp(dim=-1, keepdim=True)
        scale, bias = scaling
        return chances(fused * scale + bias)
    if fusion == "mean_logits":
        return chances(clip_logits.float().mean(dim=1))
    return chances(clip_logits.float()).mean(dim=1)
