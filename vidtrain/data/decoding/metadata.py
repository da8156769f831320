"""Reads the metadata of a file: frames, times, size, and the byte ranges of its packets. Done once for each file.

For MP4 and Matroska with codecs in `TELLING_CODECS`, the metadata are read from the packets without decoding. Other
files are decoded twice, in order and from byte ranges; only if both give the same pixels, they are read from byte
ranges later.
"""

import hashlib
import os
import re
from collections.abc import Sequence, Set
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.container import (
    StatedTimes,
    aspect_of,
    frame_times,
    larger,
    opened,
    states_decode_times,
    states_shown_times,
)
from vidtrain.data.decoding.entry_points import (
    TELLING_CODECS,
    CodedPicture,
    ListedPicture,
    ParametersInMidStream,
    coded_picture,
    needs_first_packet,
    pictures_apart,
)
from vidtrain.data.decoding.headers import Survey, frames_only, has_layers, survey
from vidtrain.data.decoding.packets import Trial, fingerprint
from vidtrain.data.decoding.video import (
    MAX_PIXELS,
    DecodeError,
    PacketTable,
    VideoInfo,
    displayed_size,
    orientation_of,
)
from vidtrain.data.stores import objects
from vidtrain.data.stores.files import LocalFile, file_status, merged, opened_whole
from vidtrain.data.stores.outlines import outlined, worth_outlining
from vidtrain.data.stores.places import is_plain
from vidtrain.errors import UserError

# Containers that store a presentation time for every frame
TIMED_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
# Codecs whose raw streams state the frame rate, not the rate of a clock with several ticks per frame
RATED_CODECS = ("h264", "hevc")
HIGHEST_CODED_RATE = 300  # frames per second; a higher number is the rate of a clock
# In Matroska a packet's position is that of its block's header, which has at most this many bytes
HEADER = 64
# Parts of a file in a store that are fetched for its metadata
OPENING = 32  # first packets
KEY_HEAD = 4 << 10  # bytes of each later keyframe
MOST_OUTLINED = 0.5  # share of the file; if the parts are larger, the whole file is fetched
NONE = np.array([], dtype=np.int32)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
NUMBER = re.compile(r"(\d+)")


def read_metadata(path: str, max_pixels: int = MAX_PIXELS, whole: bool = True) -> VideoInfo:
    """The metadata of the video file at `path`. Raises `DecodeError` if it cannot be read as a video, and for pictures
    of more than `max_pixels`.

    Unless `whole`, only small parts of an MP4 file in a store are fetched. Its `digest` then is empty, and no picture
    counts as disposable. `objects.used` counts the large files for which these parts did not suffice.
    """
    try:
        size = file_status(path).size
        if is_plain(path) and not os.path.isfile(path):  # opening a pipe would wait for its writer
            raise DecodeError(path, "not a file")
    except OSError as error:
        raise DecodeError(path, error.strerror) from error
    if size == 0:
        raise DecodeError(path, "the file is empty")
    try:
        in_parts = not whole and worth_outlining(path)
        if in_parts and (outline := _outlined(path, max_pixels)) is not None:
            return outline
        with opened(path, max_pixels) as (container, stream), opened_whole(path) as file:
            scan = _Scan(container, stream, file, max_pixels)
            first = scan.first  # its size may differ from that in the headers
            if first is not None and (cause := larger(first.width, first.height, max_pixels)):
                raise DecodeError(path, cause)
            video = scan.believed(path)
        digest = file_digest([path])
        # if a picture is missing, the pixels of others depend on where decoding started
        if video is None or not scan.survey.regular:
            try:
                video = _decoded(path, scan)
            except DecodeError:
                if video is None:  # otherwise the frames that decode can still be read
                    raise
    except OSError as error:  # an error of the storage; FFmpeg's errors were converted to DecodeError
        raise DecodeError(path, error.strerror or str(error)) from error
    if in_parts:
        objects.count(whole=1)
    return replace(video, digest=digest, max_pixels=max_pixels)


def _outlined(path: str, max_pixels: int) -> VideoInfo | None:
    """The metadata of an MP4 file in a store, from its boxes, its first packets and the first bytes of its keyframes.
    None if these do not suffice, or for another kind of file. Raises `OSError`."""
    with outlined(path) as outline:
        if outline is None:
            return None
        try:
            with opened(path, max_pixels) as (_, stream):
                # keyframes are read from the index: demuxing does not report them for packets that were not fetched
                packets = [(entry.pos, entry.size, entry.is_keyframe) for entry in stream.index_entries]
            ranges = [(place, place + size) for place, size, _ in packets[:OPENING]]
            ranges += [(place, place + min(size, KEY_HEAD)) for place, size, key in packets[OPENING:] if key]
            if sum(end - begin for begin, end in ranges) > MOST_OUTLINED * outline.length:
                return None
            outline.add(merged(ranges, len(ranges)))
            with opened(path, max_pixels) as (container, stream), opened_whole(path) as file:
                scan = _Scan(container, stream, file, max_pixels, {place for place, _, key in packets if key})
                video = scan.believed(path)
        except DecodeError:  # the whole file is read next, and may be readable
            return None
    if video is None or not scan.survey.regular or larger(video.width, video.height, max_pixels):
        return None
    return replace(video, max_pixels=max_pixels)


