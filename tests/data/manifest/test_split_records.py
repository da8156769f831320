"""What splits held, and what differs later, by name."""

import os
import shutil
import time

import numpy as np
import pytest

from vidtrain.data.manifest.columns import ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.manifest.split_records import GONE, NOT_LOOKED_AT, SplitRecord, split_changes
from vidtrain.errors import UserError

CLASSES = ("blue", "red")


def make(root, **sizes):
    """Files such as red_0, of so many bytes, in folders of their classes."""
    for name, size in sizes.items():
        label, number = name.split("_")
        path = root / label / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)


def listed(root, classes=CLASSES):
    files = sorted(root.glob("*/*.mp4"))
    return Manifest([Record(str(path), classes.index(path.parent.name), str(path)) for path in files], classes)


def of(root, **more):
    return SplitRecord.of(listed(root, **more))


@pytest.fixture
def root(tmp_path):
    make(tmp_path / "data", blue_0=10, blue_1=11, red_0=20, red_1=21, red_2=22)
    return tmp_path / "data"


def kinds(before, now, *same):
    return split_changes(before, now, *same).kinds()


def test_nothing_differs(root, tmp_path):
    before = of(root)
    assert before.sizes.tolist() == [10, 11, 20, 21, 22]
    before.save(tmp_path / "splits/train.npz")
    again = SplitRecord.open(tmp_path / "splits/train.npz")
    assert list(again.columns.paths) == list(before.columns.paths) and again.classes == CLASSES
    assert again.digest == before.digest == of(root).digest
    found = split_changes(again, of(root))
    assert (found.any, found.touched) == (False, [])


def test_what_was_done_to_files_is_named(root):
    before = of(root)
    (root / "red/0.mp4").unlink()
    assert kinds(before, of(root)) == {"removed": [f"{root}/red/0.mp4"]}
    make(root, red_0=20, red_3=23)
    found = split_changes(before, of(root))
    assert (found.kinds(), found.of_labels) == ({"added": [f"{root}/red/3.mp4"]}, False)
    (root / "red/3.mp4").unlink()
    make(root, red_0=99)
    assert kinds(before, of(root)) == {"replaced by another file": [f"{root}/red/0.mp4 (20 -> 99 bytes)"]}
    make(root, red_0=20)
    (root / "red/2.mp4").rename(root / "blue/2.mp4")
    found = split_changes(before, of(root))
    assert (found.kinds(), found.of_labels) == (
        {"in another class": [f"{root}/blue/2.mp4 (red -> blue)"]},
        True,
    )
    (root / "blue/2.mp4").rename(root / "blue/other.mp4")
    words = f"{root}/blue/other.mp4, which was {root}/red/2.mp4 (red -> blue)"
    assert kinds(before, of(root)) == {"in another class": [words]}
    (root / "blue/other.mp4").unlink()
    make(root, blue_2=33)  # another one, that has the name alone
    assert kinds(before, of(root)) == {"removed": [f"{root}/red/2.mp4"], "added": [f"{root}/blue/2.mp4"]}


def test_files_of_a_listing_that_are_gone_or_there_again(root):
    manifest = listed(root)
    before = SplitRecord.of(manifest)
    (root / "red/0.mp4").unlink()
    after = SplitRecord.of(manifest)
    assert after.sizes.tolist() == [10, 11, GONE, 21, 22]
    assert kinds(before, after) == {"removed": [f"{root}/red/0.mp4"]}
    assert kinds(after, before) == {"added": [f"{root}/red/0.mp4"]}


def test_labels_and_classes(root):
    before, manifest = of(root), listed(root)
    columns = manifest.columns
    other = Manifest(columns.relabeled(np.array([1, 0])), CLASSES)
    assert kinds(before, SplitRecord.of(other))["in another class"][0] == f"{root}/blue/0.mp4 (blue -> red)"
    swapped = Manifest(columns.relabeled(np.array([1, 0])), CLASSES[::-1])
    assert kinds(before, SplitRecord.of(swapped)) == {
        "different among the classes": ["the same classes in another order"]
    }
    more = Manifest(columns, (*CLASSES, "white"))
    assert kinds(before, SplitRecord.of(more)) == {"different among the classes": ["white is new"]}
    several = Manifest([Record("a", 0, "a", (0, 1)), Record("b", 1, "b")], CLASSES)
    fewer = Manifest([Record("a", 0, "a"), Record("b", 1, "b", (1, 0))], CLASSES)
    assert kinds(*(SplitRecord.of(each) for each in (several, fewer))) == {
        "in another class": ["a (blue;red -> blue)", "b (red -> red;blue)"]
    }


def test_another_order_counts(root):
    manifest = listed(root)
    turned = manifest.subset([4, 3, 2, 1, 0])
    assert kinds(SplitRecord.of(manifest), SplitRecord.of(turned)) == {"in another order": ["all 5 videos are there"]}


@pytest.mark.parametrize("place", ["local/data", "local/deep/er", "d"])
def test_a_copy_elsewhere_is_the_same(root, tmp_path, place):
    before = of(root)
    shutil.copytree(root, tmp_path / place, copy_function=shutil.copyfile)  # with times of their own
    moved = of(tmp_path / place)
    assert (kinds(before, moved), split_changes(before, moved).touched) == ({}, [])
    assert moved.digest == before.digest
    (tmp_path / place / "red/1.mp4").unlink()  # and what differs in it is named
    make(tmp_path / place, red_0=77, blue_5=5)
    assert kinds(before, of(tmp_path / place)) == {
        "removed": [f"{root}/red/1.mp4"],
        "added": [f"{tmp_path / place}/blue/5.mp4"],
        "replaced by another file": [f"{tmp_path / place}/red/0.mp4 (20 -> 77 bytes)"],
    }


