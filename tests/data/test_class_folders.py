from pathlib import Path

import pytest

from vidtrain.data.class_folders import ClassFolders
from vidtrain.data.manifest import Record
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
    assert manifests["train"].records == (
        Record(f"{root}/train/jump/1.mov", 0, "train/jump/1.mov"),
        Record(f"{root}/train/run/1.AVI", 1, "train/run/1.AVI"),
        Record(f"{root}/train/run/2.mp4", 1, "train/run/2.mp4"),
        Record(f"{root}/train/run/day/3.webm", 1, "train/run/day/3.webm"),
    )


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


def test_absent_root(tmp_path):
    with pytest.raises(UserError, match="no dataset folder .*/nowhere; expected"):
        ClassFolders(str(tmp_path / "nowhere")).manifests()
