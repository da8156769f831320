"""The floor: what libavcodec needs to decode the wanted frames, and nothing else.

The packets are in memory before the clock starts, and so are the order of display and the keyframes. A job sends
the packets from the last keyframe that is shown no later than a wanted frame to that frame itself, runs that meet
being one, into a bare decoder that is already open, on one thread. Packets of unwanted frames to which no other
picture refers are left out; the decoder itself tells which, by what `skip_frame=NONREF` leaves of the whole file.
Nothing is converted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import av
import numpy as np
import torch
from av.bitstream import BitStreamFilterContext
from torch import Tensor
from works import Job


@dataclass(frozen=True)
class _Stream:
    """`order` is the packet of each shown frame; `starts` are packets of keyframes, `shown` the frames they show.

    No picture refers to those of the packets `disposable`.
    """

    decoder: av.CodecContext
    packets: list[av.Packet]
    order: np.ndarray
    starts: np.ndarray
    shown: np.ndarray
    disposable: set[int]


class Floor:
    def __init__(self):
        self.streams: dict[str, _Stream] = {}

    def prepare(self, path: str) -> None:
        self.streams[path] = _load(path)

    def read(self, job: Job) -> Tensor:
        count = sum(1 for _ in self.frames(job))
        if count != len(job.unique):
            raise RuntimeError(f"{count} of {len(job.unique)} frames decoded")
        return torch.empty(0)

    def frames(self, job: Job) -> Iterator[tuple[int, av.VideoFrame]]:
        """The wanted frames with their indices."""
        stream = self.streams[job.path]
        index_of = {int(stream.order[index]): int(index) for index in job.unique}
        for begin, numbers in _runs(stream, job.unique.tolist()):
            for frame in _decoded(stream, begin, numbers):
                if frame.pts in index_of:
                    yield index_of[frame.pts], frame


def _decoded(stream: _Stream, begin: int, numbers: set[int]) -> Iterator[av.VideoFrame]:
    decoder = stream.decoder
    for number in range(begin, max(numbers) + 1):
        if number in numbers or number not in stream.disposable:
            yield from decoder.decode(stream.packets[number])
    yield from decoder.decode(None)
    decoder.flush_buffers()


def _runs(stream: _Stream, wanted: list[int]) -> list[tuple[int, set[int]]]:
    runs: list[tuple[int, set[int]]] = []
    for index in wanted:
        number = int(stream.order[index])
        start = int(stream.starts[np.searchsorted(stream.shown, index, side="right") - 1])
        if runs and start <= max(runs[-1][1]):
            runs[-1][1].add(number)
        else:
            runs.append((start, {number}))
    return runs


def _load(path: str) -> _Stream:
    with av.open(path) as container:
        video = container.streams.video[0]
        source = video.codec_context
        packed = source.codec.canonical_name == "mpeg4"  # one packet may hold two pictures
        unpack = BitStreamFilterContext("mpeg4_unpack_bframes", video) if packed else None
        packets, keys = [], []
        for packet in container.demux(video):
            for each in unpack.filter(packet if packet.size else None) if unpack else [packet]:
                if each.size:
                    keys.append(each.is_keyframe)
                    packets.append(_copied(each, len(packets)))
        decoder = av.CodecContext.create(source.name, "r")
        decoder.extradata = source.extradata
        decoder.width, decoder.height, decoder.codec_tag = source.width, source.height, source.codec_tag
        decoder.thread_type, decoder.thread_count = "NONE", 1
        decoder.options = {"strict": "1"}  # the H.264 decoder shall not guess how far pictures are reordered
    every = _Stream(decoder, packets, np.arange(0), np.arange(0), np.arange(0), set())
    order = [frame.pts for frame in _decoded(every, 0, {len(packets) - 1})]
    decoder.skip_frame = "NONREF"
    disposable = set(order) - {frame.pts for frame in _decoded(every, 0, {len(packets) - 1})}
    decoder.skip_frame = "DEFAULT"
    index_of = {number: index for index, number in enumerate(order)}
    shown = sorted(index_of[number] for number, key in enumerate(keys) if key and number in index_of)
    order = np.array(order)
    return _Stream(decoder, packets, order, order[shown], np.array(shown), disposable)


def _copied(packet: av.Packet, number: int) -> av.Packet:
    """With libavcodec's padding behind the bytes, and the packet's number as its time, which the frame keeps."""
    copy = av.Packet(packet.size)
    copy.update(bytes(packet))
    copy.pts = copy.dts = number
    return copy
