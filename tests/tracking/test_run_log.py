import json
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vidtrain.errors import UserError
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.loggers.logger import Metric, NullLogger
from vidtrain.tracking.run_log import RunLog, read_metrics

REPO = Path(__file__).resolve().parents[2]


class RecordingLogger(NullLogger):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        self.calls.append(("log", dict(metrics), step))

    def image(self, name: str, path: Path, step: int) -> None:
        self.calls.append(("image", name, path, step))

    def checkpoint(self, name: str, path: Path) -> None:
        self.calls.append(("checkpoint", name, path))

    def summary(self, values: Mapping[str, Any]) -> None:
        self.calls.append(("summary", dict(values)))

    def close(self, status: str) -> None:
        self.calls.append(("close", status))


class RecordingConsole(NullConsole):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def main_log(run_dir: Path) -> RunLog:
    return RunLog(run_dir, NullLogger(), NullConsole(), is_main=True, rank=0)


def contents(run_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(run_dir.iterdir())}


def test_main_rank_writes_and_logs(tmp_path: Path):
    logger = RecordingLogger()
    log = RunLog(tmp_path, logger, NullConsole(), is_main=True, rank=0)
    log.log({"train/loss": 0.5, "phase": "full", "val/top5": None}, step=3)
    log.step({"step": 3, "loss": 0.5})
    log.fault("a.mp4", "no frames", step=3, split="train")
    log.image("curves", tmp_path / "curves.png", 3)
    log.checkpoint("best", tmp_path / "best.pt")
    log.summary({"test/top1": 0.75, "worst": float("inf")})
    log.close("finished")
    assert contents(tmp_path) == {
        "faults_rank0.jsonl": '{"step": 3, "split": "train", "path": "a.mp4", "cause": "no frames"}\n',
        "metrics.jsonl": '{"step": 3, "train/loss": 0.5, "phase": "full", "val/top5": null}\n',
        "steps_rank0.csv": "step,loss\n3,0.5\n",
        "summary.json": '{\n  "test/top1": 0.75,\n  "worst": null\n}\n',
    }
    assert logger.calls == [
        ("log", {"train/loss": 0.5, "phase": "full", "val/top5": None}, 3),
        ("image", "curves", tmp_path / "curves.png", 3),
        ("checkpoint", "best", tmp_path / "best.pt"),
        ("summary", {"test/top1": 0.75, "worst": float("inf")}),
        ("close", "finished"),
    ]
    assert read_metrics(tmp_path) == [{"step": 3, "train/loss": 0.5, "phase": "full", "val/top5": None}]


def test_other_ranks_write_only_their_own_files(tmp_path: Path):
    logger = RecordingLogger()
    log = RunLog(tmp_path, logger, NullConsole(), is_main=False, rank=2)
    log.log({"train/loss": 0.5}, step=1)
    log.step({"step": 1})
    log.fault("a.mp4", "no frames", step=1, split="train")
    log.summary({"a": 1})
    log.image("curves", tmp_path / "curves.png", 3)
    log.rewind(1, 3)
    log.close("finished")
    assert list(contents(tmp_path)) == ["faults_rank2.jsonl", "steps_rank2.csv"]
    assert logger.calls == []


def test_rewound_and_repeated_rows_equal_those_of_an_undisturbed_run(tmp_path: Path):
    def take_steps(log: RunLog, steps: range) -> None:
        for step in steps:
            log.step({"step": step, "loss": 1 / step})
            if step % 2 == 0:
                log.log({"train/loss": 1 / step}, step)
            if step % 3 == 0:
                log.fault(f"{step}.mp4", "torn", step, "train")

    undisturbed = main_log(tmp_path / "a")
    take_steps(undisturbed, range(1, 11))
    undisturbed.close("finished")

    killed = main_log(tmp_path / "b")
    take_steps(killed, range(1, 10))
    killed.flush()
    for name in ("metrics.jsonl", "faults_rank0.jsonl", "steps_rank0.csv"):
        with (tmp_path / "b" / name).open("a") as file:
            file.write('{"step": 1')

    resumed = main_log(tmp_path / "b")
    resumed.rewind(5, 1)
    take_steps(resumed, range(6, 11))
    resumed.close("finished")
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


