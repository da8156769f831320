import os
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from vidtrain.data.manifest.files import UNFINISHED, open_manifests
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sources.listings import Listing
from vidtrain.errors import UserError

READ = []


@dataclass(frozen=True)
class Listed:
    """A source that is given by a file: two lines, one for train and one for val."""

    path: str
    label: int = 0

    def inputs(self):
        return [Path(self.path)]

    def manifests(self):
        READ.append(self.path)
        train, val = Path(self.path).read_text().split()
        return {"train": manifest(train, self.label), "val": manifest(val, self.label)}


@dataclass(frozen=True)
class Walked:
    """A source that does not say what it reads."""

    path: str

    def manifests(self):
        READ.append(self.path)
        return {"train": manifest(Path(self.path).read_text(), 0)}


def manifest(path, label):
    return Manifest([Record(path, label, path)], ["a", "b"])


def is_mapped(manifest):
    """Whether the labels lie in a mapped file."""
    array = manifest.columns.labels
    while array.base is not None and not isinstance(array, np.memmap):
        array = array.base
    return isinstance(array, np.memmap)


def paths(found):
    return {split: list(each.paths) for split, each in found.items()}


@pytest.fixture
def listing(tmp_path):
    READ.clear()
    path = tmp_path / "list.txt"
    path.write_text("1.mp4 2.mp4")
    return path


def test_a_listing_is_read_once(listing, tmp_path):
    first = open_manifests(Listed(str(listing)), tmp_path / "index")
    again = open_manifests(Listed(str(listing)), tmp_path / "index")
    assert paths(first) == paths(again) == {"train": ["1.mp4"], "val": ["2.mp4"]}
    assert is_mapped(first["val"])
    assert len(READ) == 1


def test_it_is_read_again_when_it_changes(listing, tmp_path):
    open_manifests(Listed(str(listing)), tmp_path)
    status = os.stat(listing)
    listing.write_text("1.mp4 3.mp4")  # as long
    os.utime(listing, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert paths(open_manifests(Listed(str(listing)), tmp_path))["val"] == ["3.mp4"]
    assert open_manifests(Listed(str(listing), label=1), tmp_path)["val"][0].label == 1
    assert len(READ) == 3


def test_a_source_that_walks_is_read_every_time_and_kept_once(listing, tmp_path):
    found = [open_manifests(Walked(str(listing)), tmp_path)["train"] for _ in range(2)]
    assert len(READ) == 2
    assert is_mapped(found[1])
    assert len(list((tmp_path / "manifests").iterdir())) == 1
    listing.write_text("9.mp4")
    assert paths(open_manifests(Walked(str(listing)), tmp_path)) == {"train": ["9.mp4"]}
    assert paths({"train": found[0]}) == {"train": ["1.mp4 2.mp4"]}  # still mapped


def test_what_nobody_opened_for_long_is_removed(listing, tmp_path):
    open_manifests(Listed(str(listing)), tmp_path)
    (old,) = (tmp_path / "manifests").iterdir()
    os.utime(old, (0, 0))
    open_manifests(Listed(str(listing)), tmp_path)  # opened: young again
    listing.write_text("longer.mp4 3.mp4")
    open_manifests(Listed(str(listing)), tmp_path)
    assert old.is_dir()
    os.utime(old, (0, 0))
    listing.write_text("longest_of_all.mp4 3.mp4")
    open_manifests(Listed(str(listing)), tmp_path)
    assert not old.exists()
    assert len(list((tmp_path / "manifests").iterdir())) == 2


@pytest.mark.parametrize("damage", ["train/labels.npy", "val/manifest.json", "splits.json"])
def test_a_damaged_one_is_made_anew_with_a_word(listing, tmp_path, caplog, damage):
    open_manifests(Listed(str(listing)), tmp_path)
    (place,) = (tmp_path / "manifests").iterdir()
    (place / damage).write_text("nonsense")
    assert paths(open_manifests(Listed(str(listing)), tmp_path))["train"] == ["1.mp4"]
    assert "will be made again" in caplog.text
    assert len(READ) == 2


def test_a_damaged_one_of_a_source_that_walks_is_made_anew(listing, tmp_path, caplog):
    open_manifests(Walked(str(listing)), tmp_path)
    (place,) = (tmp_path / "manifests").iterdir()
    (place / "train" / "labels.npy").write_bytes(b"")
    assert paths(open_manifests(Walked(str(listing)), tmp_path)) == {"train": ["1.mp4 2.mp4"]}
    assert "will be made again" in caplog.text


def test_processes_may_start_together(listing, tmp_path):
    sources = [Listed(str(listing)), Walked(str(listing))] * 4
    with ProcessPoolExecutor(4) as pool:
        found = list(pool.map(open_manifests, sources, [tmp_path] * 8))
    assert [paths(each)["train"] for each in found] == [["1.mp4"], ["1.mp4 2.mp4"]] * 4
    assert len(list((tmp_path / "manifests").iterdir())) == 2


def test_a_folder_that_gets_its_final_name_while_others_are_looked_through(listing, tmp_path, monkeypatch):
    (tmp_path / "manifests" / f"{UNFINISHED}of_another").mkdir(parents=True)
    real = Path.stat

    def stat(path, **options):
        if path.name.endswith("of_another"):
            shutil.rmtree(path, ignore_errors=True)
        return real(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert paths(open_manifests(Listed(str(listing)), tmp_path))["train"] == ["1.mp4"]


def test_says_what_cannot_be_read_or_written(listing, tmp_path):
    with pytest.raises(UserError, match="none.txt cannot be read: No such file"):
        open_manifests(Listed("none.txt"), tmp_path)
    with pytest.raises(UserError, match="list.txt/manifests .* data.index_root"):
        open_manifests(Listed(str(listing)), listing)


def test_warnings_come_each_time(tmp_path, caplog):
    for name, text in {"train": "a.mp4,run\na.mp4,run\nb.mp4,walk\n", "val": "c.mp4,run\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    source = Listing(train=str(tmp_path / "train.csv"), val=str(tmp_path / "val.csv"))
    for _ in range(2):
        caplog.clear()
        open_manifests(source, tmp_path / "index")
        assert caplog.messages == [f"train lists 1 video more than once, such as {tmp_path}/a.mp4"]
