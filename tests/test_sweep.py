"""Sweeps of a task that takes no time: what runs, what is recorded, and what starting again does."""

import json
import sys
from pathlib import Path

import pytest
import torch

from vidtrain import sweep
from vidtrain.app.launch import launch
from vidtrain.errors import DivergedError, UserError
from vidtrain.files.atomic import write_json_atomic
from vidtrain.files.folders import RunLock
from vidtrain.runs.attempts import read_outcome
from vidtrain.runs.folder import attempt, choose, finished
from vidtrain.sweeps import record as sweep_trial
from vidtrain.sweeps.record import SweepRecord, states_of
from vidtrain.tracking.console import make_console
from vidtrain.training.distributed import Ranks

RANKS = Ranks(torch.device("cpu"))
ERRORS = {
    "2": lambda: UserError("no such file; give another"),
    "3": lambda: DivergedError("the loss is nan at step 4, on these files:\n  a.mp4"),
    "4": lambda: MemoryError(),
    "5": lambda: ZeroDivisionError("a defect"),
}


class Task:
    """Stands in for training: the objective is 1 - lr, and rates above 1 fail, each in a way of its own."""

    def __init__(self):
        self.ran: list[str] = []
        self.stop_at: str | None = None
        self.mended = False

    def __call__(self, cfg) -> float:
        folder = choose(cfg.run_dir, cfg.name, RANKS)
        with RunLock(folder), attempt(folder):
            assert finished(folder) is None, "a trial that finished was run again"
            self.ran.append(folder.name)
            (folder / "run.json").write_text(json.dumps({"id": folder.name, "overrides": []}))
            if folder.name == self.stop_at:
                raise SystemExit(75)
            lr = cfg.optimizer.lr
            told = sweep_trial.on_validation(folder, RANKS, make_console(is_main=True))
            for step in (1, 2, 3):
                told(1 - lr - 1 / step)
            if lr > 1 and not self.mended:
                raise ERRORS[str(int(lr))]()
            values = {"status": "finished", "monitor": "top1", "best": 1 - lr, "steps": 3, "minutes": 0.5}
            write_json_atomic(folder / "summary.json", values)
            return 1 - lr


def check(cfg):
    return [("optimizer.lr", "must be above 0")] if cfg.optimizer.lr < 0 else []


@pytest.fixture
def task():
    return Task()


@pytest.fixture
def start(task, tmp_path, monkeypatch, capfd):
    """Starts a sweep in the folder `tmp_path / "sweep"` and gives its exit status and what it printed."""

    def started(*overrides, program=None, folder=tmp_path / "sweep"):
        arguments = ["-m", f"hydra.sweep.dir='{folder}'", *overrides] if program is None else list(overrides)
        monkeypatch.setattr(sys, "argv", ["train", *arguments])
        monkeypatch.setattr("vidtrain.train.main", lambda: launch("train", task, check))
        capfd.readouterr()
        status = 0
        try:
            (program or (lambda: launch("train", task, check)))()
        except SystemExit as stop:
            status = stop.code
        said = capfd.readouterr()
        return status, said.out + said.err

    return started


def states(folder: Path) -> list[tuple[int, str, float | None]]:
    return [(each.number, each.state, each.objective) for each in states_of(folder, SweepRecord.read(folder))]


