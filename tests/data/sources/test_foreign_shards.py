"""Tar files that others have packed: what is in them, by ranges of their headers, and how their samples are labeled."""

import io
import json
import os
import tarfile

import pytest
from store_server import serving

from vidtrain.data.manifest.files import open_manifests
from vidtrain.data.sources.folders import SUFFIXES
from vidtrain.data.sources.shards import Shards
from vidtrain.data.stores import objects
from vidtrain.data.stores.archives import packed_samples
from vidtrain.data.stores.places import member_of
from vidtrain.errors import UserError

VIDEO = bytes(range(256)) * 400  # 102,400 bytes, which nothing here decodes


def pack(path, members: dict[str, bytes], kind=tarfile.GNU_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))


@pytest.fixture(autouse=True)
def forgetful(monkeypatch):
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.01)
    objects._looks.clear()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Written by WebDataset: train-000000.tar with five videos, train-000001.tar and val-000000.tar with two."""
    import webdataset

    root, number = tmp_path_factory.mktemp("shards"), 0
    for name, count in (("train-000000.tar", 5), ("train-000001.tar", 2), ("val-000000.tar", 2)):
        with webdataset.TarWriter(str(root / name)) as writer:
            for _ in range(count):
                about = {"label": ["jump", "run"][number % 2], "fps": 25}
                writer.write(
                    {
                        "__key__": f"clip{number:04}",
                        "mp4": VIDEO,
                        "cls": number % 2,
                        "json": about,
                        "txt": "a dog",
                    }
                )
                number += 1
    return root


def labels_of(manifest):
    return [(member_of(record.path).name, manifest.classes[record.label]) for record in manifest]


@pytest.mark.parametrize(
    "settings, names",
    [({}, "01"), ({"labels": "json"}, ["jump", "run"]), ({"labels": "none"}, ["unlabeled"] * 2)],
)
@pytest.mark.parametrize("at_url", [False, True])
def test_videos_and_labels(folder, settings, names, at_url):
    with serving(folder) as store:
        place = f"{store.url}/train-{{000000..000001}}.tar" if at_url else str(folder)
        manifests = Shards(place, **settings, **({"val_share": 0.3} if at_url else {})).manifests()
    if not at_url:
        train = [(f"clip{number:04}.mp4", names[number % 2]) for number in range(7)]
        assert labels_of(manifests["train"]) == train
        assert labels_of(manifests["val"]) == [("clip0007.mp4", names[1]), ("clip0008.mp4", names[0])]
        archive, _, begin, length = member_of(manifests["train"].paths[0])
        with open(archive, "rb") as file:
            file.seek(begin)
            assert file.read(length) == VIDEO
    assert sum(map(len, manifests.values())) == (7 if at_url else 9)


def test_headers_are_read_by_ranges_and_once(folder, tmp_path):
    """A request a video, of 16 KiB; a manifest that is kept needs none."""
    with serving(folder) as store:
        source = Shards(f"{store.url}/train-{{000000..000001}}.tar", val_share=0.3)
        open_manifests(source, tmp_path)
        gets = [request for request in store.requests if request.method == "GET"]
        assert len(gets) == 9  # five and two videos, and the beginning of each file
        assert store.bytes_asked <= 9 * 16_384 < 7 * len(VIDEO)
        store.requests.clear()
        objects._looks.clear()
        assert len(open_manifests(source, tmp_path)["train"]) == 5
        assert {request.method for request in store.requests} == {"HEAD"}


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_folders_name_classes(tmp_path, kind):
    long = "run/" + 30 * "very" + ".clip.MP4"
    pack(tmp_path / "x.tar", {"./run/a.mp4": VIDEO, "jump/b.mp4": b"", long: VIDEO, "._c.mp4": b"x"}, kind)
    train = Shards(str(tmp_path), val_share=0).manifests()["train"]
    assert labels_of(train) == [("./run/a.mp4", "run"), ("jump/b.mp4", "jump"), (long, "run")]


def test_several_labels(tmp_path):
    about = {"a.json": b'{"labels": ["run", "jump"]}', "b.json": b'{"labels": ["run"]}'}
    pack(tmp_path / "x.tar", {"a.mp4": VIDEO, "b.mp4": VIDEO, **about})
    train = Shards(str(tmp_path), label_separator="|", val_share=0).manifests()["train"]
    assert [record.labels for record in train] == [(1, 0), (1,)] and train.classes == ("jump", "run")
    with pytest.raises(UserError, match=r"label_separator=\"|\""):
        Shards(str(tmp_path), val_share=0).manifests()


class TestBadInput:
    def test_no_label(self, tmp_path):
        pack(tmp_path / "x.tar", {"a.mp4": VIDEO, "a.cls": b"run", "b.mp4": VIDEO})
        with pytest.raises(UserError, match=r"x\.tar::b\.mp4.*no label"):
            Shards(str(tmp_path), val_share=0).manifests()

    def test_no_val(self, tmp_path):
        pack(tmp_path / "x.tar", {"run/a.mp4": VIDEO})
        with pytest.raises(UserError, match=r"dataset\.source\.val_share"):
            Shards(str(tmp_path)).manifests()

    @pytest.mark.parametrize("end", [3000, 103_000, 204_000])
    def test_a_cut_file(self, tmp_path, end):
        pack(tmp_path / "x.tar", {"run/a.mp4": VIDEO, "run/b.mp4": VIDEO})
        os.truncate(tmp_path / "x.tar", end)
        with pytest.raises(UserError, match=r"x\.tar is incomplete"):
            packed_samples(str(tmp_path / "x.tar"), SUFFIXES, ["cls"])

    def test_a_compressed_or_damaged_file(self, tmp_path):
        with tarfile.open(tmp_path / "x.tar", "w:gz") as archive:
            archive.add(__file__, "a.mp4")
        with pytest.raises(UserError, match="compressed"):
            packed_samples(str(tmp_path / "x.tar"), SUFFIXES, [])
        pack(tmp_path / "y.tar", {"run/a.mp4": VIDEO, "run/b.mp4": VIDEO})
        with open(tmp_path / "y.tar", "r+b") as file:
            file.seek(512 + len(VIDEO))
            file.write(b"noise" * 60)
        with pytest.raises(UserError, match="no header at byte 102912"):
            packed_samples(str(tmp_path / "y.tar"), SUFFIXES, [])

    def test_settings(self, tmp_path):
        with pytest.raises(UserError, match=r"dataset\.source\.labels=xml"):
            Shards(str(tmp_path), labels="xml")
        with serving(tmp_path) as store, pytest.raises(UserError, match="URL/train-"):
            Shards(store.url).manifests()

    def test_a_json_without_a_label(self, tmp_path):
        pack(tmp_path / "x.tar", {"run/a.mp4": VIDEO, "run/a.json": json.dumps({"fps": 25}).encode()})
        assert Shards(str(tmp_path), val_share=0).manifests()["train"].classes == ("run",)
