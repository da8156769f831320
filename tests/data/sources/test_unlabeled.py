"""Videos without labels: what is taken, what is held out, and what is refused."""

import pytest

from vidtrain.data.sources.unlabeled import Unlabeled
from vidtrain.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        place = tmp_path / f"scene{number // 4}" / f"{number:02d}.mp4"
        place.parent.mkdir(exist_ok=True)
        place.touch()
    (tmp_path / "notes.txt").touch()
    return tmp_path


def test_a_share_of_all_videos_below_the_folder_is_held_out(folder):
    splits = Unlabeled(str(folder), val_share=0.25).manifests()
    assert {split: len(manifest) for split, manifest in splits.items()} == {"train": 30, "val": 10}
    paths = [path for manifest in splits.values() for path in manifest.paths]
    assert sorted(paths) == sorted(map(str, folder.rglob("*.mp4")))
    assert splits["train"].classes == ("unlabeled",)
    assert list(Unlabeled(str(folder), val_share=0.25).manifests()["val"].paths) == list(splits["val"].paths)
    other = Unlabeled(str(folder), val_share=0.25, seed=1).manifests()
    assert list(other["val"].paths) != list(splits["val"].paths)


def test_groups_stay_whole(folder):
    splits = Unlabeled(str(folder), val_share=0.2, group_pattern=r"(scene\d+)").manifests()
    scenes = {split: {record.group for record in manifest} for split, manifest in splits.items()}
    assert len(scenes["val"]) == 2 and not scenes["val"] & scenes["train"]


def test_nothing_is_held_out_where_nobody_asks(folder):
    assert list(Unlabeled([str(folder / "scene0"), str(folder / "scene1")], val_share=None).manifests()) == ["train"]


@pytest.mark.parametrize("share", [0, 1, -0.1, 2.0])
def test_shares_that_are_none(share):
    with pytest.raises(UserError, match="dataset.source.val_share"):
        Unlabeled("videos", val_share=share)


def test_places_without_videos(tmp_path):
    with pytest.raises(UserError, match="dataset.source.path"):
        Unlabeled([str(tmp_path), str(tmp_path / "absent")]).manifests()
