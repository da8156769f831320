"""Where a view is cut from the frame: boxes in source pixels, so that decoding can crop before it scales.

Every box has whole pixels. Its sides are rounded to the nearest pixel, so the aspect ratio of a box is off
from the exact one by half a pixel a side at most; its place is then chosen among the whole-pixel places where
the rounded box lies inside the frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vidtrain.errors import UserError


@dataclass(frozen=True, slots=True)
class Crop:
    """A box in pixels of the displayed frame (rotation applied); `flip` mirrors it left to right."""

    left: int
    top: int
    width: int
    height: int
    flip: bool = False


def _check_range(name: str, bounds: Sequence[float], lowest: float) -> None:
    if len(bounds) != 2 or not lowest <= bounds[0] <= bounds[1]:
        raise UserError(f"{name}={list(bounds)}: must be two numbers, the smaller first, from {lowest:g} up")


def _check_flip(flip: float) -> None:
    if not 0 <= flip <= 1:
        raise UserError(f"flip={flip}: must be a probability between 0 and 1")


def _place(width: int, height: int, box: tuple[int, int], flip: float, rng: np.random.Generator) -> Crop:
    """The box (width, height) at a place drawn uniformly inside the frame."""
    left = int(rng.integers(width - box[0] + 1))
    top = int(rng.integers(height - box[1] + 1))
    return Crop(left, top, *box, flip=bool(rng.random() < flip))


def _short_side_box(width: int, height: int, size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """The (width, height) of source that fills `size` when the frame's short side becomes ratio x size's.

    Where the output's shape leaves the frame (a wide output of an upright video), as much as there is.
    """
    out_height, out_width = size
    scale = ratio * min(size) / min(width, height)
    scale = max(scale, out_width / width, out_height / height)
    return (
        min(width, max(1, round(out_width / scale))),
        min(height, max(1, round(out_height / scale))),
    )


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and shape, the crop of Inception training (Szegedy et al. 2015).

    `scale` bounds the box's share of the frame's area. `ratio` bounds its width / height relative to that of
    the output, so (1, 1) never distorts; `flip` is the probability of mirroring.
    """

    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_range("scale", self.scale, 0)
        _check_range("ratio", self.ratio, 0)
        _check_flip(self.flip)
        if self.scale[0] <= 0 or self.scale[1] > 1 or self.ratio[0] <= 0:
            raise UserError(
                f"scale={list(self.scale)}, ratio={list(self.ratio)}: must be above 0, scale at most 1"
            )

    def __call__(self, width: int, height: int, size: tuple[int, int], rng: np.random.Generator) -> Crop:
        shape = size[1] / size[0]
        for _ in range(10):
            area = width * height * rng.uniform(*self.scale)
            aspect = shape * math.exp(rng.uniform(*np.log(self.ratio)))
            box = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box[0] <= width and 0 < box[1] <= height:
                return _place(width, height, box, self.flip, rng)
        # a frame far from the wanted shapes: the largest box of the nearest allowed shape, centered
        aspect = float(np.clip(width / height, shape * self.ratio[0], shape * self.ratio[1]))
        box = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
        left, top = (width - box[0]) // 2, (height - box[1]) // 2
        return Crop(left, top, *box, flip=bool(rng.random() < self.flip))


@dataclass(frozen=True)
class ShortSideCrop:
    """Scale jitter: the short side becomes a random multiple of the output's, then the output is cut.

    `short_side_ratio` bounds that multiple, for instance (256 / 224, 320 / 224). The aspect ratio is kept
    and the place is random.
    """

    short_side_ratio: Sequence[float] = (1.0, 1.25)
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_range("short_side_ratio", self.short_side_ratio, 1)
        _check_flip(self.flip)

    def __call__(self, width: int, height: int, size: tuple[int, int], rng: np.random.Generator) -> Crop:
        box = _short_side_box(width, height, size, rng.uniform(*self.short_side_ratio))
        return _place(width, height, box, self.flip, rng)


@dataclass(frozen=True)
class CenterCrops:
    """Evaluation: `crops` boxes spread evenly along the side with room, both ends included; 1 is the center.

    The short side becomes `short_side_ratio` times the output's; the aspect ratio is kept.
    """

    short_side_ratio: float = 1.0
    crops: int = 1

    def __post_init__(self) -> None:
        _check_range("short_side_ratio", (self.short_side_ratio, self.short_side_ratio), 1)
        if self.crops < 1:
            raise UserError(f"crops={self.crops}: must be 1 or more")

    def __call__(self, width: int, height: int, size: tuple[int, int]) -> list[Crop]:
        box = _short_side_box(width, height, size, self.short_side_ratio)
        room = width - box[0], height - box[1]
        left, top = room[0] // 2, room[1] // 2
        if self.crops == 1:
            return [Crop(left, top, *box)]
        steps = range(self.crops)
        if room[0] >= room[1]:
            return [Crop(room[0] * i // (self.crops - 1), top, *box) for i in steps]
        return [Crop(left, room[1] * i // (self.crops - 1), *box) for i in steps]
