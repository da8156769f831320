"""Decoding a file from end to end and past every error, to see what is wrong with it and what it looks like."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtrain.data.audit.duplicates import FRAMES, PICTURE
from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.container import ffmpeg_errors, frames_in_order, opened
from vidtrain.data.decoding.conversion import color_of
from vidtrain.data.decoding.video import DecodeError, Orientation, VideoInfo, displayed_size, orientation_of

T = TypeVar("T")
THUMBNAIL = 160  # pixels of the longer side
MOST_CHANGES = 1000  # of the picture's size or format that are noted


@dataclass
class Seen:
    """What was seen of a file."""

    stated_frames: int  # by the header, 0 where it says nothing; so are duration (seconds) and rate
    stated_duration: float
    stated_rate: float
    container: str
    codec: str
    audio: bool
    pixel_format: str = ""
    sizes: list[tuple[int, tuple[int, int]]] = field(default_factory=list)  # (width, height) from a frame on
    formats: list[tuple[int, str]] = field(default_factory=list)  # pixel format and range from a frame on
    num_frames: int = 0
    corrupt: int = 0  # frames that the decoder partly made up
    untimed: int = 0  # frames without a time
    late: int = 0  # frames whose time is not above that of the frame before
    interlaced: int = 0  # frames of two fields, of two moments
    transfer: int = 0  # the first frame's, by ITU-T H.273
    errors: list[str] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)  # uint8 [32 32 3], evenly spread over the video
    thumbnail: np.ndarray | None = None  # the middle frame, uint8 [h w 3], or the first of a shorter video


def decode_all(info: VideoInfo) -> Seen:
    """Decodes a whole video. Raises `DecodeError` where the file cannot even be opened.

    The decoder conceals most damage, and says so only in its log, which therefore counts as errors.
    """
    if info.images:
        return _decode_images(info, Pictures(info.num_frames, None))
    seen = decode_file(info.path, Pictures(info.num_frames, info.orientation), info.max_pixels)
    if info.packets is not None:  # a header may count the two fields of a frame
        seen.stated_frames = max(0, seen.stated_frames - int(info.packets.second.sum()))
    return seen


def decode_file(path: str, pictures: "Pictures", max_pixels: int) -> Seen:
    """As `decode_all`, for a video file of which nothing is known."""
    with ffmpeg_errors() as log, opened(path, max_pixels) as (container, stream):
        seen = _stated(container, stream)
        senders = (stream.codec_context.name, container.format.name)  # not the decoders of sound
        _look(_frames(container, stream, seen), pictures, seen)
    seen.errors += [message.strip() for _, sender, message in log if sender in senders]
    return seen


def _decode_images(info: VideoInfo, pictures: "Pictures") -> Seen:
    with opened(info.images[0], info.max_pixels) as (container, stream):
        seen = _stated(container, stream)
    seen.stated_frames, seen.stated_duration, seen.container = len(info.images), 0.0, "images"
    seen.stated_rate = float(1 / info.tick)
    _look(_images(info, seen), pictures, seen)
    return seen


def _images(info: VideoInfo, seen: Seen) -> Iterator[av.VideoFrame]:
    for index, path in enumerate(info.images):
        try:
            for frame, made_up in islice(frames_in_order(path, info.max_pixels), 1):
                seen.corrupt += made_up and not frame.is_corrupt  # which counts as any frame's does
                frame.pts = index
                yield frame
        except DecodeError as error:
            seen.errors.append(f"{os.path.basename(path)}: {error.cause}")


def _look(frames: Iterator[av.VideoFrame], pictures: "Pictures", seen: Seen) -> None:
    last = None
    for frame in frames:
        watchdog.progress()
        pictures.look(frame, seen.num_frames)
        _note(seen.sizes, seen.num_frames, pictures.shown_size(frame))
        _note(seen.formats, seen.num_frames, f"{frame.format.name}, {color_of(frame)[1]} range")
        seen.pixel_format = seen.pixel_format or frame.format.name
        seen.transfer = seen.transfer or frame.color_trc
        seen.interlaced += frame.interlaced_frame
        seen.corrupt += frame.is_corrupt
        seen.untimed += frame.pts is None
        seen.late += frame.pts is not None and last is not None and frame.pts <= last
        last = frame.pts
        seen.num_frames += 1
    seen.pictures, seen.thumbnail = pictures.spread, pictures.thumbnail


def _note(changes: list[tuple[int, T]], index: int, value: T) -> None:
    if (not changes or changes[-1][1] != value) and len(changes) < MOST_CHANGES:
        changes.append((index, value))


def _stated(container: InputContainer, stream: VideoStream) -> Seen:
    audio = len(container.streams.audio) > 0
    duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    if not duration and not audio and container.duration:  # which may be that of longer sound
        duration = container.duration / av.time_base
    return Seen(
        stated_frames=stream.frames,
        stated_duration=duration,
        stated_rate=float(stream.guessed_rate or stream.average_rate or 0),
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        audio=audio,
    )


def _frames(container: InputContainer, stream: VideoStream, seen: Seen) -> Iterator[av.VideoFrame]:
    """Every frame that the decoder gives out; errors are noted and passed over."""
    decoder, packets = stream.codec_context, container.demux(stream)
    empty = _EmptyChunks() if container.format.name == "avi" else None
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            seen.errors.append(str(error.strerror))
            packet = None  # what the decoder still holds is asked for
        if packet is not None and empty is not None:
            empty.look(packet)
        if packet is not None and packet.is_discard:
            seen.stated_frames -= min(1, seen.stated_frames)  # counted by the header, but not to be shown
        try:
            yield from decoder.decode(packet)
        except EOFError:  # demuxing has already asked it for what it held
            packet = None
        except av.FFmpegError as error:
            seen.errors.append(str(error.strerror))
        if packet is None:
            if empty is not None:
                seen.stated_frames -= empty.among(seen.stated_frames)
            return


class _EmptyChunks:
    """Counts the chunks of an AVI without a picture: each makes the picture before stay for another interval."""

    def __init__(self) -> None:
        self._packets = self._empty = self._widest = 0
        self._last: int | None = None

    def look(self, packet: av.Packet) -> None:
        if not packet.size or packet.dts is None:
            return
        self._packets += 1
        if self._last is not None:
            gap = max(0, packet.dts - self._last - 1)  # times count chunks
            self._empty, self._widest = self._empty + gap, max(self._widest, gap)
        self._last = packet.dts

    def among(self, stated: int) -> int:
        """How many of the header's `stated` frames are empty chunks.

        Behind the last picture at most as many are believed as stand between two pictures; more means a cut file.
        """
        behind = max(0, stated - self._packets - self._empty)
        return min(stated, self._empty + (behind if behind <= self._widest else 0))


class Pictures:
    """Small upright pictures: of frames evenly spread over `num_frames`, and of the middle one.

    They are turned by `orientation`; where it is None, as each frame says itself.
    """

    def __init__(self, num_frames: int, orientation: Orientation | None):
        places = (np.arange(FRAMES) + 0.5) / FRAMES * num_frames
        self._wanted = set(places.astype(int).tolist())
        self._middle = num_frames // 2
        self._orientation = orientation
        self.spread: list[np.ndarray] = []
        self.thumbnail: np.ndarray | None = None

    def _way(self, frame: av.VideoFrame) -> Orientation:
        return orientation_of(frame) if self._orientation is None else self._orientation

    def shown_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        return displayed_size(frame.width, frame.height, self._way(frame))

    def look(self, frame: av.VideoFrame, index: int) -> None:
        """Takes the next frame, number `index`."""
        if index in self._wanted:
            self.spread.append(self._small(frame, PICTURE, PICTURE))
        if index in (0, self._middle):
            scale = THUMBNAIL / max(frame.width, frame.height)
            width, height = (max(2, math.ceil(side * scale / 2) * 2) for side in (frame.width, frame.height))
            self.thumbnail = self._small(frame, width, height)

    def _small(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        small = frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1)
        return np.ascontiguousarray(self._way(frame).turned(small.to_ndarray()))
