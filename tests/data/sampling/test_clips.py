import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.errors import UserError

HUNDRED = np.arange(100) / 25  # four seconds at 25 fps


def indices(timestamps: np.ndarray, rng: np.random.Generator | None = None, **protocol) -> list[list[int]]:
    clips = clip_indices(len(timestamps), timestamps, ClipProtocol(**protocol), rng)
    assert clips.dtype == np.int64
    return clips.tolist()


# 8 frames, 4 apart, in each of the three ways to say so
@pytest.mark.parametrize("stride", [{"frame_step": 4}, {"fps": 6.25}, {"duration": 1.28}], ids=str)
class TestStride:
    def test_one_clip_is_centered(self, stride):
        assert indices(HUNDRED, frames=8, **stride) == [[35, 39, 43, 47, 51, 55, 59, 63]]

    def test_several_clips_include_both_ends(self, stride):
        assert indices(HUNDRED, frames=8, num_clips=3, **stride) == [
            [0, 4, 8, 12, 16, 20, 24, 28],
            [35, 39, 43, 47, 51, 55, 59, 63],
            [71, 75, 79, 83, 87, 91, 95, 99],
        ]

    def test_two_clips(self, stride):
        assert [clip[0] for clip in indices(HUNDRED, frames=8, num_clips=2, **stride)] == [0, 71]

    def test_clip_as_long_as_the_video(self, stride):
        assert indices(HUNDRED[:29], frames=8, num_clips=2, **stride) == [[0, 4, 8, 12, 16, 20, 24, 28]] * 2

    def test_training_starts_cover_their_slices_evenly(self, stride):
        rng = np.random.default_rng(0)
        starts = np.array(
            [[clip[0] for clip in indices(HUNDRED, rng, frames=8, num_clips=3, **stride)] for _ in range(3000)]
        )
        # 72 possible starts, 24 in each slice, 125 draws of each expected
        for clip in range(3):
            found, counts = np.unique(starts[:, clip], return_counts=True)
            assert found.tolist() == list(range(24 * clip, 24 * clip + 24))
            assert counts.min() > 80 and counts.max() < 180

    def test_training_keeps_the_stride_and_the_video(self, stride):
        rng = np.random.default_rng(1)
        clips = np.array([indices(HUNDRED, rng, frames=8, **stride)[0] for _ in range(300)])
        assert (np.diff(clips) == 4).all()
        assert clips.min() == 0 and clips.max() == 99

    def test_training_depends_on_the_generator_alone(self, stride):
        first, second = (indices(HUNDRED, np.random.default_rng(7), frames=8, **stride) for _ in range(2))
        assert first == second


# 6 frames, 4 apart, in a video of 10: the clip would end at 20
@pytest.mark.parametrize("stride", [{"frame_step": 4}, {"fps": 6.25}], ids=str)
class TestShortVideo:
    @pytest.mark.parametrize("rng", [None, np.random.default_rng(0)], ids=["eval", "train"])
    def test_policies(self, stride, rng):
        short = HUNDRED[:10]
        assert (
            indices(short, rng, frames=6, num_clips=2, short_video_policy="repeat_last", **stride)
            == [[0, 4, 8, 9, 9, 9]] * 2
        )
        assert (
            indices(short, rng, frames=6, num_clips=2, short_video_policy="wrap", **stride) == [[0, 4, 8, 2, 6, 0]] * 2
        )
        with pytest.raises(UserError, match="too short for a clip"):
            indices(short, rng, frames=6, short_video_policy="error", **stride)

    def test_just_long_enough_is_not_short(self, stride):
        assert indices(HUNDRED[:21], frames=6, short_video_policy="error", **stride) == [[0, 4, 8, 12, 16, 20]]

    def test_a_single_frame(self, stride):
        for policy in ("repeat_last", "wrap"):
            assert indices(HUNDRED[:1], frames=3, short_video_policy=policy, **stride) == [[0, 0, 0]]
        assert indices(HUNDRED[:1], frames=1, short_video_policy="error", **stride) == [[0]]


def test_variable_frame_rate():
    # one second at 10 fps, then one at 40 fps
    timestamps = np.concatenate([np.arange(10) / 10, 1 + np.arange(40) / 40])
    assert indices(timestamps, frames=4, fps=2) == [[2, 7, 18, 38]]  # at 0.2, 0.7, 1.2 and 1.7 s
    assert indices(timestamps, frames=3, fps=5, num_clips=2) == [[0, 2, 4], [33, 41, 49]]
    assert indices(timestamps, frames=3, frame_step=10, num_clips=2) == [[0, 10, 20], [29, 39, 49]]


