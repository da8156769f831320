"""Transforms a batch of uint8 clips on the device: RandAugment, scaling, color, normalization, erasing, mixing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from vidtrain.errors import UserError, check_share

if TYPE_CHECKING:  # it imports torchvision, which takes seconds
    from vidtrain.data.augment.rand_augment import RandAugment

# Color jitter uses the stream of the seed itself, without a tag. No tag is 0, as [seed, 0] gives the same stream as
# seed
TAGS = {"rand_augment": 1, "erasing": 2}


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The generator of a view's random numbers for one of `TAGS`; the streams of a seed are independent of each
    other."""
    return np.random.default_rng([seed, TAGS[purpose]])


# ITU-R BT.601 luma, rounded as in torchvision's grayscale
LUMA = (0.2989, 0.587, 0.114)


class ColorJitter(nn.Module):
    """Scales brightness, contrast and saturation by factors drawn uniformly from [1 - x, 1 + x], then rotates the hue
    by a share of the color circle drawn from [-hue, hue]. All frames of a clip share the draw from the view's seed."""

    def __init__(self, brightness: float = 0, contrast: float = 0, saturation: float = 0, hue: float = 0):
        super().__init__()
        self.strengths = (brightness, contrast, saturation)
        self.hue = hue
        if min(self.strengths) < 0 or not 0 <= hue <= 0.5:
            raise UserError(
                f"brightness={brightness}, contrast={contrast}, saturation={saturation}, hue={hue}: "
                "none may be below 0, and hue may be 0.5 at most"
            )

    def forward(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """`clips` float [v c t h w] in [0, 1] and `seeds` int64 [v] -> the same shape, clamped to [0, 1]."""
        draws = np.stack([np.random.default_rng(int(seed)).uniform(-1, 1, 4) for seed in seeds.tolist()])
        factors = torch.from_numpy(1 + draws[:, :3] * np.array(self.strengths)).to(clips)
        brightness, contrast, saturation = rearrange(factors, "v f -> f v 1 1 1 1")
        clips = (clips * brightness).clamp_(0, 1)
        mean = _gray(clips).mean(dim=(2, 3, 4), keepdim=True)
        clips = torch.lerp(mean, clips, contrast).clamp_(0, 1)
        clips = torch.lerp(_gray(clips), clips, saturation).clamp_(0, 1)
        return _turn_hue(clips, draws[:, 3] * self.hue) if self.hue else clips


def _gray(clips: Tensor) -> Tensor:
    """[v c t h w] -> [v 1 t h w]"""
    return torch.tensordot(clips, clips.new_tensor(LUMA), dims=([1], [0])).unsqueeze(1)


def _turn_hue(clips: Tensor, turns: np.ndarray) -> Tensor:
    """Rotates the hue of each clip [v c t h w] by its share of the color circle, `turns` [v]."""
    from torchvision.transforms.v2 import functional as tv  # the import takes a second

    frames = rearrange(clips, "v c t h w -> v t c h w")
    turned = [tv.adjust_hue(clip, float(turn)) for clip, turn in zip(frames, turns, strict=True)]
    return rearrange(turned, "v t c h w -> v c t h w")


MODES = ("pixel", "constant")
TRIES = 10


class RandomErasing(nn.Module):
    """With `probability` erases one box of a normalized clip, the same box in all frames (Zhong et al. 2017).

    `area` bounds the box's share of the picture, `aspect` its height / width (log-uniform). With `mode` `pixel` the box
    is filled with standard normal noise for every pixel, channel and frame; with `constant` it is 0, the mean color.
    Both depend on the view's seed alone, but the noise differs between kinds of devices.
    """

    def __init__(
        self,
        probability: float = 0.25,
        area: Sequence[float] = (0.02, 1 / 3),
        aspect: Sequence[float] = (0.3, 1 / 0.3),
        mode: str = "pixel",
    ):
        super().__init__()
        check_share(probability=probability)
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise UserError(f"area={list(area)}: must be two shares, the smaller first, above 0, at most 1")
        if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1] < math.inf:
            raise UserError(f"aspect={list(aspect)}: must be two numbers above 0, the smaller first")
        if mode not in MODES:
            raise UserError(f"mode={mode}: must be one of {', '.join(MODES)}")
        self.probability, self.mode = probability, mode
        self.area, self.aspect = tuple(area), tuple(aspect)

    def box(self, rng: np.random.Generator, height: int, width: int) -> tuple[slice, slice] | None:
        """The rows and columns of the box to erase, or None."""
        if rng.random() >= self.probability:
            return None
        for _ in range(TRIES):
            area = height * width * rng.uniform(self.area[0], self.area[1])
            aspect = math.exp(rng.uniform(*np.log(self.aspect)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < rows < height and 0 < columns < width:
                top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
                return slice(top, top + rows), slice(left, left + columns)
        return None

    def forward(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """`clips` float [v c t h w], normalized, changed in place and returned; `seeds` int64 [v]."""
        for clip, seed in zip(clips, seeds.tolist(), strict=True):
            rng = stream(seed, "erasing")
            box = self.box(rng, *clip.shape[-2:])
            if box is None:
                continue
            erased = clip[:, :, *box]
            if self.mode == "constant":
                erased.zero_()
            else:
                generator = torch.Generator(clips.device).manual_seed(int(rng.integers(2**63 - 1)))
                noise = torch.randn(erased.shape, generator=generator, device=clips.device, dtype=clips.dtype)
                erased.copy_(noise)
        return clips


DTYPES = (torch.float32, torch.float16)


class DeviceTransform(nn.Module):
    """Converts uint8 clips [b n c t h w] to normalized floats of the same shape, on the clips' device.

    The steps are: `rand_augment` on uint8, scaling to [0, 1], `color`, normalization by `mean` and `std` (per channel,
    for values in [0, 1]), `erasing`. The three augmentations are only applied with seeds, that is in training; a view's
    random numbers depend on its seed alone. `dtype` is float32, or float16 for half the memory; bfloat16 has too few
    bits for 256 normalized colors.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        color: ColorJitter | None = None,
        rand_augment: "RandAugment | None" = None,
        erasing: RandomErasing | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype}: must be one of {DTYPES}")
        self.color = color
        self.rand_augment = rand_augment
        self.erasing = erasing
        self.register_buffer("mean", torch.tensor(mean, dtype=dtype).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(-1, 1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, clips: Tensor, seeds: Tensor | None = None) -> Tensor:
        views = rearrange(clips, "b n c t h w -> (b n) c t h w")
        if self.rand_augment is not None and seeds is not None:
            views = self.rand_augment(views, seeds.flatten())
        views = views.to(self.mean.dtype).div_(255)
        if self.color is not None and seeds is not None:
            views = self.color(views, seeds.flatten())
        views = views.sub_(self.mean).div_(self.std)
        if self.erasing is not None and seeds is not None:
            views = self.erasing(views, seeds.flatten())
        return rearrange(views, "(b n) c t h w -> b n c t h w", b=clips.shape[0])


# --- MixUp (Zhang et al. 2017) and CutMix (Yun et al. 2019) of the samples of a batch --------------------


@dataclass(frozen=True)
class Mix:
    """One draw of a mixing: each sample keeps `share` of itself, and the rest is from its partner. With a `box` (top,
    left, height, width) the partner is shown inside the box of every frame; else pixels are averaged with these
    weights."""

    share: float
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class Mixing:
    """Mixes every sample of a batch with a partner, a sample of the previous video (for the first video, the last one).

    As videos come in random order, the partner is random. A batch is mixed with `probability`. The share is drawn from
    Beta(alpha, alpha), once for a batch. An alpha of 0 turns MixUp or CutMix off; if both are on, CutMix is used with
    `switch_probability`.
    """

    mixup_alpha: float = 0.8
    cutmix_alpha: float = 1.0
    probability: float = 1.0
    switch_probability: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or max(self.mixup_alpha, self.cutmix_alpha) == 0:
            both = f"mixup_alpha={self.mixup_alpha}, cutmix_alpha={self.cutmix_alpha}"
            raise UserError(f"{both}: none may be below 0, and one must be above; set mixing=null for no mixing")
        check_share(probability=self.probability, switch_probability=self.switch_probability)

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

        The draw depends on `key` alone, such as (seed, step, rank). `smoothing` smooths the targets here, so the loss
        must not smooth them again. A batch has `copies` adjacent samples of each video. Raises `UserError` for a batch
        of one video.
        """
        if len(clips) <= copies:
            advice = "raise trainer.batch_size, or set augmentation.mixing=null"
            raise UserError(f"mixing needs two videos in a batch, and this one has 1; {advice}")
        mix = self.draw(key, *clips.shape[-2:])
        targets = soft_targets(labels, num_classes, smoothing)
        return mix_clips(clips, mix, copies), mix_targets(targets, mix, copies)

    def draw(self, key: int | Sequence[int], height: int, width: int) -> Mix:
        """The mixing of the batch with this key; with CutMix, the share is that of the pixels outside of the box."""
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
    """The box (top, left, height, width) around `center` (row, column) with the picture's shape and 1 - `share` of its
    area, cut at the picture's edges."""
    side = np.sqrt(1 - share)
    edges = []
    for middle, length in zip(center, (height, width), strict=True):
        cut = int(length * side)
        edges.append((max(0, middle - cut // 2), min(length, middle + (cut + 1) // 2)))
    (top, bottom), (left, right) = edges
    return top, left, bottom - top, right - left


def mix_clips(clips: Tensor, mix: Mix, copies: int = 1) -> Tensor:
    """[b n c t h w] -> the same shape. A sample's partner lies `copies` before it."""
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
    """[b k] -> [b k], mixed with the same share as the clips."""
    return torch.lerp(targets.roll(copies, 0), targets, mix.share)


def soft_targets(labels: Tensor, num_classes: int, smoothing: float = 0.0) -> Tensor:
    """Converts classes int64 [b], or labels float [b k], to targets float32 [b k]. Smoothing moves one-hot targets
    toward 1/k, as `CrossEntropyLoss(label_smoothing=...)` does, and independent labels [b k] toward 1/2."""
    if labels.ndim == 1:
        return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes
    if labels.shape[1] != num_classes:
        raise ValueError(f"labels have {labels.shape[1]} classes, not {num_classes}")
    return labels.float() * (1 - smoothing) + smoothing / 2
