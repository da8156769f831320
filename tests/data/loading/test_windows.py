"""Windows over videos: where they lie, and that their clips are those of the same parts read as videos of their own."""

import numpy as np
import pytest
import torch

from vidtrain.data.augment.geometry import CenterCrops
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.loaders import eval_loader
from vidtrain.data.loading.quarantine import Quarantine
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.loading.windows import (
    Chunk,
    LengthDataset,
    WindowDataset,
    chunks_of,
    clip_seconds,
    tasks_of,
    window_starts,
)
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sampling.clips import ClipProtocol


def test_windows_lie_within_the_video_and_the_last_ends_with_it():
    assert window_starts(10.0, 2.0, 2.0, 0.04) == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert window_starts(10.0, 4.0, 2.5, 0.04) == [0.0, 2.5, 5.0, 6.0]
    assert window_starts(10.0, 3.0, 5.0, 0.04) == [0.0, 5.0, 7.0]  # a gap that was asked for
    assert window_starts(10.02, 2.0, 4.0, 0.04) == [0.0, 4.0, 8.0]  # half a frame is no rest
    assert window_starts(9.99, 2.0, 4.0, 0.04) == [0.0, 4.0, 8.0]
    assert window_starts(1.0, 2.0, 0.5, 0.04) == [0.0]
    assert len(window_starts(3600.0, 2.0, 2.0, 0.04)) == 1800


def test_a_clip_spans_its_stride_times_its_frames():
    assert clip_seconds(ClipProtocol(16, frame_step=4), 0.04) == pytest.approx(2.56)
    assert clip_seconds(ClipProtocol(16, fps=8), 0.04) == 2.0
    assert clip_seconds(ClipProtocol(16, duration=3.0), 0.04) == 3.0
    assert clip_seconds(ClipProtocol(16, frame_step=4, sampling="vjepa2"), 0.04) == pytest.approx(2.60)
    assert clip_seconds(ClipProtocol(16, sampling="uniform"), 0.04) is None


def test_chunks_fill_batches_in_order():
    chunks = list(chunks_of("a", [0.0, 1.0, 2.0, 3.0, 4.0], 2.0, at_once=2))
    assert [chunk.starts for chunk in chunks] == [(0.0, 1.0), (2.0, 3.0), (4.0,)]
    tasks = tasks_of([2, 2, 1, 1, 2, 1], at_once=4)
    assert [[key.record for key in task] for task in tasks] == [[0, 1], [2, 3, 4], [5]]
    assert tasks_of([], 4) == []


@pytest.fixture(scope="module")
def video(tmp_path_factory, write_video, patches) -> str:
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", patches(60), b_frames=2)


def dataset_of(protocol, *records, crops=1):
    geometry = CenterCrops(crops=crops)
    return VideoDataset(Manifest(records, ("x",)), protocol, geometry, (32, 32), 0, training=False)


def windowed(protocol, *chunks, crops=1):
    videos = dataset_of(protocol, *(Record(chunk.path, 0, "g") for chunk in chunks), crops=crops)
    return WindowDataset(videos, chunks)


def test_frames_of_windows_by_hand(video):
    """25 frames a second: a window of 0.32 s has 8 frames, and the clip of 4, 2 apart, starts in it at frame 0."""
    dataset = windowed(ClipProtocol(4, frame_step=2), Chunk(video, (0.0, 0.4, 2.08), 0.32))
    frames = dataset.views(dataset.chunks[0]).frames
    assert frames[:, 0].tolist() == [[0, 2, 4, 6], [10, 12, 14, 16], [52, 54, 56, 58]]
    # between two frames a window begins with the one that is shown
    dataset = windowed(ClipProtocol(4, frame_step=1), Chunk(video, (0.05, 0.11), 0.16))
    assert dataset.views(dataset.chunks[0]).frames[:, 0].tolist() == [[1, 2, 3, 4], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    "protocol",
    [
        ClipProtocol(4, frame_step=2),
        ClipProtocol(4, fps=10, num_clips=2),
        ClipProtocol(4, sampling="uniform"),
        ClipProtocol(4, frame_step=2, sampling="vjepa2"),
    ],
    ids=lambda protocol: protocol.sampling,
)
def test_a_window_is_shown_as_a_video_of_its_own(video, protocol):
    chunk = Chunk(video, (0.0, 0.4, 0.8, 1.6), 0.8)
    found = windowed(protocol, chunk, crops=2)[SampleKey(0, 0)]
    assert found.clips.shape == (4, 2 * protocol.num_clips, 3, 4, 32, 32) and not found.faults
    cuts = [Record(video, 0, "g", start=start, end=start + 0.8) for start in chunk.starts]
    alone = dataset_of(protocol, *cuts, crops=2)
    for window, _ in enumerate(cuts):
        assert torch.equal(found.clips[window], alone[SampleKey(0, window)].clips[0])


def test_a_whole_video_is_shown_as_evaluation_shows_it(video):
    protocol = ClipProtocol(4, frame_step=3, num_clips=2)
    found = windowed(protocol, Chunk(video))[SampleKey(0, 0)]
    alone = dataset_of(protocol, Record(video, 0, "g"))[SampleKey(0, 0)]
    assert torch.equal(found.clips, alone.clips) and torch.equal(found.seeds, alone.seeds)


def test_what_cannot_be_shown_is_one_fault_and_the_rest_goes_on(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    protocol = ClipProtocol(4, frame_step=30, short_video_policy="error")
    refused, absent, broken = Chunk(video), Chunk("absent.mp4"), Chunk(str(tmp_path / "broken.mp4"))
    fits = Chunk(video, (0.0,), None)
    dataset = windowed(protocol, refused, absent, broken, fits)
    batches = list(eval_loader(dataset, tasks_of([1, 1, 1, 1], 3), 1, pin_memory=False))
    assert [fault.path for fault in batches[0].faults] == [video, "absent.mp4", broken.path]
    assert "clip.short_video_policy" in batches[0].faults[0].cause or "short" in batches[0].faults[0].cause
    assert batches[0].faults[1].cause == "No such file or directory"
    assert batches[0].refusal is None and not len(batches[0].indices)


def test_lengths_come_from_workers(video, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    paths = [video, str(tmp_path / "broken.mp4")]
    dataset = LengthDataset(paths, VideoIndex(None), None, Quarantine())
    (batch,) = eval_loader(dataset, [[SampleKey(0, 0), SampleKey(0, 1)]], 1, pin_memory=False)
    np.testing.assert_allclose(batch.clips[0], [2.4, 0.04, 0.0])
    assert batch.indices.tolist() == [0] and [fault.path for fault in batch.faults] == paths[1:]
