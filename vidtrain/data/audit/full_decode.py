"""Decodes a whole file, also after errors, to find its issues and to compute its signature.

An issue is its kind and a text:

truncated          fewer frames than the file states
damaged            decoding reports errors: frames are missing or partly made up by the decoder
frame count        the header states another number of frames than the file has
rate               no frame rate, or an implausible one
variable rate      frames are not evenly spaced in time
times              frames without a time, or not in the order of time
size changes       the picture changes its size: frames are scaled to the first one's
format changes     pixel format or color range change: each frame is read with its own
non-square pixels  read as square, unless clip.sample_aspect=apply
interlaced         a frame has two fields of different times: moving edges look like combs
HDR                a transfer function for bright displays: pictures look pale, as it is not converted
no contrast        uniform pictures, such as black: near duplicates cannot be found
"""

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
MOST_CHANGES = 1000  # changes of the picture's size or format that are recorded


@dataclass
class DecodeReport:
    """The result of decoding a whole file."""

    stated_frames: int  # by the header, 0 if unknown; likewise duration (seconds) and rate
    stated_duration: float
    stated_rate: float
    container: str
    codec: str
    audio: bool
    pixel_format: str = ""
    sizes: list[tuple[int, tuple[int, int]]] = field(default_factory=list)  # (first frame, (width, height))
    formats: list[tuple[int, str]] = field(default_factory=list)  # (first frame, pixel format and range)
    num_frames: int = 0
    corrupt: int = 0  # frames that the decoder partly made up
    untimed: int = 0  # frames without a time
    late: int = 0  # frames whose time is not above that of the frame before
    interlaced: int = 0  # frames with two fields of different times
    transfer: int = 0  # the first frame's, by ITU-T H.273
    errors: list[str] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)  # uint8 [32 32 3], evenly spread over the video
    thumbnail: np.ndarray | None = None  # the middle frame, uint8 [h w 3], or the first if the video is shorter


def decode_all(info: VideoInfo) -> DecodeReport:
    """Decodes a whole video. Raises `DecodeError` if the file cannot be opened.

    The decoder conceals most damage and reports it only in its log, so messages in the log count as errors.
    """
    if info.images:
        return _decode_images(info, Pictures(info.num_frames, None))
    report = decode_file(info.path, Pictures(info.num_frames, info.orientation), info.max_pixels)
    if info.packets is not None:  # the header may count both fields of a frame
        report.stated_frames = max(0, report.stated_frames - int(info.packets.second.sum()))
    return report


def decode_file(path: str, pictures: "Pictures", max_pixels: int) -> DecodeReport:
    """`decode_all` for a video file without a `VideoInfo`."""
    with ffmpeg_errors() as log, opened(path, max_pixels) as (container, stream):
        report = _stated(container, stream)
        senders = (stream.codec_context.name, container.format.name)  # messages of audio decoders are ignored
        _look(_frames(container, stream, report), pictures, report)
    report.errors += [message.strip() for _, sender, message in log if sender in senders]
    return report


def _decode_images(info: VideoInfo, pictures: "Pictures") -> DecodeReport:
    with opened(info.images[0], info.max_pixels) as (container, stream):
        report = _stated(container, stream)
    report.stated_frames, report.stated_duration, report.container = len(info.images), 0.0, "images"
    report.stated_rate = float(1 / info.tick)
    _look(_images(info, report), pictures, report)
    return report


def _images(info: VideoInfo, report: DecodeReport) -> Iterator[av.VideoFrame]:
    for index, path in enumerate(info.images):
        try:
            for frame, made_up in islice(frames_in_order(path, info.max_pixels), 1):
                report.corrupt += made_up and not frame.is_corrupt  # `is_corrupt` is counted in `_look`
                frame.pts = index
                yield frame
        except DecodeError as error:
            report.errors.append(f"{os.path.basename(path)}: {error.cause}")


