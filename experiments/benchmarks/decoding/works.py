"""What a reader is asked for: frames of one file and the box to cut, drawn the same for all readers."""

import math
from dataclasses import dataclass

import numpy as np

from vidtrain.data.augment.geometry import Crop

SIZE = (224, 224)
SCALE, RATIO = (0.3, 1.0), (3 / 4, 4 / 3)
WORKS = {
    "train": "16 frames at stride 4 from a random place, random resized crop",
    "eval": "8 clips of 16 frames at stride 4 spread over the whole video, center crop",
    "long": "64 frames at stride 2 from a random place, random resized crop",
}


@dataclass(frozen=True)
class Job:
    """`clips` are frame indices, int64 [t], one array for each of n clips; `crop` is cut from all of them."""

    path: str
    clips: tuple[np.ndarray, ...]
    crop: Crop

    @property
    def unique(self) -> np.ndarray:
        """The indices of the frames needed, sorted, each once."""
        return np.unique(np.concatenate(self.clips))

    @property
    def places(self) -> np.ndarray | None:
        """Where in `unique` each frame of [n t] is; None where `unique` is the one clip itself."""
        if len(self.clips) == 1:
            return None
        return np.searchsorted(self.unique, np.stack(self.clips))


@dataclass(frozen=True)
class Shape:
    """Of a video: its number of frames and their size."""

    frames: int
    width: int
    height: int


def draw(work: str, path: str, shape: Shape, rng: np.random.Generator, centered: bool = False) -> Job:
    """A job of one of `WORKS`; `centered` replaces the random box by the one in the middle."""
    if work == "eval":
        starts = np.linspace(0, shape.frames - 61, 8).astype(np.int64)
        clips = tuple(start + 4 * np.arange(16) for start in starts)
        return Job(path, clips, center(shape))
    count, stride = {"train": (16, 4), "long": (64, 2)}[work]
    start = int(rng.integers(shape.frames - (count - 1) * stride))
    box = center(shape) if centered else _random_box(shape, rng)
    return Job(path, (start + stride * np.arange(count),), box)


def center(shape: Shape) -> Crop:
    side = min(shape.width, shape.height)
    return Crop((shape.width - side) // 2, (shape.height - side) // 2, side, side)


def _random_box(shape: Shape, rng: np.random.Generator) -> Crop:
    while True:
        area = shape.width * shape.height * rng.uniform(*SCALE)
        aspect = math.exp(rng.uniform(*np.log(RATIO)))
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if width <= shape.width and height <= shape.height:
            left = int(rng.integers(shape.width - width + 1))
            return Crop(left, int(rng.integers(shape.height - height + 1)), width, height)
