"""Chooses the box of the frame that a view shows, in source pixels, so that decoding can crop before scaling.

Every box has whole pixels and is inside the frame; nothing is padded. Its sides are rounded to the nearest pixel before
its position is chosen.

A geometry for training is called as `geometry(width, height, size, frames, rng)` and returns one `Crop` for the clip,
or a tuple with one for each frame. A geometry for evaluation is called as `geometry(width, height, size)` and returns a
list of `crops` views; `output_size(width, height, size)` is their (height, width). `width` and `height` are those of
the displayed frame, `size` is the requested (height, width).

Publishers' code scales the frame first and crops the result: see `published_crops`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vidtrain.errors import UserError, check_share


@dataclass(frozen=True, slots=True)
class Crop:
    """A box in pixels of the displayed frame (rotation applied); `flip` mirrors it left to right.

    With `scaled` (width, height), the box is in pixels of the frame scaled to that size.
    """

    left: int
    top: int
    width: int
    height: int
    flip: bool = False
    scaled: tuple[int, int] | None = None

    def in_frame(self, width: int, height: int) -> "Crop":
        """The box in pixels of the displayed frame, rounded."""
        if self.scaled is None:
            return self
        across, down = width / self.scaled[0], height / self.scaled[1]
        left, top = round(self.left * across), round(self.top * down)
        right, bottom = round((self.left + self.width) * across), round((self.top + self.height) * down)
        return Crop(left, top, right - left, bottom - top, self.flip)


Size = tuple[int, int]  # height, width
Placement = Callable[[int, int, int], int]
# How frames are scaled, by the names of clip.resize: `antialiased` scales the box; the others scale the frame first,
# without antialiasing, as in publishers' code. A placement returns where box `number` of `total` starts in the free
# `room`. Python rounds halves to even numbers. vjepa2: facebookresearch/jepa and vjepa2,
# evals/video_classification_frozen/utils.py and src/datasets/utils/video/transforms.py; videomae: MCG-NJU/VideoMAE,
# kinetics.py, ssv2.py and video_transforms.py; pyslowfast: facebookresearch/SlowFast, slowfast/datasets/transform.py,
# uniform_crop
ANTIALIASED = "antialiased"
PLACEMENTS: dict[str, Placement] = {
    "vjepa2": lambda room, number, total: round(room / 2) if total == 1 else number * (room // (total - 1)),
    "videomae": lambda room, number, total: round(room / 2) if total == 1 else room * number // (total - 1),
    "pyslowfast": lambda room, number, total: math.ceil(room / 2 if total == 1 else room * number / (total - 1)),
}
RESIZES = (ANTIALIASED, *PLACEMENTS)


def _evenly(room: int, number: int, total: int) -> int:
    return room // 2 if total == 1 else room * number // (total - 1)


def _spread(width: int, height: int, box: tuple[int, int], crops: int, placement: Placement) -> list[Crop]:
    """`crops` boxes (width, height), placed along the side of the frame with more room, centered on the other side."""
    across, down = width - box[0], height - box[1]
    left, top = placement(across, 0, 1), placement(down, 0, 1)
    if across >= down:
        return [Crop(placement(across, number, crops), top, *box) for number in range(crops)]
    return [Crop(left, placement(down, number, crops), *box) for number in range(crops)]


def _check_range(name: str, bounds: Sequence[float], lowest: float) -> None:
    if len(bounds) != 2 or not lowest <= bounds[0] <= bounds[1] < math.inf:
        raise UserError(f"{name}={list(bounds)}: must be two numbers, the smaller first, from {lowest:g} up")


def _check_scale(scale: Sequence[float]) -> None:
    _check_range("scale", scale, 0)
    if scale[0] <= 0 or scale[1] > 1:
        raise UserError(f"scale={list(scale)}: must be above 0, at most 1")


def _place(width: int, height: int, box: tuple[int, int], flip: float, rng: np.random.Generator) -> Crop:
    """The box (width, height) at a uniformly random position inside the frame."""
    left = int(rng.integers(width - box[0] + 1))
    top = int(rng.integers(height - box[1] + 1))
    return Crop(left, top, *box, flip=bool(rng.random() < flip))


def _short_side_box(width: int, height: int, size: tuple[int, int], ratio: float) -> tuple[int, int]:
    """The (width, height) of the box that becomes `size` when the frame's short side is scaled to ratio x that of
    `size`. If this box is larger than the frame (a wide output of an upright video), it is reduced to fit."""
    out_height, out_width = size
    scale = ratio * min(size) / min(width, height)
    scale = max(scale, out_width / width, out_height / height)
    return min(width, max(1, round(out_width / scale))), min(height, max(1, round(out_height / scale)))


def _ratio_in_pixels(short_side: int, size: tuple[int, int]) -> float:
    """A short side in pixels as a multiple of the output's short side."""
    if short_side < min(size):
        raise UserError(f"short_side={short_side}: must be at least the output's, {min(size)} pixels")
    return short_side / min(size)


