"""Clips of files elsewhere: the bits of local ones, few requests, and faults that end."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from store_server import forget_clients, serving

from vidtrain.data.augment.geometry import CenterCrops, RandomResizedCrop
from vidtrain.data.decoding.decoder import refused_frames
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.loaders import eval_loader, train_loader
from vidtrain.data.loading.samplers import EvalShard, TrainStream
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.data.stores import objects
from vidtrain.data.stores.files import merged
from vidtrain.errors import UserError

NAMES = tuple(f"{'cat' if number % 2 else 'dog'}/{name}.mp4" for number, name in enumerate("abcdefgh"))
PROTOCOL = ClipProtocol(frames=4, frame_step=3)


def dataset(paths, training=True, index=None, **more) -> VideoDataset:
    manifest = Manifest([Record(path, number % 2, path) for number, path in enumerate(paths)], ["dog", "cat"])
    geometry = RandomResizedCrop(scale=(0.3, 0.8), flip=0.5) if training else CenterCrops()
    return VideoDataset(manifest, PROTOCOL, geometry, (24, 32), 3, training, index=index or VideoIndex(None), **more)


def batches(paths, workers=0, index=None, **more):
    stream = TrainStream(len(paths), batch_size=3, seed=5, start_step=0, stop_step=6)
    return list(train_loader(dataset(paths, index=index, **more), stream, workers, False))


def assert_same(one, other):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.clips.shape[0] and torch.equal(a.clips, b.clips) and torch.equal(a.seeds, b.seeds)
        assert torch.equal(a.indices, b.indices) and not a.faults and not b.faults


def drawn(paths):
    stream = TrainStream(len(paths), batch_size=3, seed=5, start_step=0, stop_step=6)
    return [(paths[key.record], key) for keys in stream for key in keys]


def needed_bytes(video, index, key) -> int:
    """Bytes of the packets from the clean start to the last frame of the clip that is drawn for `key`."""
    data = dataset([video.path], index=index)
    plan = data.plan(data.manifest[0], (3, *key), video)
    frames = np.concatenate([frames for frames, _ in plan.views])
    table = video.packets
    numbers = table.order[frames]
    return int(table.sizes[table.start_of(int(frames.min())) : int(numbers.max()) + 1].sum())


@pytest.fixture(scope="module")
def local(videos):
    return batches([str(videos / name) for name in NAMES])


def tar_of(videos: Path, path: Path) -> list[str]:
    with tarfile.open(path, "w") as archive:
        for name in NAMES:
            archive.add(videos / name, name)
    with tarfile.open(path) as archive:
        return [f"::{member.name}@{member.offset_data}+{member.size}" for member in archive]


class TestSameBits:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_http(self, local, store, workers, tmp_path):
        paths = [f"{store.url}/{name}" for name in NAMES]
        index = VideoIndex(tmp_path / "videos.sqlite")
        assert_same(batches(paths, workers, index), local)
        assert_same(batches(paths, workers, index), local)  # with the index made, by ranges

    def test_members_of_tar_files(self, videos, local, tmp_path):
        names = tar_of(videos, tmp_path / "0.tar")
        paths = [f"{tmp_path}/0.tar{name}" for name in names]
        assert_same(batches(paths), local)
        with serving(tmp_path) as store:
            index = VideoIndex(tmp_path / "videos.sqlite")
            for _ in range(2):
                assert_same(batches([f"{store.url}/0.tar{name}" for name in names], index=index), local)

    @pytest.mark.slow
    def test_s3(self, videos, local, tmp_path, s3):
        for name in NAMES:
            s3.upload_file(str(videos / name), "videos", name)
        index = VideoIndex(tmp_path / "videos.sqlite")
        for _ in range(2):
            assert_same(batches([f"s3://videos/{name}" for name in NAMES], 2, index), local)
        with pytest.raises(DecodeError, match="no such object"):
            VideoIndex(None).info("s3://videos/none.mp4")
        assert b"hunter22" not in (tmp_path / "videos.sqlite").read_bytes()

    def test_any_filesystem(self, videos, local):
        assert_same(batches([f"file://{videos}/{name}" for name in NAMES]), local)

    def test_odd_names(self, videos, store):
        name = "ö 1#2?x=3%41.mp4"
        from vidtrain.data.stores.places import joined

        url = joined(f"{store.url}/dog", name)
        ours, theirs = read_metadata(url), read_metadata(str(videos / "dog" / name))
        assert ours.digest == theirs.digest and ours.num_frames == 64

    def test_evaluation(self, videos, store):
        def clips(paths):
            return list(eval_loader(dataset(paths, False), EvalShard(len(paths), 3), 0, False))

        assert_same(clips([f"{store.url}/{name}" for name in NAMES]), clips([str(videos / name) for name in NAMES]))

    def test_a_video_that_is_read_from_its_beginning(self, videos, store):
        """One without byte ranges, as the whole file."""
        from dataclasses import replace

        url, path = f"{store.url}/{NAMES[0]}", str(videos / NAMES[0])
        assert refused_frames(replace(read_metadata(url), packets=None)) == []
        assert read_metadata(url).digest == read_metadata(path).digest


class TestRequests:
    @pytest.mark.parametrize("place", ["http", "tar"])
    def test_few_and_small(self, videos, place, tmp_path):
        """Three requests a clip at most, the status among them, and 1.1 times its packets' bytes."""
        names = tar_of(videos, videos / "0.tar")
        index = VideoIndex(tmp_path / "videos.sqlite")
        with serving(videos) as store:
            paths = [f"{store.url}/{name}" for name in NAMES]
            if place == "tar":
                paths = [f"{store.url}/0.tar{name}" for name in names]
            infos = {path: index.info(path) for path in paths}
            objects._looks.clear()
            store.requests.clear()
            read = batches(paths, index=index)
        (videos / "0.tar").unlink()
        gets = [asked for asked in store.requests if asked.method == "GET"]
        assert sum(len(batch.clips) for batch in read) == 18
        assert len(gets) == 36 and len(store.requests) == 36 + (8 if place == "http" else 1)  # of 54
        packets = sum(needed_bytes(infos[path], index, key) for path, key in drawn(paths))
        assert store.bytes_asked <= 1.1 * packets < 0.7 * 18 * 44_802  # bytes of the largest
        assert sum(batch.store.requests for batch in read) == len(store.requests)
        assert sum(batch.store.bytes for batch in read) == store.bytes_asked

    def test_latency_is_hidden(self, store, tmp_path):
        """All clips of a batch are asked for before the first is decoded."""
        paths = [f"{store.url}/{name}" for name in NAMES]
        index = VideoIndex(tmp_path / "videos.sqlite")
        for path in paths:
            index.info(path)
        data = dataset(paths, index=index)
        keys = next(iter(TrainStream(len(paths), batch_size=8, seed=5, start_step=0, stop_step=1)))
        data.ahead.expect(data, keys)
        data.ahead.ask(data)
        assert len(data.ahead._asked) == 8

    @pytest.mark.parametrize(
        "ranges, most, joint",
        [
            ([(0, 100), (105, 200)], 3, [(0, 200)]),  # 5 bytes too many of 195
            ([(0, 100), (150, 200)], 3, [(0, 100), (150, 200)]),
            ([(0, 100), (150, 200)], 1, [(0, 200)]),
            ([(150, 200), (0, 100), (100, 150)], 3, [(0, 200)]),
            ([(0, 100), (104, 204), (500, 600), (900, 1000)], 2, [(0, 600), (900, 1000)]),
            ([(0, 100), (20, 50)], 3, [(0, 100)]),
            # sound between the pictures: the last gap costs less than a request
            ([(at, at + 100) for at in range(0, 2300, 115)], 2, [(0, 2285)]),
            ([*((at, at + 100) for at in range(0, 1300, 130)), (1360, 1460)], 2, [(0, 1270), (1360, 1460)]),
        ],
    )
    def test_merging(self, ranges, most, joint):
        assert merged(ranges, most) == joint


