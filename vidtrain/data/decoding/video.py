"""What is known of a video before its frames are chosen, and where its packets lie in the file."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vidtrain.data.decoding.orientation import Orientation
from vidtrain.data.decoding.pixel_bounds import MAX_PIXELS, decoder_options, too_large, why_refused
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown


class DecodeError(UserError):
    """A video that cannot be read: `path` names the file, `cause` says why, in words."""

    def __init__(self, path: str, cause: str):
        super().__init__(path, cause)
        self.path = path
        self.cause = cause

    def __str__(self) -> str:
        return f"cannot read video {shown(self.path)}: {shown(self.cause)}"


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

    @property
    def num_frames(self) -> int:
        return len(self.ticks)

    @cached_property
    def timestamps(self) -> np.ndarray:
        """Seconds, float64 [num_frames]."""
        return self.ticks * self.tick.numerator / self.tick.denominator


def _is_animated_webp(location: str) -> bool:
    """Whether the header of a RIFF file says so: WEBP, then VP8X with the flag of an animation."""
    try:
        if not os.path.isfile(location):  # a pipe would wait
            return False
        with open(location, "rb") as file:
            start = file.read(21)
    except OSError:  # which opening it says better
        return False
    return start[:4] == b"RIFF" and start[8:16] == b"WEBPVP8X" and len(start) == 21 and bool(start[20] & 2)


@contextmanager
def opened(path: str, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file's main video stream, decoded on one thread; whatever FFmpeg reports becomes `DecodeError`, as do
    pictures of more than `max_pixels`, before there is any memory for them."""
    # an absolute path, as a colon in a relative one would stand behind a protocol
    location, options = os.path.abspath(path), decoder_options(max_pixels)
    if _is_animated_webp(location):  # FFmpeg skips its frames and calls the rest invalid data
        raise DecodeError(
            path, "it is an animated WebP, which FFmpeg does not decode; convert it to MP4 or GIF"
        )
    try:
        if cause := too_large(location, max_pixels):
            raise DecodeError(path, cause)
        with av.open(location, options=options, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None or stream.disposition & Disposition.attached_pic:  # the cover of a song
                raise DecodeError(path, "there is no video stream in it")
            if container.format.name == "tty":
                raise DecodeError(path, "it is a text file")
            if stream.codec_context is None:
                raise DecodeError(path, "there is no decoder for its video")
            stream.codec_context.options = options
            # workers are processes already, and more threads would change nothing but the contention
            stream.codec_context.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise DecodeError(path, why_refused(location, error, max_pixels) or error.strerror) from error


def aspect_of(stream: VideoStream, orientation: Orientation) -> Fraction:
    """How many times as wide as high the pixels of a stream are, as it is shown; 1 where it does not say."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    return 1 / aspect if orientation.swaps_sides else aspect
