"""Two ranks against one: the same samples, the same metrics."""

import csv
import json
import subprocess
import sys

import pytest
import torch
from fork_server import run_program
from small_run import small

from vidtrain.training import checkpoint

OVERRIDES = small(
    "clip.eval_clips=2",
    "stage=progressive",
    "optimizer=sgd",  # AdamW divides by small gradients, which makes much of the last bit
    "logger=none",
    "trainer.epochs=3",
    "trainer.batch_size=8",
    train=3,
    depth=2,
)


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path):
    for processes in (1, 2):
        folders = [f"run_dir={tmp_path / str(processes)}", f"data_root={tmp_path}"]
        ended = run_program("train", *folders, *OVERRIDES, ranks=processes)
        assert ended.returncode == 0, ended.stdout + ended.stderr
    one, two = ([json.loads(line) for line in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in "12")
    assert len(one) == len(two) > 5
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for key in row:
            if not key.startswith(("time/", "memory/")) and key not in (
                "train/clips_per_s",
                "train/data_share",
                "train/step_loss",
            ):
                assert row[key] == pytest.approx(other[key], abs=1e-4), key
    summaries = [json.loads((tmp_path / n / "summary.json").read_text()) for n in "12"]
    assert summaries[0]["coverage"] == summaries[1]["coverage"] == "10/10"
    weights = [checkpoint.load(tmp_path / n / "checkpoints/last.pt")["model"] for n in "12"]
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], atol=1e-4, rtol=0)
    # every rank keeps its own table of steps
    for rank in (0, 1):
        with open(tmp_path / f"2/steps_rank{rank}.csv", newline="") as file:
            assert len(list(csv.DictReader(file))) == 9


@pytest.mark.slow
def test_a_batch_that_two_ranks_cannot_share_is_refused_before_anything_starts(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    command = [*torchrun, "-m", "vidtrain.train", f"run_dir={tmp_path / 'run'}", f"data_root={tmp_path}"]
    ended = subprocess.run([*command, *OVERRIDES, "trainer.batch_size=7"], capture_output=True, text=True, timeout=300)
    assert ended.returncode != 0
    assert "trainer.batch_size=7 cannot be shared by 2 rank(s)" in ended.stdout + ended.stderr
    assert not (tmp_path / "run").exists()
