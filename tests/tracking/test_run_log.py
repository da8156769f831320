"""What a run records in its folder, and where it says that it came from."""

import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.tracking import run_log
from vidtrain.tracking.console import NullConsole
from vidtrain.tracking.logger_process import Loggers, Metric
from vidtrain.tracking.run_log import RunLog, environment, git_state, read_metrics, write_provenance

REPO = Path(__file__).resolve().parents[2]


class RecordingLoggers(Loggers):
    def __init__(self) -> None:
        super().__init__({})
        self.calls: list[tuple[Any, ...]] = []

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        self.calls.append(("log", dict(metrics), step))

    def image(self, name: str, path: Path, step: int) -> None:
        self.calls.append(("image", name, path, step))

    def page(self, name: str, path: Path, step: int) -> None:
        self.calls.append(("page", name, path, step))

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
    return RunLog(run_dir, Loggers({}), NullConsole(), is_main=True, rank=0)


def contents(run_dir: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(run_dir.iterdir())}


def test_main_rank_writes_and_logs(tmp_path: Path):
    loggers = RecordingLoggers()
    log = RunLog(tmp_path, loggers, NullConsole(), is_main=True, rank=0)
    log.log({"train/loss": 0.5, "phase": "full", "val/top5": None}, step=3)
    log.step({"step": 3, "loss": 0.5})
    log.fault("a.mp4", "no frames", step=3, split="train")
    log.loggers.image("curves", tmp_path / "curves.png", 3)
    log.loggers.page("report", tmp_path / "report.html", 3)
    log.loggers.checkpoint("best", tmp_path / "best.pt")
    log.summary({"test/top1": 0.75, "worst": float("inf")})
    log.close("finished")
    assert contents(tmp_path) == {
        "faults_rank0.jsonl": '{"step": 3, "split": "train", "path": "a.mp4", "cause": "no frames"}\n',
        "metrics.jsonl": '{"step": 3, "train/loss": 0.5, "phase": "full", "val/top5": null}\n',
        "steps_rank0.csv": "step,loss\n3,0.5\n",
        "summary.json": '{\n  "test/top1": 0.75,\n  "worst": null\n}\n',
    }
    assert loggers.calls == [
        ("log", {"train/loss": 0.5, "phase": "full", "val/top5": None}, 3),
        ("image", "curves", tmp_path / "curves.png", 3),
        ("page", "report", tmp_path / "report.html", 3),
        ("checkpoint", "best", tmp_path / "best.pt"),
        ("summary", {"test/top1": 0.75, "worst": float("inf")}),
        ("close", "finished"),
    ]
    assert read_metrics(tmp_path) == [{"step": 3, "train/loss": 0.5, "phase": "full", "val/top5": None}]


def test_other_ranks_write_only_their_own_files(tmp_path: Path):
    loggers = RecordingLoggers()
    log = RunLog(tmp_path, loggers, NullConsole(), is_main=False, rank=2)
    log.log({"train/loss": 0.5}, step=1)
    log.step({"step": 1})
    log.fault("a.mp4", "no frames", step=1, split="train")
    log.summary({"a": 1})
    log.loggers.image("curves", tmp_path / "curves.png", 3)
    log.rewind(1, 3)
    log.close("finished")
    assert list(contents(tmp_path)) == ["faults_rank2.jsonl", "steps_rank2.csv"]
    assert loggers.calls == []


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
from vidtrain.tracking.logger_process import Loggers
from vidtrain.tracking.run_log import RunLog
log = RunLog(Path({str(tmp_path)!r}), Loggers({{}}), NullConsole(), is_main=True, rank=0)
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
    log = RunLog(tmp_path, Loggers({}), console, is_main=True, rank=0)
    for step in range(60):
        log.fault(f"{step // 2}.mp4", "torn", step, "train")
    assert console.warnings[0] == "unreadable video in train: 0.mp4 (torn)"
    assert console.warnings[19] == "unreadable video in train: 19.mp4 (torn)"
    ledger = tmp_path / "faults_rank0.jsonl"
    assert console.warnings[20:] == [f"further unreadable videos are named only in {ledger}"]
    assert len(ledger.read_text().splitlines()) == 60


def test_a_full_disk_is_said_once_and_rows_are_written_when_there_is_room(tmp_path: Path):
    console = RecordingConsole()
    log = RunLog(tmp_path, Loggers({}), console, is_main=True, rank=0)
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
    console, loggers = RecordingConsole(), RecordingLoggers()
    log = RunLog(tmp_path, loggers, console, is_main=True, rank=0)
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
    assert loggers.calls[-1] == ("close", "failed")


