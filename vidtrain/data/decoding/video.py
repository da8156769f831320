"""The metadata of a video, with which its frames are chosen: times, size, orientation, and byte ranges of packets."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple, cast

import av
import numpy as np
from av.sidedata.sidedata import SideData, Type

from vidtrain.errors import UserError
from vidtrain.files.escaping import shown

MAX_PIXELS = 36_000_000  # limit of a picture: 8192 x 4320 are 35.4 million


class DecodeError(UserError):
    """Raised for a video that cannot be read: `path` names the file, `cause` is a text."""

    def __init__(self, path: str, cause: str | None):
        super().__init__(path, cause)
        self.path = path
        self.cause = cause or "unknown error"

    def __str__(self) -> str:
        return f"cannot read video {shown(self.path)}: {shown(self.cause)}"


class Orientation(NamedTuple):
    """How a coded picture is displayed: mirrored left to right if `mirrored`, then rotated by `rotation` degrees
    counterclockwise, one of 0, 90, 180 and 270. FFmpeg combines the orientations of container, H.264, HEVC and EXIF."""

    rotation: int = 0
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether displaying exchanges width and height."""
        return self.rotation in (90, 270)

    @property
    def filters(self) -> tuple[list[tuple[str, str]], bool]:
        """Filters (name, options) that rotate a coded picture, and whether its rows must be reversed after them.
        (FFmpeg's filter for this returns negative strides, which not all filters accept.)"""
        return _FILTERS[self]

    def turned(self, picture: np.ndarray) -> np.ndarray:
        """A coded picture [h w ...] as it is displayed."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.rotation // 90)

    def coded_box(self, box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
        """Converts a `box` (left, top, width, height) of the displayed picture to the coded picture."""
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


@dataclass(frozen=True, eq=False)
class PacketTable:
    """The m packets of a file in decoding order, which can be read without opening the container."""

    # the setup of the decoder; color is (matrix, range)
    codec: str
    tag: str
    extradata: bytes
    width: int
    height: int
    color: tuple[int, int]
    positions: np.ndarray  # int64 [m]: byte offset in the file
    sizes: np.ndarray  # int32 [m]: bytes
    order: np.ndarray  # int32 [num_frames]: the packet of every shown frame
    # int32, sorted: packets at which decoding can start; frames shown no earlier than the packet's frame are exact
    starts: np.ndarray
    disposable: np.ndarray  # bool [m]: no other picture refers to it
    second: np.ndarray  # bool [m]: it is the second field of the frame of the packet before, and not in `order`

    def last_part(self, number: int) -> int:
        """The last packet of the frame that starts with packet `number`."""
        while number + 1 < len(self.second) and self.second[number + 1]:
            number += 1
        return number

    @cached_property
    def shown(self) -> np.ndarray:
        """The index of the frame that each packet shows, int64 [m]; -1 if it shows none."""
        shown = np.full(len(self.positions), -1, dtype=np.int64)
        shown[self.order] = np.arange(len(self.order))
        return shown

    @cached_property
    def first_shown(self) -> np.ndarray:
        """The index of the frame that each of `starts` shows, in the same order."""
        return self.shown[self.starts]

    def start_of(self, index: int) -> int:
        """The packet at which decoding starts for frame `index`: the last start whose frame is not shown later."""
        return int(self.starts[max(0, int(np.searchsorted(self.first_shown, index, side="right")) - 1)])


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """The metadata of a video."""

    path: str
    ticks: np.ndarray  # int64 [num_frames]: increasing times of the frames, in units of `tick` seconds
    tick: Fraction
    width: int  # of the displayed frame, in square pixels
    height: int
    rotation: int  # see `Orientation`, as for mirrored
    packets: PacketTable | None = None  # if None, the file can only be read from its start
    images: tuple[str, ...] = ()  # the files of a folder of images
    digest: bytes = b""  # the BLAKE2b hash of the file (16 bytes); empty if the whole file was not read
    mirrored: bool = False
    max_pixels: int = MAX_PIXELS  # larger frames are refused
    aspect: Fraction = Fraction(1)  # width / height of a pixel, as the file states it
    pixels_of: tuple[int, int] | None = None  # (width, height) before scaling to square pixels

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of a decoded and rotated frame, in its own pixels."""
        return self.pixels_of or (self.width, self.height)

    def with_square_pixels(self) -> "VideoInfo":
        """The same video with square pixels, as players show it: width or height is scaled up, never down."""
        if self.aspect == 1:
            return self
        width, height = self.picture
        if self.aspect > 1:
            width = round(width * self.aspect)
        else:
            height = round(height / self.aspect)
        return replace(self, width=width, height=height, pixels_of=self.picture)

    @property
    def orientation(self) -> Orientation:
        return Orientation(self.rotation, self.mirrored)

    def way_of(self, frame: av.VideoFrame) -> Orientation:
        """The orientation of a frame: that of the file, or in a folder of images that of each image."""
        return orientation_of(frame) if self.images else self.orientation

    @property
    def num_frames(self) -> int:
        return len(self.ticks)

    @cached_property
    def timestamps(self) -> np.ndarray:
        """Seconds, float64 [num_frames]."""
        return self.ticks * self.tick.numerator / self.tick.denominator


def _unnamed(cls: type[Type], value: int) -> Type:
    """A member for side data that PyAV does not know; without it, reading the side data of such a frame would fail."""
    kind = object.__new__(cls)
    kind._name_, kind._value_ = f"UNNAMED_{value}", value  # type: ignore[assignment] # its stub has no values
    return kind


# such as EXIF, and the views of spatial video; enum's own way to add members later
Type._missing_ = classmethod(_unnamed)  # type: ignore[method-assign, assignment]


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The orientation of `frame`; other angles are rounded to the nearest of the four."""
    side_data = cast(Iterable[SideData], frame.side_data)  # its stub says a dict of motion vectors
    matrix = next((data for data in side_data if data.type is Type.DISPLAYMATRIX), None)
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
    """The displayed width and height of a coded picture of `width` and `height`."""
    return (height, width) if orientation.swaps_sides else (width, height)
