"""Uniform sampling: one frame of each equal segment of the whole video."""

import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.errors import UserError


def uniform(num_frames: int, rng: np.random.Generator | None = None, **protocol) -> list[list[int]]:
    timestamps = np.arange(num_frames) / 25
    return clip_indices(num_frames, timestamps, ClipProtocol(**protocol, sampling="uniform"), rng).tolist()


def test_one_clip_takes_the_middle_of_each_segment():
    assert uniform(100, frames=8) == [[6, 18, 31, 43, 56, 68, 81, 93]]
    assert uniform(8, frames=8) == [[0, 1, 2, 3, 4, 5, 6, 7]]
    assert uniform(9, frames=8) == [[0, 1, 2, 3, 5, 6, 7, 8]]  # 0.56, 1.69, 2.81, 3.94, 5.06, 6.19, 7.31, 8.44
    assert uniform(100, frames=1) == [[50]]


def test_several_clips_are_shifted_within_the_segments():
    assert uniform(100, frames=8, num_clips=2) == [
        [0, 12, 25, 37, 50, 62, 75, 87],
        [6, 18, 31, 43, 56, 68, 81, 93],
    ]
    assert uniform(90, frames=3, num_clips=3) == [[0, 30, 60], [10, 40, 70], [20, 50, 80]]


def test_two_clips_are_those_of_videomae_on_something_something():
    for num_frames in range(16, 400):
        segment = num_frames / 16
        expected = [
            [int(segment * j) for j in range(16)],
            [int(segment / 2 + segment * j) for j in range(16)],
        ]
        assert uniform(num_frames, frames=16, num_clips=2) == expected


def test_every_frame_is_drawn_as_often_and_from_its_own_segment():
    rng = np.random.default_rng(0)
    clips = np.array(uniform(100, rng, frames=8, num_clips=5000))
    frames, counts = np.unique(clips, return_counts=True)
    assert frames.tolist() == list(range(100))
    assert counts.min() > 320 and counts.max() < 480  # 400 expected of each, standard deviation 20
    segments = np.arange(8) * 12.5
    assert (clips >= np.floor(segments)).all() and (clips < segments + 12.5).all()
    assert abs(np.corrcoef(clips[:, 0], clips[:, 1])[0, 1]) < 0.05  # independent draws


def test_training_clips_stay_in_order_and_in_the_video():
    rng = np.random.default_rng(1)
    for _ in range(300):
        num_frames, frames = int(rng.integers(1, 60)), int(rng.integers(1, 20))
        clips = np.array(uniform(num_frames, rng, frames=frames, num_clips=2))
        assert clips.min() >= 0 and clips.max() < num_frames and (np.diff(clips) >= 0).all()


@pytest.mark.parametrize("rng", [None, np.random.default_rng(0)], ids=["eval", "train"])
def test_fewer_frames_than_a_clip(rng):
    assert uniform(3, rng, frames=5, num_clips=2, short_video_policy="repeat_last") == [[0, 1, 2, 2, 2]] * 2
    assert uniform(3, rng, frames=5, short_video_policy="wrap") == [[0, 1, 2, 0, 1]]
    with pytest.raises(UserError, match="lasts 3, .* last frame is at 4"):
        uniform(3, rng, frames=5, short_video_policy="error")


def test_parts_of_their_own_instead_of_shifts():
    expected = [[6, 18, 31, 43], [56, 68, 81, 93]]
    assert uniform(100, frames=4, num_clips=2, overlap=False) == expected


def test_segments_count_frames_whatever_their_rate():
    timestamps = np.concatenate([np.arange(50) / 10, 5 + np.arange(50) / 40])
    protocol = ClipProtocol(frames=8, sampling="uniform")
    assert clip_indices(100, timestamps, protocol, None).tolist() == [[6, 18, 31, 43, 56, 68, 81, 93]]


def test_probes_of_frame_order():
    assert uniform(100, frames=4, frame_order="reversed") == [[87, 62, 37, 12]]
    assert uniform(100, frames=4, frame_order="single_frame") == [[49] * 4]  # 49.5 is their middle
