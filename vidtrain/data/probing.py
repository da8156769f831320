"""Finding out what a file holds: frames, times, size, and where its packets lie. Done once per file.

What the packets tell without being decoded is believed of MP4 and Matroska with codecs whose bits say where
decoding can start. All else is decoded twice, once as its container gives it and once from byte ranges, and read
from byte ranges later only where both gave the same pixels.
"""

import hashlib
import os
import stat
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtrain.data import watchdog
from vidtrain.data.bitstream import (
    TELLING_CODECS,
    is_clean_start,
    is_disposable,
    needs_first_packet,
    pictures_apart,
    temporal_layer,
)
from vidtrain.data.orientation import displayed_size, orientation_of
from vidtrain.data.packets import decode_numbers, new_decoder
from vidtrain.data.pixel_bounds import MAX_PIXELS
from vidtrain.data.video import DecodeError, PacketTable, VideoInfo, opened

# Containers that give every frame a presentation time.
TIMED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Matroska counts a packet's position from its block's header, whose length varies.
HEADER = 64
# Frames up to which a file is decoded again, to be read from byte ranges later.
MOST_VERIFIED = 100_000
NONE = np.array([], dtype=np.int32)


@dataclass
class _Picture:
    """One coded picture as the container lists it; `position` is None where its bytes do not lie so in the file."""

    position: int | None
    size: int
    pts: int | None
    keyframe: bool
    clean: bool
    hidden: bool
    layer: int
    disposable: bool


