"""What a sample is: a function of (seed, epoch, index), or a fault with a name."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from vidtrain.data.augment.geometry import CenterCrops, RandomResizedCrop, ShortSideCrop, WholeFrame
from vidtrain.data.loading.dataset import Batch, Fault, VideoDataset, collate, draw
from vidtrain.data.loading.loaders import eval_loader, train_loader
from vidtrain.data.loading.samplers import EvalShard, SampleKey, TrainStream
from vidtrain.data.manifest.manifest import Manifest, Record, SourceInfo
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.data.sampling.temporal import TemporalJitter

SIZE = (24, 32)
PROTOCOL = ClipProtocol(frames=2, frame_step=2)
CROPS = RandomResizedCrop(scale=(0.3, 0.8), flip=0.5)


def write_video(path: Path, frames: Sequence[np.ndarray]) -> str:
    """An H.264 file of RGB `frames` [h w 3]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "4", "preset": "veryfast"})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def textured(number: int, count: int = 12) -> list[np.ndarray]:
    """Frames 64 x 48 of gray patches, another picture for each `number`, that brighten over time."""
    patches = np.random.default_rng(number).integers(0, 130, (12, 16), dtype=np.uint8)
    picture = np.repeat(np.kron(patches, np.ones((4, 4), np.uint8))[..., None], 3, axis=2)
    return [picture + np.uint8(10 * i) for i in range(count)]


