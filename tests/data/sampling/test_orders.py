"""Frames read once, shown in every order: the same as reading them in that order."""

from dataclasses import replace

import numpy as np
import pytest

from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.data.sampling.temporal import FRAME_ORDERS, frame_picks


def test_which_frames_an_order_shows():
    assert frame_picks("forward", 4).tolist() == [0, 1, 2, 3]
    assert frame_picks("reversed", 4).tolist() == [3, 2, 1, 0]
    assert frame_picks("single_frame", 4).tolist() == [4, 4, 4, 4]
    assert sorted(frame_picks("shuffled", 4).tolist()) == [0, 1, 2, 3] != frame_picks("shuffled", 4).tolist()


@pytest.mark.parametrize("order", FRAME_ORDERS)
@pytest.mark.parametrize(
    "protocol",
    [
        ClipProtocol(8, frame_step=3, num_clips=3),
        ClipProtocol(5, fps=7.0, num_clips=2, short_video_policy="wrap"),
        ClipProtocol(8, duration=2.0, overlap=False, num_clips=2),
        ClipProtocol(6, sampling="uniform", num_clips=4),
        ClipProtocol(8, frame_step=2, sampling="vjepa2", num_clips=2),
    ],
    ids=lambda each: f"{each.sampling}-{each.frames}",
)
def test_one_reading_serves_all_orders(order, protocol):
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 200))
    for frames in (3, 20, 41, 200):
        expected = clip_indices(frames, times[:frames], replace(protocol, frame_order=order), None)
        read = clip_indices(frames, times[:frames], replace(protocol, middle=True), None)
        assert read.shape == (protocol.num_clips, protocol.frames + 1)
        assert np.array_equal(read[:, frame_picks(order, protocol.frames)], expected)