def test_clips_faster_than_the_video_repeat_frames():
    assert indices(HUNDRED[:4], frames=8, fps=50, short_video_policy="error") == [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_first_timestamp_does_not_matter():
    assert indices(HUNDRED + 1234.5, frames=8, fps=6.25) == indices(HUNDRED, frames=8, fps=6.25)


def test_timestamps_in_whole_milliseconds():
    rounded = np.round(np.arange(300) / 30, 3)
    assert indices(rounded, frames=16, fps=30) == [list(range(142, 158))]
    assert indices(rounded, frames=5, fps=7.5) == [[141, 145, 149, 153, 157]]


@pytest.mark.parametrize("stride", [{"frame_step": 4}, {"fps": 7.5}], ids=str)
def test_views_of_a_kinetics_video(stride):
    """Ten seconds at 30 fps as 16x4: the last start is 299 - 60, and the views lie evenly up to it."""
    video = np.arange(300) / 30
    five = indices(video, frames=16, num_clips=5, **stride)
    assert [clip[0] for clip in five] == [0, 59, 119, 179, 239]
    assert five[1] == [59, 63, 67, 71, 75, 79, 83, 87, 91, 95, 99, 103, 107, 111, 115, 119]
    assert five[4][-1] == 299
    ten = indices(video, frames=16, num_clips=10, **stride)
    assert [clip[0] for clip in ten] == [0, 26, 53, 79, 106, 132, 159, 185, 212, 239]
    assert all(np.diff(clip).tolist() == [4] * 15 for clip in ten)


def test_probes_of_frame_order():
    def clip(order: str) -> list[int]:
        return indices(HUNDRED, frames=8, frame_step=4, frame_order=order)[0]

    assert clip("forward") == [35, 39, 43, 47, 51, 55, 59, 63]
    assert clip("reversed") == [63, 59, 55, 51, 47, 43, 39, 35]
    assert clip("shuffled") == [43, 51, 47, 59, 55, 35, 39, 63]
    assert clip("single_frame") == [49] * 8  # the middle of 35 to 63, in time
    for frames in range(2, 65):
        shuffled = indices(np.arange(64.0), frames=frames, frame_step=1, frame_order="shuffled")[0]
        assert shuffled != sorted(shuffled)


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ({"frames": 8}, "exactly one of frame_step, fps and duration: none is given; add clip.frame_step=4"),
        ({"frames": 8, "frame_step": 2, "fps": 5.0}, "to keep fps=5, add clip.frame_step=null"),
        ({"frames": 0, "frame_step": 2}, "frames=0: must be above 0"),
        ({"frames": 8, "frame_step": 0}, "frame_step=0"),
        ({"frames": 8, "fps": -1.0}, "fps=-1.0"),
        ({"frames": 8, "frame_step": 2, "num_clips": 0}, "num_clips=0"),
        (
            {"frames": 8, "frame_step": 2, "short_video_policy": "loop"},
            "short_video_policy=loop: choose one of repeat_last, wrap, stretch, error",
        ),
        (
            {"frames": 8, "frame_step": 2, "sampling": "sparse"},
            "sampling=sparse: choose one of dense, uniform, vjepa2, vjepa2_random, videomae, pyslowfast, pyslow",
        ),
        ({"frames": 8, "frame_step": 2, "sampling": "uniform"}, "takes no stride: add clip.frame_step=null"),
        ({"frames": 8, "sampling": "vjepa2"}, "none is given; add clip.frame_step=4"),
        (
            {"frames": 8, "fps": 2.0, "sampling": "vjepa2", "short_video_policy": "wrap"},
            "short_video_policy=repeat_last or error",
        ),
        ({"frames": 8, "frame_step": 2, "frame_order": "back"}, "choose one of forward, reversed, shuffled"),
        ({"frames": 1, "frame_step": 2, "frame_order": "shuffled"}, "2 frames or more"),
    ],
)
def test_refuses_what_makes_no_clip(protocol, message):
    with pytest.raises(UserError, match=message):
        ClipProtocol(**protocol)


def test_tells_all_that_is_wrong_at_once():
    with pytest.raises(UserError) as error:
        ClipProtocol(frames=0, frame_step=2, duration=1.0, short_video_policy="loop", frame_order="back", num_clips=0)
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == [
        "short_video_policy=loop",
        "frame_order=back",
        "a clip's stride is given by exactly one of frame_step, fps and duration",
        "frames=0",
        "num_clips=0",
    ]


@pytest.mark.parametrize(("ticks", "rate"), [(12288, 24), (12800, 25), (15360, 30), (15360, 60), (12288, 12)])
def test_wrapping_starts_at_the_first_frame_again_whatever_is_rounded(ticks, rate):
    for count in range(2, 64):
        timestamps = np.arange(count) * (ticks // rate) / ticks
        protocol = ClipProtocol(2 * count, fps=float(rate), short_video_policy="wrap")
        assert clip_indices(count, timestamps, protocol, None).tolist() == [[*range(count), *range(count)]]


@pytest.mark.parametrize("stride", [{"fps": float("nan")}, {"duration": float("inf")}, {"duration": float("nan")}])
def test_a_stride_that_is_no_number_is_refused(stride):
    with pytest.raises(UserError, match="must be above 0"):
        ClipProtocol(4, **stride)