def _between(start: int, end: int, step: int, steps: int) -> int:
    """The position after `step` of `steps` equal steps from `start` to `end`, in integers, with halves rounded up."""
    return (2 * (start * (steps - step) + end * step) + steps) // (2 * steps)


def _shifted(first: Crop, last: Crop, frames: int) -> tuple[Crop, ...]:
    """One box for each frame: each edge moves linearly from `first` to `last`; the clip is mirrored if `first` is.

    Edges are rounded, not sides, so every box is inside the frame and has at least one pixel.
    """

    def edges(crop: Crop) -> tuple[int, int, int, int]:
        return crop.left, crop.top, crop.left + crop.width, crop.top + crop.height

    def box(step: int) -> Crop:
        pairs = zip(edges(first), edges(last), strict=True)
        left, top, right, bottom = (_between(*pair, step, max(1, frames - 1)) for pair in pairs)
        return Crop(left, top, right - left, bottom - top, first.flip)

    return tuple(box(step) for step in range(frames))


@dataclass(frozen=True)
class RandomResizedCrop:
    """A box of random area and shape, the crop of Inception training (Szegedy et al. 2015).

    `scale` bounds the box's share of the frame's area, `ratio` its width / height relative to the output's, so (1, 1)
    never distorts; `flip` is the probability of mirroring. With `motion_shift` two boxes are drawn, and the crop moves
    from the first to the second over the clip, as if the camera panned and zoomed.
    """

    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    motion_shift: bool = False

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        _check_range("ratio", self.ratio, 0)
        check_share(flip=self.flip)
        if self.ratio[0] <= 0:
            raise UserError(f"ratio={list(self.ratio)}: must be above 0")

    def __call__(
        self, width: int, height: int, size: tuple[int, int], frames: int, rng: np.random.Generator
    ) -> Crop | tuple[Crop, ...]:
        first = self._draw(width, height, size, rng)
        return _shifted(first, self._draw(width, height, size, rng), frames) if self.motion_shift else first

    def _draw(self, width: int, height: int, size: tuple[int, int], rng: np.random.Generator) -> Crop:
        shape = size[1] / size[0]
        for _ in range(10):
            area = width * height * rng.uniform(self.scale[0], self.scale[1])
            aspect = shape * math.exp(rng.uniform(*np.log(self.ratio)))
            box = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < box[0] <= width and 0 < box[1] <= height:
                return _place(width, height, box, self.flip, rng)
        # the frame's shape is far from the allowed ones: take the largest box of the nearest allowed shape, centered
        aspect = float(np.clip(width / height, shape * self.ratio[0], shape * self.ratio[1]))
        box = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
        left, top = (width - box[0]) // 2, (height - box[1]) // 2
        return Crop(left, top, *box, flip=bool(rng.random() < self.flip))


@dataclass(frozen=True)
class ShortSideCrop:
    """Scale jitter: the short side is scaled to a random length, then a box of the output's size is cut at a random
    position.

    Exactly one of two arguments bounds the length (inclusive): `short_side_ratio`, multiples of the output's short
    side, such as (256 / 224, 320 / 224), or `short_side`, pixels, such as (128, 160) for an output of 112.
    """

    short_side_ratio: Sequence[float] | None = None
    flip: float = 0.5
    short_side: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if (self.short_side_ratio is None) == (self.short_side is None):
            both = f"short_side_ratio={self.short_side_ratio}, short_side={self.short_side}"
            raise UserError(f"{both}: one must be given, and the other null")
        if self.short_side is not None:
            _check_range("short_side", self.short_side, 1)
        if self.short_side_ratio is not None:
            _check_range("short_side_ratio", self.short_side_ratio, 1)
        check_share(flip=self.flip)

    def __call__(self, width: int, height: int, size: Size, frames: int, rng: np.random.Generator) -> Crop:
        box = _short_side_box(width, height, size, self._ratio(size, rng))
        return _place(width, height, box, self.flip, rng)

    def _ratio(self, size: tuple[int, int], rng: np.random.Generator) -> float:
        if self.short_side_ratio is not None:
            return rng.uniform(self.short_side_ratio[0], self.short_side_ratio[1])
        assert self.short_side is not None  # one of the two is given
        shortest, longest = self.short_side
        _ratio_in_pixels(shortest, size)  # checks the lower bound, whatever is drawn
        return _ratio_in_pixels(int(rng.integers(shortest, longest + 1)), size)


@dataclass(frozen=True)
class FixedCrop:
    """Training without augmentation: the center crop of evaluation (see CenterCrops for the arguments)."""

    short_side_ratio: float | None = None
    short_side: int | None = None

    def __post_init__(self) -> None:
        CenterCrops(self.short_side_ratio, 1, self.short_side)  # checks the arguments

    def __call__(self, width: int, height: int, size: Size, frames: int, rng: np.random.Generator) -> Crop:
        return CenterCrops(self.short_side_ratio, 1, self.short_side)(width, height, size)[0]


