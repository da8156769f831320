"""The preparing program, started as from a shell: killed in the middle, it goes on; what it cannot read it lists."""

import csv
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from composing import config_of

from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.prepared.copy import PreparedCopy
from vidtrain.data.sources.folders import ClassFolders
from vidtrain.prepare import check, prepare

ROOT = Path(__file__).resolve().parents[1]


def write(path: Path, frames: int, width: int = 64, height: int = 48) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height + frames, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height = width, height
        for i in range(frames):
            picture = np.ascontiguousarray(noise[i : i + height])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def overrides(folder: Path, *more: str) -> list[str]:
    dataset = ["dataset=class_folders", "dataset.name=mine", f"dataset.source.root={folder / 'mine'}"]
    return [*dataset, f"data_root={folder}", "num_workers=1", "gop=6", "preset=slow", *more]


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(tmp_path, capsys):
    for split in ("train", "val"):
        for name in ("jump", "run"):
            for number in range(2):
                write(tmp_path / "mine" / split / name / f"{number}.avi", 10 + number)
    write(tmp_path / "mine" / "train" / "run" / "long.avi", 120, 320, 240)
    (tmp_path / "mine" / "train" / "jump" / "broken.avi").write_text("no video")
    sources = sorted((tmp_path / "mine").rglob("*.avi"))
    copies = tmp_path / "prepared" / "mine" / "short256_gop6"

    command = [sys.executable, "-m", "vidtrain.prepare", *overrides(tmp_path)]
    first = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )

    def noted() -> bool:
        """Whether every copy that lies there has its row, which follows it: one without is made again."""
        with closing(sqlite3.connect(copies / "ledger.sqlite")) as ledger:
            rows = ledger.execute("SELECT count(*) FROM files WHERE coalesce(cause, '') = ''").fetchone()
        return rows[0] == len(list(copies.rglob("[!.]*.mp4")))

    while not (list(copies.rglob(".long.avi.mp4.*")) and noted()):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.005)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)  # until none of its processes is left
    assert list(copies.rglob(".long.avi.mp4.*"))
    done = {path: path.stat().st_mtime_ns for path in copies.rglob("[!.]*.mp4")}
    assert 4 <= len(done) < 9
    assert all(read_metadata(str(path)).num_frames in (10, 11) for path in done)

    cfg = config_of("prepare", *overrides(tmp_path, "max_unreadable_share=0.05"))
    with pytest.raises(SystemExit) as status:
        prepare(cfg)
    words, error = capsys.readouterr()
    assert status.value.code == 3  # one of ten
    assert "10.0% of the files cannot be read, more than max_unreadable_share=0.05" in error
    assert f"{len(done)} of 10 files are there already" in words
    assert "9 of 10 files prepared" in words and "train with: data.prepared=short256_gop6" in words
    assert all(path.stat().st_mtime_ns == time for path, time in done.items())
    assert [path.name for path in copies.rglob("*.tmp")] == []
    with open(copies / "unreadable.csv", newline="") as file:
        (_, row) = csv.reader(file)
    assert row[0] == str(tmp_path / "mine" / "train" / "jump" / "broken.avi") and "Invalid data" in row[1]

    manifests = ClassFolders(str(tmp_path / "mine")).manifests()
    redirected = PreparedCopy.open(copies).redirect(manifests["train"])
    for before, after in zip(manifests["train"], redirected, strict=True):
        if "broken" in before.path:
            assert after.path == before.path
        else:
            assert after.path == str(copies / "files" / f"{os.path.relpath(before.path, tmp_path / 'mine')}.mp4")
            assert read_metadata(after.path).num_frames == read_metadata(before.path).num_frames
    assert len(sources) == 10


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("short_side=255", "short_side"),
        ("gop=0", "gop"),
        ("preset=quick", "preset"),
        ("name=a/b", "name"),
        ("name=..", "name"),
        ("num_workers=0", "num_workers"),
        ("decode_timeout_s=0", "decode_timeout_s"),
        ("data.size_changes=stretch", "data.size_changes"),
        ("max_unreadable_share=1.5", "max_unreadable_share"),
        ("dataset.source.wrong=1", "dataset.source.wrong"),
    ],
)
def test_a_mistake_is_named(override, key):
    assert check(config_of("prepare", "dataset=class_folders")) == []
    assert [key for key, _ in check(config_of("prepare"))] == ["dataset"]
    override = f"+{override}" if "wrong" in override else override
    ((found, _),) = check(config_of("prepare", "dataset=class_folders", override))
    assert found == key
