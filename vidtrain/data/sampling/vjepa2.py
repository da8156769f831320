"""The frame indices of V-JEPA 2, so that its published numbers can be repeated and its training continued.

Formulas: facebookresearch/vjepa2, src/datasets/video_dataset.py. They differ from a plain stride: the frames of a
clip divide its length evenly up to its end, so that 16 frames 4 apart lie at 0, 4, 8, 12, 17, ..., 63.
"""

import math

import numpy as np

from vidtrain.data.sampling.temporal import ROUNDING, Stretch
from vidtrain.errors import UserError


def reference_step(
    frames: int, frame_step: int | None, fps: float | None, duration: float | None, video: Stretch
) -> int:
    """The stride in whole frames: `frame_step`, floor(F / fps) or floor(duration * F / frames), where F is the
    video's average frame rate rounded up. Exactly one of the three is given.

    The original takes the rate that the file states; this one has it from the timestamps. Raises `UserError` where
    the stride is less than a frame.
    """
    if frame_step is not None:
        return frame_step
    if len(video.clock) == 1:  # has no rate, and shows the same with any stride
        return 1
    rate = _rate_rounded_up(video)
    step = int(rate // fps) if fps is not None else int(duration * rate / frames)
    if step < 1:
        asked = f"fps={fps:g}" if fps is not None else f"duration={duration:g} for {frames} frames"
        raise UserError(
            f"{asked} needs more than the {rate} frames a second of the video, which sampling=vjepa2 does not "
            "allow; choose another, or sampling=dense, which shows frames more than once"
        )
    return step


def _rate_rounded_up(video: Stretch) -> int:
    count = len(video.clock)
    whole = round(count / video.length)
    # a rate of 30 must not become 31 because timestamps are rounded
    if whole and abs(count / whole - video.length) <= ROUNDING:
        return whole
    return math.ceil(count / video.length)


def reference_clips(
    num_frames: int, frames: int, step: int, num_clips: int, overlap: bool, rng: np.random.Generator | None
) -> np.ndarray:
    """Frame indices int64 [num_clips frames] of a video of N = `num_frames`.

    With L = frames * step and parts of P = N // num_clips frames, clip i is, rounding down,

    - where P > L: `frames` numbers from end - L to end in even distances, none above end - 1; plus i * P.
      In training end is drawn from L to P - 1, in evaluation (no `rng`) it is L;
    - else without `overlap`: P // step numbers from 0 to P in even distances, then P repeated, none above P - 1;
      plus i * P;
    - else with it: s // step numbers from 0 to s = min(L, N) - 1 in even distances, then s repeated, none above
      s - 1; plus i * ((N - L) // (num_clips - 1)) where N > L.

    The original draws `end` from NumPy's global generator; here it comes from `rng`, one draw a clip.
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