def _look(frames: Iterator[av.VideoFrame], pictures: "Pictures", report: DecodeReport) -> None:
    last = None
    for frame in frames:
        watchdog.progress()
        pictures.look(frame, report.num_frames)
        _note(report.sizes, report.num_frames, pictures.shown_size(frame))
        _note(report.formats, report.num_frames, f"{frame.format.name}, {color_of(frame)[1]} range")
        report.pixel_format = report.pixel_format or frame.format.name
        report.transfer = report.transfer or frame.color_trc
        report.interlaced += frame.interlaced_frame
        report.corrupt += frame.is_corrupt
        report.untimed += frame.pts is None
        report.late += frame.pts is not None and last is not None and frame.pts <= last
        last = frame.pts
        report.num_frames += 1
    report.pictures, report.thumbnail = pictures.spread, pictures.thumbnail


def _note(changes: list[tuple[int, T]], index: int, value: T) -> None:
    if (not changes or changes[-1][1] != value) and len(changes) < MOST_CHANGES:
        changes.append((index, value))


def _stated(container: InputContainer, stream: VideoStream) -> DecodeReport:
    audio = len(container.streams.audio) > 0
    duration = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else 0.0
    if not duration and not audio and container.duration:  # with audio, it may be the longer audio's
        duration = container.duration / av.time_base
    return DecodeReport(
        stated_frames=stream.frames,
        stated_duration=duration,
        stated_rate=float(stream.guessed_rate or stream.average_rate or 0),
        container=container.format.name,
        codec=stream.codec_context.codec.canonical_name,
        audio=audio,
    )


def _frames(container: InputContainer, stream: VideoStream, report: DecodeReport) -> Iterator[av.VideoFrame]:
    """Yields every frame that the decoder returns; errors are recorded, and decoding continues."""
    decoder, packets = stream.codec_context, container.demux(stream)
    empty = _EmptyChunks() if container.format.name == "avi" else None
    while True:
        try:
            packet = next(packets, None)
        except av.FFmpegError as error:
            report.errors.append(str(error.strerror))
            packet = None  # flushes the decoder
        if packet is not None and empty is not None:
            empty.look(packet)
        if packet is not None and packet.is_discard:
            report.stated_frames -= min(1, report.stated_frames)  # the header counts it, but it is not shown
        try:
            yield from decoder.decode(packet)
        except EOFError:  # the decoder was already flushed
            packet = None
        except av.FFmpegError as error:
            report.errors.append(str(error.strerror))
        if packet is None:
            if empty is not None:
                report.stated_frames -= empty.among(report.stated_frames)
            return


