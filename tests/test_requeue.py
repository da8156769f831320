"""experiments/slurm/requeue.sh: which ends of a job put it back into the queue, with a scontrol that only notes."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "experiments/slurm/requeue.sh"
# Its first $DEAF calls find no controller, nor do the first $UNHEARD of those that ask for a requeue. One that is heard
# would end the script, but for its answer being lost.
SCONTROL = """#!/bin/sh
echo "$@" >>"$NOTED"
[ "$(wc -l <"$NOTED")" -le "$DEAF" ] && { echo "Unable to contact slurm controller" >&2; exit 1; }
[ "$1" = requeue ] && exit 1
[ "$(grep -c ^requeue "$NOTED")" -gt "$UNHEARD" ] && STATE=PENDING
echo "JobId=7 JobState=$STATE Reason=None"
"""


@pytest.fixture
def end_with(tmp_path):
    """Ends a batch script with a status, and a verdict of the program if there is one; its status, how often it asked
    to be requeued, and what it said."""
    (tmp_path / "scontrol").write_text(SCONTROL)
    (tmp_path / "scontrol").chmod(0o755)

    def end(status, verdict=None, state="RUNNING", restarts=None, deaf=0, unheard=0):
        leave = f"echo {verdict} >$VIDTRAIN_VERDICT" if verdict else ":"
        env = {
            "PATH": f"{tmp_path}:/usr/bin:/bin",
            "NOTED": str(tmp_path / "noted"),
            "STATE": state,
            "DEAF": str(deaf),
            "UNHEARD": str(unheard),
            "VIDTRAIN_PATIENCE": "0.01",
            "SLURM_JOB_ID": "7",
            "VIDTRAIN_STATE": str(tmp_path / "state"),
            "VIDTRAIN_MAX_RESTARTS": "3",
        } | ({} if restarts is None else {"SLURM_RESTART_COUNT": str(restarts)})
        command = ["bash", "-c", f"source {SCRIPT}; {leave}; (exit {status})"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30)
        asked = (tmp_path / "noted").read_text().splitlines().count("requeue 7")
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
    assert asked == int(requeued), said
    # a job that srun calls a success and that has not finished must not look like one
    assert status == (ending["status"] or ("verdict" not in ending))


@pytest.mark.parametrize(
    ("late", "asked"), [({"deaf": 2}, 1), ({"unheard": 2}, 3), ({"deaf": 100}, 0), ({"unheard": 100}, 6)]
)
def test_a_controller_that_is_late_to_answer_is_asked_again(end_with, late, asked):
    status, times, said = end_with(75, **late)
    assert (status, times) == (75, asked), said
    assert f"job {'UNKNOWN' if asked == 0 else 'RUNNING'}" in said


def test_it_says_why(end_with):
    _, _, said = end_with(75, restarts=1)
    assert said == "vidtrain: status 75, verdict none, job RUNNING, restarts 1 of 3\n"
