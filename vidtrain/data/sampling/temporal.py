"""Time in a video: stretches of its frames, frames after the end, frame orders, speed and direction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vidtrain.errors import UserError, check_share

# Containers round timestamps, Matroska to milliseconds, so two frames may be 1 ms too far apart
ROUNDING = 1.1e-3


@dataclass(frozen=True)
class Stretch:
    """Successive frames of a video, used like a separate video. The clock counts seconds or frames.

    Frame `first + i` of the video appears at `clock[i]`, increasing from 0. The last frame ends at `length`; `usual` is
    the usual duration of a frame.
    """

    first: int
    clock: np.ndarray
    length: float
    usual: float

    @property
    def last(self) -> float:
        return float(self.clock[-1])

    def shown(self, times: np.ndarray | float) -> np.ndarray:
        """The index in the stretch of the frame shown at each time: the last frame that appeared by then."""
        return np.searchsorted(self.clock, times, side="right") - 1

    def holds(self, span: float) -> bool:
        """Whether the stretch is longer than `span`."""
        return self.length - span > ROUNDING

    def part(self, start: float, end: float) -> "Stretch":
        """The frames that appear at `start` <= t < `end`; if none does, the frame shown at that time. The last one
        lasts until the next frame or the part's end, and at least `usual`."""
        first, stop = _between(self.clock, start, end)
        if stop <= first:
            first = int(self.shown(start + ROUNDING))
            stop = first + 1
        follows = self.clock[stop] if stop < len(self.clock) else self.length
        over = min(follows, max(end, self.clock[stop - 1] + self.usual))
        begin = self.clock[first]
        return Stretch(self.first + first, self.clock[first:stop] - begin, float(over - begin), self.usual)

    def parts(self, number: int) -> "list[Stretch]":
        """`count` equal parts. They share no frame, except that a part in which no frame appears has the frame before
        it."""
        edges = [self.length * i / number for i in range(number)] + [math.inf]
        return [self.part(edges[i], edges[i + 1]) for i in range(number)]

    def in_frames(self) -> "Stretch":
        """The same frames, with a clock that counts frames."""
        count = len(self.clock)
        return Stretch(self.first, np.arange(count), float(count), 1.0)


class Place(NamedTuple):
    """The place of a clip: it is clip `number` of the `total` clips in a stretch of the video."""

    stretch: Stretch
    number: int
    total: int


def clip_places(video: Stretch, num_clips: int, overlap: bool) -> list[Place]:
    """The places of all clips: in the whole video, or, without `overlap`, each in its own part."""
    if overlap:
        return [Place(video, number, num_clips) for number in range(num_clips)]
    return [Place(part, 0, 1) for part in video.parts(num_clips)]


class EmptyCut(UserError):
    """No frame of the video appears between a record's start and end."""


def cut(timestamps: np.ndarray, start: float | None, end: float | None, alone: float) -> Stretch:
    """The frames of a video that appear at start <= t < end, in seconds after its first; None leaves that side open.

    The last frame lasts as long as the median frame, a single frame `alone` seconds. Raises `EmptyCut` if no frame
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
    """The range of frames at start <= t < end; a time within rounding below a bound counts as reaching it."""
    first, stop = np.searchsorted(clock, [start - ROUNDING, end - ROUNDING])
    return int(first), int(stop)


# How clips continue after the end of a shorter video (see `ClipProtocol`)
SHORT_POLICIES = ("repeat_last", "wrap", "stretch", "error")


def behind_end(policy: str, positions: np.ndarray, stretch: Stretch) -> np.ndarray:
    """Maps positions [t] of a clip that lie after the end of its stretch into it, by one of `SHORT_POLICIES`."""
    if policy == "repeat_last":
        return np.minimum(positions, stretch.last)
    if policy == "wrap":
        around = positions % stretch.length
        past = stretch.length - around <= ROUNDING  # a time just below the end, by rounding
        return np.where(past, 0.0, around)
    raise UserError(
        f"the video is too short for a clip: it lasts {stretch.length:g}, the clip's last frame is at "
        f"{positions.max():g} (seconds for fps and duration, else frames); choose shorter clips, or "
        "clip.short_video_policy=repeat_last or wrap (of evaluate: short_video_policy=...)"
    )


# The order of frames in a clip. All but "forward" test how a model uses time
FRAME_ORDERS = ("forward", "reversed", "shuffled", "single_frame")


def with_middle(positions: np.ndarray) -> np.ndarray:
    """Positions [n t] and the middle in time, which "single_frame" repeats: [n t+1].

    With an even number of frames, a middle frame would lie in the later half, and reveal growing or shrinking.
    """
    return np.concatenate([positions, positions.mean(axis=1, keepdims=True)], axis=1)


def frame_picks(order: str, frames: int) -> np.ndarray:
    """The indices, in the result of `with_middle`, of a clip's frames in this order: int64 [frames]."""
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
    scale, so half and double are equally likely. `reverse` is the probability that a clip is played backwards; leave it
    at 0 if classes differ in direction. Raises `UserError` for values out of range.
    """

    rate: Sequence[float] = (1.0, 1.0)
    reverse: float = 0.0

    def __post_init__(self) -> None:
        if len(self.rate) != 2 or not 0 < self.rate[0] <= self.rate[1] < math.inf:
            raise UserError(f"rate={list(self.rate)}: give the lowest and the highest factor, both above 0")
        check_share(reverse=self.reverse)

    @property
    def is_idle(self) -> bool:
        """Whether it changes no clip."""
        return tuple(self.rate) == (1, 1) and self.reverse == 0

    def draw(self, num_clips: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The rate of each clip, float64 [num_clips], and whether it plays backwards, bool [num_clips]."""
        low, high = self.rate
        return low * (high / low) ** rng.random(num_clips), rng.random(num_clips) < self.reverse
