"""The launchers: what they refuse, what they write, and what a failing job comes to."""

import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from submitit.core import core

from vidtrain.app import launch as app_launch
from vidtrain.app.launch import find_faults
from vidtrain.config.targets import CONF, register_schemas
from vidtrain.sweeps import submitit_launchers as launching
from vidtrain.sweeps.submitit_launchers import Queue, SlurmLauncher

register_schemas()


def launcher_of(option, *overrides):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [f"hydra/launcher={option}", *overrides], return_hydra_config=True)
    return cfg


@pytest.mark.parametrize("option", ["slurm", "local"])
def test_they_compose_and_can_be_made(option):
    node = launcher_of(option, "hydra.launcher.nodes=1").hydra.launcher
    OmegaConf.set_struct(node, False)
    settings = {key: node[key] for key in node if key not in ("_target_", "name", "submitit_folder")}
    made = getattr(launching, node._target_.rpartition(".")[2])(**settings)
    assert made.params["nodes"] == 1


def test_a_job_is_told_where_its_verdict_lies_and_when_to_give_up(monkeypatch):
    seen = {}
    base = SlurmLauncher.__mro__[2]  # Hydra may have loaded its plugin's module twice
    monkeypatch.setattr(base, "launch", lambda self, *_: seen.update(self.params))
    SlurmLauncher(
        max_restarts=7,
        look_seconds=30,
        submitit_folder="s/.submitit/3/%j",
        setup=["module load x"],
        additional_parameters={"a": 1},
    ).launch([["seed=1"]], 0)
    first, second, third = seen["setup"]
    assert first == "module load x"
    assert second.startswith("export VIDTRAIN_STATE=/") and second.endswith("s/.submitit/3 VIDTRAIN_MAX_RESTARTS=7")
    assert third == f"source {launching.REQUEUE}" and launching.REQUEUE.is_file()
    assert seen["additional_parameters"] == {"requeue": True, "a": 1}


def test_a_sweep_of_several_processes_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    ((key, why),) = app_launch.sweep_faults(["seed=0,1"])
    assert key == "-m"
    assert why.startswith("torchrun has started 8 processes, and each would start the whole sweep. Start it without")


def test_without_slurm_it_says_so(monkeypatch):
    monkeypatch.setattr(app_launch.shutil, "which", lambda name: None)
    ((key, why),) = app_launch.sweep_faults(["hydra/launcher=slurm", "seed=0,1"])
    assert (key, why.startswith("there is no SLURM here (no sbatch)")) == ("hydra/launcher", True)
    assert app_launch.sweep_faults(["hydra/launcher=local", "seed=0,1"]) == []


def test_without_submitit_it_names_the_extra(monkeypatch):
    monkeypatch.setattr(app_launch, "find_spec", lambda name: None)
    ((_, why),) = app_launch.sweep_faults(["hydra/launcher=local"])
    assert why == "local needs submitit: uv sync --extra slurm"


def test_a_wrong_setting_of_the_launcher_is_named():
    (fault,) = find_faults("train", ["hydra/launcher=slurm", "hydra.launcher.partitoin=gpu"], lambda cfg: [])
    assert fault[0] == "override 'hydra.launcher.partitoin=gpu'"


def test_the_queue_tells_of_jobs_and_of_those_that_have_left_it():
    queue = Queue(delay_s=1)
    for job in ("12", "13", "14_0", "14_1"):
        queue.register_job(job)
    assert queue._make_command() is not None
    found = queue.read_info("12|RUNNING|n1\n14_0|PENDING|\n14_[1-3]|PENDING|\n99|RUNNING|n2\n")
    assert {job: state["State"] for job, state in found.items()} == {
        "12": "RUNNING", "13": "COMPLETED", "14_0": "PENDING", "14_1": "PENDING",
    }  # fmt: skip


def test_a_job_submitted_while_the_queue_is_read_has_not_ended(monkeypatch):
    """Trials wait in threads: one reads the queue, and another submits its job meanwhile."""
    queue = Queue(delay_s=1)
    queue.register_job("12")

    def squeue(command, shell):
        assert command[0] == "squeue" and not shell
        queue.register_job("13")
        return b"12|RUNNING|n1\n"

    monkeypatch.setattr(core.subprocess, "check_output", squeue)
    assert not queue.is_done("12", mode="force")
    assert not queue.is_done("13", mode="cache")
    monkeypatch.setattr(core.subprocess, "check_output", lambda *_, **__: b"12|RUNNING|n1\n")
    queue.update()
    assert queue.is_done("13", mode="cache")


@pytest.mark.parametrize(
    ("state", "done"),
    [
        ("RUNNING", False),
        ("COMPLETING", False),
        ("PREEMPTED", False),  # and may be requeued
        ("NODE_FAIL", False),
        ("REQUEUED", False),
        ("COMPLETED", True),
        ("FAILED", True),
        ("CANCELLED", True),
        ("TIMEOUT", True),  # which is never requeued
    ],
)
def test_which_states_are_the_end_of_a_job(state, done, monkeypatch):
    queue = Queue(delay_s=1)
    queue.register_job("12")
    monkeypatch.setattr(core.subprocess, "check_output", lambda *_, **__: f"12|{state}|".encode())
    assert queue.is_done("12", mode="force") == done


ENDING = """
import sys
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from vidtrain.errors import UserError
from vidtrain.sweeps.submitit_launchers import _VisibleFailures

class Base(BaseSubmititLauncher):
    def __init__(self):
        pass

    def __call__(self, *_):
        returned = JobReturn(status=JobStatus.FAILED)
        if {error} is None:
            returned = JobReturn(status=JobStatus.COMPLETED)
        elif isinstance({error}, SystemExit):
            raise {error}
        returned.return_value = {error}
        return returned

class Job(_VisibleFailures, Base):
    pass

returned = Job()([], "", 0, "", {{}})
print("result", returned.status.name)
"""


@pytest.mark.parametrize(
    ("error", "status", "result"),
    [
        ("None", 0, "result COMPLETED\n"),
        ("ZeroDivisionError('x')", 1, "result FAILED\n"),
        ("UserError('mend it')", 2, "result FAILED\n"),
        ("SystemExit(2)", 2, "result FAILED\n"),
        ("SystemExit(75)", 75, ""),
    ],
)
def test_a_failing_job_gives_its_launcher_a_result_and_slurm_a_status(error, status, result):
    done = subprocess.run(
        [sys.executable, "-c", ENDING.format(error=error)], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (status, result), done.stderr
    assert ("error: mend it" in done.stderr) == ("UserError" in error)
