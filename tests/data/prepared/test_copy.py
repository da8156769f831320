"""A prepared copy knows what it holds, what must be made anew, and gives a manifest the copies' paths."""

import csv
import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from vidtrain.data.manifest.manifest import Manifest, Record, SourceInfo
from vidtrain.data.prepared.copy import PreparedCopy, signature
from vidtrain.data.prepared.reencode import EncodeSettings, PrepareResult
from vidtrain.errors import UserError

SETTINGS = EncodeSettings(short_side=256, gop=12, b_frames=3, crf=20, preset="fast")
COMMAND = "python -m vidtrain.prepare dataset=mine"


@pytest.fixture
def sources(tmp_path) -> list[str]:
    """Four files, two of one name."""
    paths = [tmp_path / "data" / name for name in ("a/x.avi", "a/y.mp4", "b/x.avi", "b/x.mp4")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"source {path.name}")
    return [str(path) for path in paths]


def begin(tmp_path: Path, sources: list[str], settings: EncodeSettings = SETTINGS) -> PreparedCopy:
    return PreparedCopy.begin(tmp_path / "prepared" / "mine" / "small", sources, settings, COMMAND)


def make(copy: PreparedCopy, source: str, shift: float = 0.0) -> None:
    """As encoding would: the copy, then the row."""
    target = copy.target(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("copy")
    copy.record(source, signature(source), PrepareResult(bytes=4, shift=shift))


@pytest.fixture
def copy(tmp_path, sources) -> PreparedCopy:
    found = begin(tmp_path, sources)
    for source in sources:
        make(found, source)
    return found


def test_copies_mirror_the_sources(tmp_path, sources, copy):
    files = tmp_path / "prepared" / "mine" / "small" / "files"
    assert [copy.target(source) for source in sources] == [
        files / "a" / "x.avi.mp4",
        files / "a" / "y.mp4.mp4",
        files / "b" / "x.avi.mp4",
        files / "b" / "x.mp4.mp4",
    ]


def test_only_what_is_new_or_changed_is_pending(tmp_path, sources, copy):
    assert list(copy.pending(sources)) == []
    Path(sources[0]).write_text("source x.avi, longer")
    os.utime(sources[1], ns=(1, 1))
    copy.target(sources[2]).unlink()
    new = str(tmp_path / "data" / "c.avi")
    Path(new).write_text("new")
    assert list(copy.pending([*sources, new])) == [*sources[:3], new]
    Path(sources[3]).unlink()  # its copy is all there is left
    assert list(copy.pending(sources[3:])) == []


def test_other_settings_make_everything_anew(tmp_path, sources, copy):
    changed = begin(tmp_path, sources, EncodeSettings(256, 12, 3, 18, "fast"))
    assert list(changed.pending(sources)) == sources
    make(changed, sources[1])
    manifest = Manifest([Record(source, 0, source) for source in sources], ("one",))
    with pytest.raises(UserError, match="3 of 4 files"):  # so copies of two kinds are never mixed
        changed.redirect(manifest)


def test_what_could_not_be_read_is_listed_and_tried_again(tmp_path, sources, copy):
    copy.record(sources[1], signature(sources[1]), PrepareResult(cause="the file is empty"))
    assert list(copy.pending(sources)) == [sources[1]]
    assert not copy.target(sources[1]).exists()
    counts, unreadable = copy.finish(sources)
    assert unreadable == [(sources[1], "the file is empty")]
    sizes = sum(os.path.getsize(source) for source in sources) - os.path.getsize(sources[1])
    assert counts == {"videos": 4, "unreadable": 1, "source_bytes": sizes, "bytes": 12}
    with open(copy.folder / "unreadable.csv", newline="") as file:
        assert list(csv.reader(file)) == [["path", "cause"], [sources[1], "the file is empty"]]
    facts = json.loads((copy.folder / "prepared.json").read_text())
    assert facts["settings"] == {"short_side": 256, "gop": 12, "b_frames": 3, "crf": 20, "preset": "fast"}
    assert facts["complete"] is True and facts["unreadable"] == 1 and "libavcodec" in facts["versions"]


def test_a_manifest_gets_the_copies_paths_and_keeps_the_rest(sources, copy):
    copy.record(sources[1], signature(sources[1]), PrepareResult(cause="no frame decodes"))
    records = [
        Record(sources[2], 1, "anna", (1, 0), start=1.5, end=4.0, source=1),
        Record(sources[1], 0, "bert", (0,)),
        Record(sources[2], 1, "anna", (1,), start=4.0),
        Record(sources[0], 1, sources[0], (1,)),
    ]
    listings = (SourceInfo("one", 1.0), SourceInfo("two", 3.0, 8))
    manifest = Manifest(records, ("walk", "run"), sources=listings)
    found = PreparedCopy.open(copy.folder).redirect(manifest)
    x = str(copy.target(sources[2]))
    assert list(found)[:3] == [
        Record(x, 1, "anna", (1, 0), start=1.5, end=4.0, source=1),
        Record(sources[1], 0, "bert", (0,)),  # unreadable: reading it will say so
        Record(x, 1, "anna", (1,), start=4.0),
    ]
    # a group of its own still is one
    assert found[3].path == found[3].group == str(copy.target(sources[0]))
    assert (found.classes, found.sources, found.multi_label) == (("walk", "run"), listings, True)
    assert list(manifest) == records


def test_cuts_move_with_the_times_of_the_copy(sources, copy):
    make(copy, sources[0], shift=0.25)
    records = [Record(sources[0], 0, "g", (0,), 1.0, 2.0), Record(sources[0], 0, "g", (0,), None, 2.0)]
    records.append(Record(sources[1], 0, "g", (0,), 1.0, 2.0))
    found = copy.redirect(Manifest(records, ("one",)))
    assert [(each.start, each.end) for each in found] == [(1.25, 2.25), (None, 2.25), (1.0, 2.0)]


def test_folders_of_images_become_files(tmp_path):
    folder = tmp_path / "data" / "clip"
    folder.mkdir(parents=True)
    (folder / "img_1.png").write_text("image")
    copy = begin(tmp_path, [str(folder)])
    make(copy, str(folder))
    assert list(copy.pending([str(folder)])) == []
    found = copy.redirect(Manifest([Record(str(folder), 0, "g")], ("one",), frame_rate=12.5))
    assert found.frame_rate is None and found[0].path.endswith("clip.mp4")
    (folder / "img_2.png").write_text("another")
    assert list(copy.pending([str(folder)])) == [str(folder)]


def test_files_that_are_not_in_the_copy_are_named_with_the_command(tmp_path, sources, copy):
    absent = [str(tmp_path / "elsewhere" / f"{number}.avi") for number in range(7)]
    manifest = Manifest([Record(path, 0, path) for path in [*sources, *absent]], ("one",))
    with pytest.raises(UserError) as caught:
        copy.redirect(manifest)
    message = str(caught.value)
    assert message.startswith("7 of 11 files are not in the prepared copy")
    assert absent[4] in message and absent[5] not in message
    assert message.endswith(f"complete it with: {COMMAND}")


def test_a_dataset_that_was_moved_is_known_again(tmp_path, sources, copy):
    (tmp_path / "data").rename(tmp_path / "moved")
    moved = [source.replace(f"{tmp_path}/data/", f"{tmp_path}/moved/") for source in sources]
    again = begin(tmp_path, moved)
    assert list(again.pending(moved)) == []
    assert again.redirect(Manifest([Record(moved[0], 0, "g")], ("one",)))[0].path == str(again.target(moved[0]))


def test_a_part_of_the_dataset_keeps_its_root_and_another_dataset_is_refused(tmp_path, sources, copy):
    assert begin(tmp_path, sources[2:]).root == str(tmp_path / "data")
    with pytest.raises(UserError, match="1 of 5 files lie elsewhere.*name="):
        begin(tmp_path, [*sources, str(tmp_path / "other" / "z.avi")])


def test_relative_paths_are_the_same_files(tmp_path, sources, copy, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert list(copy.pending([os.path.relpath(source) for source in sources])) == []


def test_a_name_in_no_encoding(tmp_path, sources, copy):
    odd = os.fsdecode(os.fsencode(str(tmp_path / "data")) + b"/\xff\xfe.avi")
    Path(odd).write_text("odd")
    make(copy, odd)
    assert list(copy.pending([odd])) == []
    copy.record(odd, signature(odd), PrepareResult(cause="broken"))
    copy.finish([odd])
    assert b"\xff\xfe.avi,broken" in (copy.folder / "unreadable.csv").read_bytes()


def test_what_a_killed_run_left_is_removed(sources, copy):
    left = copy.target(sources[0]).with_name(".x.avi.mp4.123.tmp")
    left.write_text("half")
    copy.clean()
    assert not left.exists() and copy.target(sources[0]).exists()


def test_there_is_no_such_copy(tmp_path, copy):
    with pytest.raises(UserError, match="copy large .*there are: small"):
        PreparedCopy.open(copy.folder.parent / "large")
    with pytest.raises(UserError, match="python -m vidtrain.prepare"):
        PreparedCopy.open(tmp_path / "none" / "large")
    (copy.folder / "prepared.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        PreparedCopy.open(copy.folder)


def test_many_files(tmp_path):
    sources = [f"/data/mine/c{number % 7}/{number:05}.avi" for number in range(25_000)]
    copy = begin(tmp_path, sources)
    with copy._ledger() as ledger, ledger:
        rows = ((os.fsencode(source[len("/data/mine/") :]), 1, 2, copy._key, 3, 0.0, "") for source in sources)
        ledger.executemany("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    manifest = Manifest([Record(source, 0, source) for source in sources], ("one",))
    found = copy.redirect(manifest)
    assert [found[n].path for n in (0, 9_999, 10_000, 24_999)] == [
        str(copy.folder / "files" / f"c{n % 7}/{n:05}.avi.mp4") for n in (0, 9_999, 10_000, 24_999)
    ]
    assert len(found) == 25_000 and np.array_equal(found.labels, manifest.labels)


def test_copies_of_another_format_are_made_anew(sources, copy):
    with closing(sqlite3.connect(copy.folder / "ledger.sqlite")) as ledger, ledger:
        ledger.execute("UPDATE files SET settings = replace(settings, '[2, ', '[1, ')")
    assert copy.pending(sources) == sources
    with pytest.raises(UserError, match=f"(?s)4 of 4 files are not in the prepared copy .*{COMMAND}"):
        copy.redirect(Manifest([Record(source, 0, source) for source in sources], ["a"]))
