"""Random speed and direction of training clips."""

import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.data.sampling.temporal import TemporalJitter
from vidtrain.errors import UserError

HUNDRED = np.arange(100) / 25  # four seconds at 25 fps


def train(seed, jitter=None, timestamps=HUNDRED, **protocol) -> np.ndarray:
    settings = ClipProtocol(**{"frames": 8} | protocol)
    return clip_indices(len(timestamps), timestamps, settings, np.random.default_rng(seed), jitter=jitter)


@pytest.mark.parametrize("stride", [{"frame_step": 4}, {"fps": 6.25}, {"duration": 1.28}], ids=str)
class TestRate:
    def test_twice_as_fast_from_the_same_start(self, stride):
        moved = 0
        for seed in range(200):
            usual = train(seed, num_clips=2, **stride)
            clips = train(seed, TemporalJitter(rate=(2, 2)), num_clips=2, **stride)
            for before, after in zip(usual[:, 0], clips, strict=True):
                start = min(before, 43)  # from there 56 frames reach the last one
                moved += start != before
                assert after.tolist() == list(range(start, start + 57, 8))
        assert moved > 50

    def test_half_as_fast(self, stride):
        for seed in range(50):
            first = train(seed, **stride)[0, 0]
            clip = train(seed, TemporalJitter(rate=[0.5, 0.5]), **stride)[0]
            assert clip.tolist() == list(range(first, first + 15, 2))

    def test_a_clip_never_becomes_longer_than_the_video(self, stride):
        clip = train(0, TemporalJitter(rate=(4, 4)), HUNDRED[:50], short_video_policy="error", **stride)[0]
        assert clip.tolist() == [0, 7, 14, 21, 28, 35, 42, 49]

    def test_short_videos_are_only_slowed_down(self, stride):
        usual = train(0, timestamps=HUNDRED[:20], **stride)
        assert usual.tolist() == [[0, 4, 8, 12, 16, 19, 19, 19]]
        assert train(0, TemporalJitter(rate=(2, 2)), HUNDRED[:20], **stride).tolist() == usual.tolist()
        slow = train(0, TemporalJitter(rate=(0.5, 0.5)), HUNDRED[:20], **stride)
        assert slow.tolist() == [[0, 2, 4, 6, 8, 10, 12, 14]]

    def test_stays_in_the_video_and_in_order(self, stride):
        jitter = TemporalJitter(rate=(0.3, 3))
        for seed in range(300):
            length = 29 + seed % 72
            clips = train(seed, jitter, HUNDRED[:length], num_clips=3, short_video_policy="error", **stride)
            assert clips.min() >= 0 and clips.max() < length and (np.diff(clips) >= 0).all()

    def test_no_overlap_stays_in_its_part(self, stride):
        for seed in range(100):
            first, second = train(seed, TemporalJitter(rate=(0.5, 4)), num_clips=2, overlap=False, **stride)
            assert first.max() < 50 <= second.min()

    def test_off_is_the_same_as_none(self, stride):
        for seed in range(50):
            assert (train(seed, TemporalJitter(), **stride) == train(seed, **stride)).all()


def test_rates_are_log_uniform_and_each_clips_own():
    rates, backwards = TemporalJitter(rate=(0.5, 2.0)).draw(20_000, np.random.default_rng(0))
    counts, _ = np.histogram(np.log2(rates), bins=8, range=(-1, 1))
    assert counts.sum() == 20_000 and counts.min() > 2300 and counts.max() < 2700  # 2500 expected, deviation 47
    assert not backwards.any()


def test_variable_frame_rate():
    # one second at 10 fps, then one at 40 fps; one clip that covers it all, at double speed
    timestamps = np.concatenate([np.arange(10) / 10, 1 + np.arange(40) / 40])
    clip = train(0, TemporalJitter(rate=(2, 2)), timestamps, frames=4, duration=1.3)[0]
    assert clip.tolist() == [0, 6, 22, 48]  # every 0.65 s from the start


class TestReverse:
    def test_always(self):
        for protocol in ({"frame_step": 4}, {"fps": 5.0, "num_clips": 3}, {"sampling": "uniform"}):
            for seed in range(20):
                backwards = train(seed, TemporalJitter(reverse=1.0), **protocol)
                assert (backwards == train(seed, **protocol)[:, ::-1]).all()

    def test_short_video(self):
        clip = train(0, TemporalJitter(reverse=1.0), HUNDRED[:20], frame_step=4)[0]
        assert clip.tolist() == [19, 19, 19, 16, 12, 8, 4, 0]

    def test_as_often_as_asked(self):
        jitter = TemporalJitter(reverse=0.25)
        clips = train(0, jitter, frame_step=4, num_clips=4000)
        turned = (clips[:, 0] > clips[:, -1]).mean()
        assert 0.22 < turned < 0.28

    def test_does_not_change_the_rates(self):
        for seed in range(50):
            forward = train(seed, TemporalJitter(rate=(0.5, 2)), frame_step=4, num_clips=2)
            mixed = train(seed, TemporalJitter(rate=(0.5, 2), reverse=0.5), frame_step=4, num_clips=2)
            assert (np.sort(mixed) == forward).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rate": (2.0, 1.0)}, "the lowest and the highest factor"),
        ({"rate": (0.0, 1.0)}, "both above 0"),
        ({"rate": (1.0, float("inf"))}, "rate="),
        ({"rate": (1.0, float("nan"))}, "rate="),
        ({"rate": (1.0,)}, "rate="),
        ({"reverse": 1.5}, "reverse=1.5: "),
        ({"reverse": -0.1}, "reverse=-0.1"),
    ],
)
def test_refuses_bad_values(settings, message):
    with pytest.raises(UserError, match=message):
        TemporalJitter(**settings)


def test_uniform_has_no_rate():
    with pytest.raises(UserError, match=r"rate=\[0.5, 2.0\]"):
        train(0, TemporalJitter(rate=(0.5, 2.0)), sampling="uniform")


def test_is_for_training():
    with pytest.raises(ValueError, match="for training"):
        clip_indices(100, HUNDRED, ClipProtocol(8, frame_step=4), None, jitter=TemporalJitter())
