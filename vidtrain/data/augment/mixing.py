"""MixUp (Zhang et al. 2017) and CutMix (Yun et al. 2019) of the samples of a batch, on the device."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from vidtrain.errors import UserError


@dataclass(frozen=True)
class Mix:
    """One draw: each sample keeps `share` of itself, the rest comes from its partner.

    With a `box` (top, left, height, width) the partner shows inside it, in every frame of every clip; without
    one, pixels are averaged with these weights.
    """

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixes every sample of a batch with one of the video before it (the first with the last), all in the same way.

    Videos come in random order, so that is a random partner, and no sample of two videos or more is its own. The share
    is drawn from Beta(alpha, alpha), once per batch; an alpha of 0 switches its way of mixing off. Where both are
    on, CutMix is taken with `switch_probability`. A batch is mixed with `probability`.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or max(self.mixup_alpha, self.cutmix_alpha) == 0:
            raise UserError(
                f"mixup_alpha={self.mixup_alpha}, cutmix_alpha={self.cutmix_alpha}: none may be below 0, and one must "
                "be above; null in their place does no mixing"
            )
        for name in ("probability", "switch_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name}={getattr(self, name)}: must lie between 0 and 1")

    def __call__(
        self,
        clips: Tensor,
        labels: Tensor,
        num_classes: int,
        key: int | Sequence[int],
        smoothing: float = 0.0,
        copies: int = 1,
    ) -> tuple[Tensor, Tensor]:
        """`clips` float [b n c t h w] and `labels` (see `soft_targets`) -> mixed clips, targets float32 [b k].

        `key`, such as (seed, step, rank), is all that the draw depends on. `smoothing` smooths the targets here;
        then the loss must not do it again. `copies` of each video lie side by side. Raises `UserError` for a batch of
        one video.
        """
        if len(clips) <= copies:
            raise UserError(
                "mixing needs two videos in a batch, and this one has 1; "
                "raise trainer.batch_size, or set augmentation.mixing=null"
            )
        mix = self.draw(key, *clips.shape[-2:])
        targets = soft_targets(labels, num_classes, smoothing)
        return mix_clips(clips, mix, copies), mix_targets(targets, mix, copies)

    def draw(self, key: int | Sequence[int], height: int, width: int) -> Mix:
        """How the batch with this key is mixed; the share is that of the whole pixels that the box leaves."""
        rng = np.random.default_rng(key)
        if rng.random() >= self.probability:
            return Mix(1.0)
        switch = rng.random() < self.switch_probability
        if not (self.mixup_alpha == 0 or (switch and self.cutmix_alpha > 0)):
            return Mix(float(rng.beta(self.mixup_alpha, self.mixup_alpha)))
        share = rng.beta(self.cutmix_alpha, self.cutmix_alpha)
        box = cut_box(share, (int(rng.integers(height)), int(rng.integers(width))), height, width)
        return Mix(1 - box[2] * box[3] / (height * width), box)


def cut_box(share: float, center: tuple[int, int], height: int, width: int) -> tuple[int, int, int, int]:
    """The box (top, left, height, width) around `center` (row, column) with 1 - `share` of the picture and the
    picture's shape; what lies outside the picture is cut off."""
    side = np.sqrt(1 - share)
    edges = []
    for middle, length in zip(center, (height, width), strict=True):
        cut = int(length * side)
        edges.append((max(0, middle - cut // 2), min(length, middle + (cut + 1) // 2)))
    (top, bottom), (left, right) = edges
    return top, left, bottom - top, right - left


def mix_clips(clips: Tensor, mix: Mix, copies: int = 1) -> Tensor:
    """[b n c t h w] -> the same shape, in memory of its own unless nothing is mixed. A sample's partner lies `copies`
    before it."""
    if mix.share == 1:
        return clips
    if mix.box is None:
        return torch.lerp(clips.roll(copies, 0), clips, mix.share)
    top, left, height, width = mix.box
    mixed = clips.clone()
    inside = mixed[..., top : top + height, left : left + width]
    inside.copy_(inside.roll(copies, 0))
    return mixed


def mix_targets(targets: Tensor, mix: Mix, copies: int = 1) -> Tensor:
    """[b k] -> [b k], mixed as the clips are."""
    return torch.lerp(targets.roll(copies, 0), targets, mix.share)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Classes int64 [b], or the shares of every class float [b k], as float32 [b k].

    Smoothing takes a class's 1 toward 1/k for all classes, as `CrossEntropyLoss(label_smoothing=...)` does, and
    the independent labels of [b k] toward 1/2.
    """
    if labels.ndim == 1:
        return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    if labels.shape[1] != num_classes:
        raise ValueError(f"labels of {labels.shape[1]} classes where there are {num_classes}")
    return labels.float() * (1 - smoothing) + smoothing / 2
