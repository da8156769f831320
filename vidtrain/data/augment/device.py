"""What happens to a batch of uint8 clips on the device: RandAugment, scale, color, normalization, erasing."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError

if TYPE_CHECKING:  # it imports torchvision, which takes seconds
    from vidtrain.data.augment.rand_augment import RandAugment

# Color jitter has the seed's own stream. No tag is 0, for SeedSequence takes [seed, 0] as it takes seed.
TAGS = {"rand_augment": 1, "erasing": 2}


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The view's random numbers for one of `TAGS`; streams of one seed are independent of each other."""
    return np.random.default_rng([seed, TAGS[purpose]])


# ITU-R BT.601 luma, rounded as in torchvision's grayscale
LUMA = (0.2989, 0.587, 0.114)


class ColorJitter(nn.Module):
    """Brightness, contrast and saturation, each scaled by a factor uniform in [1 - x, 1 + x], then the hue turned
    by a share of the color circle uniform in [-hue, hue]; in this order.

    One draw serves all frames of a clip, and clips are independent. The draw is made from the view's own
    seed, so it depends on neither the batch it came in nor the global generator.
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ):
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
    """Each clip of [v c t h w] by its own share of the color circle, `turns` [v]."""
    from torchvision.transforms.v2 import functional as tv  # which takes a second

    frames = rearrange(clips, "v c t h w -> v t c h w")
    turned = [tv.adjust_hue(each, float(turn)) for each, turn in zip(frames, turns, strict=True)]
    return rearrange(turned, "v t c h w -> v c t h w")


MODES = ("pixel", "constant")
TRIES = 10


class RandomErasing(nn.Module):
    """With `probability` erases one box of a normalized clip, the same in all its frames (Zhong et al. 2017).

    `area` bounds the box's share of the picture, `aspect` its height / width (drawn uniformly in the logarithm).
    `mode` says what is put there: `pixel` is fresh standard normal noise for every pixel, channel and frame,
    `constant` is 0, the mean color. The box and the noise depend on the view's seed alone; the noise is made on
    the clips' device, so its numbers are those of that kind of device.
    """

    def __init__(
        self,
        probability: float = 0.25,
        area: Sequence[float] = (0.02, 1 / 3),
        aspect: Sequence[float] = (0.3, 1 / 0.3),
        mode: str = "pixel",
    ):
        super().__init__()
        if not 0 <= probability <= 1:
            raise UserError(f"probability={probability}: must lie between 0 and 1")
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise UserError(
                f"area={list(area)}: must be two shares, the smaller first, above 0 and at most 1"
            )
        if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1] < math.inf:
            raise UserError(f"aspect={list(aspect)}: must be two numbers above 0, the smaller first")
        if mode not in MODES:
            raise UserError(f"mode={mode}: must be one of {', '.join(MODES)}")
        self.probability = probability
        self.area = tuple(area)
        self.aspect = tuple(aspect)
        self.mode = mode

    def box(self, rng: np.random.Generator, height: int, width: int) -> tuple[slice, slice] | None:
        """The rows and columns that a view loses, or None where it keeps all."""
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
    """uint8 clips [b n c t h w] to normalized floats of the same shape, batched, on their own device.

    In this order: `rand_augment` on uint8, values in [0, 1], `color`, `mean` and `std` (per channel, for values
    in [0, 1]), `erasing`. The three that augment act only when seeds are given, that is in training; each view's
    draws depend on its seed alone.

    `dtype` is that of the output and of the work from [0, 1] on: float32, or float16 for half the memory.
    bfloat16 is refused, for its 8 bits do not hold 256 colors once they are shifted and scaled.
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
