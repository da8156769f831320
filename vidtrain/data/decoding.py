"""Frame-accurate reading of video files: which frames there are, and the pixels of those that are wanted.

Exact means: a frame read at random is, byte for byte, the one that reading the whole file in order gives.
"""

import itertools
import os
import stat
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import av
import numpy as np
import torch
from av.container import InputContainer
from av.video.stream import VideoStream
from torch import Tensor

from vidtrain.data.bitstream import SEEKABLE_CODECS, is_clean_start, needs_first_packet
from vidtrain.data.conversion import ViewConverter
from vidtrain.data.geometry import Crop
from vidtrain.errors import UserError

# Containers that give every frame a presentation time and can be sought in.
SEEKABLE_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Their decoders look at `skip_frame` anew for every packet.
SKIPPING_CODECS = ("h264", "hevc")
# Seeking empties the decoder; over a smaller gap, in frames, decoding on costs less.
SEEK_GAP = 8


class DecodeError(UserError):
    """A video that cannot be read: `path` names the file, `cause` says why, in words."""

    def __init__(self, path: str, cause: str):
        super().__init__(path, cause)
        self.path = path
        self.cause = cause

    def __str__(self) -> str:
        return f"cannot read video {self.path}: {self.cause}"


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What must be known of a video before its frames are chosen.

    `timestamps` are seconds, float64 [num_frames], increasing. `width` and `height` are of the displayed
    frame, after `rotation` (degrees counterclockwise: 0, 90, 180 or 270); pixels are taken as square.
    `pts` are the frames' presentation times in ticks, int64 [num_frames], and `starts` the frames at which
    decoding can begin. A file without `starts` does not tell its frames apart and is read from its beginning.
    """

    path: str
    num_frames: int
    timestamps: np.ndarray
    width: int
    height: int
    rotation: int
    pts: np.ndarray
    starts: np.ndarray


class _LateSeek(Exception):
    """No seek led to a clean start at or before the frame that is wanted."""


def probe(path: str) -> VideoInfo:
    """Frames, times and size of the video at `path`, remembered until the file changes.

    Reads the packets without decoding where they tell the truth, else decodes the file once in order.
    Raises `DecodeError` for whatever is not a video that can be read.
    """
    try:
        status = os.stat(path)
    except OSError as error:
        raise DecodeError(path, error.strerror) from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "not a file")
    if status.st_size == 0:
        raise DecodeError(path, "the file is empty")
    return _probe(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)  # about 5 kB for ten seconds of video
def _probe(path: str, size: int, modified: int) -> VideoInfo:
    with _opened(path) as (container, stream):
        video = _probe_packets(path, container, stream)
    if video is None:
        with _opened(path) as (container, stream):
            video = _probe_frames(path, container, stream)
    return video


def decode_views(video: VideoInfo, views: Sequence[tuple[np.ndarray, Crop]], size: tuple[int, int]) -> Tensor:
    """The pixels of `views`, each the frame indices of a clip [t] and a box to cut, scaled to `size` (h, w).

    One pass over the file, on one thread, serves all views; a frame is converted once per box that wants it.
    Returns uint8 [n c t h w], RGB. Raises `DecodeError` where the file does not hold what `probe` found.
    """
    _check_views(video, views)
    clips = torch.empty(len(views), 3, len(views[0][0]), *size, dtype=torch.uint8)
    pixels = clips.numpy()
    places: dict[int, dict[Crop, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for view, (indices, crop) in enumerate(views):
        for place, index in enumerate(indices.tolist()):
            places[index][crop].append((view, place))
    converters = {crop: ViewConverter(crop, size, video.rotation) for _, crop in views}

    found = set()
    for index, frame in _frames(video, sorted(places)):
        if _displayed_size(frame, video.rotation) != (video.width, video.height):
            raise DecodeError(video.path, f"the picture changes its size at frame {index}")
        found.add(index)
        for crop, wanted in places[index].items():
            image = converters[crop](frame)
            for view, place in wanted:
                pixels[view, :, place] = image
    if missing := sorted(places.keys() - found):
        raise DecodeError(
            video.path,
            f"{len(missing)} of {len(places)} wanted frames do not decode, the first is {missing[0]}",
        )
    return clips


def _check_views(video: VideoInfo, views: Sequence[tuple[np.ndarray, Crop]]) -> None:
    for indices, crop in views:
        if indices.min() < 0 or indices.max() >= video.num_frames:
            raise ValueError(
                f"frames {indices.min()}..{indices.max()} of the {video.num_frames} of {video.path}"
            )
        inside = crop.left + crop.width <= video.width and crop.top + crop.height <= video.height
        if not inside or crop.left < 0 or crop.top < 0:
            raise ValueError(f"{crop} in the {video.width}x{video.height} frame of {video.path}")


@contextmanager
def _opened(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file's main video stream, decoded on one thread; whatever FFmpeg reports becomes `DecodeError`."""
    try:
        with av.open(path, metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise DecodeError(path, "there is no video stream in it")
            if stream.codec_context is None:
                raise DecodeError(path, "there is no decoder for its video")
            # workers are processes already, and more threads would change nothing but the contention
            stream.codec_context.thread_type = "NONE"
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise DecodeError(path, error.strerror) from error


def _probe_packets(path: str, container: InputContainer, stream: VideoStream) -> VideoInfo | None:
    """What the packets tell, having decoded the first frame only; None where they cannot be relied on."""
    decoder = stream.codec_context
    codec = decoder.codec.canonical_name
    if container.format.name not in SEEKABLE_CONTAINERS or codec not in SEEKABLE_CODECS:
        return None
    extradata = decoder.extradata or b""
    times, clean, opening, first = [], [], b"", None
    for packet in container.demux(stream):
        if first is None:
            first = next(iter(decoder.decode(packet)), None)
        if packet.size == 0:  # the end of the stream, which lets a delayed first frame out
            continue
        if packet.pts is None or packet.is_discard or packet.is_corrupt:
            return None
        opening = opening or bytes(packet)
        times.append(packet.pts)
        if packet.is_keyframe and is_clean_start(codec, bytes(packet), extradata):
            clean.append(packet.pts)
    pts = np.sort(np.array(times, dtype=np.int64))
    if first is None or not clean or len(set(times)) < len(times):
        return None
    # pictures that lead the first keyframe are in the file but cannot be decoded, so they are never shown
    if not times[0] == clean[0] == first.pts == pts[0]:
        return None
    starts = np.searchsorted(pts, np.sort(clean))
    if needs_first_packet(codec, opening, first.format.name):
        starts = starts[:1]
    return _info(path, first, pts, stream.time_base, starts)


def _probe_frames(path: str, container: InputContainer, stream: VideoStream) -> VideoInfo:
    """What decoding the whole file in order gives."""
    first, times = None, []
    for frame in container.decode(stream):
        first = first or frame
        times.append(frame.pts)
    if first is None:
        raise DecodeError(path, "no frame of it decodes")
    nowhere = np.array([], dtype=np.int64)
    if None not in times and (np.diff(times) > 0).all():
        return _info(path, first, np.array(times, dtype=np.int64), stream.time_base, nowhere)
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise DecodeError(path, "it has neither frame times in order nor a frame rate")
    return _info(path, first, np.arange(len(times)), 1 / rate, nowhere)


def _info(
    path: str, first: av.VideoFrame, pts: np.ndarray, time_base: Fraction, starts: np.ndarray
) -> VideoInfo:
    rotation = round(first.rotation / 90) * 90 % 360
    width, height = _displayed_size(first, rotation)
    timestamps = pts * time_base.numerator / time_base.denominator
    return VideoInfo(path, len(pts), timestamps, width, height, rotation, pts, starts)


def _displayed_size(frame: av.VideoFrame, rotation: int) -> tuple[int, int]:
    return (frame.height, frame.width) if rotation in (90, 270) else (frame.width, frame.height)


def _frames(video: VideoInfo, wanted: list[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """The frames with indices `wanted` (sorted), in any order, some perhaps twice; only what is there."""
    if len(video.starts):
        try:
            with _opened(video.path) as (container, stream):
                yield from _frames_by_seeking(video, container, stream, wanted)
            return
        except _LateSeek:
            pass  # read from the beginning, which needs no seek
    with _opened(video.path) as (container, stream):
        remaining = set(wanted)
        for index, frame in enumerate(container.decode(stream)):
            if index in remaining:
                remaining.remove(index)
                yield index, frame
            if not remaining:
                return


def _frames_by_seeking(
    video: VideoInfo, container: InputContainer, stream: VideoStream, wanted: list[int]
) -> Iterator[tuple[int, av.VideoFrame]]:
    decoder = stream.codec_context
    skipping = decoder.codec.canonical_name in SKIPPING_CODECS
    for run in _runs(wanted, video.starts):
        indices = {int(video.pts[index]): index for index in run}
        unsent = set(indices)
        for packet in _packets_from(video, container, stream, run[0]):
            if packet.size == 0:  # the end of the file
                break
            if skipping:  # what nobody wants and no other frame needs is not decoded at all
                decoder.skip_frame = "DEFAULT" if packet.pts in indices else "NONREF"
            for frame in decoder.decode(packet):
                if frame.pts in indices:
                    yield indices[frame.pts], frame
            unsent.discard(packet.pts)
            if not unsent:
                break
        # frames wait in the decoder for their turn to be shown
        for frame in decoder.decode(None):
            if frame.pts in indices:
                yield indices[frame.pts], frame


def _runs(wanted: list[int], starts: np.ndarray) -> list[list[int]]:
    """`wanted` cut where seeking on to a later start saves decoding more than `SEEK_GAP` frames."""
    nearest = starts[np.searchsorted(starts, wanted, side="right") - 1]
    cuts = np.flatnonzero(nearest[1:] - wanted[:-1] > SEEK_GAP) + 1
    return [run.tolist() for run in np.split(np.array(wanted), cuts)]


def _packets_from(
    video: VideoInfo, container: InputContainer, stream: VideoStream, index: int
) -> Iterator[av.Packet]:
    """Packets from the last clean start at or before frame `index` to which a seek leads."""
    starts = video.starts[: np.searchsorted(video.starts, index, side="right")]
    clean = set(video.pts[starts].tolist())
    for start in reversed(video.pts[starts].tolist()):
        container.seek(start, stream=stream)
        packets = container.demux(stream)
        first = next(packets)
        if first.pts in clean:  # a seek can land late
            return itertools.chain([first], packets)
    raise _LateSeek
