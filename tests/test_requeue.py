"""experiments/slurm/requeue.sh: which ends of a job put it back into the queue, with a scontrol that only notes."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "experiments/slurm/requeue.sh"
SCONTROL = """#!/bin/sh
echo "$@" >>"$NOTED"
[ "$1" != requeue ] && echo "JobId=7 JobState=$STATE Reason=None" # a requeue that fails ends the script at once
"""


@pytest.fixture
def end_with(tmp_path):
    """Ends a batch script with a status, and a verdict of the program if there is one; its status, and if it asked to
    be requeued."""
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)

    def end(status, verdict=None, state="RUNNING", restarts=None):
        leave = f"echo {verdict} >$VIDTRAIN_VERDICT" if verdict else ":"
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "NOTED": str(tmp_path / "noted"),
            "STATE": state,
            "SLURM_JOB_ID": "7",
            "VIDTRAIN_STATE": str(tmp_path / "state"),
            "VIDTRAIN_MAX_RESTARTS": "3",
        } | ({} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)})
        command = ["bash", "-c", f"source {SCRIPT}; {leave}; (exit {status})"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        asked = "requeue 7" in (tmp_path / "noted").read_text().splitlines()
        return done.returncode, asked, done.stderr

    return end


@pytest.mark.parametrize(
    ("ending", "requeued"),
    [
        ({"status": 75}, True),  # saved, and left
        ({"status": 137}, True),  # a rank was killed
        ({"status": 0}, True),  # srun's word for a node that went down
        ({"status": 0, "verdict": "finished"}, False),
        ({"status": 75, "verdict": "failed"}, False),
        ({"status": 1}, False),
        ({"status": 2}, False),  # a mistake of the user's
        ({"status": 75, "restarts": 2}, True),
        ({"status": 75, "restarts": 3}, False),  # as often as it may
        ({"status": 75, "state": "COMPLETING"}, False),  # cancelled, or requeued by SLURM
    ],
)
def test_what_puts_a_job_back_into_the_queue(end_with, ending, requeued):
    status, asked, said = end_with(**ending)
    assert asked == requeued, said
    # a job that srun calls a success and that has not finished must not look like one
    assert status == (ending["status"] or ("verdict" not in ending))


def test_it_says_why(end_with):
    _, _, said = end_with(75, restarts=1)
    assert said == "vidtrain: status 75, verdict none, job RUNNING, restarts 1 of 3\n"