@pytest.mark.slow
def test_a_grid_goes_on_past_every_kind_of_failure(start, task, tmp_path):
    status, said = start("optimizer.lr=0.5,2,3,4,5,0.25", "seed=0")
    assert status == 1
    assert states(tmp_path / "sweep") == [
        (0, "finished", 0.5), (1, "failed", None), (2, "diverged", None), (3, "out_of_memory", None),
        (4, "failed", None), (5, "finished", 0.75),
    ]  # fmt: skip
    record = SweepRecord.read(tmp_path / "sweep")
    assert (record.objective, record.direction, record.keys) == ("top1", "max", ["optimizer.lr"])
    assert record.trials[5].overrides == ["optimizer.lr=0.25", "seed=0"]
    assert read_outcome(tmp_path / "sweep" / "4")["exception"] == "ZeroDivisionError"
    assert "trial 1: failed: no such file; give another" in said
    assert "trial 2: diverged: the loss is nan at step 4, on these files: a.mp4" in said
    assert "trial 4: failed: ZeroDivisionError: a defect" in said
    assert "best on val: trial 5, top1 0.7500: optimizer.lr=0.25" in said
    assert "6 trials: 2 finished, 2 failed, 1 diverged, 1 out of memory" in said

    # again: nothing is missing; what failed is left alone unless it is asked for
    task.ran.clear()
    status, said = start("optimizer.lr=0.5,2,3,4,5,0.25", "seed=0")
    assert (status, task.ran) == (1, [])
    assert "6 trials, 0 to run, 0 new, 6 ended" in said
    task.mended = True
    status, said = start("resume", str(tmp_path / "sweep"), "retry=true", program=sweep.main)
    assert (status, task.ran) == (0, ["1", "2", "3", "4"])
    assert {state for _, state, _ in states(tmp_path / "sweep")} == {"finished"}


@pytest.mark.slow
def test_a_killed_sweep_goes_on_where_it_was(start, task, tmp_path):
    task.stop_at = "1"
    status, said = start("optimizer.lr=0.1,0.2,0.3")
    assert status == 75
    assert f"to go on: python -m vidtrain.sweep resume {tmp_path / 'sweep'}" in said
    assert [each[1] for each in states(tmp_path / "sweep")] == ["finished", "stalled", "waiting"]
    task.stop_at = None
    task.ran.clear()
    status, said = start("resume", str(tmp_path / "sweep"), program=sweep.main)
    assert (status, task.ran) == (0, ["1", "2"])
    assert "3 trials, 2 to run, 0 new, 1 ended" in said
    assert [each[2] for each in states(tmp_path / "sweep")] == pytest.approx([0.9, 0.8, 0.7])


@pytest.mark.slow
def test_values_are_added_and_other_settings_refused(start, task, tmp_path):
    start("optimizer.lr=0.1,0.2", "seed=0")
    task.ran.clear()
    status, said = start("seed=0,1", "optimizer.lr=0.2,0.3")
    assert status == 0
    assert task.ran == ["2", "3", "4"] and "5 trials, 3 to run, 3 new, 2 ended" in said
    assert [sorted(each.overrides) for each in SweepRecord.read(tmp_path / "sweep").trials[2:]] == [
        ["optimizer.lr=0.3", "seed=0"], ["optimizer.lr=0.2", "seed=1"], ["optimizer.lr=0.3", "seed=1"],
    ]  # fmt: skip
    status, said = start("optimizer.lr=0.1,0.2", "seed=0", "trainer.epochs=3")
    assert status == 2 and "trainer.epochs: not set -> 3" in said and "choose another hydra.sweep.dir" in said
    status, said = start("optimizer.lr=0.1,0.4", "trainer.monitor=loss")
    assert status == 2 and "trainer.monitor: top1 -> loss" in said
    assert len(SweepRecord.read(tmp_path / "sweep").trials) == 5


@pytest.mark.slow
def test_folders_that_are_swept_are_trials_of_their_own(start, task, tmp_path):
    listing = ["dataset=listing", "optimizer.lr=0.1,0.2"]
    start(*listing, "dataset.folder=a")
    status, said = start(*listing, "dataset.folder=moved")  # resuming looks for the data there
    assert (status, task.ran) == (0, ["0", "1"]) and "2 trials, 0 to run, 0 new, 2 ended" in said
    status, said = start(*listing, "dataset.folder=a,b")
    assert (status, task.ran) == (0, ["0", "1", "2", "3"]) and "4 trials, 2 to run, 2 new, 2 ended" in said
    start(*listing, "dataset.folder=a,b")
    start("dataset=listing", "optimizer.lr=0.2,0.3", "dataset.folder=b")  # told apart from now on
    assert task.ran == ["0", "1", "2", "3", "4"]
    folders = [trial.values()["dataset.folder"] for trial in SweepRecord.read(tmp_path / "sweep").trials]
    assert folders == ["a", "a", "b", "b", "b"]


