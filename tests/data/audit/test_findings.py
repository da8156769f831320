"""Groups, balance and copies over made-up records."""

import numpy as np
import pytest

from vidtrain.data.audit.duplicates import Signature
from vidtrain.data.audit.findings import Entry, balance, copies, entries, groups_across_splits
from vidtrain.data.audit.inspection import Inspection
from vidtrain.data.audit.summary import Bounds, summarize
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.errors import UserError

NEAR, NEARER, FAR = (  # the first two are two bits apart
    Signature(np.full(4, value, np.uint64), np.full((4, 48), 9, np.uint8)).to_text()
    for value in (0xFF00000000000000, 0xFF00000000000003, 0xE1965A0FCC3355AA)
)


def test_entries_take_groups_from_the_source_or_from_the_path():
    train = Manifest([Record("/v/Dive_g01_c1.mp4", 0, "a"), Record("/v/other.mp4", 1, "b")], ("Dive", "Swing"))
    found = entries({"train": train}, r"/(\w+)_g(\d+)_")
    assert [(each.path, each.split, each.classes, each.group) for each in found] == [
        ("/v/Dive_g01_c1.mp4", "train", ("Dive",), "Dive/01"),
        ("/v/other.mp4", "train", ("Swing",), "b"),
    ]
    assert [each.group for each in entries({"train": train}, r"_g\d+_")] == ["_g01_", "b"]
    assert [each.group for each in entries({"train": train})] == ["a", "b"]


def test_a_pattern_that_finds_nothing_is_a_mistake(caplog):
    train = Manifest([Record("/v/Dive_g01_c1.mp4", 0, "a"), Record("/v/other.mp4", 0, "b")], ("Dive",))
    with pytest.raises(UserError, match="group_pattern=_gruppe .* 0 of 2"):
        entries({"train": train}, "_gruppe")
    entries({"train": train}, "_g01")
    assert "matches 1 of 2 paths, and not /v/other.mp4" in caplog.text


def entry(path, split="train", name="a", group=None, start=None, end=None):
    return Entry(path, split, (name,), group or path, start, end)


def test_groups_and_balance():
    records = [
        entry("1", group="x"),
        entry("2", "val", group="x"),
        entry("3", "val", "b", group="y"),
        entry("4", group="z"),
    ]
    assert groups_across_splits(records) == {"x": {"train": 1, "val": 1}}
    assert balance(records, ["a", "b"], ["train", "val"]) == {
        "a": {"train": 2, "val": 1},
        "b": {"train": 0, "val": 1},
    }


def test_copies_are_exact_near_or_listed_twice():
    found = {
        "one": Inspection(9, digest="d1", signature=NEAR),
        "same": Inspection(9, digest="d1", signature=NEAR),
        "alike": Inspection(8, digest="d2", signature=NEARER),
        "far": Inspection(7, digest="d3", signature=FAR),
        "far copy": Inspection(7, digest="d3", signature=FAR),
        "black": Inspection(6, digest="d4"),
        "black too": Inspection(6, digest="d5"),
        "broken": Inspection(0, cause="the file is empty", digest="d6"),
        "broken too": Inspection(0, cause="the file is empty", digest="d6"),
        "cut": Inspection(5, digest="d7"),
        "twice": Inspection(4, digest="d8"),
    }
    records = [entry(path) for path in found if path not in ("same", "cut", "twice", "far copy")]
    records += [entry("same", "val", "b"), entry("far copy")]
    records += [entry("cut", start=0, end=2), entry("cut", "val", start=2, end=4)]  # not the same moments
    records += [entry("twice", "val", start=0, end=2), entry("twice", "test", start=1.5)]
    sets = copies(records, found, max_distance=6.5)
    assert [(each.kind, set(each.paths), set(each.splits), set(each.classes), each.distance) for each in sets] == [
        ("listed twice", {"twice"}, {"val", "test"}, {"a"}, 0.0),
        ("near", {"one", "same", "alike"}, {"train", "val"}, {"a", "b"}, 2.0),
        ("exact", {"far", "far copy"}, {"train"}, {"a"}, 0.0),
    ]
    assert [each.across_splits for each in sets] == [True, True, False]


def test_cuts_behind_the_end_are_issues():
    file = Inspection(size=1, duration=4.0, rate=25.0, width=8, height=8)
    records = [entry("1", start=1.0, end=9.0), entry("2", start=4.0), entry("2", "val", start=9.5)]
    bounds = Bounds(None, None, None, None, None, None)
    found = summarize(records, ["a"], {"1": file, "2": file}, 5.0, bounds)["issues"]
    assert [(each["path"], each["kind"], each["words"]) for each in found] == [
        ("2", "cut behind the end", "from 4 s of 4 s"),
        ("2", "cut behind the end", "from 9.5 s of 4 s"),
    ]
