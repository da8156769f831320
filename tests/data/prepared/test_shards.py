"""Datasets packed into tar files: readable by others, with the records and the clips of the files."""

import csv
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from store_server import serving

from vidtrain.data.decoding.decoder import write_video
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.prepared.shards import pack_dataset
from vidtrain.data.sources.listings import Listing
from vidtrain.data.sources.shards import Shards
from vidtrain.data.stores import objects
from vidtrain.data.stores.archives import ShardIndex, read_shard_index
from vidtrain.data.stores.places import member_of
from vidtrain.errors import UserError
from vidtrain.tracking.console import NullConsole

NAMES = ["a.mp4", "b.c.mp4", "ö 1#2@3.MP4", "broken.mp4", "gone.mp4"]


@pytest.fixture(scope="module")
def splits(tmp_path_factory) -> dict[str, Manifest]:
    root = tmp_path_factory.mktemp("videos")
    rng = np.random.default_rng(0)
    for number, name in enumerate(NAMES[:3]):
        pictures = (rng.integers(0, 256, (32, 48, 3), dtype=np.uint8) for _ in range(10 + number))
        write_video(root / name.lower(), pictures, np.arange(10 + number) / 25)
        (root / name.lower()).rename(root / name)
    (root / "broken.mp4").write_bytes(b"no video")
    train = [Record(f"{root}/{name}", number % 2, f"{root}/{name}") for number, name in enumerate(NAMES)]
    (root / "val.mp4").write_bytes((root / NAMES[0]).read_bytes())
    val = str(root / "val.mp4")
    cut = [Record(val, 1, "person", start=0.1), Record(val, 0, "person", end=0.05)]
    return {"train": Manifest(train, ["run", "jump, high"]), "val": Manifest(cut, ["run", "jump, high"])}


def packed(splits, folder: Path, size=1000):
    folder.mkdir(exist_ok=True)
    index = folder.parent / "index.sqlite"

    def look_at(function, items):
        from vidtrain.data.loading.workers import TaskResult

        return (TaskResult(item, function(item), "") for item in items)

    return pack_dataset(splits, folder, size, index, 36_000_000, look_at, NullConsole())


