"""Reading coded pictures straight from their byte ranges: no container is opened, and only what is needed decoded.

Opening a container costs more than decoding a few frames does, for it decodes to find out what is in it. What it
would find out is in the `PacketTable`.
"""

import os
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np

from vidtrain.data.pixel_bounds import MAX_PIXELS, decoder_options
from vidtrain.data.video import DecodeError, PacketTable

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
    decoder: av.CodecContext, numbers: Sequence[int], read: Callable[[int], memoryview | bytes]
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decodes the packets `numbers`, in order, and gives each frame with the number of the packet it is from."""
    for number in numbers:
        data = read(number)
        packet = av.Packet(
            len(data)
        )  # with libavcodec's padding behind it, which a packet made of bytes lacks
        packet.update(data)
        packet.pts = packet.dts = number  # decoders hand it on to the frame, through any reordering
        yield from ((frame.pts, frame) for frame in decoder.decode(packet))
    yield from ((frame.pts, frame) for frame in decoder.decode(None))
    decoder.flush_buffers()  # ready for another start


def decode_frames(
    path: str, table: PacketTable, wanted: Sequence[int], max_pixels: int = MAX_PIXELS
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The shown frames with the indices `wanted` (sorted, each once), in no certain order.

    Raises `DecodeError` where the file has become another one or does not decode.
    """
    index_of = {int(table.order[index]): index for index in wanted}
    try:
        decoder = new_decoder(table, max_pixels)
        file = os.open(path, os.O_RDONLY)
        try:
            for numbers in _runs(table, wanted):
                for number, frame in decode_numbers(decoder, numbers, _reader(path, file, table, numbers)):
                    if number in index_of:
                        yield index_of[number], frame
        finally:
            os.close(file)
    except (av.FFmpegError, OSError) as error:
        raise DecodeError(path, error.strerror) from error


def _runs(table: PacketTable, wanted: Sequence[int]) -> list[list[int]]:
    """Which packets to decode for the frames `wanted`, as runs that begin at a clean start each."""
    first_shown = table.first_shown
    runs: list[tuple[int, set[int]]] = []
    for index in wanted:
        first = int(table.order[index])
        numbers = range(first, table.last_part(first) + 1)
        # the last start that is shown no later than the frame: what leads it in the file may need an earlier one
        start = int(table.starts[max(0, int(np.searchsorted(first_shown, index, side="right")) - 1)])
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
