"""Which frames make a clip: a pure function of frame count, timestamps, protocol and generator."""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from vidtrain.data.sampling import published
from vidtrain.data.sampling.temporal import (
    FRAME_ORDERS,
    ROUNDING,
    SHORT_POLICIES,
    Place,
    Stretch,
    TemporalJitter,
    behind_end,
    clip_places,
    cut,
    frame_picks,
    with_middle,
)
from vidtrain.data.stores.places import name_of
from vidtrain.errors import UserError


@dataclass(frozen=True)
class ClipProtocol:
    """How clips are sampled from a video: `num_clips` clips of `frames` frames each.

    `sampling` chooses the frames of a clip:

    - "dense": a stride apart. In training the start is random; in evaluation one clip is centered, and several
      start evenly spaced from the first possible start to the last.
    - "uniform": over the whole video, one in each of `frames` equal segments (TSN, Wang et al. 2016). Of N frames,
      frame j is floor((j + u) * N / frames). In training every u is drawn from [0, 1). In evaluation u is 1/2
      for one clip, and i / num_clips for clip i of several, as VideoMAE tests on Something-Something.
    - "vjepa2", "vjepa2_random", "videomae", "pyslowfast", "pyslowfast_offset": as in publishers' code, see
      sampling/published.py.

    The stride is given by exactly one of `frame_step` (in frames), `fps` (frames per second of the clip) and `duration`
    (seconds that the clip covers, so `duration / frames` between frames); "uniform" has none.

    With `overlap` every clip may be anywhere in the video. Without, the video is divided into `num_clips` equal parts
    with one clip each, so that clips share no frame; only a part without a frame uses the frame before it.

    `short_video_policy` applies if a video (or its part) is shorter than a clip: "repeat_last" repeats the last frame,
    "wrap" continues from the first frame, "error" raises an error. For "uniform" a video of fewer than `frames` frames
    is short, and "stretch" repeats its frames evenly, as VideoMAE does. `frame_order` is the order of frames in a clip.
    With `middle` a clip has one more frame at its end, the frame that "single_frame" repeats, so that all orders can be
    made from one reading.

    Raises `UserError` for invalid values, with a line for each.
    """

    frames: int
    frame_step: int | None = None
    fps: float | None = None
    duration: float | None = None
    num_clips: int = 1
    short_video_policy: str = "repeat_last"
    frame_order: str = "forward"
    sampling: str = "dense"
    overlap: bool = True
    middle: bool = False

    def __post_init__(self) -> None:
        choices = {"sampling": SAMPLINGS, "short_video_policy": SHORT_POLICIES, "frame_order": FRAME_ORDERS}
        faults = [
            f"{name}={getattr(self, name)}: choose one of {', '.join(known)}"
            for name, known in choices.items()
            if getattr(self, name) not in known
        ]
        settings = {"frame_step": self.frame_step, "fps": self.fps, "duration": self.duration}
        strides = {name: value for name, value in settings.items() if value is not None}
        if self.sampling == "uniform" and strides:
            faults.append(f"sampling=uniform spans the whole video and takes no stride: add {_null(strides)}")
        if self.sampling in SAMPLINGS and self.sampling != "uniform" and len(strides) != 1:
            keep = [
                f"to keep {name}={value:g}, add {_null(other for other in strides if other != name)}"
                for name, value in strides.items()
            ]
            way = "; ".join(keep) or "none is given; add clip.frame_step=4, say"
            faults.append(f"a clip's stride is given by exactly one of frame_step, fps and duration: {way}")
        if self.sampling == "videomae" and strides and self.frame_step is None:
            faults.append(f"sampling=videomae counts frames: add clip.frame_step=4 and {_null(strides)}")
        if self.sampling == "videomae" and not self.overlap:
            faults.append("sampling=videomae has clips that overlap in short videos: set overlap=true")
        for name, value in {"frames": self.frames, "num_clips": self.num_clips, **strides}.items():
            if not 0 < value < math.inf:
                faults.append(f"{name}={value}: must be above 0")
        if self.sampling in FIXED and self.short_video_policy == "wrap":
            faults.append(f"sampling={self.sampling} cannot wrap: short_video_policy=repeat_last or error")
        if self.sampling != "uniform" and self.short_video_policy == "stretch":
            faults.append(f"short_video_policy=stretch goes with sampling=uniform, and not {self.sampling}")
        if self.frame_order == "shuffled" and self.frames == 1:
            faults.append("frame_order=shuffled needs clips of 2 frames or more")
        if faults:
            raise UserError("\n".join(faults))

    @property
    def stride(self) -> float:
        """Distance between frames of a clip: in frames with `frame_step`, else in seconds; 1 for "uniform"."""
        if self.frame_step is not None:
            return self.frame_step
        if self.duration is not None:
            return self.duration / self.frames
        return 1.0 if self.fps is None else 1 / self.fps


