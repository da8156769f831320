"""Which frames make a clip: a pure function of frame count, timestamps, protocol and generator."""

from dataclasses import dataclass

import numpy as np

from vidtrain.errors import UserError

# Containers round timestamps, Matroska to whole milliseconds: two frames may be one too far apart.
ROUNDING = 1.1e-3


def _repeat_last(positions: np.ndarray, last: float, length: float) -> np.ndarray:
    return np.minimum(positions, last)


def _wrap(positions: np.ndarray, last: float, length: float) -> np.ndarray:
    return positions % length


def _error(positions: np.ndarray, last: float, length: float) -> np.ndarray:
    raise UserError(
        f"the video is too short for a clip: it lasts {length:g}, "
        f"the clip's last frame is at {positions.max():g} (frames for frame_step, else seconds); "
        "choose a smaller stride, or short=repeat_last or short=wrap"
    )


# What to do with positions behind the end of a video that is shorter than a clip.
SHORT_POLICIES = {"repeat_last": _repeat_last, "wrap": _wrap, "error": _error}


def _forward(positions: np.ndarray) -> np.ndarray:
    return positions


def _reversed(positions: np.ndarray) -> np.ndarray:
    return positions[:, ::-1]


def _shuffled(positions: np.ndarray) -> np.ndarray:
    """One fixed permutation per clip length, never the identity."""
    rng = np.random.default_rng(0)
    frames = positions.shape[1]
    order = rng.permutation(frames)
    while np.array_equal(order, np.arange(frames)):
        order = rng.permutation(frames)
    return positions[:, order]


def _single_frame(positions: np.ndarray) -> np.ndarray:
    """The middle in time, not the middle one of the clip's frames: of an even number that is the later half's,
    which would tell a growing thing from a shrinking one."""
    return np.broadcast_to(positions.mean(axis=1, keepdims=True), positions.shape)


# In which order a clip shows its positions [n t]. All but "forward" probe what a model takes from time.
FRAME_ORDERS = {
    "forward": _forward,
    "reversed": _reversed,
    "shuffled": _shuffled,
    "single_frame": _single_frame,
}


@dataclass(frozen=True)
class ClipProtocol:
    """How clips are cut from a video: `num_clips` clips of `frames` frames each.

    The stride is given by exactly one of `frame_step` (in frames), `fps` (frames per second of the clip) and
    `duration` (seconds that the clip covers, so `duration / frames` between frames). `short` names what
    happens to videos shorter than a clip, `frame_order` the order in which frames are shown.

    Raises `UserError` for values that make no clip.
    """

    frames: int
    frame_step: int | None = None
    fps: float | None = None
    duration: float | None = None
    num_clips: int = 1
    short: str = "repeat_last"
    frame_order: str = "forward"

    def __post_init__(self) -> None:
        strides = {"frame_step": self.frame_step, "fps": self.fps, "duration": self.duration}
        given = {name: value for name, value in strides.items() if value is not None}
        if len(given) != 1:
            raise UserError(
                "a clip's stride is given by exactly one of frame_step, fps and duration, "
                f"not by {' and '.join(f'{name}={value}' for name, value in given.items()) or 'none of them'}"
            )
        for name, value in {"frames": self.frames, "num_clips": self.num_clips, **given}.items():
            if value <= 0:
                raise UserError(f"{name}={value}: must be above 0")
        for name, value, known in (
            ("short", self.short, SHORT_POLICIES),
            ("frame_order", self.frame_order, FRAME_ORDERS),
        ):
            if value not in known:
                raise UserError(f"{name}={value}: choose one of {', '.join(known)}")
        if self.frame_order == "shuffled" and self.frames < 2:
            raise UserError("frame_order=shuffled needs clips of 2 frames or more")

    @property
    def stride(self) -> float:
        """Distance between frames of a clip: in frames where `frame_step` is given, else in seconds."""
        if self.frame_step is not None:
            return self.frame_step
        return 1 / self.fps if self.fps is not None else self.duration / self.frames


def clip_indices(
    num_frames: int, timestamps: np.ndarray, protocol: ClipProtocol, rng: np.random.Generator | None
) -> np.ndarray:
    """Frame indices int64 [n t] of the clips of one video.

    `timestamps` are the times in seconds at which its frames appear, float64 [num_frames], increasing. The
    frame at time t is the last one with a timestamp <= t, so variable frame rates come out right.

    With `rng` (training), the range of possible starts is cut into `num_clips` equal slices and one start is
    drawn uniformly in each. Without, one clip is centered, and several start evenly spaced over the range,
    both ends included. Raises `UserError` for a short video where the policy is "error".
    """
    if num_frames < 1 or timestamps.shape != (num_frames,):
        raise ValueError(f"{num_frames} frames with timestamps of shape {timestamps.shape}")
    # Both kinds of stride are one computation: counted in frames, frame i appears at i.
    clock = np.arange(num_frames) if protocol.frame_step is not None else timestamps - timestamps[0]
    last_shown = float(np.median(np.diff(clock))) if num_frames > 1 else protocol.stride
    last, length = float(clock[-1]), float(clock[-1]) + last_shown
    offsets = np.arange(protocol.frames) * protocol.stride
    span = offsets[-1]

    if length - span > ROUNDING:
        latest, room = max(last - span, 0.0), length - span
        positions = clock[_first_frames(clock, latest, room, protocol.num_clips, rng), None] + offsets
    else:
        every_clip = np.tile(offsets, (protocol.num_clips, 1))
        positions = SHORT_POLICIES[protocol.short](every_clip, last, length)
    in_order = FRAME_ORDERS[protocol.frame_order](positions)
    return _shown(clock, in_order + ROUNDING).astype(np.int64)


def _first_frames(
    clock: np.ndarray, latest: float, room: float, num_clips: int, rng: np.random.Generator | None
) -> np.ndarray:
    """The frames [num_clips] at which clips start, the latest at `latest`.

    `room` also counts for how long that one is shown: with it, each is drawn as often as it is shown long.
    """
    slices = np.arange(num_clips)
    if rng is not None:
        return _shown(clock, (slices + rng.random(num_clips)) * room / num_clips)
    starts = np.array([latest / 2]) if num_clips == 1 else slices * latest / (num_clips - 1)
    return _shown(clock, starts + ROUNDING)


def _shown(clock: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The index of the frame that is shown at each time: the last to appear by then."""
    return np.searchsorted(clock, times, side="right") - 1
