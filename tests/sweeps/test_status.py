"""Where a trial stands, seen while it moves on."""

import json
import os

from vidtrain.sweeps import record
from vidtrain.sweeps.base import slurm_jobs
from vidtrain.sweeps.record import Trial


def test_a_trial_that_ends_while_it_is_looked_at_is_finished_and_not_stalled(tmp_path, monkeypatch):
    """It would be launched once more. The run lets go of its folder after it has written its summary."""
    trial = Trial(0, "0", [])
    folder = tmp_path / trial.folder
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    summary = {"status": "finished", "best": 0.5, "steps": 10, "minutes": 1.0}

    def ends_now(place):
        (place / "summary.json").write_text(json.dumps(summary))
        return False

    monkeypatch.setattr(record, "is_held", ends_now)
    state = record.trial_state(tmp_path, trial)
    assert (state.state, state.objective, state.step) == (record.FINISHED, 0.5, 10)


def test_a_trial_is_queued_by_its_latest_job_that_slurm_lists(tmp_path, monkeypatch):
    squeue = tmp_path / "bin/squeue"
    squeue.parent.mkdir()
    squeue.write_text("#!/bin/sh\nprintf '7 RUNNING\\n12 PENDING\\n3 PENDING\\n'\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    assert slurm_jobs(tmp_path) is None  # the sweep has submitted nothing
    for time, job in enumerate(("0/12", "0/7", "0/99", "2/98")):
        (tmp_path / ".submitit" / job).mkdir(parents=True)
        os.utime(tmp_path / ".submitit" / job, (time, time))
    jobs = slurm_jobs(tmp_path)
    assert jobs == {0: "job 7, running"}  # job 99 is later, but has left the queue
    states = [record.trial_state(tmp_path, Trial(number, str(number), []), jobs=jobs) for number in (0, 2)]
    assert [(state.state, state.where) for state in states] == [("queued", "job 7, running"), ("waiting", None)]