def halves(count: int = 12) -> list[np.ndarray]:
    """Frames 64 x 32: frame i is gray 10 i in its left half and 10 i + 120 in its right half."""
    frames = np.repeat(10 * np.arange(count, dtype=np.uint8), 32 * 64 * 3).reshape(count, 32, 64, 3)
    frames[:, :, 32:] += 120
    return list(frames)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six textured videos 0.mp4..5.mp4, one of halves, one of no bytes and one of bytes that mean nothing."""
    root = tmp_path_factory.mktemp("videos")
    for number in range(6):
        write_video(root / f"{number}.mp4", textured(number))
    write_video(root / "halves.mp4", halves())
    (root / "empty.mp4").write_bytes(b"")
    (root / "garbage.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    return root


def manifest(folder: Path, *names: str) -> Manifest:
    """The named videos, with labels 0, 1, 0, 1, ..."""
    records = [Record(str(folder / f"{name}.mp4"), i % 2, name) for i, name in enumerate(names)]
    return Manifest(records, ["even", "odd"])


def training(folder: Path, *names: str, protocol=PROTOCOL, geometry=CROPS, seed=0, max_retries=3):
    return VideoDataset(manifest(folder, *names), protocol, geometry, SIZE, seed, True, max_retries)


def evaluation(folder: Path, *names: str, protocol=PROTOCOL, crops: int = 1, size=(32, 32)):
    return VideoDataset(manifest(folder, *names), protocol, CenterCrops(crops=crops), size, 0, False)


def same(a: Batch, b: Batch) -> bool:
    tensors = zip(a[:4], b[:4], strict=True)
    return all(torch.equal(x, y) for x, y in tensors) and a[4:6] == b[4:6]  # not what the clock says of stores


SOUND = ("0", "1", "2", "3", "4", "5")
MIXED = ("0", "1", "empty", "2", "garbage", "3", "4", "5")


class TestTraining:
    def test_shapes(self, folder):
        sample = training(folder, *SOUND, protocol=ClipProtocol(4, frame_step=2, num_clips=3))[SampleKey(0, 3)]
        assert (sample.clips.shape, sample.clips.dtype) == ((1, 3, 3, 4, 24, 32), torch.uint8)
        assert (sample.seeds.shape, sample.seeds.dtype) == ((1, 3), torch.int64)
        assert (int(sample.target), sample.record, sample.faults, sample.refusal) == (1, 3, [], None)

    @pytest.mark.parametrize("geometry", [CROPS, ShortSideCrop((1.0, 1.5))])
    def test_only_the_key_matters(self, folder, geometry):
        """Not what was read before, not the global generators, not another object of the same settings."""
        dataset = training(folder, *SOUND, geometry=geometry)
        first = dataset[SampleKey(2, 4)]
        torch.manual_seed(123)
        np.random.seed(123)
        dataset[SampleKey(0, 0)]
        for again in (dataset, training(folder, *SOUND, geometry=geometry)):
            assert same(collate([again[SampleKey(2, 4)]]), collate([first]))

    def test_seed_epoch_and_index_all_matter(self, folder):
        """Even for one and the same file, listed twice."""
        names = ("0", "0")
        keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]  # seed, epoch, index
        samples = [training(folder, *names, seed=seed)[SampleKey(*key)] for seed, *key in keys]
        for i, a in enumerate(samples):
            for b in samples[i + 1 :]:
                assert not torch.equal(a.clips, b.clips) and not torch.equal(a.seeds, b.seeds)

    def test_every_epoch_differs(self, folder):
        dataset = training(folder, *SOUND)
        clips = [dataset[SampleKey(epoch, 1)].clips.numpy().tobytes() for epoch in range(8)]
        assert len(set(clips)) == 8

    def test_another_clip_does_not_shift_the_first(self, folder):
        """In a video shorter than a clip all clips hold the same frames, so that only the crops can differ."""
        one, three = (
            training(folder, "0", protocol=ClipProtocol(6, frame_step=4, num_clips=n))[SampleKey(5, 0)] for n in (1, 3)
        )
        assert torch.equal(one.clips[0, 0], three.clips[0, 0])
        assert one.seeds[0, 0] == three.seeds[0, 0]
        assert len({clip.numpy().tobytes() for clip in three.clips[0]}) == 3
        assert len(set(three.seeds[0].tolist())) == 3

    def test_frames_follow_the_draw_in_time(self, folder):
        """The gray of a frame tells which one it is; 12 frames leave room for starts 0..9."""
        whole = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
        dataset = VideoDataset(manifest(folder, "halves"), PROTOCOL, whole, (32, 64), 0, True)
        starts = set()
        for epoch in range(30):
            gray = dataset[SampleKey(epoch, 0)].clips[0, 0, :, :, :, :28].float().mean(dim=(0, 2, 3))
            first, second = (gray / 10).round().tolist()
            assert second == first + 2
            starts.add(int(first))
        assert starts <= set(range(10)) and len(starts) >= 7

    def test_any_number_of_workers_reads_the_same(self, folder):
        """Three steps of four over eight files, two of them broken, into the second pass."""
        dataset = training(folder, *MIXED, protocol=ClipProtocol(2, frame_step=2, num_clips=2))
        stream = TrainStream(len(dataset), batch_size=4, seed=0, start_step=0, stop_step=3)
        read = [list(train_loader(dataset, stream, workers, pin_memory=False)) for workers in (0, 1, 2)]
        assert [len(batches) for batches in read] == [3, 3, 3]
        assert read[0][0].clips.shape == (4, 2, 3, 2, 24, 32)
        assert {Path(fault.path).name for batch in read[0] for fault in batch.faults} == {
            "empty.mp4",
            "garbage.mp4",
        }
        for others in read[1:]:
            assert all(same(a, b) for a, b in zip(read[0], others, strict=True))

    def test_accumulation_reads_the_same(self, folder):
        dataset = training(folder, *SOUND)
        whole, parts = (
            list(train_loader(dataset, TrainStream(6, 4, 0, 0, 1, accumulation), 0, pin_memory=False))
            for accumulation in (1, 2)
        )
        assert [len(batch.labels) for batch in parts] == [2, 2]
        assert torch.equal(whole[0].clips, torch.cat([batch.clips for batch in parts]))

    def test_copies_are_augmented_differently_and_the_first_is_what_one_would_be(self, folder):
        protocol = ClipProtocol(2, frame_step=2, num_clips=2)
        dataset = training(folder, *SOUND, protocol=protocol)
        one, three = (replace(dataset, copies=copies)[SampleKey(1, 2)] for copies in (1, 3))
        assert (three.clips.shape, three.seeds.shape) == ((3, 2, 3, 2, 24, 32), (3, 2))
        assert torch.equal(three.clips[:1], one.clips) and torch.equal(three.seeds[:1], one.seeds)
        assert len({clip.numpy().tobytes() for clip in three.clips.flatten(0, 1)}) == 6
        batch = collate([three, replace(dataset, copies=3)[SampleKey(1, 3)]])
        assert batch.clips.shape[:2] == (6, 2) and batch.seeds.shape == (6, 2)
        assert batch.labels.tolist() == [0, 0, 0, 1, 1, 1] and batch.indices.tolist() == [2, 2, 2, 3, 3, 3]

    def test_a_cut_shows_its_part_only(self, folder):
        """Frames 5, 6 and 7 of the halves, at 0.2, 0.24 and 0.28 s."""
        path = str(folder / "halves.mp4")
        whole = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
        cut = Manifest([Record(path, 0, "a", start=0.2, end=0.3)], ["a"])
        dataset = VideoDataset(cut, ClipProtocol(1, frame_step=1), whole, (32, 64), 0, True)
        seen = set()
        for epoch in range(20):
            gray = dataset[SampleKey(epoch, 0)].clips[0, 0, :, :, :, :28].float().mean()
            seen.add(int((gray / 10).round()))
        assert seen == {5, 6, 7}

    def test_each_source_has_its_frames_and_its_own_replacements(self, folder):
        records = [
            Record(str(folder / f"{name}.mp4"), 0, name, source=source)
            for name, source in (("0", 0), ("1", 1), ("empty", 1), ("2", 0), ("3", 0))
        ]
        sources = [SourceInfo("short", 1.0, None), SourceInfo("long", 3.0, 6)]
        mixed = Manifest(records, ["a"], sources=sources)
        dataset = VideoDataset(mixed, PROTOCOL, CROPS, SIZE, 0, True)
        assert [dataset[SampleKey(0, i)].clips.shape[3] for i in (0, 1, 3)] == [2, 6, 2]
        for epoch in range(6):  # only 1 is of the same source and sound
            sample = dataset[SampleKey(epoch, 2)]
            assert sample.refusal or (sample.record == 1 and sample.clips.shape[3] == 6)

    def test_many_labels(self, folder):
        records = [
            Record(str(folder / "0.mp4"), 2, "0", labels=(2, 0)),
            Record(str(folder / "1.mp4"), 1, "1"),
        ]
        dataset = VideoDataset(Manifest(records, ["a", "b", "c"]), PROTOCOL, CROPS, SIZE, 0, True)
        batch = collate([dataset[SampleKey(0, index)] for index in (0, 1)])
        assert batch.labels.tolist() == [[1, 0, 1], [0, 1, 0]] and batch.labels.dtype == torch.float32

    def test_motion_shift_and_jitter(self, folder):
        """A box for every frame, and frames further apart or backwards."""
        shift = RandomResizedCrop(scale=(0.3, 0.5), motion_shift=True)
        dataset = training(folder, *SOUND, protocol=ClipProtocol(6, frame_step=1), geometry=shift)
        still = replace(dataset, geometry=replace(shift, motion_shift=False))
        assert not torch.equal(dataset[SampleKey(0, 0)].clips, still[SampleKey(0, 0)].clips)
        whole = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0)
        halves = VideoDataset(manifest(folder, "halves"), PROTOCOL, whole, (32, 64), 0, True)
        backwards = replace(halves, jitter=TemporalJitter(reverse=1.0))
        for epoch in range(3):
            forward, reversed_ = (each[SampleKey(epoch, 0)].clips for each in (halves, backwards))
            assert torch.equal(forward.flip(3), reversed_)


class TestUnreadableInTraining:
    @pytest.mark.parametrize("broken", ["empty", "garbage", "absent"])
    def test_replaced_by_a_sound_one_and_named(self, folder, broken):
        dataset = training(folder, "0", "1", broken, "2", "3")
        sample = dataset[SampleKey(0, 2)]
        assert {Path(fault.path).name for fault in sample.faults} == {f"{broken}.mp4"}
        assert all(fault.cause for fault in sample.faults)
        assert sample.refusal is None and sample.record in (0, 1, 3, 4)
        # the replacement is what this epoch reads at that index, label and all
        expected = dataset[SampleKey(0, sample.record)]
        assert torch.equal(sample.clips, expected.clips) and torch.equal(sample.seeds, expected.seeds)
        assert int(sample.target) == [0, 1, 0, 1, 0][sample.record]
        again = dataset[SampleKey(0, 2)]
        assert (again.record, again.faults) == (sample.record, sample.faults)

    def test_causes(self, folder):
        read = [training(folder, "0", name)[SampleKey(0, 1)] for name in ("empty", "garbage", "absent")]
        assert [sample.faults[0] for sample in read] == [
            Fault(str(folder / "empty.mp4"), "the file is empty"),
            Fault(str(folder / "garbage.mp4"), "Invalid data found when processing input"),
            Fault(str(folder / "absent.mp4"), "No such file or directory"),
        ]

    def test_the_replacement_changes_with_the_epoch(self, folder):
        dataset = training(folder, *SOUND, "empty", max_retries=9)
        assert len({dataset[SampleKey(epoch, 6)].index for epoch in range(12)}) >= 4

    def test_a_cut_behind_the_end_is_a_fault_of_its_record(self, folder):
        path = str(folder / "0.mp4")
        records = [Record(path, 0, "a"), Record(path, 1, "a", start=500.0, end=510.0)]
        fault = Fault(path, "no frame appears from 500 s to 510 s of a video that lasts 0.48 s; correct the start and "
                            "end times of this record")  # fmt: skip
        train = VideoDataset(Manifest(records, ["a", "b"]), PROTOCOL, CROPS, SIZE, 0, True, 9)
        sample = train[SampleKey(0, 1)]
        assert set(sample.faults) == {fault} and (sample.record, sample.refusal) == (0, None)
        found = VideoDataset(Manifest(records, ["a", "b"]), PROTOCOL, CenterCrops(), SIZE, 0, False)[SampleKey(0, 1)]
        assert (found.clips, found.faults, found.refusal) == (None, [fault], None)

    @pytest.mark.parametrize("max_retries", [0, 2])
    def test_too_many_in_a_row_are_refused(self, folder, max_retries):
        dataset = training(folder, "empty", "empty", max_retries=max_retries)
        sample = dataset[SampleKey(0, 0)]
        line = f"\n  {folder / 'empty.mp4'}: the file is empty"
        count = max_retries + 1
        assert sample.clips is None and len(sample.faults) == count
        assert sample.refusal == f"{count} videos in a row could not be read:" + count * line

    @pytest.mark.parametrize("workers", [0, 1])
    def test_refusal_arrives_with_the_batch(self, folder, workers):
        dataset = training(folder, "empty", "garbage")
        (batch,) = train_loader(dataset, TrainStream(2, 2, 0, 0, 1), workers, pin_memory=False)
        assert batch.refusal.startswith("4 videos in a row could not be read:\n")
        assert (len(batch.labels), len(batch.faults)) == (0, 8)

    def test_a_video_that_the_protocol_forbids_is_refused_by_name(self, folder):
        """It can be read, so it is a fault of the settings and nothing replaces it."""
        protocol = ClipProtocol(frames=16, frame_step=1, short_video_policy="error")
        for dataset in (
            training(folder, "0", "1", protocol=protocol),
            evaluation(folder, "0", "1", protocol=protocol),
        ):
            sample = dataset[SampleKey(0, 1)]
            assert sample.clips is None and sample.faults == []
            assert sample.refusal.startswith(f"{folder / '1.mp4'}: the video is too short for a clip")
            assert collate([sample]).refusal == sample.refusal


class TestEvaluation:
    def test_views_are_clip_major(self, folder):
        """Clips start at the frames 0 and 9; of each, the left crop comes before the right one."""
        protocol = ClipProtocol(frames=2, frame_step=2, num_clips=2)
        sample = evaluation(folder, "halves", protocol=protocol, crops=2)[SampleKey(0, 0)]
        assert sample.clips.shape == (1, 4, 3, 2, 32, 32)
        middles = sample.clips[0, ..., 4:-4].float()
        grays = middles.mean(dim=(1, 3, 4))
        expected = torch.tensor([[0.0, 20], [120, 140], [90, 110], [210, 230]])
        assert (grays - expected).abs().max() < 3
        assert middles.std(dim=(1, 3, 4)).max() < 2
        assert sample.seeds.tolist() == [[0, 0, 0, 0]]

    def test_one_clip_is_centered(self, folder):
        """12 frames, a clip of 3: it starts at frame 4 and shows half of each half."""
        sample = evaluation(folder, "halves")[SampleKey(0, 0)]
        expected = torch.tensor([[40.0, 60], [160, 180]])
        clip = sample.clips[0, 0]
        for side, gray in zip((clip[..., :12], clip[..., -12:]), expected, strict=True):
            assert (side.float().mean(dim=(0, 2, 3)) - gray).abs().max() < 3

    def test_a_whole_frame_keeps_its_shape(self, folder):
        records = manifest(folder, "0", "halves")  # 64x48 and 64x32
        dataset = VideoDataset(records, PROTOCOL, WholeFrame(short_side=24), (20, 20), 0, False)
        shapes = [tuple(dataset[SampleKey(0, i)].clips.shape) for i in (0, 1)]
        assert shapes == [(1, 1, 3, 2, 24, 32), (1, 1, 3, 2, 24, 48)]

    def test_neither_epoch_nor_index_nor_seed_matters(self, folder):
        records = manifest(folder, "3", "4", "3")
        first, *others = (
            VideoDataset(records, PROTOCOL, CenterCrops(1.2, 3), SIZE, seed, False)[SampleKey(epoch, index)]
            for seed, epoch, index in [(0, 0, 0), (0, 7, 0), (5, 0, 0), (0, 0, 2)]
        )
        assert all(torch.equal(first.clips, other.clips) for other in others)

    def test_nothing_replaces_an_unreadable_video(self, folder):
        sample = evaluation(folder, "0", "garbage")[SampleKey(0, 1)]
        assert (sample.clips, sample.record, sample.refusal) == (None, 1, None)
        assert [Path(fault.path).name for fault in sample.faults] == ["garbage.mp4"]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_each_video_once_and_the_unreadable_named(self, folder, workers):
        """Batches of two: (0, 1), (empty, 2), (garbage, 3), (4, 5); read twice, as the loader stays."""
        dataset = evaluation(folder, *MIXED)
        loader = eval_loader(dataset, EvalShard(len(dataset), batch_size=2), workers, pin_memory=False)
        for _ in range(2):
            batches = list(loader)
            assert [batch.indices.tolist() for batch in batches] == [[0, 1], [3], [5], [6, 7]]
            assert [batch.labels.tolist() for batch in batches] == [[0, 1], [1], [1], [0, 1]]
            assert [len(batch.faults) for batch in batches] == [0, 1, 1, 0]
            assert batches[1].faults == [Fault(str(folder / "empty.mp4"), "the file is empty")]

    def test_a_batch_of_nothing_readable(self, folder):
        dataset = evaluation(folder, "empty", "garbage")
        (batch,) = eval_loader(dataset, EvalShard(2, batch_size=2), 1, pin_memory=False)
        assert (len(batch.clips), len(batch.labels), len(batch.indices), len(batch.faults)) == (0, 0, 0, 2)
        assert batch.refusal is None


def test_collate_of_nothing():
    batch = collate([])
    assert [len(tensor) for tensor in batch[:4]] == [0, 0, 0, 0]
    assert [tensor.dtype for tensor in batch[:4]] == [torch.uint8, torch.int64, torch.int64, torch.int64]
    assert (batch.faults, batch.refusal) == ([], None)


def test_draw_depends_on_the_whole_key():
    assert draw(3, 1, 4).integers(2**62) == draw(3, 1, 4).integers(2**62)
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0, 0, 0, 1)]
    assert len({int(draw(*key).integers(2**62)) for key in keys}) == 6