def file_digest(paths: Sequence[str]) -> bytes:
    """The BLAKE2b hash of the concatenated content of the files (16 bytes)."""
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with opened_whole(path) as file:
            for start in range(0, file.length, 1 << 20):
                digest.update(file.read_at(start, 1 << 20))
                watchdog.progress()
    return digest.digest()


class _Scan:
    """The coded pictures of a stream in decoding order, its first frame, and the setup of a decoder.

    If only the first packets and the first bytes of keyframes were fetched, `keys` holds the positions of keyframes.
    """

    first: av.VideoFrame | None = None
    aspect = Fraction(1)
    sound = True
    opening = b""

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        file: LocalFile,
        max_pixels: int,
        keys: Set[int] | None = None,
    ):
        decoder = stream.codec_context
        self.keys = keys
        self.max_pixels = max_pixels
        self.codec = decoder.codec.canonical_name
        self.timed = container.format.name in TIMED_CONTAINERS
        self.time_base = stream.time_base or Fraction(1, av.time_base)
        self.rate = _rate(container, stream)
        self.reorders = decoder.has_b_frames
        self.pictures: list[ListedPicture] = []
        self.sent: list[int | None] = []
        stated = states_decode_times(container.format)
        extradata = decoder.extradata or b""
        parameters = ParametersInMidStream(self.codec, extradata)
        for packet in container.demux(stream):
            if self.first is None:
                self.first = next(iter(decoder.decode(packet)), None)
            if packet.size == 0:  # the end of the stream; it flushes a delayed first frame
                continue
            data = bytes(packet)
            self.opening = self.opening or data
            # a second set of headers in the middle of the file would be lost when byte ranges are read
            self.sound = self.sound and not packet.is_corrupt and not packet.has_sidedata("new_extradata")
            watchdog.progress()
            place = _place(packet, data, file)
            if stated and not packet.is_discard:
                self.sent.append(packet.dts)
            for offset, size in pictures_apart(self.codec, data):
                keyframe, coded = self._coded(packet, data[offset : offset + size], extradata)
                position = None if place is None else place + offset
                key, hidden = keyframe and offset == 0, packet.is_discard
                clean = parameters.known_at(coded) and keyframe and coded.clean
                self.pictures.append(ListedPicture(position, size, packet.pts, key, clean, hidden, coded))
        if self.first is not None:
            self.aspect = aspect_of(stream, orientation_of(self.first))
        self.survey = self._survey(extradata)
        second = np.array(self.survey.second, dtype=bool)
        disposable, self.unusual = self._disposable(second, extradata)
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
            disposable=disposable,
            second=second,
        )

    def _coded(self, packet: av.Packet, data: bytes, extradata: bytes) -> tuple[bool, CodedPicture]:
        """Whether the packet is a keyframe, and its properties, or default ones if its bytes were not fetched."""
        keyframe = packet.is_keyframe if self.keys is None else packet.pos in self.keys
        if self.keys is None or keyframe or len(self.pictures) < OPENING:
            return keyframe, coded_picture(self.codec, data, extradata)
        return keyframe, CodedPicture()

    def _survey(self, extradata: bytes) -> Survey:
        if self.codec != "h264":
            return Survey([False] * len(self.pictures), paired=True, regular=True, has_b=True)
        result = survey(extradata, [picture.coded.headers for picture in self.pictures])
        for picture, second in zip(self.pictures, result.second, strict=True):
            if second:  # decoding cannot start there
                picture.keyframe = picture.clean = False
        # fields cannot be paired if their headers were not fetched
        return replace(result, paired=result.paired and (self.keys is None or frames_only(extradata)))

    def _disposable(self, second: np.ndarray, extradata: bytes) -> tuple[np.ndarray, bool]:
        """Which pictures no other refers to, bool [m], and whether the stream is unusual, so that this must be
        tested."""
        coded = [picture.coded for picture in self.pictures]
        top_layer = max((picture.layer for picture in coded), default=0)
        disposable = np.array([picture.disposable and picture.layer == top_layer for picture in coded], dtype=bool)
        first_fields = np.flatnonzero(second) - 1
        # a frame is disposable if both of its fields are
        both = disposable[first_fields] & disposable[first_fields + 1]
        disposable[first_fields] = disposable[first_fields + 1] = both
        several = any(picture.slices > 1 or picture.layered for picture in coded)
        layered = self.codec == "av1" and has_layers(extradata)
        if self.keys is not None:
            disposable[:] = False
        return disposable, bool(several or layered or top_layer or second.any())

    @property
    def in_place(self) -> bool:
        return all(picture.position is not None for picture in self.pictures)

    def believed(self, path: str) -> VideoInfo | None:
        """The metadata from the packets, without decoding more than the first frame; None if they are not reliable."""
        first_parts = np.flatnonzero(~self.setup.second)
        times = [self.pictures[number].pts for number in first_parts.tolist()]
        if not self.timed or self.codec not in TELLING_CODECS or self.first is None or None in times:
            return None
        if not self.sound or not self.survey.paired or any(picture.hidden for picture in self.pictures):
            return None
        if len(set(times)) < len(times):
            return None
        ticks = np.array(times, dtype=np.int64)
        if self.reorders and (np.diff(ticks) > 0).all() and (self.survey.has_b or self.keys is not None):
            return None  # pictures are reordered, so these are decode times
        order = first_parts[np.argsort(ticks)].astype(np.int32)
        # pictures shown before the first keyframe cannot be decoded
        if order[0] != 0 or not self.pictures[0].clean or self.first.pts != times[0] or not self.in_place:
            return None
        starts = np.flatnonzero([picture.clean for picture in self.pictures]).astype(np.int32)
        if needs_first_packet(self.codec, self.opening, self.first.format.name):
            starts = starts[:1]
        table = replace(self.setup, order=order, starts=starts)
        if not self.survey.regular or (self.unusual and not self.trial(path).can_leave_out()):
            table = replace(table, disposable=np.zeros_like(table.disposable))
        return _like_first(path, self.first, np.sort(ticks), self.time_base, self.aspect, table)

    def trial(self, path: str) -> Trial:
        return Trial(path, self.setup, self.max_pixels)