def clip_indices(
    num_frames: int,
    timestamps: np.ndarray,
    protocol: ClipProtocol,
    rng: np.random.Generator | None,
    start: float | None = None,
    end: float | None = None,
    jitter: TemporalJitter | None = None,
) -> np.ndarray:
    """Frame indices int64 [n t] of the clips of one video.

    `timestamps` float64 [num_frames] are the seconds at which its frames appear, increasing. The frame at time t is the
    last one with a timestamp <= t, so `fps` and `duration` are right for variable frame rates; `frame_step` and
    "uniform" count frames. Only frames at `start` <= t < `end`, in seconds after the first frame, are used.

    With `rng` (training), the range of possible starts is divided into `num_clips` equal slices, and one start is drawn
    in each; `jitter` then draws the speed and direction of every clip. Without `rng`, the clips are the same every
    time. A clip that would pass the end of the video starts earlier, and `jitter` never makes it longer than the video.

    Raises `UserError` if the video is short and the policy is "error", if no frame appears between `start` and `end`,
    and if `jitter` does not fit the protocol.
    """
    if num_frames < 1 or timestamps.shape != (num_frames,):
        raise ValueError(f"{num_frames} frames with timestamps of shape {timestamps.shape}")
    if jitter is not None:
        check_jitter(protocol, jitter)
        if rng is None:
            raise ValueError("temporal jitter is for training, which has a generator")
    video = cut(timestamps, start, end, alone=protocol.stride)
    places, positions = SAMPLINGS[protocol.sampling](video, protocol, rng, jitter)
    picks = frame_picks(protocol.frame_order, protocol.frames)
    if protocol.middle:
        picks = np.append(picks, protocol.frames)
    clips = [
        place.stretch.first + place.stretch.shown(clip + ROUNDING)
        for place, clip in zip(places, with_middle(positions)[:, picks], strict=True)
    ]
    return np.stack(clips).astype(np.int64)


def eval_generator(protocol: ClipProtocol, seed: int, path: str) -> np.random.Generator | None:
    """The generator for a video's clips in evaluation, keyed by the seed and the file's name; None unless sampling is
    "vjepa2_random"."""
    if protocol.sampling != "vjepa2_random":
        return None
    return np.random.default_rng([seed, zlib.crc32(name_of(path).encode(errors="surrogateescape"))])


def check_jitter(protocol: ClipProtocol, jitter: TemporalJitter) -> None:
    """Raises `UserError` if `jitter` cannot be applied to the sampling of `protocol`."""
    if protocol.sampling in FIXED and not jitter.is_idle:
        raise UserError(f"sampling={protocol.sampling} gives fixed indices: take away temporal augmentation")
    if protocol.sampling == "uniform" and tuple(jitter.rate) != (1, 1):
        raise UserError(f"sampling=uniform has no stride for rate={list(jitter.rate)}; set rate=[1, 1]")


def _null(names: Iterable[str]) -> str:
    return " and ".join(f"clip.{name}=null" for name in names)


def _speeds(
    jitter: TemporalJitter | None, num_clips: int, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """The result of `TemporalJitter.draw`; without jitter, rate 1 and forward for every clip."""
    if jitter is None or rng is None:
        return np.ones(num_clips), np.zeros(num_clips, dtype=bool)
    return jitter.draw(num_clips, rng)


def _turned(positions: Sequence[np.ndarray], backwards: np.ndarray) -> np.ndarray:
    forwards = np.stack(positions)
    return np.where(backwards[:, None], forwards[:, ::-1], forwards)


def _dense(
    video: Stretch, protocol: ClipProtocol, rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    counted = protocol.frame_step is not None  # a clock of frames: frame i appears at time i
    places = clip_places(video.in_frames() if counted else video, protocol.num_clips, protocol.overlap)
    offsets = np.arange(protocol.frames) * protocol.stride
    starts = [_start(place, offsets[-1], rng) for place in places]
    rates, backwards = _speeds(jitter, len(places), rng)
    clips = [
        _at_rate(place.stretch, start, offsets, rate, protocol.short_video_policy)
        for place, start, rate in zip(places, starts, rates, strict=True)
    ]
    return places, _turned(clips, backwards)


def _start(place: Place, span: float, rng: np.random.Generator | None) -> float | None:
    """The start time of a clip; None if the stretch is too short for a clip."""
    stretch, number, total = place
    if not stretch.holds(span):
        return None
    if rng is not None:
        # the last start counts with its duration, so that each frame is drawn in proportion to its duration
        return stretch.clock[stretch.shown((number + rng.random()) * (stretch.length - span) / total)]
    latest = max(stretch.last - span, 0.0)
    start = latest / 2 if total == 1 else number * latest / (total - 1)
    return stretch.clock[stretch.shown(start + ROUNDING)]


def _at_rate(part: Stretch, start: float | None, offsets: np.ndarray, rate: float, policy: str) -> np.ndarray:
    """The positions [t] of a clip whose stride is multiplied by `rate`."""
    span = offsets[-1]
    if span > 0:
        rate = min(rate, max(1.0, part.last / span))
    if start is None:
        return behind_end(policy, offsets * rate, part)
    if rate > 1:
        latest = part.last - span * rate
        start = part.clock[part.shown(min(start, latest) + ROUNDING)]
    return start + offsets * rate


def _uniform(
    video: Stretch, protocol: ClipProtocol, rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    places = clip_places(video.in_frames(), protocol.num_clips, protocol.overlap)
    positions = [_over_all(place, protocol, rng) for place in places]
    return places, _turned(positions, _speeds(jitter, len(places), rng)[1])


def _over_all(place: Place, protocol: ClipProtocol, rng: np.random.Generator | None) -> np.ndarray:
    """The positions [t] of one frame in each of t equal segments."""
    stretch, number, total = place
    frames, segments = len(stretch.clock), np.arange(protocol.frames)
    if frames < protocol.frames and protocol.short_video_policy != "stretch":
        return behind_end(protocol.short_video_policy, segments, stretch)
    if rng is not None:
        drawn = np.floor((segments + rng.random(protocol.frames)) * frames / protocol.frames)
        return drawn.clip(max=frames - 1)  # rounding may lift a product just below a whole number to it
    # integer arithmetic, without rounding errors
    above, below = (1, 2) if total == 1 else (number, total)
    return (segments * below + above) * frames // (protocol.frames * below)


FIXED = published.SAMPLINGS  # their indices must not be jittered
SAMPLINGS = {"dense": _dense, "uniform": _uniform, **FIXED}
