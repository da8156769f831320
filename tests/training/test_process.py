"""Where a process stands, by what torchrun, SLURM and submitit say."""

import subprocess
from types import SimpleNamespace

import pytest

from vidtrain.errors import UserError
from vidtrain.training import process
from vidtrain.training.process import LaunchInfo, launch_info, master_address, tasks_per_node

# Of a task of `srun -N2 --ntasks-per-node=2`, on the second node
STEP = {
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
LOCAL = {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_GLOBALID": "1"}
# Of a batch script, which has the job's tasks in view and is one process
BATCH = {"SLURM_JOB_ID": "1234", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "4"}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({}, LaunchInfo()),
        (STEP, LaunchInfo("slurm", 2, 4, 0, 2)),
        (BATCH, LaunchInfo()),
        ({**STEP, "SLURM_STEP_NUM_TASKS": "1"}, LaunchInfo()),
        (TORCHRUN, LaunchInfo("torchrun", 3, 4, 1, 2)),
        ({**STEP, **TORCHRUN}, LaunchInfo("torchrun", 3, 4, 1, 2)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, LaunchInfo()),
        (LOCAL, LaunchInfo("local", 1, 2, 1, 2)),
        ({**LOCAL, "SUBMITIT_LOCAL_NTASKS": "1", "SUBMITIT_LOCAL_GLOBALID": "0"}, LaunchInfo()),
    ],
)
def test_the_place_of_a_process(environ, place):
    assert launch_info(environ) == place


@pytest.mark.parametrize(
    ("text", "counts"),
    [("2", [2]), ("2(x3)", [2, 2, 2]), ("2(x2),1", [2, 2, 1]), ("4,3(x2)", [4, 3, 3])],
)
def test_tasks_on_each_node(text, counts):
    assert tasks_per_node(text) == counts


def test_tasks_that_make_no_sense_are_refused():
    with pytest.raises(UserError, match="SLURM_STEP_TASKS_PER_NODE=two"):
        tasks_per_node("two")


@pytest.fixture
def scontrol(monkeypatch):
    said = {
        "hostnames": "n1\nn2\n",
        "node": "NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.7 NodeHostName=n1 Version=22.05.8\n",
    }
    asked = []

    def run(command, **_):
        asked.append(command)
        return SimpleNamespace(stdout=said[command[3]])

    monkeypatch.setattr(process.subprocess, "run", run)
    return asked


def test_the_ranks_meet_at_the_first_nodes_address_and_a_port_of_the_job(scontrol):
    assert master_address(STEP) == ("10.0.0.7", 12000 + 1234 * 131 % 20000)
    assert scontrol == [
        ["scontrol", "--oneliner", "show", "hostnames", "n[1-2]"],
        ["scontrol", "--oneliner", "show", "node", "n1"],
    ]


def test_a_requeued_job_and_another_step_meet_at_another_port(scontrol):
    ports = {
        master_address({**STEP, **more})[1]
        for more in ({}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "1235"})
    }
    assert len(ports) == 4
    assert all(12000 <= port < 32000 for port in ports)


def test_one_node_needs_no_name_and_what_is_set_counts(scontrol):
    assert master_address({**STEP, "SLURM_STEP_NUM_NODES": "1"})[0] == "127.0.0.1"
    assert master_address({**STEP, "MASTER_ADDR": "here", "MASTER_PORT": "77"}) == ("here", 77)
    assert master_address({**LOCAL, "SUBMITIT_LOCAL_JOB_ID": "20005"}) == ("127.0.0.1", 12005)
    assert scontrol == []


@pytest.mark.parametrize(
    ("error", "times"),
    [(subprocess.CalledProcessError(1, "scontrol"), 6), (FileNotFoundError("scontrol"), 1)],
)
def test_without_scontrol_it_says_what_to_set(monkeypatch, error, times):
    asked = []

    def run(command, **_):
        asked.append(command)
        raise error

    monkeypatch.setattr(process.subprocess, "run", run)
    monkeypatch.setattr(process, "SCONTROL_PAUSE", 0.0)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        master_address(STEP)
    assert len(asked) == times


def test_a_controller_that_is_late_to_answer_is_asked_again(scontrol, monkeypatch):
    answer, late = process.subprocess.run, iter([subprocess.TimeoutExpired("scontrol", 30)] * 2)

    def run(command, **more):
        if error := next(late, None):
            raise error
        return answer(command, **more)

    monkeypatch.setattr(process.subprocess, "run", run)
    monkeypatch.setattr(process, "SCONTROL_PAUSE", 0.0)
    assert master_address(STEP)[0] == "10.0.0.7"