class _EmptyChunks:
    """Counts the empty chunks of an AVI: each shows the previous picture for another interval."""

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

        Frames that are missing after the last picture count as empty chunks only if there are no more than in the
        widest gap between two pictures; otherwise the file was cut.
        """
        missing_at_end = max(0, stated - self._packets - self._empty)
        return min(stated, self._empty + (missing_at_end if missing_at_end <= self._widest else 0))


class Pictures:
    """Collects small upright pictures: of frames evenly spread over `num_frames`, and of the middle frame.

    They are rotated by `orientation`, or if it is None, by that of each frame.
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
        """Processes the next frame, which has the number `index`."""
        if index in self._wanted:
            self.spread.append(self._small(frame, PICTURE, PICTURE))
        if index in (0, self._middle):
            scale = THUMBNAIL / max(frame.width, frame.height)
            width, height = (max(2, math.ceil(side * scale / 2) * 2) for side in (frame.width, frame.height))
            self.thumbnail = self._small(frame, width, height)

    def _small(self, frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
        small = frame.reformat(width, height, "rgb24", interpolation="AREA", threads=1)
        return np.ascontiguousarray(self._way(frame).turned(small.to_ndarray()))


# --- issues of readable files ----------------------------------------------------------------------------------

HIGHEST_RATE = 240.0  # frames per second: the highest plausible frame rate
# A rate is variable if more than this share of its intervals differ by more than this share of the median
VARIABLE_SHARE, VARIABLE_PART = 0.02, 0.25
LONGEST_INTERVAL = 1.0  # seconds without a new frame
# A file is truncated if more frames, or more seconds, than these are missing at its end
SLACK_FRAMES, SLACK_SHARE = 2, 0.01
SLACK_SECONDS, SLACK_DURATION = 0.5, 0.05
NAMED = 3  # sizes or formats that a text lists
HDR = {16: "PQ (SMPTE ST 2084)", 18: "HLG (ARIB STD-B67)"}  # transfer functions of ITU-T H.273

Issue = tuple[str, str]


def find_issues(
    info: VideoInfo, report: DecodeReport, rate: float, duration: float, refused: int, has_contrast: bool
) -> tuple[Issue, ...]:
    """All issues of a file. `rate` (frames per second) and `duration` (seconds) are those of the whole video; `refused`
    is the number of its frames that training refuses."""
    issues = [
        *_missing_frames(info, report, duration, refused),
        *_odd_times(info, report, rate),
        *_changes(report),
        *_odd_pictures(info, report),
    ]
    return tuple(issues if has_contrast else [*issues, ("no contrast", "uniform pictures throughout")])


def _missing_frames(info: VideoInfo, report: DecodeReport, duration: float, refused: int) -> list[Issue]:
    stated = max(report.stated_frames, info.num_frames)
    missing = stated - report.num_frames
    first = first_error(report.errors)
    if missing > max(SLACK_FRAMES, SLACK_SHARE * stated) or (missing > 0 and info.num_frames < stated):
        return [("truncated", joined(f"{report.num_frames} of {stated} frames", first))]
    if report.stated_duration - duration > max(SLACK_SECONDS, SLACK_DURATION * duration):
        return [("truncated", joined(f"{duration:.1f} of {report.stated_duration:.1f} s", first))]
    # Matroska reports a truncated file with this word
    if not report.stated_duration and any("prematurely" in error for error in report.errors):
        return [("truncated", first)]
    if report.errors or report.corrupt or report.num_frames < info.num_frames:
        damage = f"frames lost: {max(0, info.num_frames - report.num_frames)}, partly made up: {report.corrupt}"
        if refused:
            damage += f", refused with those that depend on them: {refused} of {info.num_frames}"
        return [("damaged", joined(damage, first))]
    if report.stated_frames not in (0, report.num_frames):
        return [("frame count", f"the header says {report.stated_frames}, there are {report.num_frames}")]
    return []


def _odd_times(info: VideoInfo, report: DecodeReport, rate: float) -> Iterator[Issue]:
    if not 0 < rate <= HIGHEST_RATE:
        yield "rate", f"{rate:g} frames/s"
    intervals = np.diff(info.timestamps)
    if len(intervals):
        usual, longest = float(np.median(intervals)), float(intervals.max())
        off = np.abs(intervals - usual) > VARIABLE_PART * usual
        if off.mean() > VARIABLE_SHARE or longest > max(LONGEST_INTERVAL, 2 * usual):
            spread = f"{1000 * intervals.min():.0f} to {1000 * longest:.0f} ms"
            yield "variable rate", f"{spread} from frame to frame, mostly {1000 * usual:.0f}"
    if (report.untimed or report.late) and report.container != "avi":  # AVI has no presentation times
        yield "times", f"{report.untimed} frames without a time, {report.late} not after the one before"


def _changes(report: DecodeReport) -> Iterator[Issue]:
    sizes = [f"{width}x{height} from frame {index}" for index, (width, height) in report.sizes]
    formats = [f"{name} from frame {index}" for index, name in report.formats]
    for kind, changes in (("size changes", sizes), ("format changes", formats)):
        if len(changes) > 1:
            more = f" and {len(changes) - NAMED} more changes" if len(changes) > NAMED else ""
            yield kind, f"{'; '.join(changes[:NAMED])}{more}"


def _odd_pictures(info: VideoInfo, report: DecodeReport) -> Iterator[Issue]:
    """Issues of undamaged files that differ from usual training videos."""
    if info.aspect != 1:
        square = info.with_square_pixels()
        shape = f"{info.width}x{info.height} pixels of {info.aspect.numerator}:{info.aspect.denominator}"
        yield "non-square pixels", f"{shape}, shown as {square.width}x{square.height}"
    if report.interlaced:
        yield "interlaced", f"{report.interlaced} of {report.num_frames} frames"
    if report.transfer in HDR:
        yield "HDR", HDR[report.transfer]


def first_error(errors: list[str]) -> str:
    """The first error, which usually causes the others, and the number of others."""
    return f"{errors[0]} (and {len(errors) - 1} more errors)" if len(errors) > 1 else "".join(errors)


def joined(cause: str, reason: str) -> str:
    return f"{cause}; {reason}" if reason else cause
