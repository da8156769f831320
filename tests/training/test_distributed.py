"""What ranks say to each other, by two processes."""

import os
import socket
import subprocess
import sys

import pytest

from vidtrain.training import distributed
from vidtrain.training.distributed import join_ranks

SCRIPT = """
import torch
from torch import nn
from vidtrain.training.distributed import join_ranks

with join_ranks("cpu") as ranks:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[0].running_mean.fill_(ranks.rank + 1)
    model[0].num_batches_tracked.fill_(10 * (ranks.rank + 1))
    ranks.share_buffers(model)
    found = (model[0].running_mean.tolist(), model[0].num_batches_tracked.item())
    assert ranks.gather_objects(found) == [([1.0, 1.0], 10)] * 2, found
    assert ranks.all_reduce_sum(ranks.rank, 5) == [1, 10]
"""


@pytest.mark.slow
def test_every_rank_gets_the_first_ones_buffers_and_the_sums(tmp_path):
    """Batch norms count the batches of their own rank; evaluated and saved are those of rank 0."""
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    found = subprocess.run(
        [sys.executable, *torchrun, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stdout + found.stderr


JOIN = """
from vidtrain.training.distributed import join_ranks

with join_ranks("cpu"):
    pass
"""
STEP = {  # of the first of two tasks on a node
    "SLURM_JOB_ID": "1234",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_TASKS_PER_NODE": "2",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("named", "status", "words"),
    [
        (False, 75, "another program listens there; requeue the job"),
        (True, 1, "set MASTER_PORT"),
    ],
)
def test_a_port_that_is_taken(named, status, words):
    port = 12000 + 1234 * 131 % 20000
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_"))}
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("0.0.0.0", port))
        taken.listen()
        more = {**STEP, "MASTER_PORT": str(port)} if named else STEP
        found = subprocess.run(
            [sys.executable, "-c", JOIN], env={**environ, **more}, capture_output=True, text=True, timeout=300
        )
    assert found.returncode == status, found.stderr
    assert f"127.0.0.1:{port}" in found.stderr and words in found.stderr


RANK_0 = """
import time, torch.distributed as dist
store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
while not store.num_keys():  # that the other has written
    time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_rank_that_is_lost_in_start_up_costs_a_requeue(monkeypatch, capsys):
    """Rank 0 goes when rank 1 has found it."""
    monkeypatch.setattr(distributed, "START_SECONDS", 120.0)
    with subprocess.Popen([sys.executable, "-c", RANK_0], stdout=subprocess.PIPE, text=True) as rank_0:
        try:
            port = rank_0.stdout.readline().strip()
            second = {**STEP, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"}
            for key, value in {**second, "MASTER_PORT": port}.items():
                monkeypatch.setenv(key, value)
            with pytest.raises(SystemExit) as ended, join_ranks("cpu"):
                pass
        finally:
            rank_0.kill()
    assert ended.value.code == 75
    assert "one of them was lost" in capsys.readouterr().err
