import os

import pytest

from vidtrain.data.manifest.manifest import Record, SourceInfo
from vidtrain.data.sources.folders import ClassFolders
from vidtrain.data.sources.listings import Listing, Mixture, Part
from vidtrain.errors import UserError


@pytest.fixture
def listing(tmp_path):
    def write(name, train, val=None, **settings):
        files = {}
        for split, text in (("train", train), ("val", val)):
            if text is not None:
                path = tmp_path / f"{name}_{split}.csv"
                path.write_text(text)
                files[split] = str(path)
        return Listing(**files, root=f"/{name}", **settings)

    return write


def test_parts_keep_their_records_and_say_where_they_are_from(listing):
    one = listing("one", "path,label,group\na.mp4,run,x\n", "b.mp4,run\n", classes=["jump", "run"])
    two = listing("two", "a.mp4,jump\nc.mp4,run\n", val_share=0, classes=["jump", "run"])
    source = Mixture({"one": Part(one, weight=0.25, frames=16), "out": None, "two": Part(two, weight=0.75)})
    found = source.manifests()
    assert list(found["train"]) == [
        Record("/one/a.mp4", 1, "x"),
        Record("/two/a.mp4", 0, "/two/a.mp4", source=1),
        Record("/two/c.mp4", 1, "/two/c.mp4", source=1),
    ]
    assert list(found["val"]) == [Record("/one/b.mp4", 1, "/one/b.mp4")]
    assert found["train"].sources == (SourceInfo("one", 0.25, 16), SourceInfo("two", 0.75, None))
    assert found["train"].classes == found["val"].classes == ("jump", "run")
    assert [os.path.basename(path) for path in source.inputs()] == [
        "one_train.csv",
        "one_val.csv",
        "two_train.csv",
    ]


def test_cuts_and_labels_survive(listing):
    text = "path,label,start,end\na.mp4,run|jump,1,2\n"
    one = listing("one", text, "b.mp4,run", label_separator="|")
    two = listing("two", "c.mp4,run|jump\n", val_share=0, label_separator="|")
    found = Mixture({"one": Part(one), "two": Part(two)}).manifests()["train"]
    assert [(record.labels, record.start, record.end) for record in found] == [
        ((1, 0), 1.0, 2.0),
        ((1, 0), None, None),
    ]


def test_a_part_that_walks_has_no_inputs(listing, tmp_path):
    one = Part(listing("one", "a.mp4,run", "b.mp4,run"))
    assert Mixture({"one": one, "two": Part(ClassFolders(str(tmp_path)))}).inputs() is None


def test_parts_must_fit(listing):
    one = Part(listing("one", "a.mp4,run\n", "b.mp4,run\n"))
    with pytest.raises(UserError, match="two .1. and one .1. differ: jump, run"):
        Mixture({"one": one, "two": Part(listing("two", "a.mp4,jump\n", val_share=0))}).manifests()
    with pytest.raises(UserError, match="two and one cannot be mixed"):
        Mixture({"one": one, "two": Part(listing("two", "a,run\n", val_share=0, frame_rate=5.0))}).manifests()
    with pytest.raises(UserError, match="dataset.source.parts holds no part"):
        Mixture({"one": None})
    with pytest.raises(UserError, match="source.parts.two.source.delimiter=comma"):
        Mixture({"one": one, "two": Part(listing("two", "a b,run c\n", val_share=0))}).manifests()
    with pytest.raises(UserError, match="no part of the mixture has a val split"):
        Mixture({"two": Part(listing("two", "a.mp4,run\n", val_share=0))}).manifests()
    with pytest.raises(UserError, match="both train and val hold 1 video: /v/b.mp4"):
        two = listing("two", "/v/b.mp4,run\n", val_share=0)
        Mixture({"one": Part(listing("one", "a.mp4,run\n", "/v/b.mp4,run\n")), "two": Part(two)}).manifests()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 0.0}, "weight=0.0: must be above 0; to leave a part out, set it to null"),
        ({"frames": 0}, "frames=0: must be 1 or more"),
    ],
)
def test_weights_and_frames_must_mean_something(settings, message):
    with pytest.raises(UserError, match=message):
        Part(None, **settings)
