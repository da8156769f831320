"""The objective of training: the loss of every head on a batch of clips with labels."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vidtrain.evaluation.fusion import fuse
from vidtrain.training.losses import Loss


class HeadOutputs(NamedTuple):
    """The answers of h heads for b videos."""

    logits: Tensor  # [h b k], fused over the clips of a video
    losses: Tensor  # [h], the mean over videos


@dataclass(frozen=True)
class Classification:
    """Clip logits [b n (h k)] of h heads and targets (classes [b], or shares [b k]) -> `HeadOutputs`.

    `fusion` is the name of the model's, and `class_weights` [k] are what `loss.weights` gave.

    Terms beside the loss are to be added here: `by_head` are the raw clip logits, while the fused `logits` are
    log-probabilities where fusion is mean_probs or joint. They will show in train/loss and not in val/loss.
    """

    loss: Loss
    class_weights: Tensor | None
    fusion: str
    num_classes: int

    def __call__(self, clip_logits: Tensor, targets: Tensor) -> HeadOutputs:
        by_head = clip_logits.split(self.num_classes, dim=-1)
        logits = [fuse(head, self.fusion, self.loss.independent) for head in by_head]
        losses = [self.loss(head, targets, self.class_weights) for head in logits]
        return HeadOutputs(torch.stack(logits), torch.stack(losses))
