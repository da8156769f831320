"""Parts of videos: cuts by start and end time, and clips that share no frame."""

import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.errors import UserError

HUNDRED = np.arange(100) / 25  # four seconds at 25 fps
# one second at 10 fps, then one at 40 fps
VARIABLE = np.concatenate([np.arange(10) / 10, 1 + np.arange(40) / 40])


def indices(timestamps, rng=None, start=None, end=None, **protocol) -> list[list[int]]:
    return clip_indices(len(timestamps), timestamps, ClipProtocol(**protocol), rng, start=start, end=end).tolist()


def random_protocol(rng: np.random.Generator) -> dict:
    stride = [{"frame_step": 3}, {"fps": 7.0}, {"duration": 0.7}, {"sampling": "uniform"}][rng.integers(4)]
    return {"frames": int(rng.integers(1, 9)), "num_clips": int(rng.integers(1, 5)), **stride}


class TestCut:
    def test_by_frames(self):
        assert indices(HUNDRED, start=1, end=2, frames=4, frame_step=2) == [[34, 36, 38, 40]]
        assert indices(HUNDRED, start=1, end=2, frames=4, frame_step=2, num_clips=2) == [
            [25, 27, 29, 31],
            [43, 45, 47, 49],
        ]
        assert indices(HUNDRED, start=1, end=2, frames=5, sampling="uniform") == [[27, 32, 37, 42, 47]]

    def test_one_side_may_be_open(self):
        assert indices(HUNDRED, start=3, frames=2, frame_step=24) == [[75, 99]]
        assert indices(HUNDRED, end=1, frames=2, frame_step=24) == [[0, 24]]
        assert indices(HUNDRED, start=3, end=99, frames=2, frame_step=24) == [[75, 99]]

    def test_variable_frame_rate(self):
        assert indices(VARIABLE, start=1, frames=2, fps=2) == [[19, 39]]  # at 1.225 and 1.725 s
        assert indices(VARIABLE, start=0.5, end=1.5, frames=4, fps=4) == [[6, 8, 14, 24]]

    def test_counts_from_the_first_frame(self):
        assert indices(HUNDRED + 77.7, start=1, end=2, frames=4, fps=12.5) == [[34, 36, 38, 40]]

    def test_short_cuts(self):
        assert indices(HUNDRED, start=1, end=1.2, frames=4, frame_step=2) == [[25, 27, 29, 29]]
        assert indices(HUNDRED, start=1, end=1.2, frames=4, frame_step=2, short_video_policy="wrap") == [
            [25, 27, 29, 26]
        ]
        with pytest.raises(UserError, match="too short for a clip: it lasts 5,"):
            indices(HUNDRED, start=1, end=1.2, frames=4, frame_step=2, short_video_policy="error")

    def test_the_last_frame_is_shown_until_the_cut_ends(self):
        held = np.array([0.0, 1.0, 2.0, 10.0, 11.0])
        assert indices(held, end=5, frames=4, fps=1, short_video_policy="error") == [[0, 1, 2, 2]]
        with pytest.raises(UserError, match="too short for a clip: it lasts 5,"):
            indices(held, end=5, frames=7, fps=1, short_video_policy="error")
        # starts are drawn over the second that the clip can be moved by
        rng = np.random.default_rng(0)
        clips = {tuple(indices(held, rng, end=5, frames=4, fps=1)[0]) for _ in range(100)}
        assert clips == {(0, 1, 2, 2), (1, 2, 2, 2)}

    def test_at_a_constant_rate_a_cut_is_a_video_of_its_own(self):
        rng = np.random.default_rng(0)
        for _ in range(500):
            first, stop = sorted(rng.choice(101, 2, replace=False))
            protocol, seed = random_protocol(rng), int(rng.integers(1000))
            generators = (np.random.default_rng(seed), np.random.default_rng(seed)) if seed % 2 else (None,) * 2
            cut = indices(HUNDRED, generators[0], first / 25, stop / 25, **protocol)
            alone = indices(np.arange(stop - first) / 25, generators[1], **protocol)
            assert cut == (np.array(alone) + first).tolist()

    @pytest.mark.parametrize("digits", [3, 6])
    def test_cuts_side_by_side_share_no_frame_and_lose_none(self, digits):
        """Also where the file's timestamps are rounded and the cut's are not."""
        timestamps = np.round(np.arange(300) / 30, digits)
        for first, stop in ((0, 1), (29, 61), (61, 62), (61, 300)):
            (clip,) = indices(timestamps, start=first / 30, end=stop / 30, frames=stop - first, sampling="uniform")
            assert clip == list(range(first, stop))

    @pytest.mark.parametrize(
        ("start", "end", "message"),
        [
            (20, None, "from 20 s to its end of a video that lasts 4 s; correct the start and end times"),
            (20, 30, "from 20 s to 30 s of a video that lasts 4 s"),
            (2, 2, "from 2 s to 2 s"),
            (3, 1, "from 3 s to 1 s"),
            (1.01, 1.03, "from 1.01 s to 1.03 s"),
            (None, -1, "from 0 s to -1 s"),
        ],
    )
    def test_an_empty_cut_names_its_times(self, start, end, message):
        with pytest.raises(UserError, match=f"no frame appears {message}"):
            indices(HUNDRED, start=start, end=end, frames=4, frame_step=2)


