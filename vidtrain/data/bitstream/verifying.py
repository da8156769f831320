"""Decoding packets from their byte ranges to see what they give: the frames of a file, and which packets need others.

Pictures that nothing refers to can be left out, say the bits. But decoders carry more from picture to picture than
references: what stands in for a missing one, or how far B pictures lie apart. Leaving out one may change what follows.
"""

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import av
import numpy as np

from vidtrain.data.bitstream.packets import decode_numbers, new_decoder
from vidtrain.data.decoding.video import PacketTable
from vidtrain.data.processes import watchdog

# Frames up to which a file is decoded again, to be read from byte ranges later.
MOST_VERIFIED = 100_000
# Pixels up to which a stream is decoded just to see what can be left out, some 20 s each time; of longer ones, nothing.
MOST_TRIED = 1 << 32
Marks = dict[int, int | None]


class CodedFrame(Protocol):
    """What a container says of a packet: decoding may start there, or it is not to be shown."""

    keyframe: bool
    hidden: bool


def fingerprint(frame: av.VideoFrame) -> int | None:
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


@dataclass(frozen=True)
class Trial:
    """The packets of the file at `path`, to be decoded as `table` says."""

    path: str
    table: PacketTable
    max_pixels: int

    def can_leave_out(self) -> bool:
        """Whether all other frames stay the same when the table's disposable packets are left out; False where it would
        take too long to see."""
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

    def verified(self, shown: Sequence[int | None], pictures: Sequence[CodedFrame]) -> PacketTable | None:
        """The table that gives the frames whose fingerprints are `shown`; None where there is none."""
        if None in shown or len(shown) > MOST_VERIFIED:
            return None
        try:
            marks = self._marks(range(len(pictures)))
        except av.FFmpegError:  # only the container's own way reads it
            return None
        # a packed stream's filler, which its container's decoder passes over, may come out as a frame
        found = iter([each for each in marks.items() if not pictures[each[0]].hidden])
        order = [next((number for number, other in found if other == mark), None) for mark in shown]
        if None in order or len(set(order)) < len(order):
            return None
        trial = replace(
            self, table=replace(self.table, order=np.array(order, np.int32), second=self._seconds(marks))
        )
        starts, same = trial._starts(shown, [number for number in order if pictures[number].keyframe])
        remaining = _halves(trial.table)[1 if same else 0 :]
        disposable = self.table.disposable
        if same is False or not trial._same_without(remaining, marks):
            disposable = np.zeros_like(disposable)
        # the frames shown first are decoded from the very beginning, whatever stands there
        starts = sorted({0, *starts}) if order[0] not in starts else sorted(starts)
        return replace(trial.table, starts=np.array(starts, np.int32), disposable=disposable)

    def _seconds(self, marks: Marks) -> np.ndarray:
        """Which packets complete the frame before: of MPEG-2, whose headers are not looked at, those that give none."""
        if not self.table.codec.startswith("mpeg2"):
            return self.table.second
        return np.array(
            [number > 0 and number not in marks for number in range(len(self.table.sizes))], dtype=bool
        )

    def _starts(self, shown: Sequence[int | None], keys: Sequence[int]) -> tuple[list[int], bool | None]:
        """Which of the keyframes `keys`, tried as a start, give what is shown from them up to the next one.

        Half of what nothing refers to is left out meanwhile. The second value says whether that gave the same
        everywhere; it is None where a keyframe is no start either way.
        """
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
        """Whether the frames of each of `trials`, bool [m], are those that all packets give, with `marks`."""
        return all(self._same(marks, np.flatnonzero(trial).tolist()) for trial in trials)

    def _same(self, marks: Marks, numbers: Sequence[int]) -> bool:
        """Whether decoding the packets `numbers` alone gives their frames with the fingerprints `marks`."""
        try:
            found = self._marks(numbers)
        except av.FFmpegError:
            return False
        return all(found.get(number) == marks[number] for number in numbers if number in marks)

    def _marks(self, numbers: Sequence[int]) -> Marks:
        """The fingerprint of each frame that decoding the packets `numbers` gives, by its packet, as they come out."""
        marks = {}
        with open(self.path, "rb") as file:

            def read(number: int) -> bytes:
                return os.pread(
                    file.fileno(), int(self.table.sizes[number]), int(self.table.positions[number])
                )

            for number, frame in decode_numbers(new_decoder(self.table, self.max_pixels), numbers, read):
                marks[number] = fingerprint(frame)
                watchdog.progress()
        return marks


def _halves(table: PacketTable) -> list[np.ndarray]:
    """Which packets to decode in two trials, bool [m] each: every second one of the disposable pictures, or the others.

    So each of them is missing once, and is decoded once beside a missing one. There is one trial where there are none.
    """
    if not table.disposable.any():
        return [~table.disposable]
    turn = np.cumsum(table.disposable & ~table.second) % 2
    return [~table.disposable | (turn == kept) for kept in (0, 1)]
