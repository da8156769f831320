"""Opens a file with FFmpeg and reads it in order; checks what the file and the decoder report.

A file of a few kilobytes can state pictures that need gigabytes. So the stated size is checked before a decoder is
opened, and decoders are told to refuse larger pictures. Decoders make up frames that they cannot decode, and some
report this only in the log; such frames count as damaged.
"""

import errno
import os
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction

import av
import av.logging
import numpy as np
from av import ContainerFormat
from av.codec.context import ThreadType
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.frame import PictureType
from av.video.stream import VideoStream

from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, Orientation
from vidtrain.data.stores.files import opened_by_ffmpeg, opened_whole
from vidtrain.data.stores.places import is_plain

# FFmpeg decodes the start of every video stream; this bounds their total pixels, as a multiple of max_pixels
MOST_TOGETHER = 4
PADDING = 1 << 16
IMAGES = (b"\xff\xd8\xff", b"\x89PNG")  # the first bytes of JPEG and PNG files
TOO_LARGE = re.compile(r"Picture size (\d+)x(\d+) exceeds specified max pixel count")  # libavutil's message
# Decoders that report damaged frames only in their log. A message of a decoder in UNMARKING means damage unless it has
# a word of NOT_PIXELS; a message of one in OF_PIXELS means damage if it has one of the decoder's words.
UNMARKING = ("hevc", "vvc")
NOT_PIXELS = ("SEI", "VUI", "VPS")
OF_PIXELS = {"mjpeg": ("overread", "error y=", "error count")}
MOST_REORDERED = 16  # frames: in H.264 and HEVC, a B picture may refer to a picture shown that much later


def _first_bytes(path: str) -> bytes:
    """The first bytes of a file; empty if it cannot be opened, or is no regular file, as reading a pipe would wait."""
    with suppress(OSError):
        if not is_plain(path) or os.path.isfile(path):
            with opened_whole(path) as file:
                return bytes(file.read_at(0, 21))
    return b""


@contextmanager
def opened(path: str, max_pixels: int = MAX_PIXELS) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the file's main video stream, which is decoded on one thread. Raises `DecodeError` for errors of FFmpeg,
    and for pictures of more than `max_pixels`, before memory is allocated for them."""
    options = decoder_options(max_pixels)
    first_bytes = _first_bytes(path)
    # RIFF, WEBP, then VP8X with the flag of an animation: FFmpeg skips its frames and calls the rest invalid data
    if len(first_bytes) == 21 and first_bytes[8:16] == b"WEBPVP8X" and first_bytes[20] & 2:
        raise DecodeError(path, "it is an animated WebP, which FFmpeg does not decode; convert it to MP4")
    try:
        # images are not checked here: only their decoder knows the size, and folders of images would take a fifth
        # longer
        if not first_bytes.startswith(IMAGES) and (cause := too_large(path, max_pixels)):
            raise DecodeError(path, cause)
        with (
            opened_by_ffmpeg(path) as location,
            av.open(location, "r", options=options, metadata_errors="ignore") as container,
        ):
            stream = container.streams.best("video")
            # an attached picture is the cover of a song, not a video
            if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
                raise DecodeError(path, "it has no video stream")
            if container.format.name == "tty":
                raise DecodeError(path, "it is a text file")
            if stream.codec_context is None:
                raise DecodeError(path, "there is no decoder for its video")
            stream.codec_context.options = options
            # workers are processes, so more threads would only compete for cores
            stream.codec_context.thread_type = ThreadType.NONE
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise DecodeError(path, why_refused(path, error, max_pixels) or error.strerror) from error


def aspect_of(stream: VideoStream, orientation: Orientation) -> Fraction:
    """Width / height of the stream's pixels as displayed; 1 if the stream does not state it."""
    aspect = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    return 1 / aspect if orientation.swaps_sides else aspect


def decoder_options(max_pixels: int) -> dict[str, str]:
    """Options with which a decoder refuses much larger pictures; the limit has slack, as decoders count padding too."""
    return {"max_pixels": str(2 * max_pixels + PADDING)}


