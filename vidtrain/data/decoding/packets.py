"""Decodes coded pictures from their byte ranges, without opening a container, and only those that are needed.

Opening a container costs more than decoding a few frames, as FFmpeg decodes to find facts that the `PacketTable` holds.

Decoders fill the missing parts of a damaged picture from earlier pictures, so a frame would differ between random
access and reading in order. If a decoder reports damage, frames are read in order; frames that are still damaged are
refused.

Pictures to which no other refers can be skipped. But decoders keep more state between pictures: replacements of missing
pictures, or distances of B pictures. `Trial` tests, by decoding, whether skipping pictures changes others.
"""

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import av
import numpy as np
from av.codec.context import ThreadType
from av.video.codeccontext import VideoCodecContext

from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.container import damage_error, decoder_options, listened
from vidtrain.data.decoding.entry_points import ListedPicture
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, PacketTable
from vidtrain.data.stores.files import ByteRanges, opened, opened_whole

MOST_VERIFIED = 100_000  # frames; longer files are not decoded again to verify reading from byte ranges
MOST_TRIED = 1 << 32  # pixels; larger streams are not decoded (about 20 s) to test whether pictures can be skipped
Marks = dict[int, int | None]


def new_decoder(table: PacketTable, max_pixels: int = MAX_PIXELS) -> VideoCodecContext:
    """A decoder for the table's packets, on one thread, which refuses pictures of more than `max_pixels`."""
    decoder = av.CodecContext.create(table.codec, "r")
    if not isinstance(decoder, VideoCodecContext):
        raise ValueError(f"{table.codec} is not a video codec")
    decoder.extradata = table.extradata or None
    decoder.width, decoder.height = table.width, table.height
    decoder.colorspace, decoder.color_range = table.color
    if table.tag:
        decoder.codec_tag = table.tag
    decoder.thread_type = ThreadType.NONE
    decoder.thread_count = 1
    # without it the H.264 decoder guesses the reordering of pictures, and drops pictures if the guess is wrong
    decoder.options = {"strict": "1", **decoder_options(max_pixels)}
    return decoder


