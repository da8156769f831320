"""Which frames make a clip: a pure function of frame count, timestamps, protocol and generator."""

import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vidtrain.data.sampling.temporal import (
    FRAME_ORDERS,
    ROUNDING,
    SHORT_POLICIES,
    Stretch,
    TemporalJitter,
    behind_end,
    cut,
    frame_picks,
    with_middle,
)
from vidtrain.data.stores.places import name_of
from vidtrain.errors import UserError


@dataclass(frozen=True)
class ClipProtocol:
    """How clips are cut from a video: `num_clips` clips of `frames` frames each.

    `sampling` says where a clip's frames lie:

    - "dense": a stride apart. In training a clip starts anywhere; in evaluation one clip is centered, and several
      start evenly spaced from the first possible start to the last.
    - "uniform": over the whole video, one in each of `frames` equal segments (TSN, Wang et al. 2016). Of N frames,
      frame j lies at floor((j + u) * N / frames). In training every u is drawn from [0, 1). In evaluation u is 1/2
      for one clip, and i / num_clips for clip i of several, as VideoMAE tests on Something-Something.
    - "vjepa2": V-JEPA 2's indices (see `_vjepa2_clips`), made for training and evaluation alike. In evaluation a window
      that could move begins where its part does, as with `random_clip_sampling=False` in the original.
    - "vjepa2_random": the same, but such windows are drawn in evaluation too, as the published evaluations of V-JEPA
      do, which leave that switch on. Whoever evaluates gives `clip_indices` a generator, see `eval_generator`.
    - "videomae": as VideoMAE has them on Kinetics (see `_videomae`): the frames of all clips are among every
      `frame_step`-th one of the video. Its clips on Something-Something are "uniform".
    - "pyslowfast": as PySlowFast has them (see `_pyslowfast`): clip i of n starts at i / n of the room that it has.
    - "pyslowfast_offset": the same with its USE_OFFSET_SAMPLING, as for MViT: from the first possible start to the
      last in whole frames; one clip is centered.

    The stride is given by exactly one of `frame_step` (in frames), `fps` (frames per second of the clip) and
    `duration` (seconds that the clip covers, so `duration / frames` between frames); for "uniform" by none.

    With `overlap` every clip may lie anywhere. Without, the video is cut into `num_clips` equal parts, and each is
    sampled as a video of its own with one clip, so that no two clips share a frame; only a part in which no frame
    appears shows the one before it. In "vjepa2" it is that code's switch of the same meaning.

    `short_video_policy` names what happens where a video (or its part) is shorter than a clip: it is shown from its
    beginning, and then its last frame is held ("repeat_last"), it begins anew ("wrap"), or it is refused ("error"). For
    "uniform" those of fewer than `frames` frames are short, and are shown frame by frame, or frames of all of it are
    repeated evenly ("stretch", as VideoMAE does). "vjepa2" holds the last
    frame in its own way. `frame_order` is the order in which frames are shown. With `middle` a clip has one frame
    more, at its end: the one that "single_frame" repeats, so that one reading serves all orders.

    Raises `UserError` for values that make no clip, with a line for each.
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
        faults = [
            f"{name}={value}: choose one of {', '.join(known)}"
            for name, value, known in (
                ("sampling", self.sampling, SAMPLINGS),
                ("short_video_policy", self.short_video_policy, SHORT_POLICIES),
                ("frame_order", self.frame_order, FRAME_ORDERS),
            )
            if value not in known
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
            faults.append(
                f"sampling=videomae counts frames: add clip.frame_step=4, say, and {_null(strides)}"
            )
        if self.sampling == "videomae" and not self.overlap:
            faults.append("sampling=videomae has clips that overlap in short videos: set overlap=true")
        for name, value in {"frames": self.frames, "num_clips": self.num_clips, **strides}.items():
            if not 0 < value < math.inf:
                faults.append(f"{name}={value}: must be above 0")
        if self.sampling in FIXED and self.short_video_policy == "wrap":
            faults.append(
                f"sampling={self.sampling} cannot wrap: choose short_video_policy=repeat_last or error"
            )
        if self.sampling != "uniform" and self.short_video_policy == "stretch":
            faults.append(f"short_video_policy=stretch goes with sampling=uniform, and not {self.sampling}")
        if self.frame_order == "shuffled" and self.frames == 1:
            faults.append("frame_order=shuffled needs clips of 2 frames or more")
        if faults:
            raise UserError("\n".join(faults))

    @property
    def stride(self) -> float:
        """Distance between frames of a clip: in frames where `frame_step` is given, else in seconds; 1 for "uniform",
        which has none."""
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

    `timestamps` are the times in seconds at which its frames appear, float64 [num_frames], increasing. The
    frame at time t is the last one with a timestamp <= t, so variable frame rates come out right for `fps` and
    `duration`; `frame_step` and "uniform" count frames.

    With `rng` (training), the range of possible starts is cut into `num_clips` equal slices and one start is
    drawn uniformly in each. Without, the clips are the same every time: see `ClipProtocol.sampling`.

    Only frames that appear at `start` <= t < `end`, in seconds after the first frame, take part.

    `jitter` draws speed and direction of every training clip, after the starts, which it leaves where they are: a
    clip that would now run over the end starts earlier by as much, and no rate stretches a clip over more than the
    video.

    Raises `UserError` where the policy for short videos is "error" and this is one, where nothing appears between
    `start` and `end`, and where `jitter` does not go with the protocol.
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
    """What draws the windows of a video in evaluation: None but for "vjepa2_random".

    It follows from the seed and the name of the file alone, so that evaluating again shows the same frames.
    """
    if protocol.sampling != "vjepa2_random":
        return None
    return np.random.default_rng([seed, zlib.crc32(name_of(path).encode(errors="surrogateescape"))])


def check_jitter(protocol: ClipProtocol, jitter: TemporalJitter) -> None:
    """Raises `UserError` where the way of sampling has nothing to vary, or must not be varied."""
    if protocol.sampling in FIXED and not jitter.is_idle:
        raise UserError(
            f"sampling={protocol.sampling} gives fixed indices: take away the temporal augmentation"
        )
    if protocol.sampling == "uniform" and tuple(jitter.rate) != (1, 1):
        raise UserError(
            f"sampling=uniform has no stride that rate={list(jitter.rate)} could change; set rate=[1, 1]"
        )


def _null(names: Iterable[str]) -> str:
    return " and ".join(f"clip.{name}=null" for name in names)


class Place(NamedTuple):
    """Where a clip lies: it is clip `number` of the `total` that share a stretch of the video."""

    stretch: Stretch
    number: int
    total: int


def _places(video: Stretch, protocol: ClipProtocol) -> list[Place]:
    if protocol.overlap:
        return [Place(video, number, protocol.num_clips) for number in range(protocol.num_clips)]
    return [Place(part, 0, 1) for part in video.parts(protocol.num_clips)]


def _speeds(
    jitter: TemporalJitter | None, num_clips: int, rng: np.random.Generator | None
) -> tuple[np.ndarray, np.ndarray]:
    """What `TemporalJitter.draw` gives, or one that changes nothing."""
    if jitter is None or rng is None:
        return np.ones(num_clips), np.zeros(num_clips, dtype=bool)
    return jitter.draw(num_clips, rng)


def _turned(positions: Sequence[np.ndarray], backwards: np.ndarray) -> np.ndarray:
    forwards = np.stack(positions)
    return np.where(backwards[:, None], forwards[:, ::-1], forwards)


def _dense(
    video: Stretch, protocol: ClipProtocol, rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    # Both kinds of stride are one computation: counted in frames, frame i appears at i.
    places = _places(video.in_frames() if protocol.frame_step is not None else video, protocol)
    offsets = np.arange(protocol.frames) * protocol.stride
    starts = [_start(place, offsets[-1], rng) for place in places]
    rates, backwards = _speeds(jitter, len(places), rng)
    clips = [
        _at_rate(place.stretch, start, offsets, rate, protocol.short_video_policy)
        for place, start, rate in zip(places, starts, rates, strict=True)
    ]
    return places, _turned(clips, backwards)


def _start(place: Place, span: float, rng: np.random.Generator | None) -> float | None:
    """The time at which a frame appears that a clip can start with; None in a stretch that is too short for it."""
    stretch, number, total = place
    if not stretch.holds(span):
        return None
    if rng is not None:
        # the last start also counts for how long it is shown: so each is drawn as often as it is shown long
        return stretch.clock[stretch.shown((number + rng.random()) * (stretch.length - span) / total)]
    latest = max(stretch.last - span, 0.0)
    start = latest / 2 if total == 1 else number * latest / (total - 1)
    return stretch.clock[stretch.shown(start + ROUNDING)]


def _at_rate(
    stretch: Stretch, start: float | None, offsets: np.ndarray, rate: float, policy: str
) -> np.ndarray:
    """The positions [t] of a clip whose stride is multiplied by `rate`."""
    span = offsets[-1]
    if span > 0:
        rate = min(rate, max(1.0, stretch.last / span))
    if start is None:
        return behind_end(policy, offsets * rate, stretch)
    if rate > 1:
        latest = stretch.last - span * rate
        start = stretch.clock[stretch.shown(min(start, latest) + ROUNDING)]
    return start + offsets * rate


def _uniform(
    video: Stretch, protocol: ClipProtocol, rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    places = _places(video.in_frames(), protocol)
    positions = [_over_all(place, protocol, rng) for place in places]
    return places, _turned(positions, _speeds(jitter, len(places), rng)[1])


def _over_all(place: Place, protocol: ClipProtocol, rng: np.random.Generator | None) -> np.ndarray:
    """One frame [t] of each of t equal segments."""
    stretch, number, total = place
    frames, segments = len(stretch.clock), np.arange(protocol.frames)
    if frames < protocol.frames and protocol.short_video_policy != "stretch":
        return behind_end(protocol.short_video_policy, segments, stretch)
    if rng is not None:
        drawn = np.floor((segments + rng.random(protocol.frames)) * frames / protocol.frames)
        return drawn.clip(max=frames - 1)  # a product just below a whole number may round to it
    # in whole numbers, so that nothing rounds
    above, below = (1, 2) if total == 1 else (number, total)
    return (segments * below + above) * frames // (protocol.frames * below)


def _vjepa2(
    video: Stretch, protocol: ClipProtocol, rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    step = _vjepa2_step(protocol, video)
    counted = video.in_frames()
    num_frames, num_clips = len(counted.clock), protocol.num_clips
    if protocol.short_video_policy == "error" and num_frames < protocol.frames * step:
        behind_end("error", np.arange(protocol.frames) * step, counted)
    positions = _vjepa2_clips(num_frames, protocol.frames, step, num_clips, protocol.overlap, rng)
    return [Place(counted, number, num_clips) for number in range(num_clips)], positions


def _vjepa2_step(protocol: ClipProtocol, video: Stretch) -> int:
    """The stride in whole frames: `frame_step`, floor(F / fps) or floor(duration * F / frames), where F is the
    video's average frame rate rounded up.

    The original takes the rate that the file states; this one has it from the timestamps. Raises `UserError` where
    the stride is less than a frame.
    """
    if protocol.frame_step is not None:
        return protocol.frame_step
    count = len(video.clock)
    if count == 1:  # has no rate, and shows the same with any stride
        return 1
    rate = round(count / video.length)
    # a rate of 30 must not become 31 because timestamps are rounded
    if not rate or abs(count / rate - video.length) > ROUNDING:
        rate = math.ceil(count / video.length)
    if protocol.fps is not None:
        step, setting = int(rate // protocol.fps), f"fps={protocol.fps:g}"
    else:
        duration = protocol.duration or 0.0  # it is given where neither of the others is
        step = int(duration * rate / protocol.frames)
        setting = f"duration={duration:g} for {protocol.frames} frames"
    if step < 1:
        raise UserError(
            f"{setting} needs more than the {rate} frames a second of the video, which sampling={protocol.sampling} "
            "does not allow; choose another, or sampling=dense, which shows frames more than once"
        )
    return step


def _vjepa2_clips(
    num_frames: int, frames: int, step: int, num_clips: int, overlap: bool, rng: np.random.Generator | None
) -> np.ndarray:
    """Frame indices int64 [num_clips frames] of a video of N = `num_frames`.

    With L = frames * step and parts of P = N // num_clips frames, clip i is, rounding down,

    - where P > L: `frames` numbers from end - L to end in even distances, none above end - 1; plus i * P.
      With `rng` end is drawn from L to P - 1, without it is L;
    - else without `overlap`: P // step numbers from 0 to P in even distances, then P repeated, none above P - 1;
      plus i * P;
    - else with it: s // step numbers from 0 to s = min(L, N) - 1 in even distances, then s repeated, none above
      s - 1; plus i * ((N - L) // (num_clips - 1)) where N > L.

    These are the formulas of facebookresearch/vjepa2, src/datasets/video_dataset.py. They differ from a plain stride:
    the frames of a clip divide its length evenly up to its end, so that 16 frames 4 apart lie at 0, 4, 8, 12, 17, ...,
    63. The original draws `end` from NumPy's global generator; here it comes from `rng`, one draw a clip.
    """
    length, part = frames * step, num_frames // num_clips
    clips = []
    for clip in range(num_clips):
        if part > length:
            end = length if rng is None else int(rng.integers(length, part))
            places = np.linspace(end - length, end, frames).clip(max=end - 1)
            shift = clip * part
        elif not overlap:
            places, shift = _padded(part, step, frames), clip * part
        else:
            held = min(length, num_frames) - 1
            places = _padded(held, step, frames)
            shift = clip * ((num_frames - length) // (num_clips - 1)) if num_frames > length else 0
        clips.append(places.astype(np.int64) + shift)
    return np.stack(clips) % num_frames  # of no frames, the one before the first is taken: the video's last


def _padded(end: int, step: int, frames: int) -> np.ndarray:
    moving = end // step
    places = np.concatenate([np.linspace(0, end, moving), np.full(frames - moving, float(end))])
    return places.clip(max=end - 1)


def _videomae(
    video: Stretch, protocol: ClipProtocol, rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    """Of every `frame_step`-th frame from the first on, M in all, clip i of n has `frames` from floor(i (M - frames)
    / (n - 1)) on; where there are fewer, the last one is repeated. One clip, which that code never tests with, is
    centered.

    The formulas of MCG-NJU/VideoMAE, kinetics.py, and of OpenGVLab/VideoMAEv2, dataset/datasets.py. Both train with
    V-JEPA 2's windows without overlap, and so does this.
    """
    counted, step, total = video.in_frames(), protocol.frame_step or 1, protocol.num_clips
    places = [Place(counted, number, total) for number in range(total)]
    if rng is not None:
        return places, _vjepa2_clips(len(counted.clock), protocol.frames, step, total, False, rng)
    strided = -(-len(counted.clock) // step)
    if protocol.short_video_policy == "error" and strided < protocol.frames:
        behind_end("error", np.arange(protocol.frames) * step, counted)
    room = max(strided - protocol.frames, 0)
    starts = [room // 2 if total == 1 else int(number * (room / (total - 1))) for number in range(total)]
    positions = np.array(starts)[:, None] + np.arange(protocol.frames)
    return places, positions.clip(max=strided - 1) * step


def _pyslowfast(
    video: Stretch, protocol: ClipProtocol, rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    """Of N frames, clip i of n, which spans S = frames * stride of them, starts at (N - S) i / n, in training anywhere
    up to N - S; its frames are those shown at even distances from there to S - 1 later, none above N - 1.

    So one clip starts with the video, and the last of ten at 0.9 of what it could. "pyslowfast_offset" has it start at
    i floor((N - S) / (n - 1)), and one clip alone at floor((N - S) / 2). The formulas of
    facebookresearch/SlowFast, slowfast/datasets/decoder.py, for a video that is decoded as a whole. Its stride counts
    frames of 30 a second: `clip.fps=15` for its 2.
    """
    places = _places(video.in_frames(), protocol)
    rate = 1.0 if protocol.frame_step is not None else len(video.clock) / video.length
    span = max(1.0, protocol.frames * protocol.stride * rate)
    clips = []
    for stretch, number, total in places:
        room = max(len(stretch.clock) - span, 0.0)
        if rng is not None:
            start = rng.uniform(0, room)
        elif protocol.sampling == "pyslowfast":
            start = room * number / total
        else:
            start = math.floor(room / 2) if total == 1 else number * math.floor(room / (total - 1))
        positions = np.linspace(start, start + span - 1, protocol.frames)
        if protocol.short_video_policy == "error" and positions[-1] > stretch.last:
            behind_end("error", positions, stretch)
        clips.append(positions.clip(max=stretch.last))
    return places, np.stack(clips)


SAMPLINGS = {
    "dense": _dense,
    "uniform": _uniform,
    "vjepa2": _vjepa2,
    "vjepa2_random": _vjepa2,
    "videomae": _videomae,
    "pyslowfast": _pyslowfast,
    "pyslowfast_offset": _pyslowfast,
}
# indices as others' code has them, which nothing here may move
FIXED = ("vjepa2", "vjepa2_random", "videomae", "pyslowfast", "pyslowfast_offset")
