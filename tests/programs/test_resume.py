"""A run that is killed with SIGKILL and resumed ends with the same bits as one that was left alone."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from vidtrain.training import checkpoint

OVERRIDES = [
    "+dataset.source.train_per_class=3",
    "+dataset.source.val_per_class=1",
    "+dataset.source.test_per_class=1",
    "+dataset.source.frames=24",
    "+dataset.source.size=32",
    "augmentation=standard",  # random crops and color jitter
    "model.encoder.embed_dim=24",
    "model.encoder.depth=2",
    "model.encoder.drop_path=0.2",
    "clip.size=16",
    "clip.train_clips=2",
    "stage=progressive",
    "logger=none",
    "trainer.epochs=4",
    "trainer.batch_size=6",
    "trainer.accumulation=2",
    "trainer.save_every=2it",  # in the middle of an epoch of 5 steps, too
    "trainer.keep_every=4it",
    "trainer.cpu_threads=1",
    "trainer.log_every=1",
]
# What the clock decides
TIMED = ("seconds", "train/clips_per_s", "train/data_share", "time/epoch_s", "time/total_s", "minutes")


def start(folder, data_root, *more):
    command = [sys.executable, "-m", "vidtrain.train", f"run_dir={folder}", f"data_root={data_root}", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def steps_done(folder):
    try:
        return checkpoint.load(folder / "checkpoints/last.pt")["state"]["total_step"]
    except Exception:
        return 0


def rows(folder):
    """metrics.jsonl and the steps' table without what the clock decides."""
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with open(folder / "steps_rank0.csv", newline="") as file:
        steps = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in TIMED} for row in metrics + steps]


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    finish(start(alone, tmp_path, *OVERRIDES, "trainer.num_workers=1"))

    # Killed twice, wherever it is after its fourth and its eleventh step; resumed with other workers
    for target, workers in ((4, 2), (11, 0)):
        process = start(killed, tmp_path, *OVERRIDES, f"trainer.num_workers={workers}")
        deadline = time.monotonic() + 200
        while steps_done(killed) < target and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run was over before it could be killed"
        assert not (killed / "summary.json").exists()

    said = finish(start(killed, tmp_path))  # the folder alone is enough
    assert f"resumed from {killed}/checkpoints/last.pt at step" in said

    for name in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(folder / "checkpoints" / name) for folder in (alone, killed))
        assert one["model"].keys() == other["model"].keys()
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
        assert {**one["state"], "seconds": 0} == {**other["state"], "seconds": 0}
    # in the last phase, in the middle of an epoch: the optimizer's state and the epoch's sums
    one, other = (checkpoint.load(folder / "checkpoints/step_0000014.pt") for folder in (alone, killed))
    moments, others = (each["optimizer"]["state"] for each in (one, other))
    assert moments.keys() == others.keys() and len(moments) > 10
    for key in moments:
        assert all(
            torch.equal(moments[key][name], others[key][name]) for name in ("step", "exp_avg", "exp_avg_sq")
        )
    assert all(torch.equal(one["sums"][0][name], other["sums"][0][name]) for name in one["sums"][0])
    assert rows(alone) == rows(killed)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (alone, killed)]
    assert summaries[0] | {"minutes": 0} == summaries[1] | {"minutes": 0}
    assert "is finished: best val top1" in finish(start(killed, tmp_path))
