from pathlib import Path

import numpy as np
import pytest

from vidtrain.data.sources.published import HMDB51, UCF101, film
from vidtrain.errors import UserError


def plant(root: Path, *files: str) -> str:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return str(root)


def ucf_name(class_name: str, group: int, clip: int) -> str:
    return f"{class_name}/v_{class_name}_g{group:02d}_c{clip:02d}.avi"


@pytest.fixture
def ucf(tmp_path):
    """Two classes, 10 groups of 2 clips; the test split is groups 1 and 2. On disk, one has another suffix."""
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "classInd.txt").write_text("1 Diving\r\n2 Swing\r\n")
    names = [ucf_name(c, g, k) for c in ("Diving", "Swing") for g in range(1, 11) for k in (1, 2)]
    test = [name for name in names if "_g01_" in name or "_g02_" in name]
    train = [f"{name} {1 + ('Swing' in name)}" for name in names if name not in test]
    (splits / "trainlist02.txt").write_text("\n".join(train) + "\n")
    (splits / "testlist02.txt").write_text("\n".join(test) + "\n")
    plant(tmp_path / "videos", *(name for name in names if name != ucf_name("Swing", 5, 1)))
    plant(tmp_path / "videos", ucf_name("Swing", 5, 1).replace(".avi", ".webm"))
    return {"root": str(tmp_path / "videos"), "annotations": str(splits), "fold": 2}


def test_ucf101_fold(ucf, caplog):
    found = UCF101(**ucf, val_share=0.25).manifests()
    assert {split: len(each) for split, each in found.items()} == {"train": 24, "val": 8, "test": 8}
    assert all(each.classes == ("Diving", "Swing") for each in found.values())
    assert found["test"][0].path.endswith("videos/Diving/v_Diving_g01_c01.avi")
    assert (found["test"][4].label, found["test"][4].group) == (1, "Swing/01")
    assert any(path.endswith("v_Swing_g05_c01.webm") for path in [*found["train"].paths, *found["val"].paths])
    groups = [set(each.columns.group_names) for each in found.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2]
    assert not caplog.records


def test_val_may_be_test_if_said(ucf, caplog):
    found = UCF101(**ucf, val="test").manifests()
    assert list(found["val"].paths) == list(found["test"].paths) and len(found["train"]) == 32
    assert "val is the test split" in caplog.text
    with pytest.raises(UserError, match="val=none: choose train .*, or test"):
        UCF101(**ucf, val="none")


def test_missing_videos_are_counted_and_named(ucf, caplog):
    for name in (ucf_name("Diving", 1, 1), ucf_name("Swing", 9, 2)):
        (Path(ucf["root"]) / name).unlink()
    with pytest.raises(UserError, match="2 of 40 .*v_Swing_g09_c02, .*allow_missing"):
        UCF101(**ucf).manifests()
    found = UCF101(**ucf, allow_missing=True).manifests()
    assert sum(map(len, found.values())) == 38
    assert "2 of 40 annotated videos are not in" in caplog.text


def test_two_files_of_one_name_are_refused(ucf):
    plant(Path(ucf["root"]), ucf_name("Swing", 9, 2).replace(".avi", ".mp4"))
    with pytest.raises(UserError, match="two files .*: .*v_Swing_g09_c02"):
        UCF101(**ucf).manifests()


def test_a_flat_folder_will_do(ucf, tmp_path):
    names = [path.name for path in Path(ucf["root"]).glob("*/*")]
    assert len(UCF101(**{**ucf, "root": plant(tmp_path / "flat", *names)}).manifests()["test"]) == 8


def test_without_split_files(ucf):
    found = UCF101(**{**ucf, "fold": None, "annotations": "none"}).manifests()
    assert {split: len(each) for split, each in found.items()} == {"train": 32, "val": 4, "test": 4}
    assert not set(found["train"].columns.group_names) & set(found["val"].columns.group_names)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("classInd.txt", "0 Diving\n1 Swing\n", "classInd.txt:1: '0 Diving' should be 1 and a class name"),
        ("trainlist02.txt", "Hop/v_Hop_g01_c01.avi 1\n", "trainlist02.txt:1: .* does not begin with a class"),
        (
            "trainlist02.txt",
            "\nSwing/v_Swing_g05_c01.avi 1\n",
            "trainlist02.txt:2: .*label 1, but Swing is 2",
        ),
        ("testlist02.txt", "Swing/other.avi\n", "testlist02.txt:1: .* is not named like v_Class_g01_c01.avi"),
    ],
)
def test_names_the_faulty_line(ucf, file, text, message):
    (Path(ucf["annotations"]) / file).write_text(text)
    with pytest.raises(UserError, match=message):
        UCF101(**ucf).manifests()


