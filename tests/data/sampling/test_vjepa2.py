"""V-JEPA 2's indices: lists computed by hand, and the same formulas written once more without arrays."""

import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices, eval_generator
from vidtrain.data.sampling.temporal import TemporalJitter
from vidtrain.errors import UserError

SIXTEEN = [0, 4, 8, 12, 17, 21, 25, 29, 34, 38, 42, 46, 51, 55, 59, 63]  # 64/15 apart


def reference(num_frames, rng=None, rate=30.0, timestamps=None, **protocol) -> list[list[int]]:
    timestamps = np.arange(num_frames) / rate if timestamps is None else timestamps
    settings = ClipProtocol(**{"frames": 16} | protocol, sampling="vjepa2")
    return clip_indices(num_frames, timestamps, settings, rng).tolist()


def moved(clip: list[int], by: int) -> list[int]:
    return [index + by for index in clip]


class TestByHand:
    def test_longer_than_a_clip(self):
        for overlap in (True, False):
            assert reference(100, frame_step=4, overlap=overlap) == [SIXTEEN]
            expected = [SIXTEEN, moved(SIXTEEN, 100)]
            assert reference(200, frame_step=4, num_clips=2, overlap=overlap) == expected

    def test_as_long_as_a_clip(self):
        assert reference(64, frame_step=4, overlap=False) == [SIXTEEN]

    def test_shorter_than_a_clip(self):
        moving = [0, 4, 8, 13, 17, 22, 26, 31, 35, 39]  # ten numbers, 40/9 apart
        assert reference(40, frame_step=4, overlap=False) == [moving + [39] * 6]
        moving = [0, 4, 9, 14, 19, 24, 29, 34, 38]  # nine, 39/8 apart
        assert reference(40, frame_step=4, num_clips=2, overlap=True) == [moving + [38] * 7] * 2

    def test_parts_shorter_than_a_clip(self):
        clip = [0, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45, 49, 49, 49, 49, 49]  # twelve, 50/11 apart
        assert reference(100, frame_step=4, num_clips=2, overlap=False) == [clip, moved(clip, 50)]
        clip = [0, 4, 9, 13, 18, 22, 27, 31, 36, 40, 45, 49, 54, 58, 62, 62]  # fifteen, 63/14 apart
        assert reference(100, frame_step=4, num_clips=2, overlap=True) == [clip, moved(clip, 36)]

    def test_hardly_any_frames(self):
        assert reference(3, frame_step=4, overlap=False) == [[2] * 16]
        assert reference(2, frame_step=4, num_clips=4, overlap=False) == [[1] * 16] * 4
        for overlap in (True, False):
            for stride in ({"frame_step": 4}, {"fps": 40}, {"duration": 0.1}):
                assert reference(1, overlap=overlap, **stride) == [[0] * 16]


