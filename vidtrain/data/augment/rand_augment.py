"""RandAugment for clips (Cubuk et al. 2019), as in video fine-tuning: a few random operations for each clip.

The policy is timm's `rand-m7-n4-mstd0.5-inc1`: 15 operations whose strength grows with the magnitude. Unlike in the
usual video pipelines it is applied to the crop, as full-size frames are never converted. So the filled borders of a
rotated or translated picture are always visible, and translations are shares of the crop's sides.
"""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from vidtrain.data.augment.device import stream
from vidtrain.errors import UserError, check_share

MOST = 10  # the magnitude at which every range ends
INTERPOLATIONS = ("bilinear", "bicubic")

# Maps the magnitude, in [0, 10], and a sign, -1 or 1, to the amount of an operation
Level = Callable[[float, int], float]


def _factor(magnitude: float, sign: int) -> float:
    """A factor of brightness and the like, where 1 is no change."""
    return max(0.1, 1 + sign * magnitude / MOST * 0.9)


def _signed(most: float) -> Level:
    return lambda magnitude, sign: sign * magnitude / MOST * most


LEVELS: dict[str, Level] = {
    "auto_contrast": _signed(0),  # has no amount
    "equalize": _signed(0),
    "invert": _signed(0),
    "rotate": _signed(30),  # degrees counterclockwise
    "posterize": lambda magnitude, _: 4 - int(magnitude / MOST * 4),  # bits that are kept
    # values of at least this are inverted
    "solarize": lambda magnitude, _: 256 - min(256, int(magnitude / MOST * 256)),
    "solarize_add": lambda magnitude, _: min(128, int(magnitude / MOST * 110)),  # added to values below 128
    "color": _factor,
    "contrast": _factor,
    "brightness": _factor,
    "sharpness": _factor,
    "shear_x": _signed(0.3),  # pixels per pixel
    "shear_y": _signed(0.3),
    "translate_x": _signed(0.45),  # share of the side
    "translate_y": _signed(0.45),
}
NAMES = tuple(LEVELS)

# The operations on colors: (uint8 frames [t c h w], amount) -> frames. Statistics (the range of auto_contrast, the
# histogram of equalize, the mean of contrast) are computed for each frame, as in the usual pipelines
COLOR_OPS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "auto_contrast": lambda frames, _: tv.autocontrast(frames),
    "equalize": lambda frames, _: tv.equalize(frames),
    "invert": lambda frames, _: tv.invert(frames),
    "posterize": lambda frames, bits: tv.posterize(frames, int(bits)),
    "solarize": lambda frames, threshold: torch.where(frames.short() >= threshold, ~frames, frames),
    "solarize_add": lambda frames, addend: torch.where(frames < 128, frames + int(addend), frames),
    "color": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "brightness": tv.adjust_brightness,
    "sharpness": tv.adjust_sharpness,
}


def _affine_matrix(name: str, amount: float, height: int, width: int) -> tuple[float, ...]:
    """(a, b, c, d, e, f): the output at (x, y) is the input at (ax + by + c, dx + ey + f), for centers of pixels."""
    if name == "rotate":
        cosine, sine = math.cos(math.radians(amount)), -math.sin(math.radians(amount))
        x, y = width / 2, height / 2
        return cosine, sine, x - cosine * x - sine * y, -sine, cosine, y + sine * x - cosine * y
    matrices = {
        "shear_x": (1, amount, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, amount, 1, 0),
        "translate_x": (1, 0, amount * width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, amount * height),
    }
    return matrices[name]


def _affine(frames: Tensor, matrix: tuple[float, ...], fill: int, interpolation: str) -> Tensor:
    """Transforms uint8 frames [t c h w] by `matrix`; pixels from outside the picture get the value `fill`."""
    height, width = frames.shape[-2:]
    a, b, c, d, e, f = matrix
    x = torch.arange(width, device=frames.device) + 0.5
    y = torch.arange(height, device=frames.device).unsqueeze(1) + 0.5
    from_x, from_y = a * x + b * y + c, d * x + e * y + f
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    grid = torch.stack([2 / width * from_x - 1, 2 / height * from_y - 1], dim=-1)
    # all frames are the channels of one picture, as they share the grid
    picture = rearrange(frames.float(), "t c h w -> 1 (t c) h w")
    seen = F.grid_sample(picture, grid[None], interpolation, padding_mode="border", align_corners=False)
    seen = seen.round_().clamp_(0, 255).masked_fill_(~inside, fill)
    return seen.to(torch.uint8).view_as(frames)


class RandAugment(nn.Module):
    """Applies `num_ops` operations to each clip, drawn with replacement, each with `probability`, equally to all
    frames.

    The magnitude of each is drawn from a normal distribution around `magnitude` with deviation `magnitude_std`, and
    clipped to [0, 10]; directions are random. `interpolation` (bicubic or bilinear) is for rotation, shear and
    translation; `fill` is the gray value of pixels from outside the picture.
    """

    def __init__(
        self,
        num_ops: int = 4,
        magnitude: float = 7.0,
        magnitude_std: float = 0.5,
        probability: float = 0.5,
        interpolation: str = "bicubic",
        fill: int = 128,
    ):
        super().__init__()
        if num_ops < 1:
            raise UserError(f"num_ops={num_ops}: must be 1 or more; set rand_augment to null for no RandAugment")
        if not 0 <= magnitude <= MOST or magnitude_std < 0:
            both = f"magnitude={magnitude}, magnitude_std={magnitude_std}"
            raise UserError(f"{both}: must lie between 0 and {MOST}, and from 0 up")
        check_share(probability=probability)
        if interpolation not in INTERPOLATIONS:
            raise UserError(f"interpolation={interpolation}: must be one of {', '.join(INTERPOLATIONS)}")
        if not 0 <= fill <= 255:
            raise UserError(f"fill={fill}: must lie between 0 and 255")
        self.num_ops, self.probability = num_ops, probability
        self.magnitude, self.magnitude_std = magnitude, magnitude_std
        self.interpolation, self.fill = interpolation, fill

    def plan(self, seed: int) -> list[tuple[str, float]]:
        """The operations for the view with this seed, in order, each with its amount."""
        rng = stream(seed, "rand_augment")
        chosen = rng.integers(len(NAMES), size=self.num_ops).tolist()
        applied = rng.random(self.num_ops) < self.probability
        magnitudes = rng.normal(self.magnitude, self.magnitude_std, self.num_ops).clip(0, MOST).tolist()
        signs = rng.choice((-1, 1), self.num_ops).tolist()
        return [
            (NAMES[chosen[i]], LEVELS[NAMES[chosen[i]]](magnitudes[i], signs[i]))
            for i in range(self.num_ops)
            if applied[i]
        ]

    def apply_op(self, frames: Tensor, name: str, amount: float) -> Tensor:
        """Applies one operation equally to all uint8 frames [t c h w]."""
        if name in COLOR_OPS:
            return COLOR_OPS[name](frames, amount)
        matrix = _affine_matrix(name, amount, *frames.shape[-2:])
        return _affine(frames, matrix, self.fill, self.interpolation)

    def forward(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """`clips` uint8 [v c t h w] and `seeds` int64 [v] -> new uint8 clips of the same shape."""
        augmented = clips.clone()
        for view, seed in zip(augmented, seeds.tolist(), strict=True):
            frames = rearrange(view, "c t h w -> t c h w").contiguous()
            plan = self.plan(seed)
            for name, amount in plan:
                frames = self.apply_op(frames, name, amount)
            if plan:
                view.copy_(rearrange(frames, "t c h w -> c t h w"))
        return augmented