def probe(path: str, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """What the video file at `path` holds. Raises `DecodeError` for whatever is not a video that can be read, and for
    pictures of more than `max_pixels`."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DecodeError(path, error.strerror) from error
    if not stat.S_ISREG(status.st_mode):
        raise DecodeError(path, "not a file")
    if status.st_size == 0:
        raise DecodeError(path, "the file is empty")
    try:
        with opened(path, max_pixels) as (container, stream), open(path, "rb") as file:
            scan = _Scan(container, stream, file.fileno())
            video = scan.believed(path)
        digest = file_digest([path])
        if video is None:
            video = _decoded(path, scan, max_pixels)
    except OSError as error:  # storage, not the file: FFmpeg's own errors are DecodeErrors by now
        raise DecodeError(path, error.strerror or str(error)) from error
    return replace(video, digest=digest, max_pixels=max_pixels)


def file_digest(paths: Sequence[str]) -> bytes:
    """The BLAKE2b hash of what the files hold, one after the other (16 bytes)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                watchdog.progress()
    return digest.digest()


class _Scan:
    """The pictures of a stream in decoding order, its first frame, and how to set up a decoder for it."""

    def __init__(self, container: InputContainer, stream: VideoStream, file: int):
        decoder = stream.codec_context
        self.codec = decoder.codec.canonical_name
        self.timed = container.format.name in TIMED_CONTAINERS
        self.time_base = stream.time_base
        self.rate = stream.average_rate or stream.guessed_rate
        self.first: av.VideoFrame | None = None
        self.sound = True
        self.pictures: list[_Picture] = []
        self.opening = b""
        extradata = decoder.extradata or b""
        for packet in container.demux(stream):
            if self.first is None:
                self.first = next(iter(decoder.decode(packet)), None)
            if packet.size == 0:  # the end of the stream, which lets a delayed first frame out
                continue
            data = bytes(packet)
            self.opening = self.opening or data
            # a second set of headers in mid-file would be lost between byte ranges
            self.sound = self.sound and not packet.is_corrupt and not packet.has_sidedata("new_extradata")
            watchdog.progress()
            place = _place(packet, data, file)
            for offset, size in pictures_apart(self.codec, data):
                self.pictures.append(
                    self._picture(packet, data[offset : offset + size], extradata, place, offset)
                )
        top_layer = max((picture.layer for picture in self.pictures), default=0)
        if top_layer:  # what is in a lower layer may be referred to from above
            for picture in self.pictures:
                picture.disposable = picture.disposable and picture.layer == top_layer
        self.setup = PacketTable(
            codec=decoder.name,
            tag=decoder.codec_tag.strip("\0"),
            extradata=extradata,
            width=decoder.width,
            height=decoder.height,
            color=(decoder.colorspace, decoder.color_range),
            positions=np.array([picture.position or 0 for picture in self.pictures], dtype=np.int64),
            sizes=np.array([picture.size for picture in self.pictures], dtype=np.int32),
            order=NONE,
            starts=NONE,
            disposable=np.array([picture.disposable for picture in self.pictures], dtype=bool),
        )

    def _picture(
        self, packet: av.Packet, data: bytes, extradata: bytes, place: int | None, offset: int
    ) -> _Picture:
        layer = temporal_layer(self.codec, data, extradata)
        clean = (
            packet.is_keyframe
            and self.codec in TELLING_CODECS
            and is_clean_start(self.codec, data, extradata)
        )
        return _Picture(
            position=None if place is None else place + offset,
            size=len(data),
            pts=packet.pts,
            keyframe=packet.is_keyframe and offset == 0,
            clean=clean,
            hidden=packet.is_discard,
            layer=layer,
            disposable=is_disposable(self.codec, data, extradata, layer),
        )

    @property
    def in_place(self) -> bool:
        return all(picture.position is not None for picture in self.pictures)

    def believed(self, path: str) -> VideoInfo | None:
        """What the packets tell, having decoded the first frame only; None where they cannot be relied on."""
        times = [picture.pts for picture in self.pictures]
        if not self.timed or self.codec not in TELLING_CODECS or self.first is None or None in times:
            return None
        if not self.sound or any(picture.hidden for picture in self.pictures) or len(set(times)) < len(times):
            return None
        order = np.argsort(np.array(times, dtype=np.int64)).astype(np.int32)
        # pictures that lead the first keyframe are in the file but cannot be decoded, so they are never shown
        if order[0] != 0 or not self.pictures[0].clean or self.first.pts != times[0] or not self.in_place:
            return None
        starts = np.flatnonzero([picture.clean for picture in self.pictures]).astype(np.int32)
        if needs_first_packet(self.codec, self.opening, self.first.format.name):
            starts = starts[:1]
        table = replace(self.setup, order=order, starts=starts)
        return self.video(path, self.first, np.array(times, dtype=np.int64)[order], self.time_base, table)

    def video(
        self, path: str, first: av.VideoFrame, ticks: np.ndarray, tick: Fraction, table: PacketTable | None
    ) -> VideoInfo:
        way = orientation_of(first)
        width, height = displayed_size(first.width, first.height, way)
        return VideoInfo(path, ticks, tick, width, height, way.rotation, table, mirrored=way.mirrored)


def _place(packet: av.Packet, data: bytes, file: int) -> int | None:
    """Where in the file the bytes of a packet lie, having looked."""
    if packet.pos is None or packet.pos < 0:
        return None
    found = os.pread(file, len(data) + HEADER, packet.pos).find(data)
    return None if found < 0 else packet.pos + found


def _decoded(path: str, scan: _Scan, max_pixels: int) -> VideoInfo:
    """What decoding the whole file in order gives."""
    first, times, shown = None, [], []
    with opened(path, max_pixels) as (container, stream):
        for frame in container.decode(stream):
            first = first or frame
            times.append(frame.pts)
            watchdog.progress()
            shown.append(_fingerprint(frame))
    if first is None:
        raise DecodeError(path, "no frame of it decodes")
    verifiable = scan.in_place and None not in shown and len(shown) <= MOST_VERIFIED
    table = _verified(path, scan, shown, max_pixels) if verifiable else None
    if None not in times and (np.diff(times) > 0).all():
        return scan.video(path, first, np.array(times, dtype=np.int64), scan.time_base, table)
    if not scan.rate:
        raise DecodeError(path, "it has neither frame times in order nor a frame rate")
    return scan.video(path, first, np.arange(len(times)), 1 / scan.rate, table)


def _fingerprint(frame: av.VideoFrame) -> int | None:
    """A hash of the frame's pixels; None for formats that have no array form."""
    try:
        return zlib.crc32(np.ascontiguousarray(frame.to_ndarray()))
    except AssertionError:  # PyAV makes no array of an odd size whose colors are at half of it
        return _fingerprint_of_planes(frame)
    except (ValueError, TypeError):
        return None


def _fingerprint_of_planes(frame: av.VideoFrame) -> int:
    """A hash of what the planes show, without what pads their lines."""
    found = 0
    for number, plane in enumerate(frame.planes):
        parts = [part for part in frame.format.components if part.plane == number]
        shown = min(plane.line_size, plane.width * sum(-(-part.bits // 8) for part in parts))
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        found = zlib.crc32(np.ascontiguousarray(lines[:, :shown]), found)
    return found


def _verified(path: str, scan: _Scan, shown: list[int], max_pixels: int) -> PacketTable | None:
    """The table that gives the frames `shown` from byte ranges; None where there is none."""
    with open(path, "rb") as file:

        def decode(numbers: range) -> list[tuple[int, int | None]]:
            decoder = new_decoder(scan.setup, max_pixels)
            frames = decode_numbers(decoder, numbers, lambda number: _bytes(file.fileno(), scan, number))
            marks = []
            for number, frame in frames:
                marks.append((number, _fingerprint(frame)))
                watchdog.progress()
            return marks

        try:
            every = [each for each in decode(range(len(scan.pictures))) if not scan.pictures[each[0]].hidden]
            # a packed stream's filler, which its container's decoder passes over, may come out as a frame
            found = iter(every)
            order = [next((number for number, other in found if other == mark), None) for mark in shown]
            if None in order or len(set(order)) < len(order):
                return None
            # each keyframe, tried as a start, must give what is shown from it up to the next one
            keys = [n for n in order if scan.pictures[n].keyframe]
            starts = []
            place = {number: index for index, number in enumerate(order)}
            bounds = [place[key] for key in keys] + [len(order)]
            for key, begin, end in zip(keys, bounds[:-1], bounds[1:], strict=True):
                marks = dict(decode(range(key, max(order[begin:end]) + 1))) if end > begin else {}
                if begin == 0 or all(
                    number in marks and marks[number] == mark
                    for number, mark in zip(order[begin:end], shown[begin:end], strict=True)
                ):
                    starts.append(key)
        except av.FFmpegError:  # only the container's own way reads it
            return None
    # the frames shown first are decoded from the very beginning, whatever stands there
    starts = sorted({0, *starts}) if order[0] not in starts else sorted(starts)
    return replace(scan.setup, order=np.array(order, np.int32), starts=np.array(starts, np.int32))


def _bytes(file: int, scan: _Scan, number: int) -> bytes:
    picture = scan.pictures[number]
    return os.pread(file, picture.size, picture.position)