def test_rewind_forgets_later_faults_of_every_split(tmp_path: Path):
    log = main_log(tmp_path)
    for step in (5, 6):
        for split in ("train", "val"):
            log.fault("a.mp4", "torn", step, split)
    log.rewind(5, 1)
    rows = [json.loads(line) for line in (tmp_path / "faults_rank0.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(5, "train"), (5, "val")]


def test_rows_flushed_before_a_checkpoint_survive_kill_9(tmp_path: Path):
    script = f"""
import os, signal
from pathlib import Path
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.loggers.logger import NullLogger
from vidtrain.tracking.run_log import RunLog
log = RunLog(Path({str(tmp_path)!r}), NullLogger(), NullConsole(), is_main=True, rank=0)
for step in range(1, 8):
    log.step({{"step": step}})
    log.log({{"loss": 0.5}}, step)
    if step == 5:
        log.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    result = subprocess.run([sys.executable, "-c", script], cwd=REPO)
    assert result.returncode == -signal.SIGKILL
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert (tmp_path / "steps_rank0.csv").read_text().split() == ["step", "1", "2", "3", "4", "5"]


def test_each_unreadable_video_is_shown_once_and_only_the_first_twenty(tmp_path: Path):
    console = RecordingConsole()
    log = RunLog(tmp_path, NullLogger(), console, is_main=True, rank=0)
    for step in range(60):
        log.fault(f"{step // 2}.mp4", "torn", step, "train")
    assert console.warnings[0] == "unreadable video in train: 0.mp4 (torn)"
    assert console.warnings[19] == "unreadable video in train: 19.mp4 (torn)"
    ledger = tmp_path / "faults_rank0.jsonl"
    assert console.warnings[20:] == [f"further unreadable videos are named only in {ledger}"]
    assert len(ledger.read_text().splitlines()) == 60


def test_a_full_disk_is_said_once_and_rows_are_written_when_there_is_room(tmp_path: Path):
    console = RecordingConsole()
    log = RunLog(tmp_path, NullLogger(), console, is_main=True, rank=0)
    log.log({"loss": 0.5}, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))  # what it is like on a full disk
    try:
        for step in (2, 3):
            log.log({"loss": 0.5}, step)
        assert log.flush() == f"{tmp_path}/metrics.jsonl: File too large"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert console.warnings == [
        f"cannot write {tmp_path}/metrics.jsonl (File too large): its rows wait in memory, and the run goes on; "
        "free some space"
    ]
    assert log.flush() is None
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3]
    log.close("finished")


@pytest.mark.parametrize("status", ["finished", "failed"])
def test_rows_lost_at_the_end_are_an_error_or_a_warning(tmp_path: Path, status: str):
    console, logger = RecordingConsole(), RecordingLogger()
    log = RunLog(tmp_path, logger, console, is_main=True, rank=0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    lost = f"cannot write {tmp_path}/metrics.jsonl (File too large): 1 rows are lost; free some space."
    try:
        log.log({"loss": 0.5}, 1)
        if status == "finished":
            with pytest.raises(UserError) as error:
                log.close(status)
            assert str(error.value) == lost
        else:
            log.close(status)
            assert console.warnings[1:] == [lost]  # what ended the run is the error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert logger.calls[-1] == ("close", "failed")


def test_reading_metrics_of_a_new_or_absent_run(tmp_path: Path):
    assert read_metrics(tmp_path) == []
    with pytest.raises(UserError, match="absent is not a folder"):
        read_metrics(tmp_path / "absent")


def test_importing_the_log_is_light():
    heavy = {"torch", "wandb", "matplotlib"}
    code = f"import sys, vidtrain.tracking.run_log; print({heavy} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert result.stdout == "set()\n"


def test_ranks_that_are_no_more_are_rewound_too(tmp_path: Path):
    for rank in range(3):
        log = RunLog(tmp_path, NullLogger(), NullConsole(), is_main=rank == 0, rank=rank)
        for step in (1, 2, 3):
            log.step({"step": step})
            log.fault(f"{step}.mp4", "torn", step, "train")
        log.close("failed")
    main_log(tmp_path).rewind(2, 2)
    kept = {name: (tmp_path / name).read_text().count("\n") for name in contents(tmp_path)}
    assert [kept[f"steps_rank{rank}.csv"] for rank in range(3)] == [3, 4, 3]  # rank 1 sees to its own
    assert [kept[f"faults_rank{rank}.jsonl"] for rank in range(3)] == [2, 3, 2]
