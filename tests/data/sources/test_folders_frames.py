import json

import pytest

from vidtrain.data.manifest.manifest import Record
from vidtrain.data.sources.folders import FrameFolders
from vidtrain.errors import UserError

ANNOTATIONS = {
    "categories": {"wave": 1, "clap": 0},
    "train": [{"video": "v1", "target": 0, "segment": [0, 39], "group": "g"}, {"video": "v2", "target": 1}],
    "val": [{"video": "v3", "target": 1, "segment": [10, 19]}],
}


@pytest.fixture
def folders(tmp_path):
    for name in ("v1", "v2", "v3", *(f"f{i}" for i in range(20))):
        (tmp_path / name).mkdir()

    def make(annotations=None, truth=None, **settings):
        if annotations is not None:
            text = annotations if isinstance(annotations, str) else json.dumps(annotations)
            (tmp_path / "annotations.json").write_text(text)
            settings["annotations"] = str(tmp_path / "annotations.json")
        if truth is not None:
            (tmp_path / "truth.csv").write_text(truth)
            settings["ground_truth"] = str(tmp_path / "truth.csv")
        return FrameFolders(**{"root": str(tmp_path), "frame_rate": 10.0, **settings})

    return make


def test_annotations(folders, tmp_path):
    found = folders(ANNOTATIONS).manifests()
    assert found["train"].classes == ("clap", "wave") and found["train"].frame_rate == 10.0
    assert list(found["train"]) == [
        Record(f"{tmp_path}/v1", 0, "g", end=3.95),
        Record(f"{tmp_path}/v2", 1, f"{tmp_path}/v2"),
    ]
    assert list(found["val"]) == [Record(f"{tmp_path}/v3", 1, f"{tmp_path}/v3", start=0.95, end=1.95)]


def test_several_targets(folders):
    many = {**ANNOTATIONS, "val": [{"video": "v3", "target": [1, 0]}]}
    found = folders(many).manifests()
    assert found["val"][0].labels == (1, 0) and found["train"][0].labels == (0,)


def test_ground_truth_is_split_by_youtube_id(folders):
    rows = "".join(f"y{i // 2},f{i},{'ab'[i % 2]}\n" for i in range(20))
    found = folders(truth=f"youtube_id,folder_name,label\n{rows}").manifests()
    assert [len(each) for each in found.values()] == [16, 2, 2]
    assert found["val"][0].group == found["val"][1].group != found["test"][0].group
    assert found["train"].classes == ("a", "b") and found["test"].frame_rate == 10.0


def test_k400_tiny(shared_data):
    root = shared_data / "k400_tiny"
    truth = str(root / "k400tiny_groundtruth.csv")
    found = FrameFolders(root=str(root / "k400tiny_images"), frame_rate=8.0, ground_truth=truth).manifests()
    assert [len(each) for each in found.values()] == [4, 1, 1]
    assert found["train"].classes[:3] == ("abseiling", "air drumming", "answering questions")


def test_missing_folders(folders, caplog):
    missing = {**ANNOTATIONS, "train": [*ANNOTATIONS["train"], {"video": "v9", "target": 0}]}
    with pytest.raises(UserError, match="1 of 4 .*: v9; .*allow_missing=true"):
        folders(missing).manifests()
    assert len(folders(missing, allow_missing=True).manifests()["train"]) == 2
    assert "1 of 4 annotated videos" in caplog.text
    with pytest.raises(UserError, match="1 of 1 .*: gone"):
        folders(truth="youtube_id,folder_name,label\nx,gone,a\n").manifests()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of dataset.source.annotations and"),
        ({"annotations": ANNOTATIONS, "truth": "x"}, "one of dataset.source.annotations and"),
        ({"annotations": ANNOTATIONS, "frame_rate": 0}, "frame_rate=0: must be images a second"),
        ({"annotations": ANNOTATIONS, "classes": ["a"]}, "names the classes.* dataset.source.classes"),
        ({"annotations": ANNOTATIONS, "group_pattern": "a"}, "names the groups.* dataset.source.group_pattern"),
        ({"annotations": "{"}, "annotations.json is not"),
        ({"annotations": {"train": []}}, "annotations.json .*KeyError.'categories'"),
        ({"annotations": {**ANNOTATIONS, "val": []}}, "lists no videos for val"),
        ({"annotations": {**ANNOTATIONS, "val": [{"video": "v3", "target": 5}]}}, r"v3: label 5 is outside 0\.\.1"),
        ({"annotations": {**ANNOTATIONS, "val": [{"video": "v3", "target": 0, "segment": [3, 1]}]}}, "segment .3, 1."),
        ({"annotations": {**ANNOTATIONS, "val": [{"video": "v1", "target": 0}]}}, "both train and val hold 1 video"),
        ({"annotations": {**ANNOTATIONS, "val": [{"video": "v3", "target": []}]}}, r"target \[\] of v3, which must be"),
        ({"annotations": {**ANNOTATIONS, "val": [{"video": "v3", "target": 0.9}]}}, "target 0.9 of v3, which must be"),
        ({"annotations": {**ANNOTATIONS, "val": [{"video": "v3", "target": 10**12}]}}, "target 10+ of v3, which"),
        ({"annotations": {**ANNOTATIONS, "val": [{"video": "v1/", "target": 0}]}}, "both train and val hold"),
        ({"annotations": ANNOTATIONS, "frame_rate": float("inf")}, "frame_rate=inf: must be images a second"),
        ({"truth": "youtube_id,label\n"}, "truth.csv: line 1 lacks the columns folder_name"),
        ({"truth": "youtube_id,folder_name,label\nx,f1,\n"}, "truth.csv:2: no label"),
        ({"truth": "youtube_id,folder_name,label\nx,f1,c\n", "classes": ["a"]}, "truth.csv:2: label 'c' is not among"),
    ],
)  # fmt: skip
def test_says_what_is_wrong(folders, settings, message):
    with pytest.raises(UserError, match=message):
        folders(**settings).manifests()
