"""What is known of a video before its frames are chosen: times, size, how it is turned, and where its packets lie."""

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

MAX_PIXELS = 36_000_000  # of one picture: 8192 x 4320 are 35.4 million


class DecodeError(UserError):
    """A video that cannot be read: `path` names the file, `cause` says why, in words."""

    def __init__(self, path: str, cause: str | None):
        super().__init__(path, cause)
        self.path = path
        self.cause = cause or "unknown error"

    def __str__(self) -> str:
        return f"cannot read video {shown(self.path)}: {shown(self.cause)}"


class Orientation(NamedTuple):
    """How a coded picture is shown: mirrored left to right if `mirrored`, then turned by `rotation` degrees
    counterclockwise, one of 0, 90, 180 and 270. FFmpeg gives what container, H.264, HEVC or EXIF say as one matrix."""

    rotation: int = 0
    mirrored: bool = False

    @property
    def swaps_sides(self) -> bool:
        """Whether what is shown is as wide as what is coded is high."""
        return self.rotation in (90, 270)

    @property
    def filters(self) -> tuple[list[tuple[str, str]], bool]:
        """What turns a coded picture: filters (name, options), and whether its rows come last to first after them. (The
        filter that reverses rows gives memory that runs backwards, which not everything takes.)"""
        return _FILTERS[self]

    def turned(self, picture: np.ndarray) -> np.ndarray:
        """A coded picture [h w ...] as it is shown."""
        return np.rot90(picture[:, ::-1] if self.mirrored else picture, self.rotation // 90)

    def coded_box(self, box: tuple[int, int, int, int], width: int, height: int) -> tuple[int, int, int, int]:
        """Where a `box` (left, top, width, height) of what is shown lies in the coded picture."""
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
    """The m packets of a file in decoding order, so that any can be read without opening its container."""

    # These set up the decoder; color is (matrix, range)
    codec: str
    tag: str
    extradata: bytes
    width: int
    height: int
    color: tuple[int, int]
    positions: np.ndarray  # int64 [m]: where in the file each begins
    sizes: np.ndarray  # int32 [m]: bytes
    order: np.ndarray  # int32 [num_frames]: the packet of every shown frame
    # int32, in order: packets at which decoding can begin, exact for frames that are shown no earlier than their own
    starts: np.ndarray
    disposable: np.ndarray  # bool [m]: no other picture refers to it
    second: np.ndarray  # bool [m]: it is the second field of the packet before, and in no order

    def last_part(self, number: int) -> int:
        """The last packet of the frame whose first one is packet `number`."""
        while number + 1 < len(self.second) and self.second[number + 1]:
            number += 1
        return number

    @cached_property
    def shown(self) -> np.ndarray:
        """The frame that each packet shows, int64 [m]; -1 where it shows none."""
        shown = np.full(len(self.positions), -1, dtype=np.int64)
        shown[self.order] = np.arange(len(self.order))
        return shown

    @cached_property
    def first_shown(self) -> np.ndarray:
        """The frame that each of `starts` shows, sorted as they are."""
        return self.shown[self.starts]

    def start_of(self, index: int) -> int:
        """The packet at which decoding begins for frame `index`: the last start that is shown no later."""
        return int(self.starts[max(0, int(np.searchsorted(self.first_shown, index, side="right")) - 1)])


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What must be known of a video before its frames are chosen."""

    path: str
    ticks: np.ndarray  # int64 [num_frames]: when its frames appear, increasing, in units of `tick` seconds
    tick: Fraction
    width: int  # of the displayed frame, in pixels that are taken as square
    height: int
    rotation: int  # see `Orientation`, as for mirrored
    packets: PacketTable | None = None  # without, it can only be read from its beginning
    images: tuple[str, ...] = ()  # the files of a folder of images
    digest: bytes = b""  # the BLAKE2b hash of the file (16 bytes); empty where not all of it was read
    mirrored: bool = False
    max_pixels: int = MAX_PIXELS  # no frame of more is decoded
    aspect: Fraction = Fraction(1)  # how many times as wide as high the file calls its pixels
    pixels_of: tuple[int, int] | None = None  # (width, height) before pixels are stretched to square ones

    @property
    def picture(self) -> tuple[int, int]:
        """Width and height of a frame as it is decoded and turned, in its own pixels."""
        return self.pixels_of or (self.width, self.height)

    def with_square_pixels(self) -> "VideoInfo":
        """The same video, stretched as players show it: to more pixels in width or height, never to fewer."""
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
        """How a frame is shown: a file's are all shown one way, while each image of a folder has its own."""
        return orientation_of(frame) if self.images else self.orientation

    @property
    def num_frames(self) -> int:
        return len(self.ticks)

    @cached_property
    def timestamps(self) -> np.ndarray:
        """Seconds, float64 [num_frames]."""
        return self.ticks * self.tick.numerator / self.tick.denominator


def _unnamed(cls: type[Type], value: int) -> Type:
    """A kind of side data that PyAV has no name for: a frame that has one would give none of the others."""
    kind = object.__new__(cls)
    kind._name_, kind._value_ = f"UNNAMED_{value}", value  # type: ignore[assignment] # its stub has no values
    return kind


# such as EXIF, and the views of spatial video; enum's own way to add members later
Type._missing_ = classmethod(_unnamed)  # type: ignore[method-assign, assignment]


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """How `frame` is to be shown; a rotation by another angle counts as the nearest of the four."""
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
    """Width and height of a coded picture of `width` and `height` as it is shown."""
    return (height, width) if orientation.swaps_sides else (width, height)
