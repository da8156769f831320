"""What becomes of a clip's positions in time: behind the end of a short video, and in the order they are shown."""

import numpy as np

from vidtrain.data.sampling.temporal import ROUNDING
from vidtrain.errors import UserError


def _repeat_last(positions: np.ndarray, last: float, length: float) -> np.ndarray:
    return np.minimum(positions, last)


def _wrap(positions: np.ndarray, last: float, length: float) -> np.ndarray:
    around = positions % length
    return np.where(length - around <= ROUNDING, 0.0, around)  # a time rounded below the end is past it


def _error(positions: np.ndarray, last: float, length: float) -> np.ndarray:
    raise UserError(
        f"the video is too short for a clip: it lasts {length:g}, the clip's last frame is at {positions.max():g} "
        "(seconds for fps and duration, else frames); choose shorter clips, or "
        "clip.short_video_policy=repeat_last or wrap (of evaluate: short_video_policy=...)"
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


def with_middle(positions: np.ndarray) -> np.ndarray:
    """Positions [n t] in order, and after them the one that "single_frame" repeats: [n t+1]."""
    return np.concatenate([positions, _single_frame(positions)[:, :1]], axis=1)


def frame_picks(order: str, frames: int) -> np.ndarray:
    """Which of the frames of a clip that `with_middle` gave are shown in this order: int64 [frames]."""
    if order == "single_frame":
        return np.full(frames, frames, dtype=np.int64)
    return np.ascontiguousarray(FRAME_ORDERS[order](np.arange(frames)[None])[0])
