"""Reading coded pictures straight from their byte ranges: no container is opened, and only what is needed decoded.

Opening a container costs more than decoding a few frames does, for it decodes to find out what is in it. What it
would find out is in the `PacketTable`.

Decoders make up what a damaged picture lacks from what they decoded before it, so a frame read at random would differ
from the one that reading in order gives. Where they say that they did, it is read in order, and if that is damaged
too, it is not given out.
"""

import os
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager

import av
import numpy as np

from vidtrain.data.decoding.container import damage_error, decoder_options, listened
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, PacketTable
from vidtrain.data.processes import watchdog

# Ranges are read in one go, unless what lies between them is longer than they are and this many bytes.
WASTE = 1 << 20
MOST_AT_ONCE = 64 << 20


def new_decoder(table: PacketTable, max_pixels: int = MAX_PIXELS) -> av.CodecContext:
    """A decoder for the table's packets, on one thread, which refuses pictures of more than `max_pixels`."""
    decoder = av.CodecContext.create(table.codec, "r")
    decoder.extradata = table.extradata or None
    decoder.width, decoder.height = table.width, table.height
    decoder.colorspace, decoder.color_range = table.color
    if table.tag:
        decoder.codec_tag = table.tag
    decoder.thread_type = "NONE"
    decoder.thread_count = 1
    # without it the H.264 decoder guesses how far pictures are reordered, and drops those that it gets wrong
    decoder.options = {"strict": "1", **decoder_options(max_pixels)}
    return decoder


def decode_numbers(
    decoder: av.CodecContext,
    numbers: Sequence[int],
    read: Callable[[int], memoryview | bytes],
    damaged: set[int] | None = None,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes the packets `numbers`, in order, and gives each frame with the number of the packet it is from.

    The numbers of pictures that the decoder made up, in part or whole, or could not decode go into `damaged`. Without
    it, what the decoder raises is raised.
    """
    for number in numbers:
        data = read(number)
        # libavcodec's padding is behind it, which a packet made of bytes lacks
        packet = av.Packet(len(data))
        packet.update(data)
        packet.pts = packet.dts = number  # decoders hand it on to the frame, through any reordering
        yield from _frames(decoder, packet, number, damaged)
    yield from _frames(decoder, None, -1, damaged)
    decoder.flush_buffers()  # ready for another start


def _frames(
    decoder: av.CodecContext, packet: av.Packet | None, number: int, damaged: set[int] | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """What the decoder gives out for `packet`, None asking for what it still holds; as `decode_numbers`."""
    watchdog.progress()
    if damaged is None:
        yield from ((frame.pts, frame) for frame in decoder.decode(packet))
        return
    try:
        frames, complains = listened(decoder, packet)
    except av.FFmpegError:
        damaged.add(number)  # -1 where the decoder was asked for what it still holds
        return
    if complains:
        damaged.add(number)
    for frame in frames:
        if frame.is_corrupt:
            damaged.add(frame.pts)
        yield frame.pts, frame


def decode_frames(
    path: str, table: PacketTable, wanted: Sequence[int], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The shown frames with the indices `wanted` (sorted, each once), in no certain order; where one comes twice, the
    second counts.

    Raises `DecodeError`, perhaps at the end only, where the file has become another one, or where a frame or one that
    it depends on is damaged.
    """
    index_of = {int(table.order[index]): index for index in wanted}
    doubtful: list[int] = []
    with _opened(path) as file:
        decoder = new_decoder(table, max_pixels)
        for numbers in _runs(table, wanted):
            damaged: set[int] = set()
            yield from _run(path, decoder, file, table, numbers, index_of, damaged)
            doubtful += _dependent(table, [number for number in numbers if number in index_of], damaged)
            if doubtful and len(numbers) == numbers[-1] + 1:  # it was read in order, with nothing left out
                raise _damage(path, table, doubtful)
    if doubtful:
        places = sorted(int(table.shown[number]) for number in doubtful)
        yield from decode_in_order(path, table, places, max_pixels)


def decode_in_order(
    path: str, table: PacketTable, wanted: Sequence[int], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, av.VideoFrame]]:
    """As `decode_frames`, by decoding every packet from the first one on; each frame comes once."""
    index_of = {int(table.order[index]): index for index in wanted}
    damaged: set[int] = set()
    with _opened(path) as file:
        decoder = new_decoder(table, max_pixels)
        numbers = range(table.last_part(max(index_of)) + 1)
        yield from _run(path, decoder, file, table, numbers, index_of, damaged)
    if refused := _dependent(table, list(index_of), damaged):
        raise _damage(path, table, refused)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        file = os.open(path, os.O_RDONLY)
        try:
            yield file
        finally:
            os.close(file)
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(path, error.strerror) from error


