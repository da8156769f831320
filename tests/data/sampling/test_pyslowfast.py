"""PySlowFast's indices, by the formulas of its decoder.py: numbers computed by hand."""

import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.errors import UserError


def indices(num_frames: int, rate: float, rng=None, **protocol) -> list[list[int]]:
    settings = ClipProtocol(**{"frames": 32, "sampling": "pyslowfast"} | protocol)
    return clip_indices(num_frames, np.arange(num_frames) / rate, settings, rng).tolist()


def test_ten_clips_start_at_tenths_of_the_room():
    clips = indices(300, 30, fps=15, num_clips=10)
    # 64 frames of 300: room for 236, of which clip i starts at 23.6 i
    assert [clip[0] for clip in clips] == [0, 23, 47, 70, 94, 118, 141, 165, 188, 212]
    assert clips[3][:8] == [70, 72, 74, 76, 78, 80, 82, 85]  # 70.8 + 63/31 k, rounded down
    assert [clip[-1] for clip in clips][::9] == [63, 275]
    assert indices(300, 30, fps=15) == [clips[0]]  # one clip starts with the video


def test_offsets_go_from_the_first_start_to_the_last():
    """USE_OFFSET_SAMPLING, as in its configurations of MViT: 16 frames 4 apart of 300, so a room of 236."""
    offset = {"frames": 16, "fps": 7.5, "sampling": "pyslowfast_offset"}
    clips = indices(300, 30, num_clips=5, **offset)
    assert [clip[0] for clip in clips] == [0, 59, 118, 177, 236]
    assert clips[1] == [59, 63, 67, 71, 75, 80, 84, 88, 92, 96, 101, 105, 109, 113, 117, 122]
    assert clips[4][-1] == 299
    assert [clip[0] for clip in indices(250, 25, num_clips=5, **offset)] == [
        0,
        49,
        98,
        147,
        196,
    ]  # room 196.67
    assert indices(299, 30, **offset)[0][0] == 117  # of 235
    assert indices(30, 30, num_clips=2, **offset)[1][-3:] == [29, 29, 29]


def test_the_stride_is_of_30_frames_a_second():
    # 32 x 2 frames of 30 a second are 53.33 of 25: from 0 to 52.33
    (clip,) = indices(250, 25, fps=15)
    assert (clip[:5], clip[-1]) == ([0, 1, 3, 5, 6], 52)
    assert indices(250, 25, frame_step=2)[0][-1] == 63


def test_short_videos_hold_their_last_frame_or_are_refused():
    clips = indices(20, 30, frames=8, frame_step=4, num_clips=2)
    assert clips == [[0, 4, 8, 13, 17, 19, 19, 19]] * 2  # 31/7 apart
    with pytest.raises(UserError, match="too short for a clip"):
        indices(20, 30, frames=8, frame_step=4, short_video_policy="error")
    with pytest.raises(UserError, match="sampling=pyslowfast cannot wrap"):
        ClipProtocol(8, frame_step=4, sampling="pyslowfast", short_video_policy="wrap")


def test_training_starts_anywhere():
    rng = np.random.default_rng(0)
    starts = [indices(300, 30, rng, fps=15)[0][0] for _ in range(200)]
    assert (min(starts) < 12, max(starts) > 224, max(starts) <= 236) == (True, True, True)
