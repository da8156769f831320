from collections import Counter
from pathlib import Path

import pytest

from vidtrain.data.manifest.manifest import Record
from vidtrain.data.sources.folders import ClassFolders
from vidtrain.errors import UserError


def plant(root: Path, *files: str) -> str:
    for name in files:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return str(root)


def test_layout(tmp_path):
    root = plant(
        tmp_path,
        "train/run/2.mp4",
        "train/run/1.AVI",
        "train/run/day/3.webm",
        "train/run/notes.txt",
        "train/run/.hidden.mp4",
        "train/jump/1.mov",
        "train/readme.mp4",
        "train/.cache/1.mp4",
        "val/jump/1.mp4",
        "val/run/1.mp4",
        "elsewhere/swim/1.mp4",
    )
    manifests = ClassFolders(root).manifests()
    assert list(manifests) == ["train", "val"]
    assert manifests["train"].classes == manifests["val"].classes == ("jump", "run")
    paths = [f"{root}/train/{name}" for name in ("jump/1.mov", "run/1.AVI", "run/2.mp4", "run/day/3.webm")]
    assert list(manifests["train"]) == [
        Record(path, label, path) for path, label in zip(paths, (0, 1, 1, 1), strict=True)
    ]


def test_test_split_and_suffixes(tmp_path):
    root = plant(tmp_path, "train/a/1.mp4", "train/a/1.gif", "val/a/1.mp4", "test/a/1.mp4")
    assert list(ClassFolders(root).manifests()) == ["train", "val", "test"]
    assert list(ClassFolders(root, splits=("test",)).manifests()) == ["test"]
    assert len(ClassFolders(root, splits=("train",), suffixes=(".gif",)).manifests()["train"]) == 1


def test_follows_links(tmp_path):
    plant(tmp_path / "store", "a/1.mp4")
    root = plant(tmp_path / "root", "train/a/0.mp4", "val/a/0.mp4")
    (tmp_path / "root/train/a/more").symlink_to(tmp_path / "store/a")
    assert len(ClassFolders(root).manifests()["train"]) == 2


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train/a/1.mp4"], "no folder .*/val for split 'val'; expected .*<class>/<video>"),
        (["val/a/1.mp4"], "no folder .*/train for split 'train'"),
        (["train/1.mp4", "val/a/1.mp4"], "no class folders in .*/train"),
        (["train/a/1.txt", "val/a/1.mp4"], r"no videos in .*/train for a; looked for \.mp4"),
        (["train/a/1.mp4", "train/b/1.txt", "val/a/1.mp4", "val/b/1.mp4"], "no videos in .*/train for b;"),
        (["train/a/1.mp4", "val/a/1.txt"], "no videos in .*/val for a;"),
        (["train/a/1.mp4", "val/b/1.mp4"], "'val' differ from those of 'train': missing a; extra b"),
    ],
)
def test_says_what_is_wrong(tmp_path, files, message):
    with pytest.raises(UserError, match=message):
        ClassFolders(plant(tmp_path, *files)).manifests()


def test_classes_without_splits_are_split_when_asked(tmp_path):
    root = plant(tmp_path, *(f"{name}/g{i // 2}_{i}.mp4" for name in ("run", "jump") for i in range(40)))
    with pytest.raises(UserError, match=r"/train .*source.split=\[0.8,0.1,0.1\]"):
        ClassFolders(root).manifests()
    found = ClassFolders(root, split=[0.8, 0.1, 0.1]).manifests()
    assert {split: Counter(each.labels.tolist()) for split, each in found.items()} == {
        "train": {0: 32, 1: 32}, "val": {0: 4, 1: 4}, "test": {0: 4, 1: 4},
    }  # fmt: skip
    assert found["val"].classes == ("jump", "run")
    grouped = ClassFolders(root, split=[0.8, 0.2, 0], group_pattern=r"^(\w+)/g(\d+)_", seed=1).manifests()
    assert list(grouped) == ["train", "val"]
    groups = [set(each.columns.group_names) for each in grouped.values()]
    assert not groups[0] & groups[1] and "run/7" in groups[0] | groups[1]


def test_split_folders_are_not_taken_for_classes(tmp_path):
    root = plant(tmp_path, "train/a/1.mp4", "val/a/1.mp4")
    with pytest.raises(UserError, match="holds the folders train, val"):
        ClassFolders(root, split=[0.8, 0.1, 0.1]).manifests()
    with pytest.raises(UserError, match="/<class>/<video>, to be split"):
        ClassFolders(plant(tmp_path / "flat", "1.mp4"), split=[0.8, 0.1, 0.1]).manifests()


def test_shapes_by_split(shared_data):
    found = ClassFolders(str(shared_data / "colored_shapes"), split=[0.6, 0.2, 0.2]).manifests()
    assert found["train"].classes == ("circular", "horizontal", "vertical")
    assert [len(each) for each in found.values()] == [81, 27, 27]


def test_absent_root(tmp_path):
    with pytest.raises(UserError, match="no dataset folder .*/nowhere; expected"):
        ClassFolders(str(tmp_path / "nowhere")).manifests()


def test_links_that_lead_back_are_not_followed(tmp_path):
    root = plant(tmp_path / "videos", "a/1.mp4", "a/day/2.mp4", "b/1.mp4", "c/1.mp4")
    (tmp_path / "videos/a/loop").symlink_to(".")
    (tmp_path / "videos/a/day/up").symlink_to("../..")
    (tmp_path / "videos/b/other").symlink_to("../a/day")  # which holds no part of b
    pool = ClassFolders(root, split=(0.6, 0.2, 0.2)).pool()
    names = [path.removeprefix(f"{root}/") for path in pool.paths]
    assert names == ["a/1.mp4", "a/day/2.mp4", "b/1.mp4", "b/other/2.mp4", "c/1.mp4"]


def test_files_that_are_passed_over_are_counted(tmp_path, caplog):
    root = plant(tmp_path, "train/a/1.mp4", "train/a/1.txt", "train/2.mp4", "train/a/.x", "val/a/1.mp4")
    ClassFolders(root).manifests()
    (message,) = caplog.messages
    assert message.startswith(f"2 files in {root}/train ") and message.endswith(f"such as {root}/train/2.mp4")
