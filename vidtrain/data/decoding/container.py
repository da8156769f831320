"""Reading a file as its container gives it: what FFmpeg is asked, what it says, and what is not believed of it.

A file of a few kilobytes can say that its pictures take gigabytes. FFmpeg's decoders refuse larger pictures before they
allocate any, where they are told so; what a file says of itself is looked at before any decoder is opened.

Decoders report frames that they could not decode, some of them only in the log. They make such frames up, and nobody
should see them.
"""

import errno
import os
import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction

import av
import av.logging
from av.codec.context import ThreadType
from av.container import InputContainer
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream

from vidtrain.data.decoding.frame_times import states_shown_times
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, Orientation
from vidtrain.data.processes import watchdog

# A little of each video stream is decoded to find out about it. This bounds what all streams of a file may take
# together, in pictures of the largest size
MOST_TOGETHER = 4
PADDING = 1 << 16
IMAGES = (b"\xff\xd8\xff", b"\x89PNG")  # how JPEG and PNG begin
TOO_LARGE = re.compile(r"Picture size (\d+)x(\d+) exceeds specified max pixel count")  # libavutil's words
# Decoders that set no mark on a frame that they could not decode, and only report it in their log. A message of those
# in UNMARKING is about the picture unless it holds a word of NOT_PIXELS; one of those in OF_PIXELS if it holds one of
# theirs.
UNMARKING = ("hevc", "vvc")
NOT_PIXELS = ("SEI", "VUI", "VPS")
OF_PIXELS = {"mjpeg": ("overread", "error y=", "error count")}
MOST_REORDERED = 16  # frames by which H.264 and HEVC may show a picture later than one that refers to it


def _first_bytes(location: str) -> bytes:
    """How a file begins; nothing of one that cannot be opened, or is none, as a pipe would wait."""
    with suppress(OSError):
        if os.path.isfile(location):
            with open(location, "rb") as file:
                return file.read(21)
    return b""


