"""The frames of clips as in publishers' code, in training and in evaluation.

vjepa2             V-JEPA 2's windows (`vjepa2_clips`). In evaluation one that could move begins where its part does,
                   as with `random_clip_sampling=False` in the original
vjepa2_random      the same, but evaluation draws such windows too, as V-JEPA's published evaluations do, which leave
                   that switch on. Whoever evaluates gives `clip_indices` a generator (`eval_generator`)
videomae           VideoMAE's on Kinetics: all clips are of every `frame_step`-th frame. On Something-Something it has
                   "uniform" ones
pyslowfast         PySlowFast's: clip i of n starts at i / n of the room that it has
pyslowfast_offset  the same with its USE_OFFSET_SAMPLING, as for MViT: from the first possible start to the last

`overlap` is the switch of V-JEPA's code. All hold the last frame of a short video, or refuse it.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from vidtrain.data.sampling.temporal import ROUNDING, Place, Stretch, TemporalJitter, behind_end, clip_places
from vidtrain.errors import UserError

if TYPE_CHECKING:
    from vidtrain.data.sampling.clips import ClipProtocol


def _vjepa2(
    video: Stretch, protocol: "ClipProtocol", rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    step = _vjepa2_step(protocol, video)
    counted = video.in_frames()
    num_frames, num_clips = len(counted.clock), protocol.num_clips
    if protocol.short_video_policy == "error" and num_frames < protocol.frames * step:
        behind_end("error", np.arange(protocol.frames) * step, counted)
    positions = vjepa2_clips(num_frames, protocol.frames, step, num_clips, protocol.overlap, rng)
    return [Place(counted, number, num_clips) for number in range(num_clips)], positions


def _vjepa2_step(protocol: "ClipProtocol", video: Stretch) -> int:
    """The stride in whole frames: `frame_step`, floor(F / fps) or floor(duration * F / frames), where F is the average
    frame rate from the timestamps (the original: from the file), rounded up. Raises `UserError` for less than a
    frame."""
    if protocol.frame_step is not None:
        return protocol.frame_step
    count = len(video.clock)
    if count == 1:  # one frame has no rate; every stride gives the same clip
        return 1
    rate = round(count / video.length)
    # a rate of 30 must not become 31 because timestamps are rounded
    if not rate or abs(count / rate - video.length) > ROUNDING:
        rate = math.ceil(count / video.length)
    if protocol.fps is not None:
        step, setting = int(rate // protocol.fps), f"fps={protocol.fps:g}"
    else:
        duration = protocol.duration or 0.0  # set if the two others are None
        step = int(duration * rate / protocol.frames)
        setting = f"duration={duration:g} for {protocol.frames} frames"
    if step < 1:
        raise UserError(
            f"{setting} needs more than the {rate} frames a second of the video, which sampling={protocol.sampling} "
            "does not allow; choose another, or sampling=dense, which shows frames more than once"
        )
    return step


def vjepa2_clips(
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

    The formulas of facebookresearch/vjepa2, src/datasets/video_dataset.py. A clip's frames divide its length evenly
    up to its end: 16 frames 4 apart lie at 0, 4, 8, 12, 17, ..., 63. The original draws `end` from NumPy's global
    generator; here it comes from `rng`, one draw a clip.
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
    return np.stack(clips) % num_frames  # with no frames, index -1 is the video's last frame


def _padded(end: int, step: int, frames: int) -> np.ndarray:
    moving = end // step
    places = np.concatenate([np.linspace(0, end, moving), np.full(frames - moving, float(end))])
    return places.clip(max=end - 1)


def _videomae(
    video: Stretch, protocol: "ClipProtocol", rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    """Of every `frame_step`-th frame from the first on, M in all, clip i of n has `frames` from floor(i (M - frames) /
    (n - 1)) on; where there are fewer, the last one is repeated. One clip, which that code never tests, is centered.

    The formulas of MCG-NJU/VideoMAE, kinetics.py, and of OpenGVLab/VideoMAEv2, dataset/datasets.py. Both train with
    V-JEPA 2's windows without overlap, and so does this.
    """
    counted, step, total = video.in_frames(), protocol.frame_step or 1, protocol.num_clips
    places = [Place(counted, number, total) for number in range(total)]
    if rng is not None:
        return places, vjepa2_clips(len(counted.clock), protocol.frames, step, total, False, rng)
    strided = -(-len(counted.clock) // step)
    if protocol.short_video_policy == "error" and strided < protocol.frames:
        behind_end("error", np.arange(protocol.frames) * step, counted)
    room = max(strided - protocol.frames, 0)
    starts = [room // 2 if total == 1 else int(number * (room / (total - 1))) for number in range(total)]
    positions = np.array(starts)[:, None] + np.arange(protocol.frames)
    return places, positions.clip(max=strided - 1) * step


def _pyslowfast(
    video: Stretch, protocol: "ClipProtocol", rng: np.random.Generator | None, jitter: TemporalJitter | None
) -> tuple[list[Place], np.ndarray]:
    """Of N frames, clip i of n, which spans S = frames * stride of them, starts at (N - S) i / n, in training anywhere
    up to N - S; its frames are those shown at even distances from there to S - 1 later, none above N - 1. So one clip
    starts with the video, and the last of ten at 0.9 of what it could.

    "pyslowfast_offset" has it start at i floor((N - S) / (n - 1)), and one clip alone at floor((N - S) / 2). The
    formulas of facebookresearch/SlowFast, slowfast/datasets/decoder.py, for a video that is decoded as a whole. Its
    stride counts frames of 30 a second: `clip.fps=15` for its 2.
    """
    places = clip_places(video.in_frames(), protocol.num_clips, protocol.overlap)
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
    "vjepa2": _vjepa2,
    "vjepa2_random": _vjepa2,
    "videomae": _videomae,
    "pyslowfast": _pyslowfast,
    "pyslowfast_offset": _pyslowfast,
}