class TestFaults:
    @pytest.mark.parametrize("kind", ["503", "reset", "short", "stall"])
    def test_some_answers_fail(self, local, store, kind, monkeypatch, tmp_path):
        monkeypatch.setattr(objects, "REQUEST_SECONDS", 0.5)
        most = 24 if kind == "stall" else 1000  # three answers, as each is waited for
        store.fault = lambda number: kind if number % 7 == 3 and number < most else None
        index = VideoIndex(tmp_path / "videos.sqlite")
        assert_same(batches([f"{store.url}/{name}" for name in NAMES], 2 if kind == "503" else 0, index), local)

    @pytest.mark.parametrize(
        "kind, cause",
        [("503", "503"), ("stall", "in time"), ("short", "6 times"), ("403", "credentials")],
    )
    def test_all_answers_fail(self, store, kind, cause, monkeypatch):
        url = f"{store.url}/{NAMES[0]}"
        read_metadata(url)
        monkeypatch.setattr(objects, "REQUEST_SECONDS", 0.05 if kind == "stall" else 0.2)
        objects._looks.clear() if kind != "short" else None
        from vidtrain.data.stores import files

        files._last.clear()
        store.fault = lambda number: kind
        with pytest.raises(DecodeError, match=cause) as error:
            VideoIndex(None).info(url)
        assert error.value.path == url

    def test_a_video_that_is_not_there_is_replaced(self, store):
        (batch,) = list(
            train_loader(
                dataset([f"{store.url}/{NAMES[0]}", f"{store.url}/none.mp4"]),
                TrainStream(2, batch_size=2, seed=5, start_step=0, stop_step=1),
                0,
                False,
            )
        )
        assert len(batch.clips) == 2 and {fault.path for fault in batch.faults} == {f"{store.url}/none.mp4"}
        assert "no such object" in batch.faults[0].cause

    def test_a_store_without_ranges(self, videos, local, caplog):
        with serving(videos, ranges=False) as store:
            assert_same(batches([f"{store.url}/{name}" for name in NAMES]), local)
        assert [record for record in caplog.records if "no ranges" in record.message].__len__() == 1

    def test_a_changed_object_is_read_anew(self, videos, tmp_path):
        from .conftest import write_textured

        write_textured(tmp_path / "a.mp4", 1)
        index = VideoIndex(tmp_path / "videos.sqlite")
        with serving(tmp_path) as store:
            assert index.info(f"{store.url}/a.mp4").num_frames == 64
            write_textured(tmp_path / "a.mp4", 2, frames=32)
            os.utime(tmp_path / "a.mp4", (1, 1))
            objects._looks.clear()
            assert index.info(f"{store.url}/a.mp4").num_frames == 32

    @pytest.mark.slow
    @pytest.mark.parametrize("place", ["http", "s3"])
    def test_an_object_that_changes_meanwhile_is_noticed(self, videos, tmp_path, place, monkeypatch, caplog):
        """No clip is of both: a request says of which version it wants a range, and the new one is looked at."""
        (tmp_path / "v").mkdir()
        path = tmp_path / "v" / "a.mp4"
        path.write_bytes((videos / NAMES[0]).read_bytes())
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        with serving(tmp_path) as store:
            monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
            forget_clients()
            url = f"{store.url}/v/a.mp4" if place == "http" else "s3://v/a.mp4"
            index = VideoIndex(tmp_path / "videos.sqlite")
            assert index.info(url).num_frames == 64
            path.write_bytes((videos / NAMES[1]).read_bytes())
            changed = batches([url], index=index)
        assert [record.getMessage() for record in caplog.records] == [
            f"{url} has changed in the store; its new version is read"
        ]
        assert_same(changed, batches([str(path)]))

    @pytest.mark.slow
    @pytest.mark.parametrize("noticed", ["by its tag", "by the clock"])
    def test_a_changed_object_is_looked_at_where_a_listing_told_of_the_earlier_one(self, s3, noticed, monkeypatch):
        monkeypatch.setattr(objects, "STATUS_SECONDS", 60.0 if noticed == "by its tag" else 0.0)
        url = "s3://videos/changed/a.mp4"
        s3.put_object(Bucket="videos", Key="changed/a.mp4", Body=bytes(100))
        assert objects.objects_at("s3://videos/changed") == [url] and objects.status_of(url).size == 100
        s3.put_object(Bucket="videos", Key="changed/a.mp4", Body=bytes(70))
        if noticed == "by its tag":
            with pytest.raises(objects.ChangedError):
                objects.waited(objects.ask(url, [(0, 10)]))
        assert objects.status_of(url).size == 70

    def test_a_cut_tar(self, videos, tmp_path):
        names = tar_of(videos, tmp_path / "0.tar")
        os.truncate(tmp_path / "0.tar", 200_000)
        with serving(tmp_path) as store:
            for place in (str(tmp_path), store.url):
                with pytest.raises(DecodeError, match=r"0\.tar is cut"):
                    VideoIndex(None).info(f"{place}/0.tar{names[-1]}")

    def test_an_extra_that_is_missing(self, monkeypatch):
        def missing(*args, **kwargs):
            raise ImportError("Install s3fs to access S3")

        monkeypatch.setattr(objects, "url_to_fs", missing)
        with pytest.raises(UserError, match="uv sync --extra remote"):
            VideoIndex(None).info("s3://bucket/a.mp4")
        monkeypatch.undo()
        with pytest.raises(UserError, match="nosuch"):
            VideoIndex(None).info("nosuch://bucket/a.mp4")


def test_frames_are_those_of_the_file(videos, store):
    path, url = str(videos / NAMES[0]), f"{store.url}/{NAMES[0]}"
    ours, theirs = read_metadata(url), read_metadata(path)
    assert np.array_equal(ours.packets.positions, theirs.packets.positions)
    assert np.array_equal(ours.ticks, theirs.ticks) and ours.digest == theirs.digest