@contextmanager
def opened(path: str, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file's main video stream, decoded on one thread; whatever FFmpeg reports becomes `DecodeError`, as do
    pictures of more than `max_pixels`, before there is any memory for them."""
    # an absolute path, as a colon in a relative one would stand behind a protocol
    location, options = os.path.abspath(path), decoder_options(max_pixels)
    first_bytes = _first_bytes(location)
    # RIFF, WEBP, then VP8X with the flag of an animation: FFmpeg skips its frames and calls the rest invalid data
    if len(first_bytes) == 21 and first_bytes[8:16] == b"WEBPVP8X" and first_bytes[20] & 2:
        raise DecodeError(
            path, "it is an animated WebP, which FFmpeg does not decode; convert it to MP4 or GIF"
        )
    try:
        # of images nothing is known before their decoder looks, and a folder of them would take a fifth longer
        if not first_bytes.startswith(IMAGES) and (cause := too_large(location, max_pixels)):
            raise DecodeError(path, cause)
        with av.open(location, options=options, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            # the cover of a song is no video
            if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
                raise DecodeError(path, "there is no video stream in it")
            if container.format.name == "tty":
                raise DecodeError(path, "it is a text file")
            if stream.codec_context is None:
                raise DecodeError(path, "there is no decoder for its video")
            stream.codec_context.options = options
            # workers are processes already, and more threads would change nothing but the contention
            stream.codec_context.thread_type = ThreadType.NONE
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise DecodeError(path, why_refused(location, error, max_pixels) or error.strerror) from error


def aspect_of(stream: VideoStream, orientation: Orientation) -> Fraction:
    """How many times as wide as high the pixels of a stream are, as it is shown; 1 where it does not say."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    return 1 / aspect if orientation.swaps_sides else aspect


def decoder_options(max_pixels: int) -> dict[str, str]:
    """What tells a decoder to refuse pictures that are larger by far: it counts the pixels that it pads them with."""
    return {"max_pixels": str(2 * max_pixels + PADDING)}


def too_large(path: str, max_pixels: int) -> str:
    """Why the pictures that the file says it has are too large; empty if they are not, or it cannot be opened. No
    decoder is."""
    sizes = []
    with (
        av.logging.Capture(local=True),  # that no decoder may be opened is no error
        suppress(av.FFmpegError),  # which opening it in earnest gives again
        av.open(path, options={"codec_whitelist": "none"}, metadata_errors="ignore") as container,
    ):
        contexts = [stream.codec_context for stream in container.streams.video]
        sizes = [(context.width, context.height) for context in contexts if context is not None]
    pixels = [width * height for width, height in sizes]
    if pixels and (cause := larger(*sizes[pixels.index(max(pixels))], max_pixels)):
        return cause
    if sum(pixels) > MOST_TOGETHER * max_pixels:
        return (
            f"its {len(pixels)} video streams have {sum(pixels)} pixels together, more than {MOST_TOGETHER} times "
            f"data.max_pixels={max_pixels}"
        )
    return ""


def larger(width: int, height: int, max_pixels: int) -> str:
    """What is wrong with a picture of more than `max_pixels`; empty for others."""
    if width * height <= max_pixels:
        return ""
    return f"its picture of {width}x{height} has more pixels than data.max_pixels={max_pixels}"


def why_refused(path: str, error: av.FFmpegError, max_pixels: int) -> str:
    """What a decoder that gave up with `error` found too large; empty if it was something else.

    That stands in FFmpeg's log alone, so the file is decoded once more up to where it happens.
    """
    if error.errno != errno.EINVAL:  # which decoders give for this, among others
        return ""
    with (
        ffmpeg_errors() as log,
        suppress(av.FFmpegError),
        av.open(path, options=decoder_options(max_pixels), metadata_errors="ignore") as container,
    ):
        stream = container.streams.best("video")
        if isinstance(stream, VideoStream):
            stream.codec_context.options = decoder_options(max_pixels)
            for _ in container.decode(stream):
                watchdog.progress()
    size = next(filter(None, (TOO_LARGE.search(line) for _, _, line in log)), None)
    return larger(int(size[1]), int(size[2]), max_pixels) if size else ""


@contextmanager
def ffmpeg_errors() -> Iterator[list[tuple[int, str, str]]]:
    """What FFmpeg logs as an error meanwhile, as (level, sender, message)."""
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # else a message on one file would not be repeated for the next one
    try:
        with av.logging.Capture(local=True) as log:
            yield log
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def listened(decoder: VideoCodecContext, packet: av.Packet | None) -> tuple[list[av.VideoFrame], bool]:
    """What the decoder gives out for `packet`, None asking for what it holds; and whether a decoder that marks no
    frames called the packet damaged."""
    codec = decoder.codec.canonical_name
    if codec not in UNMARKING and codec not in OF_PIXELS:
        return decoder.decode(packet), False
    with ffmpeg_errors() as log:
        frames = decoder.decode(packet)
    messages = [message for _, sender, message in log if sender == decoder.name]
    if codec in OF_PIXELS:
        return frames, any(word in message for message in messages for word in OF_PIXELS[codec])
    return frames, any(not any(word in message for word in NOT_PIXELS) for message in messages)


def damage_error(path: str, first: int, count: int = 1) -> DecodeError:
    """The error for `count` wanted frames, beginning at `first`, that the decoder made up."""
    which = f"frame {first} is" if count == 1 else f"{count} wanted frames, from frame {first} on, are"
    return DecodeError(path, f"{which} damaged: the decoder made up what it could not read")


def check_size(path: str, frame: av.VideoFrame, max_pixels: int) -> None:
    """Raises `DecodeError` for a frame of more than `max_pixels`: decoders let some through, as they count padding."""
    if cause := larger(frame.width, frame.height, max_pixels):
        raise DecodeError(path, cause)


def frames_in_order(path: str, max_pixels: int) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Every frame of a video file in order, with a time only where the file states it, and whether the decoder made up
    some of it. Raises `DecodeError`."""
    with opened(path, max_pixels) as (container, stream):
        decoder = stream.codec_context
        doubtful: set[int | None] = set()
        for packet in container.demux(stream):
            watchdog.progress()
            try:
                frames, complains = listened(decoder, packet)
            except EOFError:  # what it held has been asked for
                return
            if complains:
                doubtful.add(packet.pts)  # None, of a container without times: of any frame from here on
            for frame in frames:
                check_size(path, frame, max_pixels)
                made_up = frame.is_corrupt or frame.pts in doubtful or None in doubtful
                if not states_shown_times(container.format):
                    frame.pts = None
                yield frame, made_up


def sound_image(path: str, max_pixels: int) -> av.VideoFrame:
    """The picture of an image file. Raises `DecodeError` where there is none, or one that is damaged."""
    frame, made_up = next(frames_in_order(path, max_pixels), (None, False))
    if frame is None:
        raise DecodeError(path, "no frame of it decodes")
    if made_up:
        raise DecodeError(path, "the picture is damaged")
    return frame


def sound_frames(path: str, max_pixels: int) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Every frame of a video file in order with its index, None in place of one that is damaged or may refer to one
    that is. A few frames are held until it is known. Raises `DecodeError`.
    """
    held: deque[tuple[int, av.VideoFrame | None]] = (
        deque()
    )  # B pictures, which may refer to one that is shown later
    sound = True
    for index, (frame, made_up) in enumerate(frames_in_order(path, max_pixels)):
        if made_up:
            held = deque((earlier, None) for earlier, _ in held)
        sound = not made_up and (sound or (frame.key_frame and frame.pict_type == PictureType.I))
        held.append((index, frame if sound else None))
        at_most = MOST_REORDERED if frame.pict_type == PictureType.B else 0
        while len(held) > at_most:
            yield held.popleft()
    yield from held
