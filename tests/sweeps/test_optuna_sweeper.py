"""A search with a persistent study: what it asks, what it is told, what it ends early, and how it goes on."""

# ruff: noqa: E402
import json
import sys

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

optuna = pytest.importorskip("optuna", minversion="4", reason="needs the extra optuna")

from vidtrain.app.launch import launch
from vidtrain.errors import DivergedError, Pruned
from vidtrain.files.atomic import write_json_atomic
from vidtrain.files.folders import RunLock
from vidtrain.runs.attempts import read_outcome
from vidtrain.runs.folder import attempt, choose, finished
from vidtrain.sweeps import record as sweep_trial
from vidtrain.sweeps.optuna_sweeper import distribution, open_study, overrides_of, sqlite_file
from vidtrain.sweeps.record import SweepRecord
from vidtrain.tracking.console import make_console
from vidtrain.training.distributed import Ranks

RANKS = Ranks(torch.device("cpu"))
SPACE = "optimizer.lr=tag(log, interval(1e-5, 1e-2))"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a=tag(log, interval(1e-5, 1e-2))", optuna.distributions.FloatDistribution(1e-5, 1e-2, log=True)),
        ("a=interval(0, 1)", optuna.distributions.FloatDistribution(0.0, 1.0)),
        ("a=int(interval(1, 8))", optuna.distributions.IntDistribution(1, 8)),
        ("a=range(1, 9, 2)", optuna.distributions.IntDistribution(1, 7, step=2)),
        ("a=range(0, 1, 0.5)", optuna.distributions.CategoricalDistribution(["0.0", "0.5"])),
        ("a=x,y", optuna.distributions.CategoricalDistribution(["x", "y"])),
        ("a=[1,2],[3]", optuna.distributions.CategoricalDistribution(["[1,2]", "[3]"])),
        ("a=true,null", optuna.distributions.CategoricalDistribution(["True", "null"])),
    ],
)
def test_what_an_override_searches(override, expected):
    assert distribution(OverridesParser.create().parse_override(override)) == expected


def test_drawn_values_are_written_so_that_they_come_back():
    params = {"lr": 3.1622776601683795e-05, "n": 3, "m": "vit3d_tiny"}
    written = overrides_of(params, dict.fromkeys(("m", "lr", "n")))
    assert written == ["m=vit3d_tiny", "lr=3.1622776601683795e-05", "n=3"]
    parse = OverridesParser.create().parse_override
    assert [parse(each).value() for each in written] == ["vit3d_tiny", 3.1622776601683795e-05, 3]


class Task:
    """Stands in for training. Trial 1 diverges; each begins better than those before, and goes on worse."""

    def __init__(self):
        self.ran: list[int] = []
        self.stop_at: int | None = None

    def __call__(self, cfg) -> float | None:
        folder = choose(cfg.run_dir, cfg.name, RANKS)
        number = int(folder.name)
        try:
            with RunLock(folder), attempt(folder):
                assert finished(folder) is None
                self.ran.append(number)
                (folder / "run.json").write_text("{}")
                told = sweep_trial.on_validation(folder, RANKS, make_console(is_main=True))
                if number == 1:
                    raise DivergedError("the loss is nan")
                told(0.5 + 0.01 * number)
                if number == self.stop_at:
                    raise SystemExit(75)
                told(round(0.9 - 0.1 * number, 2))
                best = round(0.9 - 0.1 * number, 2)
                values = {"status": "finished", "monitor": "top1", "best": best, "steps": 2, "minutes": 0.1}
                write_json_atomic(folder / "summary.json", values)
                return best
        except Pruned:
            return None


@pytest.fixture
def start(tmp_path, monkeypatch, capfd):
    def started(task, *overrides):
        said = ["-m", f"hydra.sweep.dir='{tmp_path / 'sweep'}'", "hydra/sweeper=optuna", *overrides]
        monkeypatch.setattr(sys, "argv", ["train", *said])
        capfd.readouterr()
        status = 0
        try:
            launch("train", task, lambda cfg: [])
        except SystemExit as stop:
            status = stop.code
        printed = capfd.readouterr()
        return status, printed.out + printed.err

    return started


QUICK = ("hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=0")


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on_with_its_study(start, tmp_path):
    task, folder = Task(), tmp_path / "sweep"
    task.stop_at = 2
    status, said = start(task, SPACE, "seed=0", "hydra.sweeper.n_trials=4", *QUICK)
    assert status == 75 and "vidtrain.sweep resume" in said
    drawn = [each.overrides for each in SweepRecord.read(folder).trials]
    task.stop_at = None
    status, said = start(task, "seed=0", SPACE, "hydra.sweeper.n_trials=4", *QUICK)
    assert status == 1  # trial 1 diverged, and is not run again
    assert task.ran == [0, 1, 2, 2, 3]
    record = SweepRecord.read(folder)
    assert [each.overrides for each in record.trials[:3]] == drawn
    assert len({each.values()["optimizer.lr"] for each in record.trials}) == 4  # nothing is drawn twice

    study = open_study("sweep", sqlite_file(folder / "study.db"), "max")
    found = [(each.state.name, each.value) for each in study.trials]
    # trials 2 and 3 fall below the median, which is trial 0; one that diverged has no value at all
    assert found == [("COMPLETE", 0.9), ("FAIL", None), ("PRUNED", 0.7), ("PRUNED", 0.6)]
    assert study.trials[2].intermediate_values == {1: 0.52, 2: 0.7}  # what was reported twice counts once
    assert study.direction.name == "MAXIMIZE"
    assert read_outcome(folder / "3")["status"] == "pruned"
    assert read_outcome(folder / "3")["cause"] == "pruned by MedianPruner after 2 validations, the last of 0.6000"
    assert "1 finished, 2 pruned, 1 diverged" in " ".join(said.split())
    assert json.loads((folder / "3" / "trial.json").read_text())["pruning"]["study"] == "sweep"

    status, said = start(task, "optimizer.lr=interval(0,1)", "seed=0", "hydra.sweeper.n_trials=4", *QUICK)
    assert status == 2 and "optimizer.lr: tag(log,interval(1e-5,1e-2)) -> interval(0,1)" in said


@pytest.mark.slow
def test_what_cannot_be_searched_is_refused(start, tmp_path):
    task = Task()
    status, said = start(task, SPACE, "seed=0,1")
    assert status == 2 and "the luckiest seed" in said
    status, said = start(task, SPACE, "hydra.sweeper.storage=mysql://nowhere/x")
    assert status == 2 and "hydra.sweeper.storage=mysql://nowhere/x cannot be opened" in said
    status, said = start(task, SPACE, "+hydra.sweeper.pruner.steps=1")
    assert status == 2 and "steps" in said
    assert task.ran == []


def test_a_study_that_cannot_be_reached_ends_no_training(tmp_path, capsys):
    from vidtrain.sweeps.optuna_sweeper import Pruning

    how = {
        "storage": sqlite_file(tmp_path / "gone.db"),
        "study": "gone",
        "pruner": {"_target_": "optuna.pruners.NopPruner"},
    }
    pruning = Pruning(0, how, 0, make_console(is_main=True))
    assert pruning(0.5) is None and pruning(0.6) is None
    assert capsys.readouterr().out.count("the sweep's study cannot be reached") == 1
