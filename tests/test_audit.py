"""The audit program on a small dataset with planted faults: findings, bounds and exit status, resumption, bad input."""

import csv
import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from composing import config_of
from fork_server import run_program

from vidtrain import audit
from vidtrain.errors import UserError
from vidtrain.files.atomic import read_json_lines

# A reader for what no file can be made to do on every machine; workers import it by name
READER = """
import os, time
from vidtrain.data.audit.inspection import Inspection

def inspect_job(job, index, thumbnails):
    path = os.path.basename(job[0])
    if "crash" in path:
        os.kill(os.getpid(), 11)
    if "hang" in path:
        time.sleep(60)
    return Inspection(size=1, num_frames=9, width=4, height=4, digest=path)
"""


def configured(*overrides):
    return config_of("audit", *overrides)


def write(path: Path, seed: int, rate: int = 25, size: str = "64x48") -> Path:
    """A video of a window that wanders over a picture of its own."""
    picture = np.kron(np.random.default_rng(seed).integers(0, 256, (16, 20, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
    width, height = map(int, size.split("x"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(12):
            window = np.ascontiguousarray(picture[2 * number :, 3 * number :][:80, :100])
            frame = av.VideoFrame.from_ndarray(window, format="rgb24").reformat(width, height, "yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """Two classes of six videos in train and four in val, told apart by their rate, and broken ones among them."""
    root = tmp_path_factory.mktemp("planted")
    seed = 0
    for split, count in (("train", 6), ("val", 4)):
        for name, rate in (("run", 25), ("<b>walk", 30)):
            for number in range(count):
                write(root / split / name / f"v{number:02d}.mp4", seed := seed + 1, rate)
    run = root / "train" / "run"
    shutil.copy(run / "v00.mp4", root / "val" / "run" / "exact.mp4")
    write(root / "val" / "run" / "rescaled.mp4", 2, size="128x96")  # of run/v01
    (run / "zero.mp4").touch()
    (run / "text.mp4").write_text("no video\n" * 40)
    (run / 'a<img src=x onerror="x">.mp4').write_bytes(bytes(900))
    (run / "folder.mp4").mkdir()
    data = bytearray((run / "v03.mp4").read_bytes())
    for place in range(len(data) - 700, len(data) - 100, 40):
        data[place] ^= 16
    (run / "flipped.mp4").write_bytes(data)
    return root


@pytest.fixture(scope="module")
def audited(planted, tmp_path_factory):
    """Its audit: the folder with the results, and the exit status."""
    base = tmp_path_factory.mktemp("audit")
    cfg = configured(*overrides(planted, base))
    with pytest.raises(SystemExit) as end:
        audit.audit(cfg)
    return base / "out", end.value.code


def overrides(root, base):
    return [
        "dataset=class_folders", "dataset.name=mine", f"dataset.source.root={root}", f"out={base / 'out'}",
        f"data_root={base}", "num_workers=2",
    ]  # fmt: skip


def test_what_was_planted_is_found(audited):
    out, status = audited
    summary = json.loads((out / "summary.json").read_text())
    assert status == 3
    assert {each["path"]: each["cause"].split(";")[0] for each in summary["unreadable"]} == {
        "train/run/zero.mp4": "the file is empty",
        "train/run/text.mp4": "Invalid data found when processing input",
        'train/run/a<img src=x onerror="x">.mp4': "Invalid data found when processing input",
    }
    assert {(each["path"], each["kind"]) for each in summary["issues"]} == {("train/run/flipped.mp4", "damaged")}
    sets = [(each["kind"], {file["path"] for file in each["files"]}) for each in summary["copies"]]
    assert sets[:2] == [
        ("exact", {"train/run/v00.mp4", "val/run/exact.mp4"}),
        ("near", {"train/run/v01.mp4", "val/run/rescaled.mp4"}),
    ]
    assert [each["across_splits"] for each in summary["copies"]] == [True, True, False]
    assert sets[2] == ("near", {"train/run/v03.mp4", "train/run/flipped.mp4"})
    assert summary["shortcuts"][0]["attribute"] == "frame rate"
    assert summary["shortcuts"][0]["called_out"]
    assert {each["name"]: each["counts"] for each in summary["classes"]} == {
        "<b>walk": {"train": 6, "val": 4},
        "run": {"train": 7, "val": 6},
    }
    exceeded = {each["name"]: each["value"] for each in summary["bounds"] if not each["kept"]}
    assert exceeded == {"max_unreadable_share": pytest.approx(3 / 26), "max_duplicates_across_splits": 2}


def test_the_page_and_the_table(audited):
    out, _ = audited
    page = (out / "report.html").read_text()
    assert "<img src=x" not in page and "<b>walk" not in page
    assert "a&lt;img src=x onerror=&#34;x&#34;&gt;.mp4" in page
    assert page.count("data:image/jpeg;base64,") > 10
    rows = list(csv.DictReader((out / "files.csv").open()))
    assert len(rows) == 26
    row = next(each for each in rows if each["path"] == "val/run/exact.mp4")
    assert (row["split"], row["class"], row["num_frames"], row["rate"], row["copies"]) == (
        "val",
        "run",
        "12",
        "25.0",
        "1",
    )


def test_the_index_is_filled_for_later_runs(audited, planted):
    from vidtrain.data.decoding.index import VideoIndex

    path = str(planted / "train" / "run" / "v00.mp4")
    status = os.stat(path)
    index = VideoIndex(audited[0].parent / "index" / "mine" / "videos.sqlite")
    assert index._read((path, status.st_size, status.st_mtime_ns)).num_frames == 12


def test_a_second_run_reads_only_what_is_new_or_changed(audited, planted, tmp_path, capsys):
    shutil.copytree(audited[0], tmp_path / "out")
    cfg = configured(*overrides(planted, tmp_path), "max_unreadable_share=0.2", "max_duplicates_across_splits=2")
    audit.audit(cfg)
    assert len(read_json_lines(tmp_path / "out" / "files.jsonl")) == 26
    assert "26 of 26 files are known" in capsys.readouterr().out
    assert (tmp_path / "out" / "files.csv").read_text() == (audited[0] / "files.csv").read_text()

    os.utime(planted / "val" / "run" / "v02.mp4")
    audit.audit(cfg)
    rows = read_json_lines(tmp_path / "out" / "files.jsonl")
    assert len(rows) == 27 and rows[-1]["path"].endswith("val/run/v02.mp4")
    audit.audit(
        configured(
            *overrides(planted, tmp_path),
            "retry=true",
            "max_unreadable_share=null",
            "max_duplicates_across_splits=9",
        )
    )
    assert len(read_json_lines(tmp_path / "out" / "files.jsonl")) == 30  # and the three that could not be read


@pytest.fixture
def reader(tmp_path, monkeypatch):
    (tmp_path / "reader_for_tests.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    import reader_for_tests

    monkeypatch.setattr("vidtrain.data.audit.inspection.inspect_job", reader_for_tests.inspect_job)


class Quiet:
    """A console that shows nothing."""

    def __getattr__(self, name):
        from vidtrain.tracking.console import NullConsole

        return getattr(NullConsole(), name)


def read(files, tmp_path, *changes):
    cfg = configured("dataset=motion", "num_workers=2", *changes)
    ledger, paths = tmp_path / "files.jsonl", dict.fromkeys(map(str, files))
    found = audit.inspect_all(paths, tmp_path, cfg, Quiet())
    return {Path(path).name: each.cause for path, each in found.items()}, len(read_json_lines(ledger))


@pytest.mark.slow
def test_crashes_and_hangs_are_the_files_result(tmp_path, reader):
    files = [tmp_path / name for name in ("one", "crash", "two", "hang", "three")]
    for path in files:
        path.write_text("x")
    expected = {
        "one": "", "crash": "crashed: signal 11 (SIGSEGV)", "two": "", "hang": "hung: over 0.4 s", "three": "",
    }  # fmt: skip
    assert read(files, tmp_path, "decode_timeout_s=0.4") == (expected, 5)
    assert read(files, tmp_path, "decode_timeout_s=0.4") == (expected, 5)  # remembered
    assert read(files, tmp_path, "decode_timeout_s=0.6") == (
        {**expected, "hang": "hung: over 0.6 s"},
        6,
    )  # worth a try


def test_ctrl_c_keeps_the_ledger(tmp_path, monkeypatch):
    from vidtrain.data.audit.inspection import Inspection
    from vidtrain.data.loading.workers import TaskResult

    def interrupted(function, items, *rest):
        yield TaskResult(items[0], Inspection(1, digest="d"), "")
        raise KeyboardInterrupt

    files = [tmp_path / "one", tmp_path / "two"]
    for path in files:
        path.write_text("x")
    monkeypatch.setattr("vidtrain.data.loading.workers.guarded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read(files, tmp_path)
    assert [row["path"] for row in read_json_lines(tmp_path / "files.jsonl")] == [str(files[0])]


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        ([], ("dataset", "must be chosen: dataset=OPTION")),
        (["dataset=motion", "decode_timeout_s=0"], ("decode_timeout_s", "0.0 must be above 0 seconds")),
        (
            ["dataset=motion", "data.size_changes=stretch"],
            ("data.size_changes", "stretch is unknown; known: scale, refuse"),
        ),
        (["dataset=motion", "num_workers=0"], ("num_workers", "0 must be 1 or more")),
        (
            ["dataset=motion", "max_groups_across_splits=-1"],
            ("max_groups_across_splits", "-1 must be 0 or more, or null for no bound"),
        ),
        (["dataset=motion", "group_pattern='_g(d'"], ("group_pattern", "'_g(d' is not a regular expression")),
    ],
)
def test_mistakes_are_named_before_anything_starts(overrides, fault):
    found = audit.check(configured(*overrides))
    assert len(found) == 1
    assert found[0][0] == fault[0] and found[0][1].startswith(fault[1])


def test_an_out_that_is_a_file(planted, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="cannot write into the run folder .*out"):
        audit.audit(configured(*overrides(planted, tmp_path)))


@pytest.mark.slow
def test_the_program_ends_with_status_3_and_names_the_bounds(planted, audited, tmp_path):
    shutil.copytree(audited[0], tmp_path / "out")
    found = run_program("audit", *overrides(planted, tmp_path))
    assert found.returncode == 3, found.stderr
    assert found.stderr.startswith("error: bounds exceeded: max_unreadable_share=0.0 (found 11.54%), max_dupl")
    assert "report.html" in found.stdout and "Traceback" not in found.stdout + found.stderr
