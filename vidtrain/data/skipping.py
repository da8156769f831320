"""Trying out whether pictures that nothing refers to can be left out, where a stream is of an unusual kind.

The bits say so, but decoders carry more from picture to picture than references: what stands in for a missing one, or
how far B pictures lie apart. What is left out then changes what follows.
"""

from collections.abc import Callable, Iterable, Sequence

import av
import numpy as np

from vidtrain.data.video import PacketTable

# Gives of each frame that packets show, in whatever order, the number of its packet and a hash of its pixels.
Decode = Callable[[list[int]], Iterable[tuple[int, int | None]]]
# Pixels up to which a stream is decoded for the trial, some 20 s each time: in longer ones nothing is left out.
MOST_PIXELS = 1 << 32


def halves(table: PacketTable) -> list[np.ndarray]:
    """Which packets to decode in two trials, bool [m] each: every second one of the disposable pictures, or the others.

    So each of them is missing once, and is decoded once beside a missing one. There is one trial where there are none.
    """
    if not table.disposable.any():
        return [~table.disposable]
    turn = np.cumsum(table.disposable & ~table.second) % 2
    return [~table.disposable | (turn == kept) for kept in (0, 1)]


def same_without(trials: Sequence[np.ndarray], marks: dict[int, int | None], decode: Decode) -> bool:
    """Whether the frames of each of `trials`, bool [m], are those that all packets give, with the hashes `marks`."""
    return all(same_as(marks, np.flatnonzero(trial).tolist(), decode) for trial in trials)


def same_as(marks: dict[int, int | None], numbers: Sequence[int], decode: Decode) -> bool:
    """Whether decoding the packets `numbers` alone gives the frames that are theirs with the hashes `marks`."""
    try:
        found = dict(decode(numbers))
    except av.FFmpegError:
        return False
    return all(found.get(number) == marks[number] for number in numbers if number in marks)