class TestNoOverlap:
    @pytest.mark.parametrize("stride", [{"frame_step": 4}, {"fps": 6.25}, {"duration": 1.28}], ids=str)
    def test_each_clip_is_centered_in_its_part(self, stride):
        assert indices(HUNDRED, frames=8, num_clips=2, overlap=False, **stride) == [
            [10, 14, 18, 22, 26, 30, 34, 38],
            [60, 64, 68, 72, 76, 80, 84, 88],
        ]
        # parts of 34, 33 and 33 frames
        clips = indices(HUNDRED, frames=8, num_clips=3, overlap=False, **stride)
        assert [clip[0] for clip in clips] == [2, 36, 69]

    def test_short_parts(self):
        protocol = {"frames": 8, "frame_step": 4, "num_clips": 5, "overlap": False}
        clips = indices(HUNDRED, **protocol)
        assert clips[0] == [0, 4, 8, 12, 16, 19, 19, 19] and clips[4] == [80, 84, 88, 92, 96, 99, 99, 99]
        assert indices(HUNDRED, short_video_policy="wrap", **protocol)[1] == [20, 24, 28, 32, 36, 20, 24, 28]
        with pytest.raises(UserError, match="too short for a clip: it lasts 20,"):
            indices(HUNDRED, short_video_policy="error", **protocol)

    def test_parts_of_equal_time_where_the_rate_varies(self):
        clips = indices(VARIABLE, frames=2, fps=2, num_clips=2, overlap=False)
        assert clips == [[2, 7], [19, 39]]

    def test_fewer_frames_than_parts(self):
        assert indices(HUNDRED[:2], frames=1, frame_step=1, num_clips=4, overlap=False) == [
            [0],
            [0],
            [1],
            [1],
        ]

    def test_one_clip_has_the_whole_video(self):
        rng = np.random.default_rng(0)
        for _ in range(200):
            protocol, seed = random_protocol(rng) | {"num_clips": 1}, int(rng.integers(1000))
            one, other = np.random.default_rng(seed), np.random.default_rng(seed)
            assert indices(VARIABLE, one, overlap=False, **protocol) == indices(VARIABLE, other, **protocol)

    def test_no_frame_is_shared(self):
        rng = np.random.default_rng(1)
        for case in range(1000):
            constant = case % 2
            timestamps = np.arange(90) / 25 if constant else np.cumsum(rng.uniform(0.01, 0.1, 90))
            start, end = (None, None) if case % 3 else (0.5, 2.5)
            generator = None if case % 5 == 0 else rng
            clips = indices(timestamps, generator, start, end, overlap=False, **random_protocol(rng))
            for earlier, later in zip(clips, clips[1:], strict=False):
                assert max(earlier) < min(later)