@pytest.mark.slow
def test_a_trial_that_is_refused_is_one_of_those_that_failed(start, task, tmp_path):
    status, said = start("optimizer.lr=0.1,-1")
    assert status == 1 and task.ran == ["0"]
    assert "override 'optimizer.lr=-1': optimizer.lr: must be above 0" in said
    assert read_outcome(tmp_path / "sweep" / "1")["status"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=0"], "no setting has several values"),
        (["seed=0,1", "run_dir=here"], "run_dir= would give all trials"),
        (["optimizer.lr=interval(0,1)"], "hydra/sweeper=optuna"),
        (["trainer.monitor=top1,loss"], "trainer.monitor compares the trials"),
        (["model=vit3d_micro,vit3d_tini"], "these trials cannot be composed; nothing was started"),
        (["hydra.sweep.subdir=all", "seed=0,1"], "two trials the folder all"),
    ],
)
def test_what_cannot_be_swept_is_refused_at_once(start, task, overrides, said):
    status, printed = start(*overrides)
    assert (status, task.ran) == (2, []) and said in printed


def test_a_folder_of_something_else_is_left_alone(start, tmp_path):
    (tmp_path / "sweep" / "old").mkdir(parents=True)
    status, said = start("seed=0,1")
    assert status == 2 and "holds old and no sweep.json" in said


def test_one_sweep_is_run_by_one_process(start, task, tmp_path):
    with RunLock(tmp_path / "sweep"):
        status, said = start("seed=0,1")
    assert status == 2 and task.ran == [] and "is in use by process" in said


@pytest.mark.slow
def test_status_shows_every_trial(start, task, tmp_path, monkeypatch):
    task.stop_at = "2"
    start("optimizer.lr=0.1,3,0.2,0.3")
    folder = tmp_path / "sweep"
    with RunLock(folder / "3"):
        (folder / "3" / "metrics.jsonl").write_text('{"step": 4, "epoch": 0.5, "val/top1": 0.25}\n')
        (folder / "3" / "config.yaml").write_text(
            "name: x\ntrainer: {epochs: 2}\nstage: {head: {duration: 4it}, full: {duration: 50%}}\n"
        )
        status, said = start("status", str(folder), program=sweep.main)
    words = " ".join(said.replace("│", " ").split())
    assert status == 0
    assert "4 trials: 1 running, 1 stalled, 1 finished, 1 diverged" in words
    assert "0 0.1 finished 3/3 0.9000 best" in words
    assert "1 3 diverged - - the loss is nan" in words
    assert "3 0.3 running 4/12 0.2500 process" in words  # 8 steps an epoch: 4, and half of 16
    assert f"resume {folder}" in words
    renamed = folder.rename(tmp_path / "a sweep")  # the command can be copied anyway
    assert f"resume '{renamed}'" in " ".join(start("status", str(renamed), program=sweep.main)[1].split())
    renamed.rename(folder)
    assert start("status", str(tmp_path), program=sweep.main)[0] == 2
    status, said = start("stats", str(folder), program=sweep.main)
    assert status == 2 and "did you mean status?" in said
    status, said = start("resume", program=sweep.main)
    assert status == 2 and "python -m vidtrain.sweep resume DIR" in said


def test_the_objective_is_never_that_of_test(tmp_path):
    class Split:
        def __init__(self, *paths):
            self.paths = paths

    splits = {"train": Split("a"), "val": Split("b", "c"), "test": Split("c", "d")}
    sweep_trial.check_objective(tmp_path, splits)  # a run of its own may: it is said in its log
    (tmp_path / "trial.json").write_text(
        json.dumps({"number": 0, "folder": "0", "overrides": [], "sweep": "s", "pruning": None})
    )
    with pytest.raises(UserError, match="val and test share 1 video, such as c"):
        sweep_trial.check_objective(tmp_path, splits)
    sweep_trial.check_objective(tmp_path, {**splits, "test": Split("d")})
    sweep_trial.check_objective(tmp_path, {"train": Split("a"), "val": Split("b")})