def decode_numbers(
    decoder: VideoCodecContext,
    numbers: Sequence[int],
    read: Callable[[int], memoryview | bytes],
    damaged: set[int] | None = None,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes the packets `numbers` in order, and yields each frame with the number of its packet. Adds pictures that
    the decoder could not decode, or made up in part, to `damaged`; if it is None, the decoder's errors are raised."""
    for number in numbers:
        data = read(number)
        # this allocates libavcodec's padding, which a packet made from bytes lacks
        packet = av.Packet(len(data))
        packet.update(data)  # type: ignore[arg-type]  # of any buffer
        packet.pts = packet.dts = number  # decoders copy it to the frame, also when they reorder
        yield from _frames(decoder, packet, number, damaged)
    yield from _frames(decoder, None, -1, damaged)
    decoder.flush_buffers()  # ready for another start


def _frames(
    decoder: VideoCodecContext, packet: av.Packet | None, number: int, damaged: set[int] | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields the decoder's frames for `packet` (None flushes it), as in `decode_numbers`."""
    watchdog.progress()
    if damaged is None:
        frames = decoder.decode(packet)
    else:
        try:
            frames, complains = listened(decoder, packet)
        except av.FFmpegError:
            damaged.add(number)  # -1 when the decoder is flushed
            return
        if complains:
            damaged.add(number)
    for frame in frames:
        origin = -1 if frame.pts is None else frame.pts
        if damaged is not None and frame.is_corrupt:
            damaged.add(origin)
        yield origin, frame


def expect_frames(file: ByteRanges, table: PacketTable, wanted: Sequence[int]) -> None:
    """Tells `file` which byte ranges `decode_frames` will read."""
    runs = _runs(table, wanted)
    file.expect([(table.positions[numbers], table.sizes[numbers]) for numbers in runs])


def decode_frames(
    path: str,
    table: PacketTable,
    wanted: Sequence[int],
    max_pixels: int = MAX_PIXELS,
    file: ByteRanges | None = None,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields the shown frames with the indices `wanted` (sorted, unique), in any order; if a frame comes twice, the
    second one counts. `file` is the open file at `path` for which `expect_frames` was called, if any.

    Raises `DecodeError`, possibly only at the end, if the file has changed, or if a frame or one that it depends on is
    damaged.
    """
    index_of = {int(table.order[index]): index for index in wanted}
    doubtful: list[int] = []
    with _opened(path, table, max_pixels, file) as source:
        if file is None:
            expect_frames(source.file, table, wanted)
        for numbers in _runs(table, wanted):
            damaged: set[int] = set()
            yield from source.run(numbers, index_of, damaged)
            doubtful += _dependent(table, [number for number in numbers if number in index_of], damaged)
            if doubtful and len(numbers) == numbers[-1] + 1:  # all packets were read in order, so the damage is real
                raise _damage(path, table, doubtful)
    if doubtful:
        places = sorted(int(table.shown[number]) for number in doubtful)
        yield from decode_in_order(path, table, places, max_pixels)


def decode_in_order(
    path: str, table: PacketTable, wanted: Sequence[int], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, av.VideoFrame]]:
    """`decode_frames` by decoding every packet from the first one; each frame comes once."""
    index_of = {int(table.order[index]): index for index in wanted}
    damaged: set[int] = set()
    with _opened(path, table, max_pixels) as source:
        yield from source.run(range(table.last_part(max(index_of)) + 1), index_of, damaged)
    if refused := _dependent(table, list(index_of), damaged):
        raise _damage(path, table, refused)


def damaged_frames(path: str, table: PacketTable, max_pixels: int = MAX_PIXELS) -> list[int]:
    """The indices of the frames that `decode_frames` refuses, found by decoding the whole file. Raises
    `DecodeError`."""
    damaged: set[int] = set()
    with _opened(path, table, max_pixels) as source:
        for _ in source.run(range(len(table.sizes)), {}, damaged):
            pass
    return sorted(int(table.shown[number]) for number in _dependent(table, table.order.tolist(), damaged))


@dataclass(frozen=True)
class _Source:
    """An open file, and the decoder for its packets."""

    path: str
    file: ByteRanges
    table: PacketTable
    decoder: VideoCodecContext

    def run(
        self, numbers: Sequence[int], index_of: dict[int, int], damaged: set[int]
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decodes the packets `numbers` and yields the frames of those in `index_of` with their index. At the end
        `damaged` holds the packets that are damaged or gave no frame."""
        table, out = self.table, set()
        for number, frame in decode_numbers(self.decoder, numbers, self._reader(numbers), damaged):
            out.add(number)
            if number in index_of:
                yield index_of[number], frame
        # frames shown before the first packet's may refer to earlier pictures, so they may be damaged, but are not
        # needed
        places = table.shown[np.asarray(numbers)]
        first = max(0, int(places[0]))
        shown = zip(numbers, places.tolist(), strict=True)
        damaged.update(number for number, place in shown if place >= 0 and number not in out)
        early = [n for n in damaged if n < 0 or (0 <= table.shown[n] < first and n not in index_of)]
        damaged.difference_update(early)

    def _reader(self, numbers: Sequence[int]) -> Callable[[int], memoryview | bytes]:
        """A function that reads the bytes of the packets `numbers`."""
        table, read_at = self.table, self.file.read_at
        self.file.begin(table.positions[numbers], table.sizes[numbers])

        def read(number: int) -> memoryview | bytes:
            size = int(table.sizes[number])
            data = read_at(int(table.positions[number]), size)
            if len(data) < size:
                raise DecodeError(self.path, "the file is shorter than it was when it was indexed")
            return data

        return read


@contextmanager
def _opened(path: str, table: PacketTable, limit: int, file: ByteRanges | None = None) -> Iterator[_Source]:
    try:
        with opened(path) if file is None else nullcontext(file) as source:
            yield _Source(path, source, table, new_decoder(table, limit))
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(path, error.strerror) from error


def _dependent(table: PacketTable, numbers: Sequence[int], damaged: Set[int]) -> list[int]:
    """Which of the packets `numbers` are damaged, or may refer to a damaged packet after their start."""
    if not damaged:
        return []
    worst = sorted(number for number in damaged if not table.disposable[number])
    dependent = []
    for number in numbers:
        start, parts = table.start_of(int(table.shown[number])), range(number, table.last_part(number) + 1)
        refers = bisect_left(worst, start) < bisect_right(worst, parts[-1])
        if refers or not damaged.isdisjoint(parts):
            dependent.append(number)
    return dependent


def _damage(path: str, table: PacketTable, numbers: Sequence[int]) -> DecodeError:
    places = [int(table.shown[number]) for number in numbers]
    return damage_error(path, min(places), len(places))


def _runs(table: PacketTable, wanted: Sequence[int]) -> list[list[int]]:
    """The packets to decode for the frames `wanted`, as runs that start at clean entry points."""
    runs: list[tuple[int, set[int]]] = []
    for index in wanted:
        first, start = int(table.order[index]), table.start_of(index)
        numbers = range(first, table.last_part(first) + 1)
        if runs and start <= max(runs[-1][1]):
            runs[-1][1].update(numbers)
        else:
            runs.append((start, set(numbers)))
    return [
        [n for n in range(start, max(numbers) + 1) if n in numbers or not table.disposable[n]]
        for start, numbers in runs
    ]


def fingerprint(frame: av.VideoFrame) -> int | None:
    """A hash of the frame's pixels; None for formats that have no array form."""
    try:
        return zlib.crc32(np.ascontiguousarray(frame.to_ndarray()).data)
    except AssertionError:  # PyAV does not support odd sizes with subsampled colors
        return _fingerprint_of_planes(frame)
    except (ValueError, TypeError):
        return None


def _fingerprint_of_planes(frame: av.VideoFrame) -> int:
    """A hash of the planes without the padding of their lines."""
    checksum = 0
    for number, plane in enumerate(frame.planes):
        parts = [part for part in frame.format.components if part.plane == number]
        shown = min(plane.line_size, plane.width * sum(-(-part.bits // 8) for part in parts))
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        checksum = zlib.crc32(np.ascontiguousarray(lines[:, :shown]).data, checksum)
    return checksum


@dataclass(frozen=True)
class Trial:
    """Tests of decoding the packets in `table` from the file at `path`."""

    path: str
    table: PacketTable
    max_pixels: int

    def can_leave_out(self) -> bool:
        """Whether other frames stay the same if the table's disposable packets are skipped; False if testing would take
        too long."""
        table = self.table
        if not table.disposable.any():
            return True
        if len(table.sizes) * table.width * table.height > MOST_TRIED:
            return False
        try:
            marks = self._marks(range(len(table.sizes)))
        except av.FFmpegError:
            return False
        return None not in marks.values() and self._same_without(_halves(table), marks)

    def verified(self, shown: Sequence[int | None], pictures: Sequence[ListedPicture]) -> PacketTable | None:
        """A table with which the decoded frames have the fingerprints `shown`; None if there is none."""
        if None in shown or len(shown) > MOST_VERIFIED:
            return None
        try:
            marks = self._marks(range(len(pictures)))
        except av.FFmpegError:  # the file can only be read through its container
            return None
        # filler packets of a packed stream, which are hidden, may give frames here
        candidates = iter([(number, mark) for number, mark in marks.items() if not pictures[number].hidden])
        order = [next((number for number, other in candidates if other == mark), -1) for mark in shown]
        if -1 in order:
            return None
        second = self.table.second
        if self.table.codec.startswith("mpeg2"):  # its headers are not read: a packet without a frame is a second field
            fields = [number > 0 and number not in marks for number in range(len(pictures))]
            second = np.array(fields, dtype=bool)
        trial = replace(self, table=replace(self.table, order=np.array(order, np.int32), second=second))
        starts, same = trial._starts(shown, [number for number in order if pictures[number].keyframe])
        remaining = _halves(trial.table)[1 if same else 0 :]
        disposable = self.table.disposable
        if same is False or not trial._same_without(remaining, marks):
            disposable = np.zeros_like(disposable)
        # the first frames are decoded from the first packet, even if it is no clean start
        starts = sorted({0, *starts}) if order[0] not in starts else sorted(starts)
        return replace(trial.table, starts=np.array(starts, np.int32), disposable=disposable)

    def _starts(self, shown: Sequence[int | None], keys: Sequence[int]) -> tuple[list[int], bool | None]:
        """The keyframes of `keys` from which the frames up to the next keyframe decode correctly; and whether they also
        do without half of the disposable pictures, or None if some keyframe is no correct start."""
        order, half = self.table.order.tolist(), _halves(self.table)[0]
        starts: list[int] = []
        same: bool | None = True
        place = {number: index for index, number in enumerate(order)}
        bounds = [place[key] for key in keys] + [len(order)]
        for key, begin, end in zip(keys, bounds[:-1], bounds[1:], strict=True):
            expected = dict(zip(order[begin:end], shown[begin:end], strict=True))
            every = range(key, max(map(self.table.last_part, expected), default=key) + 1)
            if self._same(expected, [number for number in every if half[number]]):
                starts.append(key)
            elif self._same(expected, every):
                starts.append(key)
                same = False
            else:
                same = same and None
        return starts, same

    def _same_without(self, trials: Sequence[np.ndarray], marks: Marks) -> bool:
        """Whether decoding only the packets of each of `trials`, bool [m], gives the same fingerprints `marks`."""
        return all(self._same(marks, np.flatnonzero(trial).tolist()) for trial in trials)

    def _same(self, marks: Marks, numbers: Sequence[int]) -> bool:
        """Whether decoding only the packets `numbers` gives frames with the fingerprints `marks`."""
        try:
            alone = self._marks(numbers)
        except av.FFmpegError:
            return False
        return all(alone.get(number) == marks[number] for number in numbers if number in marks)

    def _marks(self, numbers: Sequence[int]) -> Marks:
        """The fingerprints of the frames decoded from the packets `numbers`, by packet, in the order of output."""
        marks = {}
        with opened_whole(self.path) as file:

            def read(number: int) -> memoryview | bytes:
                return file.read_at(int(self.table.positions[number]), int(self.table.sizes[number]))

            for number, frame in decode_numbers(new_decoder(self.table, self.max_pixels), numbers, read):
                marks[number] = fingerprint(frame)
                watchdog.progress()
        return marks


def _halves(table: PacketTable) -> list[np.ndarray]:
    """The packets to decode in two trials, bool [m] each: with every second disposable picture, and with the others. So
    each is skipped once, and decoded once after a skipped one. Without disposable pictures there is one trial."""
    if not table.disposable.any():
        return [~table.disposable]
    turn = np.cumsum(table.disposable & ~table.second) % 2
    return [~table.disposable | (turn == kept) for kept in (0, 1)]
