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
    counterclockwise, one of 0, 90, 180 and 270.

    A file's container, its H.264 or HEVC messages or a photo's EXIF say it; FFmpeg gives all of them as a display
    matrix beside the frame.
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


@dataclass(frozen=True, eq=False)
class PacketTable:
    """The coded pictures of a file in decoding order, so that any can be read without opening its container.

    `positions` int64 and `sizes` int32 [m] are byte ranges. `order` int32 [num_frames] gives for every shown
    frame the number of the packet that it comes from. Decoding can begin at the packets `starts` int32, in
    order, and is exact for frames that are shown no earlier than such a packet's own. No other picture refers to
    those of `disposable` bool [m]. Those of `second` bool [m] complete the frame of the packet before them: they are
    second fields, and in no `order`. `codec`, `tag`, `extradata`, `width`, `height` and `color` (matrix, range)
    set up the decoder.
    """

    codec: str
    tag: str
    extradata: bytes
    width: int
    height: int
    color: tuple[int, int]
    positions: np.ndarray
    sizes: np.ndarray
    order: np.ndarray
    starts: np.ndarray
    disposable: np.ndarray
    second: np.ndarray

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
        """The packet at which decoding begins for frame `index`: the last start that is shown no later. What leads
        that one in the file may need an earlier one."""
        return int(self.starts[max(0, int(np.searchsorted(self.first_shown, index, side="right")) - 1)])


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What must be known of a video before its frames are chosen.

    `ticks` int64 [num_frames] are the times at which its frames appear, increasing, in units of `tick` seconds.
    `width` and `height` are of the displayed frame, which the coded one becomes when it is mirrored left to right,
    if `mirrored`, and turned by `rotation` (degrees counterclockwise: 0, 90, 180 or 270). Pixels are taken as square,
    though the file calls them `aspect` times as wide as high; where `pixels_of` is given, `width` and `height` are
    those of square ones, as players show it, and `pixels_of` is the (width, height) of the picture that is stretched.
    No frame of more than `max_pixels` is decoded. A file without `packets` can only be read from its beginning.
    `images` are the files of a video that is a folder of images. `digest` is the BLAKE2b hash of the file (16 bytes).
    """

    path: str
    ticks: np.ndarray
    tick: Fraction
    width: int
    height: int
    rotation: int
    packets: PacketTable | None = None
    images: tuple[str, ...] = ()
    digest: bytes = b""
    mirrored: bool = False
    max_pixels: int = MAX_PIXELS
    aspect: Fraction = Fraction(1)
    pixels_of: tuple[int, int] | None = None

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
    """A kind of side data that PyAV has no name for: with one beside a frame, it would give none of the others."""
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
