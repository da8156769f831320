"""What the data of a run were when it was started, and what is said and refused where they are others later."""

import json
import os

import pytest

from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.errors import UserError
from vidtrain.runs.data import begin, changed_in_mid_run, hold_evaluated

CLASSES = ("blue", "red")


class Said:
    """A console that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def info(self, text):
        self.lines.append(text)

    def warn(self, text):
        self.lines.append(f"warning: {text}")


@pytest.fixture
def console():
    return Said()


@pytest.fixture
def data(tmp_path):
    """Four training videos, two of val."""
    for split, count in (("train", 2), ("val", 1)):
        for label in CLASSES:
            for number in range(count):
                path = tmp_path / "data" / split / label / f"{number}.mp4"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(label.encode() * (number + 1))
    return tmp_path / "data"


@pytest.fixture
def start(tmp_path, data, console):
    folder, index = tmp_path / "run", VideoIndex(None)

    def splits():
        found = {}
        for split in ("train", "val"):
            paths = sorted((data / split).glob("*/*.mp4"))
            records = [Record(str(path), CLASSES.index(path.parent.name), str(path)) for path in paths]
            found[split] = Manifest(records, CLASSES)
        return found

    def start(allowed=False):
        console.lines.clear()
        return begin(folder, splits(), index, allowed, console)

    start.folder, start.splits = folder, splits
    return start


def saved(start):
    (start.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (start.folder / "checkpoints/last.pt").touch()


def test_the_same_data_are_not_spoken_of(start, console):
    first = start()
    saved(start)
    assert start() == first and first.keys() == {"train", "val"}
    assert console.lines == [] and not changed_in_mid_run(start.folder)


def test_a_run_that_saved_nothing_begins_with_what_there_is(start, data, console):
    start()
    (data / "train/red/0.mp4").unlink()
    start()
    assert console.lines == []
    saved(start)
    start()
    assert console.lines == []


def test_other_training_data_are_refused_by_name(start, data, console):
    start()
    saved(start)
    (data / "train/red/0.mp4").unlink()
    (data / "train/red/1.mp4").write_bytes(b"another")
    (data / "train/blue/7.mp4").write_bytes(b"one more")
    (data / "val/red/0.mp4").write_bytes(b"another")
    with pytest.raises(UserError) as error:
        start()
    assert str(error.value) == (
        f"the data are not those that the run in {start.folder} was started with:\n"
        f"  train: 1 removed: {data}/train/red/0.mp4\n"
        f"  train: 1 added: {data}/train/blue/7.mp4\n"
        f"  train: 1 replaced by another file: {data}/train/red/1.mp4 (6 -> 7 bytes)\n"
        f"  val: 1 replaced by another file: {data}/val/red/0.mp4 (3 -> 7 bytes)\n"
        "Put them back, or start a new run (init_from takes the weights of this one). To continue with the changed "
        "data, set data.allow_changed=true; data_changes.jsonl then records the differences"
    )
    assert not changed_in_mid_run(start.folder)
    start(allowed=True)
    rows = [json.loads(line) for line in (start.folder / "data_changes.jsonl").read_text().splitlines()]
    assert [(row["split"], row["counts"]) for row in rows] == [
        ("train", {"removed": 1, "added": 1, "replaced by another file": 1}),
        ("val", {"replaced by another file": 1}),
    ]
    assert rows[0]["named"]["removed"] == [f"{data}/train/red/0.mp4"]
    start()  # from now on these are the data
    assert console.lines == [] and changed_in_mid_run(start.folder)


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_video_in_another_class_is_refused_in_every_split(start, data, split):
    (data / split / "red/5.mp4").write_bytes(b"five")
    start()
    saved(start)
    (data / split / "red/5.mp4").rename(data / split / "blue/5.mp4")
    with pytest.raises(UserError, match=rf"{split}: 1 .*blue/5.mp4 \(red -> blue\)"):
        start()
    start(allowed=True)
    assert changed_in_mid_run(start.folder)


def test_other_val_videos_are_a_warning(start, data, console):
    start()
    saved(start)
    (data / "val/red/0.mp4").write_bytes(b"another")
    start()
    assert console.lines == [
        "warning: the data are not those that the run was started with (data_changes.jsonl has all differences):\n"
        f"  val: 1 replaced by another file: {data}/val/red/0.mp4 (3 -> 7 bytes)",
        "warning: the best checkpoint so far was selected on the earlier val; metrics from now on are of the "
        "changed one",
    ]
    assert changed_in_mid_run(start.folder)


def test_a_folder_of_before_there_was_a_record_goes_on_with_a_note(start, data, console):
    saved(start)
    start()
    assert console.lines == [
        f"{start.folder} has no record of the data with which the run was started, as an earlier version started it: "
        "the data are not compared, and are recorded from now on"
    ]
    (data / "train/red/0.mp4").unlink()
    with pytest.raises(UserError, match="1 removed"):
        start()


def test_a_file_of_as_many_bytes_is_known_by_the_index(start, data, console, tmp_path, monkeypatch):
    start()
    saved(start)
    path = data / "train/red/0.mp4"
    path.write_bytes(b"der")
    os.utime(path, (1, 1))
    start()
    (line,) = console.lines
    assert line.startswith("warning: train: 1 file of the same size as when the run was started, but with another")
    from vidtrain.data.decoding.metadata import file_digest

    known = {"red": b"", "der": file_digest([str(path)])}
    path.write_bytes(b"red")
    known["red"] = file_digest([str(path)])
    path.write_bytes(b"der")
    monkeypatch.setattr(VideoIndex, "known_digest", lambda self, *key: known["der"])
    start()
    assert console.lines == []
    monkeypatch.setattr(VideoIndex, "known_digest", lambda self, *key: known["red"])
    with pytest.raises(UserError, match=r"red/0.mp4 \(of as many bytes\)"):
        start()


def test_evaluating_other_data(start, data, console):
    index = VideoIndex(None)

    def hold(split="val", allowed=False):
        console.lines.clear()
        return hold_evaluated(start.folder, split, start.splits()[split], index, allowed, console)

    start.folder.mkdir()
    assert hold() is None and console.lines == [
        f"{start.folder} has no record of val from when the run was started: it is used as it is now"
    ]
    start()
    assert hold() is None and console.lines == []
    (data / "val/red/0.mp4").write_bytes(b"another")
    assert hold()["counts"] == {"replaced by another file": 1}
    assert console.lines[0].startswith("warning: val is not what it was when the run in")
    (data / "train/red/0.mp4").write_bytes(b"another")
    with pytest.raises(UserError, match="allow_changed=true"):
        hold("train")
    assert hold("train", allowed=True)["counts"] == {"replaced by another file": 1}