def damaged_frames(path: str, table: PacketTable, max_pixels: int = MAX_PIXELS) -> list[int]:
    """Indices of the frames that `decode_frames` refuses, found by decoding all of the file. Raises `DecodeError`."""
    damaged: set[int] = set()
    with _opened(path) as file:
        decoder = new_decoder(table, max_pixels)
        for _ in _run(path, decoder, file, table, range(len(table.sizes)), {}, damaged):
            pass
    return sorted(int(table.shown[number]) for number in _dependent(table, table.order.tolist(), damaged))


def _run(
    path: str,
    decoder: av.CodecContext,
    file: int,
    table: PacketTable,
    numbers: Sequence[int],
    index_of: dict[int, int],
    damaged: set[int],
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes the packets `numbers` and gives the frames of those in `index_of` with their index. What is damaged, or
    does not come out, is noted in `damaged` by the end."""
    out = set()
    for number, frame in decode_numbers(decoder, numbers, _reader(path, file, table, numbers), damaged):
        out.add(number)
        if number in index_of:
            yield index_of[number], frame
    # what is shown before the first may refer to pictures from before it: then it is broken, and nobody needs it
    places = table.shown[np.asarray(numbers)]
    first = max(0, int(places[0]))
    damaged.update(
        n for n, place in zip(numbers, places.tolist(), strict=True) if place >= 0 and n not in out
    )
    damaged.difference_update(
        [n for n in damaged if n < 0 or (0 <= table.shown[n] < first and n not in index_of)]
    )


def _dependent(table: PacketTable, asked: Sequence[int], damaged: Set[int]) -> list[int]:
    """Which of the packets `asked` are damaged, or may refer to one that is: one between their start and them."""
    if not damaged:
        return []
    worst = sorted(number for number in damaged if not table.disposable[number])
    found = []
    for number in asked:
        start, parts = table.start_of(int(table.shown[number])), range(number, table.last_part(number) + 1)
        refers = bisect_left(worst, start) < bisect_right(worst, parts[-1])
        if refers or not damaged.isdisjoint(parts):
            found.append(number)
    return found


def _damage(path: str, table: PacketTable, numbers: Sequence[int]) -> DecodeError:
    places = [int(table.shown[number]) for number in numbers]
    return damage_error(path, min(places), len(places))


def _runs(table: PacketTable, wanted: Sequence[int]) -> list[list[int]]:
    """Which packets to decode for the frames `wanted`, as runs that begin at a clean start each."""
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


def _reader(path: str, file: int, table: PacketTable, numbers: Sequence[int]) -> Callable[[int], memoryview]:
    positions, sizes = table.positions[numbers], table.sizes[numbers]
    begin, end = int(positions.min()), int((positions + sizes).max())
    block = None
    if end - begin <= min(2 * int(sizes.sum()) + WASTE, MOST_AT_ONCE):
        block = memoryview(os.pread(file, end - begin, begin))

    def read(number: int) -> memoryview:
        at, size = int(table.positions[number]), int(table.sizes[number])
        data = memoryview(os.pread(file, size, at)) if block is None else block[at - begin :][:size]
        if len(data) < size:
            raise DecodeError(path, "the file is shorter than it was when it was indexed")
        return data

    return read
