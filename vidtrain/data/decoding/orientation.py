"""How a coded picture is turned and mirrored to be shown: the eight ways that a display matrix can ask for.

A file's container, its H.264 or HEVC messages or a photo's EXIF say it; FFmpeg gives all of them as a display matrix
beside the frame.
"""

import math
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type


class Orientation(NamedTuple):
    """A coded picture is mirrored left to right if `mirrored`, then turned by `rotation` degrees counterclockwise, one
    of 0, 90, 180 and 270. That is how it is shown.
    """

    rotation: int = 0
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether what is shown is as wide as what is coded is high."""
        return self.rotation in (90, 270)

    @property
    def filters(self) -> tuple[list[tuple[str, str]], bool]:
        """What turns a coded picture: filters (name, options), and whether its rows come last to first after them.

        The filter that reverses rows hands out memory that runs backwards, which not everything takes.
        """
        return _FILTERS[self]

    def turned(self, picture: np.ndarray) -> np.ndarray:
        """A coded picture [h w ...] as it is shown."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.rotation // 90)

    def coded_box(self, box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
        """Where a `box` (left, top, width, height) of what is shown lies in the coded picture of `width` and
        `height`."""
        left, top, across, down = box
        if self.rotation == 90:
            left, top, across, down = width - top - down, left, down, across
        elif self.rotation == 180:
            left, top = width - left - across, height - top - down
        elif self.rotation == 270:
            left, top, across, down = top, height - left - across, down, across
        return (width - left - across if self.mirrored else left), top, across, down


_FILTERS = {
    Orientation(0, False): ([], False),
    Orientation(90, False): ([("transpose", "cclock")], False),
    Orientation(180, False): ([("hflip", "")], True),
    Orientation(270, False): ([("transpose", "clock")], False),
    Orientation(0, True): ([("hflip", "")], False),
    Orientation(90, True): ([("transpose", "cclock_flip")], False),
    Orientation(180, True): ([], True),
    Orientation(270, True): ([("transpose", "clock_flip")], False),
}


def _unnamed(cls: type[Type], value: int) -> Type:
    """A kind of side data that PyAV has no name for: with one beside a frame, it would give none of the others."""
    kind = object.__new__(cls)
    kind._name_, kind._value_ = f"UNNAMED_{value}", value
    return kind


Type._missing_ = classmethod(_unnamed)  # such as EXIF, and the views of spatial video


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """How `frame` is to be shown; a rotation by another angle counts as the nearest of the four."""
    matrix = next((each for each in frame.side_data if each.type is Type.DISPLAYMATRIX), None)
    if matrix is None:
        return Orientation()
    # what x and y add to the shown x and y, y downwards: x' = a x + c y, y' = b x + d y
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32, 5).tolist()
    mirrored = a * d < b * c
    if mirrored:
        a, b = -a, -b  # undone first, what is left is a rotation
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not across or not down:
        return Orientation()
    clockwise = math.degrees(math.atan2(b / down, a / across))
    return Orientation(round(-clockwise / 90) * 90 % 360, mirrored)


def displayed_size(width: int, height: int, orientation: Orientation) -> tuple[int, int]:
    """Width and height of a coded picture of `width` and `height` as it is shown."""
    return (height, width) if orientation.swaps_sides else (width, height)