def test_reading_metrics_of_a_new_or_absent_run(tmp_path: Path):
    assert read_metrics(tmp_path) == []
    with pytest.raises(UserError, match="absent is not a folder"):
        read_metrics(tmp_path / "absent")


def test_importing_the_log_is_light():
    heavy = {"torch", "wandb", "matplotlib"}
    code = f"import sys, vidtrain.tracking.run_log; print({heavy} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_ranks_that_are_no_more_are_rewound_too(tmp_path: Path):
    for rank in range(3):
        log = RunLog(tmp_path, Loggers({}), NullConsole(), is_main=rank == 0, rank=rank)
        for step in (1, 2, 3):
            log.step({"step": step})
            log.fault(f"{step}.mp4", "torn", step, "train")
        log.close("failed")
    main_log(tmp_path).rewind(2, 2)
    kept = {name: (tmp_path / name).read_text().count("\n") for name in contents(tmp_path)}
    assert [kept[f"steps_rank{rank}.csv"] for rank in range(3)] == [3, 4, 3]  # rank 1 sees to its own
    assert [kept[f"faults_rank{rank}.jsonl"] for rank in range(3)] == [2, 3, 2]


UNKNOWN = {"commit": None, "branch": None, "dirty": None, "untracked": [], "diff": ""}


def git(repo: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(repo), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A checkout of one commit on the branch "trunk"."""
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk")
    (tmp_path / "a.txt").write_text("one\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message=first")
    return tmp_path


def test_clean_checkout(repo: Path):
    commit = git(repo, "rev-parse", "HEAD")
    assert git_state(repo) == {
        "commit": commit,
        "branch": "trunk",
        "dirty": False,
        "untracked": [],
        "diff": "",
        "problem": None,
    }


def test_changed_staged_and_untracked_files(repo: Path):
    (repo / "a.txt").write_text("two\n")
    (repo / "b.txt").write_text("new\n")
    git(repo, "add", "b.txt")
    (repo / "c.txt").write_text("unknown to git\n")
    state = git_state(repo)
    assert (state["dirty"], state["untracked"]) == (True, ["c.txt"])
    assert "-one\n+two\n" in state["diff"]
    assert "+++ b/b.txt\n@@ -0,0 +1 @@\n+new\n" in state["diff"]


def test_detached_head_and_checkout_without_a_commit(repo: Path, tmp_path: Path):
    git(repo, "checkout", "--quiet", "--detach")
    assert git_state(repo)["branch"] is None
    fresh = tmp_path / "fresh"
    git(tmp_path, "init", "--quiet", "--initial-branch=trunk", "fresh")
    (fresh / "a.txt").write_text("one\n")
    git(fresh, "add", ".")
    state = git_state(fresh)
    assert (state["commit"], state["branch"], state["dirty"]) == (None, "trunk", True)
    assert "+one\n" in state["diff"]


def test_without_checkout_or_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state(tmp_path) == {**UNKNOWN, "problem": "not a git checkout"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(tmp_path) == {**UNKNOWN, "problem": "git is not installed"}


def test_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SLURM_JOB_ID", "42")
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    found = environment()
    assert found["python"] == platform.python_version()
    assert (found["torch"], found["packages"]["torch"]) == (torch.__version__, version("torch"))
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["variables"]["SLURM_JOB_ID"] == "42"
    assert found["cpus"] == os.cpu_count()
    assert found["command"] == shlex.join(sys.orig_argv)
    assert "secret" not in json.dumps(found)


def test_files_of_the_latest_start(repo: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch):
    run_dir = tmp_path_factory.mktemp("run")
    monkeypatch.setattr(run_log, "ROOT", repo)
    (repo / "a.txt").write_text("two\n")
    write_provenance(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["environment.json", "git.diff", "git.json"]
    assert (run_dir / "git.diff").read_text().endswith("-one\n+two\n")
    assert json.loads((run_dir / "git.json").read_text()) == {
        "commit": git(repo, "rev-parse", "HEAD"),
        "branch": "trunk",
        "dirty": True,
        "untracked": [],
        "problem": None,
    }
    (repo / "a.txt").write_text("one\n")
    write_provenance(run_dir)
    assert sorted(path.name for path in run_dir.iterdir()) == ["environment.json", "git.json"]
    # a wheel in an environment within somebody's checkout is not of that checkout
    monkeypatch.setattr(run_log, "IN_CHECKOUT", False)
    write_provenance(run_dir)
    installed = json.loads((run_dir / "git.json").read_text())
    assert (installed["commit"], installed["problem"]) == (None, "installed as a package, from no checkout")