@pytest.fixture(scope="module")
def folder(splits, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "shards"
    shards, unreadable = packed(splits, folder)
    assert [os.path.basename(path) for path, _ in unreadable] == ["broken.mp4", "gone.mp4"]
    assert [shard.name for shard in shards[-2:]] == ["train-000003.tar", "val-000000.tar"]
    return folder


def test_anyone_reads_them(splits, folder):
    """The bytes of the files, by tarfile; what belongs together has a name in common up to its first dot."""
    content = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            content |= {member.name: archive.extractfile(member).read() for member in archive}
    keys = [f"{number:09}/{stem}" for number, stem in enumerate(["a", "b_c", "ö 1#2_3", "broken", "gone", "val"])]
    assert list(content) == [f"{key}.{kind}" for key in keys for kind in ("mp4", "json")]
    for key, record in zip(keys[:4], splits["train"], strict=False):
        assert content[f"{key}.mp4"] == Path(record.path).read_bytes()
    about = [json.loads(content[f"{key}.json"]) for key in keys]
    assert about[1] == {"path": "b.c.mp4", "labels": ["jump, high"]}


def test_webdataset_reads_them(splits, folder):
    import webdataset

    dataset = webdataset.WebDataset(sorted(map(str, folder.glob("*.tar"))), shardshuffle=False)
    samples = {sample["__key__"]: sample["mp4"] for sample in dataset}
    assert samples["000000001/b_c"] == Path(splits["train"][1].path).read_bytes()


@pytest.mark.parametrize("at_url", [False, True])
def test_records_are_the_same(splits, folder, at_url):
    with serving(folder) as store:
        manifests = Shards(store.url if at_url else str(folder)).manifests()
    for split, manifest in splits.items():
        ours = manifests[split]
        assert ours.classes == manifest.classes and len(ours) == len(manifest)
        for record, other in zip(ours, manifest, strict=True):
            assert (record.label, record.start, record.end) == (other.label, other.start, other.end)
            assert (record.group == record.path) == (other.group == other.path)
    cut = manifests["val"][0]
    assert member_of(cut.path).name == "000000005/val.mp4" and cut.group == "person"
    with open(folder / "train.csv") as file:
        assert next(csv.DictReader(file))["label"] == "run"


def test_listings_read_them_too(folder):
    listing = Listing(train=str(folder / "train.csv"), val=str(folder / "val.csv"))
    assert list(listing.manifests()["train"].paths) == list(Shards(str(folder)).manifests()["train"].paths)


@pytest.mark.parametrize("kept", [True, False])
def test_no_video_is_looked_at(splits, folder, tmp_path, kept):
    """What is known of videos comes from beside the tar file, in one request for all."""
    with serving(folder) as store:
        train = Shards(store.url).manifests()["train"]
        store.requests.clear()
        index = VideoIndex(tmp_path / "videos.sqlite" if kept else None)
        infos = [index.info(path) for path in train.paths[:3]]
        asked = {request.path for request in store.requests if request.method == "GET"}
        assert asked and all(path.endswith(".tar.index") for path in asked)
        with pytest.raises(DecodeError):
            index.info(train.paths[3])
    for info, path in zip(infos, splits["train"].paths[:3], strict=True):
        theirs = VideoIndex(None).info(path)
        assert info.digest == theirs.digest and np.array_equal(info.packets.positions, theirs.packets.positions)


def test_what_is_there_stays(splits, folder):
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.tar*")}
    first = next(iter(times))
    os.truncate(first, 100)
    packed(splits, folder)
    assert {path for path, time in times.items() if path.stat().st_mtime_ns == time} == times.keys() - {
        first, first.with_name(first.name + ".index"), first.with_suffix("")
    }  # fmt: skip


class TestBadInput:
    def test_other_folders(self, tmp_path):
        with pytest.raises(UserError, match="shards=1GiB"):
            Shards(str(tmp_path)).manifests()
        (tmp_path / "shards.json").write_text("[1]")
        with pytest.raises(UserError, match="damaged"):
            Shards(str(tmp_path)).manifests()
        with pytest.raises(UserError, match="dataset.folder"):
            Shards("https://me:hunter22@host/shards")

    def test_tar_files_that_are_cut_or_gone(self, splits, tmp_path):
        packed(splits, tmp_path / "s")
        os.truncate(tmp_path / "s" / "train-000000.tar", 600)
        with pytest.raises(UserError, match="train-000000.tar has 600 bytes"):
            Shards(str(tmp_path / "s")).manifests()
        (tmp_path / "s" / "train-000000.tar").unlink()
        with pytest.raises(UserError, match="train-000000.tar"):
            Shards(str(tmp_path / "s")).manifests()

    def test_an_index_of_another_tar_file(self, splits, tmp_path):
        packed(splits, tmp_path / "s")
        path = Shards(str(tmp_path / "s")).manifests()["train"].paths[0]
        with open(tmp_path / "s" / "train-000000.tar", "ab") as file:
            file.write(bytes(512))
        with pytest.raises(UserError, match="copy both again"):
            VideoIndex(None).info(path)
        (tmp_path / "s" / "train-000000.tar.index").write_bytes(b"{}")
        with pytest.raises(UserError, match="damaged"):
            VideoIndex(None).info(path)

    def test_folders_of_images(self, tmp_path):
        frames = Manifest([Record("a", 0, "a")], ["run"], frame_rate=5.0)
        with pytest.raises(UserError, match="folders of images"):
            packed({"train": frames}, tmp_path / "s")

    def test_none_beside_it(self, tmp_path):
        (tmp_path / "x.tar").write_bytes(bytes(1024))
        assert read_shard_index(str(tmp_path / "x.tar")) is None
        with pytest.raises(ValueError):
            ShardIndex.of_bytes(b'{"format": "1", "size": 3, "made_of": "", "members": [["a", 0, 1, 5]]}\nabc')


@pytest.fixture(autouse=True)
def forgetful():
    objects._looks.clear()
