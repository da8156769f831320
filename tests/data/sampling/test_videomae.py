"""VideoMAE's frames in tests, as MCG-NJU/VideoMAE's kinetics.py and ssv2.py gave them for videos of as many frames."""

import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.errors import UserError


def indices(num_frames: int, rng=None, **protocol) -> list[list[int]]:
    settings = ClipProtocol(**{"frames": 16} | protocol)
    return clip_indices(num_frames, np.arange(num_frames) / 30, settings, rng).tolist()


def kinetics(num_frames: int, rng=None, **protocol) -> list[list[int]]:
    return indices(num_frames, rng, **{"frame_step": 4, "num_clips": 5, "sampling": "videomae"} | protocol)


@pytest.mark.parametrize(
    ("num_frames", "first_two_and_last"),
    [
        (300, [[0, 4, 60], [56, 60, 116], [116, 120, 176], [176, 180, 236], [236, 240, 296]]),
        (250, [[0, 4, 60], [44, 48, 104], [92, 96, 152], [140, 144, 200], [188, 192, 248]]),
        (50, [[0, 4, 48]] * 5),
    ],
)
def test_five_clips_lie_among_every_fourth_frame(num_frames, first_two_and_last):
    assert [[clip[0], clip[1], clip[-1]] for clip in kinetics(num_frames)] == first_two_and_last


def test_short_videos_repeat_the_last_of_every_fourth_frame():
    assert kinetics(50)[0] == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 48, 48, 48]
    assert kinetics(3)[4] == [0] * 16
    with pytest.raises(UserError, match="too short for a clip"):
        kinetics(50, short_video_policy="error")


def test_one_clip_is_centered_and_training_draws_windows():
    assert kinetics(300, num_clips=1)[0][::15] == [116, 176]
    starts = [kinetics(300, np.random.default_rng(seed), num_clips=1)[0][0] for seed in range(100)]
    assert min(starts) < 12 and 224 < max(starts) < 236


def test_something_something_is_uniform():
    evenly = {"num_clips": 2, "sampling": "uniform", "short_video_policy": "stretch"}
    assert indices(45, **evenly) == [
        [0, 2, 5, 8, 11, 14, 16, 19, 22, 25, 28, 30, 33, 36, 39, 42],
        [1, 4, 7, 9, 12, 15, 18, 21, 23, 26, 29, 32, 35, 37, 40, 43],
    ]
    assert indices(10, **evenly) == [
        [0, 0, 1, 1, 2, 3, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9],
        [0, 0, 1, 2, 2, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 9],
    ]
    assert indices(10, **evenly | {"short_video_policy": "repeat_last"})[0] == [*range(10), *[9] * 6]


@pytest.mark.parametrize(
    ("protocol", "cause"),
    [
        ({"fps": 4.0}, "sampling=videomae counts frames: add clip.frame_step=4 and clip.fps=null"),
        ({"frame_step": 4, "overlap": False}, "overlap in short videos: set overlap=true"),
        ({"frame_step": 4, "short_video_policy": "wrap"}, "sampling=videomae cannot wrap"),
        ({"frame_step": 4, "short_video_policy": "stretch"}, "stretch goes with sampling=uniform"),
    ],
)
def test_what_does_not_go_with_it_is_refused(protocol, cause):
    with pytest.raises(UserError, match=cause):
        ClipProtocol(16, sampling="videomae", **protocol)