def test_parts_that_moved_apart(root, tmp_path):
    """As of a mixture of which one part is on the local disk."""
    make(tmp_path / "two", blue_7=70, red_7=71, red_0=20)
    both = listed(root), listed(tmp_path / "two")
    before = SplitRecord.of(Manifest([*both[0], *both[1]], CLASSES))
    shutil.copytree(tmp_path / "two", tmp_path / "local/two")
    now = SplitRecord.of(Manifest([*both[0], *listed(tmp_path / "local/two")], CLASSES))
    assert kinds(before, now) == {}


def test_other_times_are_looked_into(root):
    before = of(root)
    path = f"{root}/red/0.mp4"
    time.sleep(0.01)
    os.utime(path)
    asked = []

    def verdict(value):
        return lambda *what: asked.append(what) or value

    assert (kinds(before, of(root)), split_changes(before, of(root)).touched) == ({}, [path])
    found = split_changes(before, of(root), verdict(True))
    assert (found.any, found.touched) == (False, [])
    assert kinds(before, of(root), verdict(False)) == {"replaced by another file": [f"{path} (of as many bytes)"]}
    assert asked[0] == (path, 20, int(before.times[2]))


def test_cuts_and_repeats(tmp_path):
    def record(*cuts):
        return SplitRecord.of(Manifest([Record("a.mp4", 0, "g", start=a, end=b) for a, b in cuts], ("x",)))

    whole = record((0.0, 2.0), (2.0, None), (2.0, None))
    assert kinds(whole, record((0.0, 2.0), (2.0, None), (2.0, None))) == {}
    assert kinds(whole, record((0.0, 2.0), (2.0, None))) == {"removed": ["a.mp4 from 2 s to its end"]}
    assert kinds(whole, record((0.0, 3.0), (2.0, None), (2.0, None))) == {
        "removed": ["a.mp4 from 0 s to 2 s"], "added": ["a.mp4 from 0 s to 3 s"],
    }  # fmt: skip


def test_folders_of_images(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "frames" / folder).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "frames" / folder / f"img_{number}.jpg").write_bytes(b"x" * (100 + number))

    def record(root):
        return SplitRecord.of(Manifest([Record(f"{root}/{each}", 0, each) for each in "ab"], ("x",), 25.0))

    before = record(tmp_path / "frames")
    shutil.copytree(tmp_path / "frames", tmp_path / "copy", copy_function=shutil.copyfile)
    assert kinds(before, record(tmp_path / "copy")) == {}
    (tmp_path / "copy/a/img_39.jpg").unlink()
    (found,) = kinds(before, record(tmp_path / "copy"))["replaced by another file"]
    assert found.startswith(f"{tmp_path}/copy/a (")
    shutil.rmtree(tmp_path / "copy/b")
    assert kinds(before, record(tmp_path / "copy"))["removed"] == [f"{tmp_path}/copy/b"]


def test_of_many_files_some_are_looked_at(root):
    found = SplitRecord.of(listed(root), most=2)
    assert found.sizes.tolist() == [10, NOT_LOOKED_AT, NOT_LOOKED_AT, 21, NOT_LOOKED_AT]
    assert kinds(found, of(root)) == {}


def test_names_that_are_no_text(tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/caf\xe9.mp4")
    open(path, "wb").close()
    record = SplitRecord.of(Manifest([Record(path, 0, "g")], ("x",)))
    record.save(tmp_path / "a.npz")
    assert SplitRecord.open(tmp_path / "a.npz").columns.paths[0] == path


def test_a_damaged_record_is_named(root, tmp_path):
    path = tmp_path / "train.npz"
    of(root).save(path)
    whole = path.read_bytes()
    for data in (b"", whole[:100], whole[: len(whole) // 2], whole.replace(b"sizes.npy", b"sozes.npy")):
        path.write_bytes(data)
        with pytest.raises(UserError, match="train.npz.* cannot be read"):
            SplitRecord.open(path)
    np.savez(path, **{name: np.array([object()], dtype=object) for name in ("blob", "offsets", "prefix")})
    with pytest.raises(UserError, match="cannot be read"):
        SplitRecord.open(path)


def test_records_take_few_bytes(tmp_path):
    def record(root, count):
        builder = ColumnsBuilder()
        builder.extend([f"{root}/class_{n % 400}/{n:09}.mp4" for n in range(count)], [n % 400 for n in range(count)])
        sizes = np.arange(count, dtype=np.int64) + 1000
        return SplitRecord(builder.build(), tuple(map(str, range(400))), sizes, np.zeros(count, np.int64))

    record("/data/k400", 30_000).save(tmp_path / "a.npz")
    found = kinds(SplitRecord.open(tmp_path / "a.npz"), record("/local/k400", 29_999))
    assert found == {"removed": ["/data/k400/class_399/000029999.mp4"]}
    assert (tmp_path / "a.npz").stat().st_size < 30_000 * 16
