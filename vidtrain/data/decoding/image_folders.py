"""A video that is a folder of images, one a frame."""

import os
import re
from fractions import Fraction

import numpy as np

from vidtrain.data.decoding.orientation import displayed_size, orientation_of
from vidtrain.data.decoding.pixel_bounds import MAX_PIXELS, larger
from vidtrain.data.decoding.video import DecodeError, VideoInfo, aspect_of, opened
from vidtrain.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png")
NUMBER = re.compile(r"(\d+)")


def probe_images(folder: str, frame_rate: float, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """The images of `folder` as a video of `frame_rate` frames a second, in the order of the numbers in their names.

    Raises `DecodeError` where there is none, or the first one does not decode or has more than `max_pixels`.
    """
    try:
        names = image_names(folder)
    except OSError as error:
        raise DecodeError(folder, error.strerror) from error
    if not names:
        raise DecodeError(folder, f"no images in it; looked for {' '.join(SUFFIXES)}")
    images = tuple(os.path.join(folder, name) for name in sorted(names, key=_natural))
    with opened(images[0], max_pixels) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise DecodeError(images[0], "no frame of it decodes")
        aspect = aspect_of(stream, orientation_of(first))
    if cause := larger(first.width, first.height, max_pixels):
        raise DecodeError(images[0], cause)
    way = orientation_of(first)
    width, height = displayed_size(first.width, first.height, way)
    tick = 1 / Fraction(frame_rate).limit_denominator(1_000_000)
    ticks = np.arange(len(images))
    return VideoInfo(
        folder,
        ticks,
        tick,
        width,
        height,
        way.rotation,
        images=images,
        mirrored=way.mirrored,
        max_pixels=max_pixels,
        aspect=aspect,
    )


def check_frame_rate(frame_rate: float) -> None:
    """Raises `UserError` for a rate that is none."""
    if not 1e-3 <= frame_rate <= 1e5:
        raise UserError(
            f"dataset.source.frame_rate={frame_rate}: must be images a second, from 0.001 to 100000"
        )


def image_names(folder: str) -> list[str]:
    """The names of the images in `folder`, hidden files left out, in no certain order."""
    return [name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES) and name[0] != "."]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """So that img_2 comes before img_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in NUMBER.split(name)]