@dataclass(frozen=True)
class CenterCrops:
    """Evaluation: `crops` boxes spread evenly along the longer side, both ends included; 1 is the center crop.

    The short side is scaled to `short_side_ratio` times the output's, to `short_side` pixels, or else to the output's.
    V-JEPA 2 uses a short side of 292 for one crop of 256, 438 for one of 384, and the output's for three crops.
    """

    short_side_ratio: float | None = None
    crops: int = 1
    short_side: int | None = None

    def __post_init__(self) -> None:
        if self.short_side_ratio is not None and self.short_side is not None:
            both = f"short_side_ratio={self.short_side_ratio}, short_side={self.short_side}"
            raise UserError(f"{both}: one of them must be null")
        for name, value in (("short_side", self.short_side), ("short_side_ratio", self.short_side_ratio)):
            if value is not None:
                _check_range(name, (value, value), 1)
        if self.crops < 1:
            raise UserError(f"crops={self.crops}: must be 1 or more")

    def output_size(self, width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def __call__(self, width: int, height: int, size: tuple[int, int]) -> list[Crop]:
        box = _short_side_box(width, height, size, self._ratio(size))
        return _spread(width, height, box, self.crops, _evenly)

    def _ratio(self, size: tuple[int, int]) -> float:
        if self.short_side is not None:
            return _ratio_in_pixels(self.short_side, size)
        return 1.0 if self.short_side_ratio is None else self.short_side_ratio


@dataclass(frozen=True)
class WholeFrame:
    """Evaluation on the whole frame in its aspect ratio, as a single view, so that the size depends on the video.

    The short side is scaled to `short_side` pixels (null: the short side of `size`). The long side keeps the aspect
    ratio, rounded to the nearest multiple of `multiple_of` (halves up), so that patches fit.
    """

    short_side: int | None = None
    multiple_of: int = 1
    crops: int = 1

    def __post_init__(self) -> None:
        if self.multiple_of < 1:
            raise UserError(f"multiple_of={self.multiple_of}: must be 1 or more")
        if self.crops != 1:
            raise UserError(f"crops={self.crops}: a whole frame is one view; must be 1")
        if self.short_side is not None:
            self._check(self.short_side)

    def _check(self, short_side: int) -> None:
        if short_side < 1 or short_side % self.multiple_of:
            raise UserError(f"short_side={short_side}: must be a multiple of multiple_of={self.multiple_of}")

    def output_size(self, width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
        short_side = min(size) if self.short_side is None else self.short_side
        self._check(short_side)
        unit = min(width, height) * self.multiple_of
        long_side = (2 * max(width, height) * short_side + unit) // (2 * unit) * self.multiple_of
        return (short_side, long_side) if width >= height else (long_side, short_side)

    def __call__(self, width: int, height: int, size: tuple[int, int]) -> list[Crop]:
        return [Crop(0, 0, width, height)]


@dataclass(frozen=True)
class SquashedCrop:
    """Training on most of the frame: a box with the frame's shape, scaled to the output's shape.

    `scale` bounds the box's share of the frame's area; (1, 1) is the whole frame.
    """

    scale: Sequence[float] = (1.0, 1.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        _check_scale(self.scale)
        check_share(flip=self.flip)

    def __call__(self, width: int, height: int, size: Size, frames: int, rng: np.random.Generator) -> Crop:
        side = math.sqrt(rng.uniform(self.scale[0], self.scale[1]))
        box = max(1, round(width * side)), max(1, round(height * side))
        return _place(width, height, box, self.flip, rng)


@dataclass(frozen=True)
class SquashedFrame:
    """Evaluation on the whole frame, scaled to the output's shape without keeping its aspect ratio, as a single
    view."""

    crops: int = 1

    def __post_init__(self) -> None:
        if self.crops != 1:
            raise UserError(f"crops={self.crops}: a squashed frame is one view; must be 1")

    def output_size(self, width: int, height: int, size: tuple[int, int]) -> tuple[int, int]:
        return size

    def __call__(self, width: int, height: int, size: tuple[int, int]) -> list[Crop]:
        return [Crop(0, 0, width, height)]


def published_crops(
    geometry: CenterCrops | FixedCrop, width: int, height: int, size: tuple[int, int], resize: str
) -> list[Crop]:
    """The boxes of `geometry` for a square `size`, as in the publishers' code that `resize` names.

    The frame is first scaled to a short side of `short_side` pixels, or of `short_side_ratio` times the output's; both
    sides are rounded down.
    """
    if isinstance(geometry, FixedCrop):
        geometry = CenterCrops(geometry.short_side_ratio, 1, geometry.short_side)
    ratio = geometry._ratio(size)
    short_side = geometry.short_side or int(ratio * min(size))
    frame = width * short_side // min(width, height), height * short_side // min(width, height)
    crops = _spread(*frame, size[::-1], geometry.crops, PLACEMENTS[resize])
    return [replace(crop, scaled=frame) for crop in crops]


TrainGeometry = RandomResizedCrop | ShortSideCrop | FixedCrop | SquashedCrop
EvalGeometry = CenterCrops | WholeFrame | SquashedFrame
UNCUT = {WholeFrame: "whole frame", SquashedFrame: "squashed frame"}  # names of their view
