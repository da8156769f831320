import json

import pytest

from vidtrain.data.manifest.manifest import Record
from vidtrain.data.sources.published import SomethingSomething
from vidtrain.errors import UserError

CLASSES = {"Holding something": "1", "Moving something up": "0", "Putting something on something": "2"}
TRAIN = [
    {"id": "11", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {"id": "12", "label": "putting a on b", "template": "Putting [something] on [something]"},
]
VAL = [{"id": "13", "label": "moving cup up", "template": "Moving [something] up"}]


@pytest.fixture
def something(tmp_path):
    (tmp_path / "videos").mkdir()
    for name in ("11.webm", "12.webm", "13.mp4", "14.webm"):
        (tmp_path / "videos" / name).touch()

    def make(labels=CLASSES, train=TRAIN, val=VAL, **settings):
        files = {}
        for name, content in (("labels", labels), ("train", train), ("val", val)):
            files[name] = str(tmp_path / f"{name}.json")
            (tmp_path / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        return SomethingSomething(root=str(tmp_path / "videos"), **files, **settings)

    return make


def test_templates_are_the_classes(something, tmp_path):
    found = something().manifests()
    assert list(found) == ["train", "val"]
    assert found["train"].classes == (
        "Moving something up",
        "Holding something",
        "Putting something on something",
    )
    root = tmp_path / "videos"
    assert list(found["train"]) == [Record(f"{root}/{n}.webm", n - 10, f"{root}/{n}.webm") for n in (11, 12)]
    assert list(found["val"]) == [Record(f"{root}/13.mp4", 0, f"{root}/13.mp4")]


def test_test_needs_answers(something, tmp_path):
    test, answers = tmp_path / "test.json", tmp_path / "answers.csv"
    test.write_text('[{"id": "14"}]')
    answers.write_text("99;Holding something\n14;Moving something up\n")
    found = something(test=str(test), test_answers=str(answers)).manifests()
    assert found["test"].labels.tolist() == [0]
    with pytest.raises(UserError, match="give dataset.source.test_answers"):
        something(test=str(test))
    answers.write_text("99;Holding something\n")
    with pytest.raises(UserError, match="video 14 has no label in .*answers.csv"):
        something(test=str(test), test_answers=str(answers)).manifests()


def test_missing_videos(something, tmp_path):
    (tmp_path / "videos/12.webm").unlink()
    with pytest.raises(UserError, match="1 of 3 .*: 12; .*max_missing_share"):
        something().manifests()
    assert len(something(max_missing_share=0.4).manifests()["train"]) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"labels": {"a": "0", "b": "2"}}, "labels.json: its classes must be numbered 0 to 1"),
        ({"labels": {"a": "x"}}, "labels.json: the numbers of classes must be integers"),
        ({"labels": ["a"]}, "labels.json must hold an object of numbers by label"),
        ({"labels": "{"}, "labels.json is not"),
        ({"train": {"id": "11"}}, "train.json must hold a list of videos"),
        ({"train": [{"id": "11"}]}, "train.json: entry 0 lacks id or template"),
        ({"val": [{"id": "13", "template": "Eating [something]"}]}, "val: video 13 has the label 'Eating something'"),
    ],
)  # fmt: skip
def test_says_what_is_wrong(something, settings, message):
    with pytest.raises(UserError, match=message):
        something(**settings).manifests()
