from pathlib import Path

import pytest

from vidtrain.data.manifest.manifest import Record
from vidtrain.data.sources.published import Kinetics
from vidtrain.errors import UserError

HEAD = "label,youtube_id,time_start,time_end,split\n"
TRAIN = f"""{HEAD}air drumming,aaaaaaaaaaa,2,12,train
"abseiling",-bbbbbbbbbb,10.0,20.0,train
abseiling,ccccccccccc,0,7.5,train
"""
VAL = HEAD.replace("\n", ",is_cc\n") + "abseiling,ddddddddddd,123,133,validate,0\n"


@pytest.fixture
def kinetics(tmp_path):
    """Trimmed files in folders of split and label, and an untrimmed one on its own."""
    for name in (
        "train/air drumming/aaaaaaaaaaa_000002_000012.mp4",
        "train/abseiling/-bbbbbbbbbb_000010_000020.mkv",
        "ccccccccccc.webm",
        "val/abseiling/ddddddddddd_000123_000133.mp4",
    ):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def make(train=TRAIN, val=VAL, **settings):
        (tmp_path / "train.csv").write_text(train)
        (tmp_path / "val.csv").write_text(val)
        lists = [str(tmp_path / "train.csv"), str(tmp_path / "val.csv")]
        return Kinetics(root=str(tmp_path / "videos"), annotations=lists, **settings)

    return make


def test_trimmed_files_are_whole_and_untrimmed_ones_cut(kinetics, tmp_path):
    found, root = kinetics().manifests(), tmp_path / "videos"
    assert found["train"].classes == ("abseiling", "air drumming")
    assert list(found["train"]) == [
        Record(f"{root}/train/air drumming/aaaaaaaaaaa_000002_000012.mp4", 1, "aaaaaaaaaaa"),
        Record(f"{root}/train/abseiling/-bbbbbbbbbb_000010_000020.mkv", 0, "-bbbbbbbbbb"),
        Record(f"{root}/ccccccccccc.webm", 0, "ccccccccccc", start=0.0, end=7.5),
    ]
    assert list(found["val"]) == [Record(f"{root}/val/abseiling/ddddddddddd_000123_000133.mp4", 0, "ddddddddddd")]


@pytest.mark.parametrize("folder", ["", "air_drumming", "air drumming", "train", "train/air_drumming"])
def test_folders(kinetics, tmp_path, folder):
    old = tmp_path / "videos/train/air drumming/aaaaaaaaaaa_000002_000012.mp4"
    new = tmp_path / "videos" / folder / old.name
    new.parent.mkdir(exist_ok=True)
    old.rename(new)
    assert kinetics().manifests()["train"][0].path == str(new)


def test_missing_ones_are_counted_and_bounded(kinetics, tmp_path, caplog):
    (tmp_path / "videos/ccccccccccc.webm").unlink()
    with pytest.raises(UserError, match="1 of 4 .*: ccccccccccc; .*max_missing"):
        kinetics().manifests()
    with pytest.raises(UserError, match="1 of 4 annotated"):
        kinetics(max_missing_share=0.2).manifests()
    assert len(kinetics(max_missing_share=0.25).manifests()["train"]) == 2
    assert "1 of 4 annotated videos are not in" in caplog.text
    with pytest.raises(UserError, match="max_missing_share=2: .* 0 and 1"):
        kinetics(max_missing_share=2)


def test_classes_may_be_given(kinetics):
    found = kinetics(classes=["air drumming", "yoga", "abseiling"]).manifests()
    assert found["val"].labels.tolist() == [2]


@pytest.mark.parametrize(
    ("train", "val", "message"),
    [
        (
            "label,youtube_id\n",
            VAL,
            "train.csv: line 1 lacks the columns time_start, time_end, split; it has label",
        ),
        (TRAIN + "a,b,1,2,dev\n", VAL, "train.csv:5: split 'dev' is none of train, val"),
        (TRAIN, VAL + ",x,1,2,val,0\n", "val.csv:3: label '' is empty: leave a list without labels out"),
        (TRAIN, VAL + "yoga,x,1,2,val,0\n", "val.csv:3: label 'yoga' is not among the classes"),
        (TRAIN + "abseiling,b,x,2,train\n", VAL, "train.csv:5: 'x' to '2'"),
        (TRAIN + "abseiling,b,3,2,train\n", VAL, "train.csv:5: 3 to 2 s"),
        (TRAIN + "abseiling,b,3\n", VAL, "train.csv:5: 3 fields, not 5"),
        (HEAD, VAL, "no rows of split train in"),
        (TRAIN, HEAD, "there is no val split"),
    ],
)
def test_says_what_is_wrong(kinetics, train, val, message):
    with pytest.raises(UserError, match=message):
        kinetics(train, val).manifests()


def test_absent_root(kinetics, tmp_path):
    source = kinetics()
    Path(tmp_path / "videos").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="no folder .*/videos of videos"):
        source.manifests()
