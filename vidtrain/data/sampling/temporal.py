"""Time in a video: stretches of its frames, what is shown behind the end, and in which order, speed and direction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vidtrain.errors import UserError, check_share

# Containers round timestamps, Matroska to whole milliseconds: two frames may be one too far apart.
ROUNDING = 1.1e-3


@dataclass(frozen=True)
class Stretch:
    """Successive frames of a video, taken as a video of their own. The clock counts seconds or frames.

    Frame `first + i` of the video appears at `clock[i]`, increasing from 0. The last one is shown until `length`, and
    most are shown for as long as `usual`.
    """

    first: int
    clock: np.ndarray
    length: float
    usual: float

    @property
    def last(self) -> float:
        return float(self.clock[-1])

    def shown(self, times: np.ndarray | float) -> np.ndarray:
        """Which of its frames, from 0 on, is shown at each time: the last to appear by then."""
        return np.searchsorted(self.clock, times, side="right") - 1

    def holds(self, span: float) -> bool:
        """Whether something is still shown `span` after its beginning."""
        return self.length - span > ROUNDING

    def part(self, start: float, end: float) -> "Stretch":
        """The frames that appear at `start` <= t < `end`; where none does, the one that is then shown. The last one is
        shown until the next one appears or the part ends, and at least as long as most."""
        first, stop = _between(self.clock, start, end)
        if stop <= first:
            first = int(self.shown(start + ROUNDING))
            stop = first + 1
        follows = self.clock[stop] if stop < len(self.clock) else self.length
        over = min(follows, max(end, self.clock[stop - 1] + self.usual))
        begin = self.clock[first]
        return Stretch(self.first + first, self.clock[first:stop] - begin, float(over - begin), self.usual)

    def parts(self, number: int) -> "list[Stretch]":
        """Equal parts. They share no frame but one that is shown through a part in which none appears."""
        edges = [self.length * i / number for i in range(number)] + [math.inf]
        return [self.part(edges[i], edges[i + 1]) for i in range(number)]

    def in_frames(self) -> "Stretch":
        """The same frames, by a clock that counts them."""
        count = len(self.clock)
        return Stretch(self.first, np.arange(count), float(count), 1.0)


class Place(NamedTuple):
    """Where a clip lies: it is clip `number` of the `total` that share a stretch of the video."""

    stretch: Stretch
    number: int
    total: int


def clip_places(video: Stretch, num_clips: int, overlap: bool) -> list[Place]:
    """The places of all clips: of the whole video, or, without `overlap`, each of a part of its own."""
    if overlap:
        return [Place(video, number, num_clips) for number in range(num_clips)]
    return [Place(part, 0, 1) for part in video.parts(num_clips)]


class EmptyCut(UserError):
    """A record whose start and end lie where its video has nothing to show."""


def cut(timestamps: np.ndarray, start: float | None, end: float | None, alone: float) -> Stretch:
    """The frames of a video that appear at start <= t < end, in seconds after its first; None leaves that side open.

    The last frame is shown as long as the median one, an only one for `alone` seconds. Raises `EmptyCut` where none
    appears.
    """
    times = timestamps - timestamps[0]
    usual = float(np.median(np.diff(times))) if len(times) > 1 else alone
    video = Stretch(0, times, float(times[-1]) + usual, usual)
    begin, over = 0.0 if start is None else start, math.inf if end is None else end
    first, stop = _between(times, begin, over)
    if stop <= first:
        span = f"from {begin:g} s to {'its end' if end is None else f'{end:g} s'}"
        what = f"no frame appears {span} of a video that lasts {video.length:g} s"
        raise EmptyCut(f"{what}; correct the start and end times of this record")
    return video.part(begin, over)


def _between(clock: np.ndarray, start: float, end: float) -> tuple[int, int]:
    """The range of frames at start <= t < end; a time that was rounded to just below counts as reaching it."""
    first, stop = np.searchsorted(clock, [start - ROUNDING, end - ROUNDING])
    return int(first), int(stop)


# What a video that is shorter than a clip shows behind its end (see `ClipProtocol`)
SHORT_POLICIES = ("repeat_last", "wrap", "stretch", "error")


def behind_end(policy: str, positions: np.ndarray, stretch: Stretch) -> np.ndarray:
    """Positions [t] of a clip, some of them behind the end of its stretch, as one of `SHORT_POLICIES` has them."""
    if policy == "repeat_last":
        return np.minimum(positions, stretch.last)
    if policy == "wrap":
        around = positions % stretch.length
        past = stretch.length - around <= ROUNDING  # a time that was rounded to just below the end
        return np.where(past, 0.0, around)
    raise UserError(
        f"the video is too short for a clip: it lasts {stretch.length:g}, the clip's last frame is at "
        f"{positions.max():g} (seconds for fps and duration, else frames); choose shorter clips, or "
        "clip.short_video_policy=repeat_last or wrap (of evaluate: short_video_policy=...)"
    )


# In which order a clip shows its frames. All but "forward" probe what a model takes from time.
FRAME_ORDERS = ("forward", "reversed", "shuffled", "single_frame")


def with_middle(positions: np.ndarray) -> np.ndarray:
    """Positions [n t], and after them the middle in time, which "single_frame" repeats: [n t+1].

    The middle one of an even number of frames would be of the later half, and tell growing from shrinking.
    """
    return np.concatenate([positions, positions.mean(axis=1, keepdims=True)], axis=1)


def frame_picks(order: str, frames: int) -> np.ndarray:
    """Which of the frames of a clip that `with_middle` gave are shown in this order: int64 [frames]."""
    if order == "single_frame":
        return np.full(frames, frames, dtype=np.int64)
    forward = np.arange(frames)
    if order == "reversed":
        return forward[::-1].copy()
    if order == "forward":
        return forward
    rng = np.random.default_rng(0)  # one fixed permutation per clip length, never the identity
    shuffled = rng.permutation(frames)
    while np.array_equal(shuffled, forward):
        shuffled = rng.permutation(frames)
    return shuffled


@dataclass(frozen=True)
class TemporalJitter:
    """Random speed and direction of training clips.

    `rate` is the range of the factor on a clip's stride: 2 plays twice as fast. It is drawn uniformly on a logarithmic
    scale, so half and double are equally likely. `reverse` is the probability that a clip plays backwards: leave it at
    0 where direction tells classes apart. Raises `UserError` for values out of range.
    """

    rate: Sequence[float] = (1.0, 1.0)
    reverse: float = 0.0

    def __post_init__(self) -> None:
        if len(self.rate) != 2 or not 0 < self.rate[0] <= self.rate[1] < math.inf:
            raise UserError(f"rate={list(self.rate)}: give the lowest and the highest factor, both above 0")
        check_share(reverse=self.reverse)

    @property
    def is_idle(self) -> bool:
        """Whether every clip plays as it would without."""
        return tuple(self.rate) == (1, 1) and self.reverse == 0

    def draw(self, num_clips: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The rate of each clip, float64 [num_clips], and whether it plays backwards, bool [num_clips]."""
        low, high = self.rate
        return low * (high / low) ** rng.random(num_clips), rng.random(num_clips) < self.reverse