def too_large(path: str, max_pixels: int) -> str:
    """Why the pictures are too large, by the sizes that the file states; empty if they are not, or if the file cannot
    be opened. No decoder is opened."""
    sizes = []
    with (
        av.logging.Capture(local=True),  # hides the message that decoders are not allowed
        suppress(av.FFmpegError),  # opening the file later raises it again
        opened_by_ffmpeg(path) as location,
        av.open(location, "r", options={"codec_whitelist": "none"}, metadata_errors="ignore") as container,
    ):
        contexts = [stream.codec_context for stream in container.streams.video]
        sizes = [(context.width, context.height) for context in contexts if context is not None]
    pixels = [width * height for width, height in sizes]
    if pixels and (cause := larger(*sizes[pixels.index(max(pixels))], max_pixels)):
        return cause
    if sum(pixels) > MOST_TOGETHER * max_pixels:
        most = f"{MOST_TOGETHER} times data.max_pixels={max_pixels}"
        return f"its {len(pixels)} video streams have {sum(pixels)} pixels in total, more than {most}"
    return ""


def larger(width: int, height: int, max_pixels: int) -> str:
    """The cause for refusing a picture of more than `max_pixels`; empty for smaller ones."""
    if width * height <= max_pixels:
        return ""
    return f"its picture of {width}x{height} has more pixels than data.max_pixels={max_pixels}"


