"""What ranks say to each other, by two processes."""

import subprocess
import sys

import pytest

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
    assert ranks.gather(found) == [([1.0, 1.0], 10)] * 2, found
"""


@pytest.mark.slow
def test_every_rank_gets_the_first_ones_buffers(tmp_path):
    """Batch norms count the batches of their own rank; evaluated and saved are those of rank 0."""
    (tmp_path / "script.py").write_text(SCRIPT)
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    found = subprocess.run(
        [sys.executable, *torchrun, str(tmp_path / "script.py")], capture_output=True, text=True, timeout=300
    )
    assert found.returncode == 0, found.stdout + found.stderr
