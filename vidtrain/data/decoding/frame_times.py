"""When each frame of a file is shown, also where the file does not say so of every one.

AVI states no times of presentation, nor do bare streams, and what FFmpeg guesses then is out of order where pictures
are reordered. Files that were cut, joined or damaged miss some.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av import ContainerFormat
from av.format import Flags

FINER = 1000  # parts of a tick that times between two known ones are rounded to
Ticks = Sequence[int | None]


@dataclass(frozen=True)
class StatedTimes:
    """What a file says of its times, in ticks; None where it says nothing.

    `shown` are the times of presentation of its frames, in the order in which they are shown. `let_out` is for each
    the decode time of the packet upon which the decoder gave it out; None for those that come out at the end only.
    `sent` are the decode times of the packets, in the order of the file.
    """

    shown: Ticks
    let_out: Ticks
    sent: Ticks


def states_decode_times(container: ContainerFormat) -> bool:
    """Whether the times of packets are the file's, not ones that FFmpeg makes up, as of bare streams."""
    return not Flags(container.flags) & Flags.no_timestamps


def states_shown_times(container: ContainerFormat) -> bool:
    """Whether the times of frames are the file's. AVI says when pictures are decoded, and FFmpeg guesses the rest."""
    return states_decode_times(container) and container.name != "avi"


def frame_times(
    stated: StatedTimes, tick: Fraction, rate: Fraction | None
) -> tuple[np.ndarray, Fraction] | None:
    """When frames appear: int64 [n], increasing, and the seconds of one unit. None where there is no telling.

    Times of presentation are believed where all are there and in order. Else decode times tell, which are those of
    presentation but for the order; else the times of presentation that are in order, with what lies between them evenly
    spread; else the frames are as far apart as `rate` (frames per second) says.
    """
    shown = _increasing(stated.shown)
    if shown is not None:
        return shown, tick
    by_decoding = _by_decode_times(stated)
    if by_decoding is not None:
        return by_decoding, tick
    between = _filled(stated.shown)
    if between is not None:
        return between, tick / FINER
    return (np.arange(len(stated.shown)), 1 / rate) if rate else None


def _increasing(times: Ticks) -> np.ndarray | None:
    if None in times:
        return None
    ticks = np.array(times, dtype=np.int64)
    return ticks if (np.diff(ticks) > 0).all() else None


def _by_decode_times(stated: StatedTimes) -> np.ndarray | None:
    """The n-th frame has the time of the n-th packet, but for those that the decoder holds back to reorder them."""
    sent = _increasing(stated.sent)
    count = len(stated.shown)
    held_back = sum(time is None for time in stated.let_out)
    if sent is None or len(sent) < 2:
        return None
    times: np.ndarray | None = sent[held_back if held_back < count else 0 :]
    if len(sent) != count:  # some packets show nothing
        times = _increasing([time for time in stated.let_out if time is not None])
    if times is None or len(times) < 1:
        return None
    usual = max(1, int(np.median(np.diff(times if len(times) > 1 else sent))))
    times = np.append(times, times[-1] + usual * np.arange(1, count - len(times) + 1))
    return times - times[0] + sent[0]


def _filled(times: Ticks) -> np.ndarray | None:
    """In parts of a tick, `FINER` each: the longest increasing part of `times`, if it is most of them, and between."""
    known = _longest_increasing(times)
    if len(known) < 2 or 2 * len(known) < len(times):
        return None
    ticks = np.array([times[index] for index in known], dtype=np.int64)
    usual = float(np.median(np.diff(ticks) / np.diff(known)))
    places = np.arange(len(times))
    filled = np.interp(places, known, ticks)
    before, behind = places < known[0], places > known[-1]
    filled[before] = ticks[0] - usual * (known[0] - places[before])
    filled[behind] = ticks[-1] + usual * (places[behind] - known[-1])
    return _increasing(np.rint(filled * FINER).astype(np.int64).tolist())


def _longest_increasing(times: Ticks) -> list[int]:
    """Where the longest strictly increasing subsequence of the known `times` stands."""
    lowest: list[int] = []  # the least time that ends a subsequence of each length
    ends: list[int] = []  # where it stands
    before = [-1] * len(times)
    for index, time in enumerate(times):
        if time is None:
            continue
        length = bisect_left(lowest, time)
        if lowest[length : length + 1] == [time]:  # the first of equal times is the one that is believed
            continue
        lowest[length : length + 1] = [time]
        ends[length : length + 1] = [index]
        before[index] = ends[length - 1] if length else -1
    chain = []
    index = ends[-1] if ends else -1
    while index >= 0:
        chain.append(index)
        index = before[index]
    return chain[::-1]