def why_refused(path: str, error: av.FFmpegError, max_pixels: int) -> str:
    """Which picture was too large, if that made a decoder fail with `error`; empty for other causes. Only FFmpeg's log
    says so, so the file is decoded again up to that picture."""
    if error.errno != errno.EINVAL:  # decoders report too large pictures with this code
        return ""
    with (
        ffmpeg_errors() as log,
        suppress(av.FFmpegError),
        opened_by_ffmpeg(path) as location,
        av.open(location, "r", options=decoder_options(max_pixels), metadata_errors="ignore") as container,
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
    """A context that collects the errors in FFmpeg's log, as (level, sender, message)."""
    level, skip = av.logging.get_level(), av.logging.get_skip_repeated()
    av.logging.set_level(av.logging.ERROR)
    av.logging.set_skip_repeated(False)  # otherwise a message for one file would not be repeated for the next file
    try:
        with av.logging.Capture(local=True) as log:
            yield log
    finally:
        av.logging.set_level(level)
        av.logging.set_skip_repeated(skip)


def listened(decoder: VideoCodecContext, packet: av.Packet | None) -> tuple[list[av.VideoFrame], bool]:
    """The decoder's frames for `packet` (None flushes it), and whether a decoder that does not mark damaged frames
    reported damage in its log."""
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
    """The error for `count` requested frames, the first of them `first`, that the decoder made up."""
    which = f"frame {first} is" if count == 1 else f"{count} requested frames, from frame {first} on, are"
    return DecodeError(path, f"{which} damaged: the decoder made up pixels that it could not read")


def check_size(path: str, frame: av.VideoFrame, max_pixels: int) -> None:
    """Raises `DecodeError` for a frame of more than `max_pixels`, as the decoder's own limit has slack."""
    if cause := larger(frame.width, frame.height, max_pixels):
        raise DecodeError(path, cause)


def frames_in_order(path: str, max_pixels: int) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Yields every frame of a video file in order, and whether the decoder made up a part of it. Frames have a time
    only if the file states it. Raises `DecodeError`."""
    with opened(path, max_pixels) as (container, stream):
        decoder = stream.codec_context
        doubtful: set[int | None] = set()
        for packet in container.demux(stream):
            watchdog.progress()
            try:
                frames, complains = listened(decoder, packet)
            except EOFError:  # the decoder was already flushed
                return
            if complains:
                doubtful.add(packet.pts)  # None (a container without times) stands for every later frame
            for frame in frames:
                check_size(path, frame, max_pixels)
                made_up = frame.is_corrupt or frame.pts in doubtful or None in doubtful
                if not states_shown_times(container.format):
                    frame.pts = None
                yield frame, made_up


def sound_image(path: str, max_pixels: int) -> av.VideoFrame:
    """The picture of an image file. Raises `DecodeError` if there is none, or if it is damaged."""
    frame, made_up = next(frames_in_order(path, max_pixels), (None, False))
    if frame is None:
        raise DecodeError(path, "no frame decodes")
    if made_up:
        raise DecodeError(path, "the picture is damaged")
    return frame


def sound_frames(path: str, max_pixels: int) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Yields every frame of a video file in order with its index; None stands for a frame that is damaged, or may refer
    to a damaged one. Raises `DecodeError`."""
    # B pictures are held back, as they may refer to a damaged picture that is shown later
    held: deque[tuple[int, av.VideoFrame | None]] = deque()
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


# --- presentation times, also if the file does not state all of them --------------------------------------
#
# AVI and raw streams state no presentation times, and FFmpeg's guesses are out of order for reordered pictures. Files
# that were cut, joined or damaged lack some.

FINER = 1000  # interpolated times are rounded to this fraction of a tick
Ticks = Sequence[int | None]
Times = tuple[np.ndarray, Fraction]  # int64 [n], and the seconds of one unit


@dataclass(frozen=True)
class StatedTimes:
    """The times that a file states, in ticks; None if it does not state one.

    `shown` are the presentation times of the frames, in presentation order. `let_out` is, for each frame, the decode
    time of the packet after which the decoder returned it; None for frames that came when it was flushed. `sent` are
    the decode times of the packets, in the order of the file.
    """

    shown: Ticks
    let_out: Ticks
    sent: Ticks


def states_decode_times(container: ContainerFormat) -> bool:
    """Whether the file states decode times of packets; for raw streams FFmpeg makes them up."""
    return not Flags(container.flags) & Flags.no_timestamps


def states_shown_times(container: ContainerFormat) -> bool:
    """Whether the file states presentation times. AVI states only decode times, and FFmpeg guesses the others."""
    return states_decode_times(container) and container.name != "avi"


def frame_times(stated: StatedTimes, tick: Fraction, rate: Fraction | None) -> Times | None:
    """The times of frames, int64 [n], increasing, and the seconds of one unit; None if they cannot be known.

    Presentation times are used if all are stated and in order; else decode times, which are the same times in another
    order; else those presentation times that are in order, with other frames evenly spread between them; else `rate`
    (frames per second).
    """
    shown = _increasing(stated.shown)
    if shown is not None:
        return shown, tick
    by_decoding = _by_decode_times(stated)
    if by_decoding is not None:
        return by_decoding, tick
    between = _filled(stated.shown)
    if between is not None:
        return between, tick / FINER
    return (np.arange(len(stated.shown)), 1 / rate) if rate else None


def _increasing(times: Ticks) -> np.ndarray | None:
    if None in times:
        return None
    ticks = np.array(times, dtype=np.int64)
    return ticks if (np.diff(ticks) > 0).all() else None


def _by_decode_times(stated: StatedTimes) -> np.ndarray | None:
    """The n-th frame gets the time of the n-th packet, shifted by the packets that the decoder holds back to
    reorder."""
    sent = _increasing(stated.sent)
    count = len(stated.shown)
    held_back = sum(time is None for time in stated.let_out)
    if sent is None or len(sent) < 2:
        return None
    times: np.ndarray | None = sent[held_back if held_back < count else 0 :]
    if len(sent) != count:  # some packets have no frame
        times = _increasing([time for time in stated.let_out if time is not None])
    if times is None or len(times) < 1:
        return None
    usual = max(1, int(np.median(np.diff(times if len(times) > 1 else sent))))
    times = np.append(times, times[-1] + usual * np.arange(1, count - len(times) + 1))
    return times - times[0] + sent[0]


def _filled(times: Ticks) -> np.ndarray | None:
    """The longest increasing subsequence of `times`, if it has at least half of them, with other frames interpolated;
    in units of 1/`FINER` of a tick."""
    known = _longest_increasing(times)
    if len(known) < 2 or 2 * len(known) < len(times):
        return None
    ticks = np.array([times[index] for index in known], dtype=np.int64)
    usual = float(np.median(np.diff(ticks) / np.diff(known)))
    places = np.arange(len(times))
    filled = np.interp(places, known, ticks)
    before, after = places < known[0], places > known[-1]
    filled[before] = ticks[0] - usual * (known[0] - places[before])
    filled[after] = ticks[-1] + usual * (places[after] - known[-1])
    return _increasing(np.rint(filled * FINER).astype(np.int64).tolist())


def _longest_increasing(times: Ticks) -> list[int]:
    """The indices of the longest strictly increasing subsequence of `times`, without None."""
    lowest: list[int] = []  # for each length, the least time that ends a subsequence
    ends: list[int] = []  # its index
    before = [-1] * len(times)
    for index, time in enumerate(times):
        if time is None:
            continue
        length = bisect_left(lowest, time)
        if lowest[length : length + 1] == [time]:  # of equal times the first is kept
            continue
        lowest[length : length + 1] = [time]
        ends[length : length + 1] = [index]
        before[index] = ends[length - 1] if length else -1
    chain = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(index)
        index = before[index]
    return chain[::-1]