def by_loops(num_frames, frames, step, num_clips, overlap, ends) -> list[list[int]]:
    """The published rule for one clip after the other; `ends` gives those of the longer parts."""

    def even(start, stop, count):
        gap = (stop - start) / (count - 1) if count > 1 else 0.0
        return [stop if count > 1 and k == count - 1 else start + k * gap for k in range(count)]

    length, part, clips = frames * step, num_frames // num_clips, []
    for i in range(num_clips):
        if part > length:
            end = next(ends)
            clip = [int(min(place, end - 1)) + i * part for place in even(end - length, end, frames)]
        else:
            held = min(length, num_frames) - 1 if overlap else part
            padded = even(0, held, held // step) + [held] * (frames - held // step)
            if not overlap:
                shift = i * part
            else:
                shift = i * ((num_frames - length) // (num_clips - 1)) if num_frames > length else 0
            clip = [int(min(place, held - 1)) + shift for place in padded]
        clips.append(clip)
    return clips


def test_the_same_as_loops():
    rng = np.random.default_rng(0)
    branches = set()
    for case in range(3000):
        frames, step = int(rng.integers(1, 33)), int(rng.integers(1, 7))
        num_clips, overlap = int(rng.integers(1, 5)), bool(rng.integers(2))
        num_frames = int(rng.integers(num_clips + 1, 400))
        training, seed = bool(rng.integers(2)), int(rng.integers(1000))
        length, part = frames * step, num_frames // num_clips
        drawn = np.random.default_rng(seed)
        ends = (int(drawn.integers(length, part)) if training else length for _ in range(num_clips))
        assert reference(
            num_frames,
            np.random.default_rng(seed) if training else None,
            frames=frames,
            frame_step=step,
            num_clips=num_clips,
            overlap=overlap,
        ) == by_loops(num_frames, frames, step, num_clips, overlap, ends), case
        branches.add((part > length, overlap, training))
    assert len(branches) == 8


def test_training_draws_every_end():
    rng = np.random.default_rng(0)
    starts = [reference(80, rng, frame_step=4)[0][0] for _ in range(2000)]
    # end is one of 64..79, so the clip never reaches frame 79
    found, counts = np.unique(starts, return_counts=True)
    assert found.tolist() == list(range(16)) and counts.min() > 80 and counts.max() < 180
    assert reference(80, np.random.default_rng(3), frame_step=4) == [
        moved(SIXTEEN, np.random.default_rng(3).integers(64, 80) - 64)
    ]


@pytest.mark.parametrize(
    ("rate", "stride", "step"),
    [
        (30, {"fps": 4}, 7),
        (29.97, {"fps": 4}, 7),  # 29.97 counts as 30
        (30.1, {"fps": 4.0}, 7),  # as 31
        (31.9, {"fps": 4}, 8),  # as 32
        (25, {"fps": 25}, 1),
        (30, {"duration": 3.0}, 5),  # 5.6
        (24, {"duration": 1.0}, 1),  # 1.5
        (24.1, {"duration": 1.28}, 2),  # exactly 2, of 25
    ],
)
def test_stride_in_whole_frames(rate, stride, step):
    assert reference(300, rate=rate, **stride) == reference(300, frame_step=step)


def test_rounded_timestamps_do_not_raise_the_rate():
    for rate in (24, 25, 30, 50, 60, 120):
        for count in (10, 29, 100, 299):
            exact = np.arange(count) / rate
            for timestamps in (exact, exact + 7.3, np.round(exact, 3)):
                # one more frame a second would give a stride of 2
                stride = {"fps": (rate + 1) / 2, "frames": 4}
                assert reference(count, timestamps=timestamps, **stride) == reference(count, frames=4, frame_step=1)


@pytest.mark.parametrize("stride", [{"fps": 31}, {"duration": 0.5}])
def test_less_than_a_frame_is_refused(stride):
    with pytest.raises(UserError, match="more than the 30 frames a second"):
        reference(300, **stride)


def test_short_videos_may_be_refused():
    assert reference(64, frame_step=4, overlap=False, short_video_policy="error") == [SIXTEEN]
    with pytest.raises(UserError, match="lasts 63, .* last frame is at 60"):
        reference(63, frame_step=4, short_video_policy="error")


def test_a_cut_is_a_video_of_its_own():
    protocol = ClipProtocol(16, frame_step=4, sampling="vjepa2")
    clips = clip_indices(300, np.arange(300) / 30, protocol, None, start=2.0, end=7.0)
    assert clips.tolist() == [moved(SIXTEEN, 60)]


def test_windows_of_an_evaluation_are_drawn_by_seed_and_file():
    """As with random_clip_sampling=True in the original: end = randint(64, 150) in each half of 300 frames."""
    protocol = ClipProtocol(16, frame_step=4, num_clips=2, sampling="vjepa2_random")
    drawn = {}
    for seed, path in ((0, "a/x.mp4"), (0, "b/x.mp4"), (0, "a/y.mp4"), (1, "a/x.mp4")):
        rng = eval_generator(protocol, seed, path)
        clips = clip_indices(300, np.arange(300) / 30, protocol, rng).tolist()
        begins = clips[0][0], clips[1][0] - 150
        assert clips == [moved(SIXTEEN, begins[0]), moved(SIXTEEN, 150 + begins[1])]
        assert all(0 <= begin < 150 - 64 for begin in begins)
        drawn[seed, path] = clips
    assert drawn[0, "a/x.mp4"] == drawn[0, "b/x.mp4"]
    assert len({str(clips) for clips in drawn.values()}) == 3
    assert eval_generator(ClipProtocol(16, frame_step=4, sampling="vjepa2"), 0, "a/x.mp4") is None


def test_takes_no_jitter():
    protocol = ClipProtocol(16, frame_step=4, sampling="vjepa2")
    with pytest.raises(UserError, match="temporal augmentation"):
        clip_indices(300, np.arange(300) / 30, protocol, np.random.default_rng(0), jitter=TemporalJitter(reverse=0.5))
