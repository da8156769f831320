"""A sweep of real runs, one of which diverges: stopped in the middle, gone on with, and compared."""

import json
import subprocess
import sys

import pytest
from small_run import small

from vidtrain import compare, sweep, train
from vidtrain.comparison.runs import find_runs
from vidtrain.errors import UserError
from vidtrain.runs.attempts import read_outcome
from vidtrain.runs.folder import finished
from vidtrain.sweeps import record as sweep_trial

pytestmark = pytest.mark.slow
SMALL = small(
    "logger=none",
    "trainer.epochs=2",
    "trainer.batch_size=10",
    "trainer.save_every=1ep",
)


def run(program, monkeypatch, *arguments) -> int | None:
    monkeypatch.setattr(sys, "argv", ["vidtrain", *map(str, arguments)])
    try:
        program.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A sweep over three rates, stopped within the second trial, after its first epoch was saved."""
    folder = tmp_path_factory.mktemp("sweep") / "rates"
    data = f"data_root={tmp_path_factory.mktemp('data')}"
    seen = []

    def stop(value):
        seen.append(value)
        if len(seen) == 4:  # the second of the second trial
            raise SystemExit(75)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep_trial, "on_validation", lambda *_: stop)
        rates = "optimizer.lr=1e-3,3e-3,1e30"
        assert run(train, patch, "-m", *SMALL, data, f"hydra.sweep.dir={folder}", rates) == 75
    return folder


@pytest.fixture(scope="module")
def ended(stopped):
    with pytest.MonkeyPatch.context() as patch:
        assert run(sweep, patch, "resume", stopped) == 1
    return stopped


def test_what_was_half_done_goes_on_from_its_checkpoint(ended):
    rows = [json.loads(line) for line in (ended / "1" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val/top1" in row] == [2, 4]
    attempts = [json.loads(line) for line in (ended / "1" / "attempts.jsonl").read_text().splitlines()]
    assert [(row["event"], row["step"]) for row in attempts if row["event"] == "started"] == [
        ("started", 0),
        ("started", 2),
    ]
    first = (ended / "0" / "attempts.jsonl").read_text().splitlines()
    assert len([row for row in first if '"started"' in row]) == 1  # it had finished, and was not opened again


def test_the_trial_that_diverged_is_recorded(ended):
    found = read_outcome(ended / "2")
    assert found["status"] == "diverged" and found["cause"].startswith("the loss is nan at step 2")
    assert found["step"] == 1
    assert finished(ended / "0")["best"] is not None and finished(ended / "2") is None


def test_the_objective_is_that_of_val(ended):
    summary = json.loads((ended / "0" / "summary.json").read_text())
    rows = [json.loads(line) for line in (ended / "0" / "metrics.jsonl").read_text().splitlines()]
    assert summary["split"] == "test"
    assert summary["best"] == max(row["val/top1"] for row in rows if "val/top1" in row)


def test_a_comparison_leaves_out_what_failed_and_says_why(ended, tmp_path, monkeypatch):
    found = find_runs([str(ended)])
    assert [each.name for each in found.runs] == ["0", "1"]
    assert [(path.name, why[:34]) for path, why in found.left_out] == [("2", "the run diverged: the loss is nan ")]
    assert run(compare, monkeypatch, ended, f"out={tmp_path / 'out'}", "bootstrap=200") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [each["settings"] for each in summary["recipes"]] == [
        {"optimizer.lr": 0.001},
        {"optimizer.lr": 0.003},
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "the run diverged: the loss is nan" in page and "parallel coordinates" in page
    assert (tmp_path / "out" / "importance.png").is_file()
    assert summary["chosen"]["recipe"] in (1, 2)


def test_a_run_that_failed_cannot_be_compared_by_name(ended):
    with pytest.raises(UserError, match="2: the run diverged: the loss is nan"):
        find_runs([str(ended / "0"), str(ended / "2")])


def test_each_trial_as_a_job_of_two_processes_on_this_machine(tmp_path):
    """hydra/launcher=local, which shares nothing with a launcher in this process but the folder of the sweep."""
    pytest.importorskip("submitit")
    command = [
        sys.executable, "-m", "vidtrain.train", "-m", "hydra/launcher=local", "hydra.launcher.tasks_per_node=2",
        *SMALL, "trainer.epochs=1", f"data_root={tmp_path}", "optimizer.lr=1e-3,1e30", "trainer.clip_grad=null",
        "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "trial 0: finished, best val top1" in done.stdout
    assert "trial 1: diverged: the loss is nan" in done.stdout
    (started, _) = (json.loads(line) for line in (tmp_path / "sweep/0/attempts.jsonl").read_text().splitlines())
    assert (started["event"], started["ranks"]) == ("started", 2)
    output = "".join(path.read_text() for path in (tmp_path / "sweep/.submitit/1").rglob("*_0_log.err"))
    assert "error: the loss is nan" in output  # the job tells its own log, too