def test_absent_files(ucf):
    with pytest.raises(UserError, match="trainlist03.txt cannot be read"):
        UCF101(**{**ucf, "fold": 3}).manifests()
    with pytest.raises(UserError, match="no folder none of split files"):
        UCF101(**{**ucf, "annotations": "none"}).manifests()
    with pytest.raises(UserError, match="fold=4: choose 1, 2 or 3, or null"):
        UCF101(**{**ucf, "fold": 4})


@pytest.mark.parametrize(("fold", "counts"), [(1, (294, 106)), (2, (279, 121)), (3, (279, 121))])
def test_ucf101_as_it_is_published(shared_data, fold, counts, caplog):
    root = shared_data / "ucf101_5"
    found = UCF101(root=str(root / "videos"), annotations=str(root / "splits"), fold=fold).manifests()
    assert (len(found["train"]) + len(found["val"]), len(found["test"])) == counts
    assert found["train"].classes == ("Diving", "JumpRope", "SkyDiving", "Surfing", "Swing")
    assert np.bincount(found["val"].labels).min() >= 4
    groups = [set(each.columns.group_names) for each in found.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert not caplog.records
    assert all(Path(path).is_file() for each in found.values() for path in each.paths)


@pytest.fixture
def hmdb(tmp_path):
    splits = tmp_path / "splits"
    splits.mkdir()
    for name in ("brush_hair", "wave"):
        films = [f"Film_{i}_{name}_u_nm_np1_ba_goo_{clip}.avi" for i in range(10) for clip in (0, 1)]
        lines = [f"{film} {1 if i < 16 else 2} " for i, film in enumerate(films[:-1])] + [f"{films[-1]} 0"]
        (splits / f"{name}_test_split1.txt").write_text("\n".join(lines) + "\n")
        plant(tmp_path / "videos" / name, *films)
    return {"root": str(tmp_path / "videos"), "annotations": str(splits)}


def test_hmdb51_fold(hmdb):
    found = HMDB51(**hmdb, val_share=0.25).manifests()
    assert {split: len(each) for split, each in found.items()} == {"train": 24, "val": 8, "test": 6}
    assert found["test"].classes == ("brush_hair", "wave")
    assert found["test"][0].group == "brush_hair/Film_8"
    assert found["test"][0].path.endswith("videos/brush_hair/Film_8_brush_hair_u_nm_np1_ba_goo_0.avi")
    groups = [set(each.columns.group_names) for each in found.values()]
    assert not groups[0] & groups[1]


def test_hmdb51_groups():
    assert film("April_09_brush_hair_u_nm_np1_ba_goo_0", "brush_hair") == "April_09"
    assert film("#20_wave_hands_wave_u_cm_np1_fr_med_1", "wave") == "#20_wave_hands"
    assert film("another_name_12", "wave") == "another_name"


def test_hmdb51_without_split_files(hmdb):
    found = HMDB51(**{**hmdb, "fold": None}).manifests()
    assert {split: len(each) for split, each in found.items()} == {"train": 32, "val": 4, "test": 4}
    assert "wave/Film_0" in {group for each in found.values() for group in each.columns.group_names}


def test_hmdb51_says_what_is_wrong(hmdb):
    with pytest.raises(UserError, match=r"no files \*_test_split2.txt in"):
        HMDB51(**hmdb, fold=2).manifests()
    (Path(hmdb["annotations"]) / "wave_test_split1.txt").write_text("a.avi 3\n")
    with pytest.raises(UserError, match="wave_test_split1.txt:1: 'a.avi 3'"):
        HMDB51(**hmdb).manifests()