def _like_first(
    path: str,
    first: av.VideoFrame,
    ticks: np.ndarray,
    tick: Fraction,
    aspect: Fraction,
    table: PacketTable | None = None,
) -> VideoInfo:
    """The metadata of a video with the size and orientation of its first frame."""
    rotation, mirrored = way = orientation_of(first)
    width, height = displayed_size(first.width, first.height, way)
    return VideoInfo(path, ticks, tick, width, height, rotation, table, mirrored=mirrored, aspect=aspect)


def _rate(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """The frame rate that the file states, for files without usable times; None if it does not state one."""
    decoder = stream.codec_context
    # FFmpeg guesses among common rates, and uses 25 for others
    coded = decoder.framerate if decoder.codec.canonical_name in RATED_CODECS else None
    if coded and coded <= HIGHEST_CODED_RATE and not states_decode_times(container.format):
        return coded
    return stream.guessed_rate or stream.average_rate


def _place(packet: av.Packet, data: bytes, file: LocalFile) -> int | None:
    """The position in the file of a packet's bytes; None if they are not found."""
    if packet.pos is None or packet.pos < 0:
        return None
    offset = bytes(file.read_at(packet.pos, len(data) + HEADER)).find(data)
    return None if offset < 0 else packet.pos + offset


def _decoded(path: str, scan: _Scan) -> VideoInfo:
    """The metadata from decoding the whole file in order."""
    first, times, let_out, shown = None, [], [], []
    with opened(path, scan.max_pixels) as (container, stream):
        stated = states_shown_times(container.format)
        for frame in container.decode(stream):
            first = first or frame
            times.append(frame.pts if stated else None)
            let_out.append(frame.dts)
            watchdog.progress()
            shown.append(fingerprint(frame))
    if first is None:
        raise DecodeError(path, "no frame decodes")
    table = scan.trial(path).verified(shown, scan.pictures) if scan.in_place else None
    ticks_and_tick = frame_times(StatedTimes(times, let_out, scan.sent), scan.time_base, scan.rate)
    if ticks_and_tick is None:
        raise DecodeError(path, "it has neither frame times in order nor a frame rate")
    return _like_first(path, first, *ticks_and_tick, scan.aspect, table)


def read_image_folder(folder: str, frame_rate: float, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """The images of `folder` as a video with `frame_rate` frames per second, ordered by the numbers in their names.
    Raises `DecodeError` if there is none, or if the first does not decode or has more than `max_pixels`."""
    try:
        names = image_names(folder)
    except OSError as error:
        raise DecodeError(folder, error.strerror) from error
    if not names:
        raise DecodeError(folder, f"no images in it; looked for {' '.join(IMAGE_SUFFIXES)}")
    images = tuple(os.path.join(folder, name) for name in sorted(names, key=_natural))
    with opened(images[0], max_pixels) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise DecodeError(images[0], "no frame decodes")
        aspect = aspect_of(stream, orientation_of(first))
    if cause := larger(first.width, first.height, max_pixels):
        raise DecodeError(images[0], cause)
    tick = 1 / Fraction(frame_rate).limit_denominator(1_000_000)
    video = _like_first(folder, first, np.arange(len(images)), tick, aspect)
    return replace(video, images=images, max_pixels=max_pixels)


def check_frame_rate(frame_rate: float) -> None:
    """Raises `UserError` for an invalid frame rate."""
    if not 1e-3 <= frame_rate <= 1e5:
        raise UserError(f"dataset.source.frame_rate={frame_rate}: must be images a second, 0.001 to 100000")


def image_names(folder: str) -> list[str]:
    """The names of the images in `folder` without hidden files, unordered."""
    return [name for name in os.listdir(folder) if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A sort key with which img_2 comes before img_10."""
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in NUMBER.split(name)]
