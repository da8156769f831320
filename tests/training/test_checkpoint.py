"""Checkpoints: whole or absent, refused where they could run code, and loaded with a report."""

import os
import pickle
import resource
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.training import checkpoint


class Model(nn.Module):
    def __init__(self, width=4, classes=3):
        super().__init__()
        self.encoder = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "last.pt"
    checkpoint.save({"model": {"w": torch.arange(3)}, "state": {"step": 7}}, path)
    found = checkpoint.load(path)
    assert found["state"] == {"step": 7}
    assert found["format"] == "vidtrain/1"
    assert torch.equal(found["model"]["w"], torch.arange(3))
    assert os.listdir(path.parent) == ["last.pt"]


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_malicious_pickle_is_refused_and_never_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": checkpoint.FORMAT, "model": Bomb()}, "bomb.pt")
    with pytest.raises(UserError, match="bomb.pt is refused: .* can run code"):
        checkpoint.load("bomb.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="plain.pt is truncated or not a PyTorch file"):
        checkpoint.load("plain.pt")
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(UserError, match=r"last\.pt is not a file"):
        checkpoint.load(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"last\.pt is truncated or not a PyTorch file"):
        checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=r"last\.pt was not written by vidtrain"):
        checkpoint.load(path)
    checkpoint.save({"model": {"w": torch.zeros(10_000)}}, path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"last\.pt is truncated or not a PyTorch file"):
            checkpoint.load(path)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"state": {"step": 1}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # what writing to a full disk is like
    try:
        with pytest.raises(UserError, match=r"could not write the checkpoint .*last\.pt"):
            checkpoint.save({"model": {"w": torch.zeros(1_000_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(path)["state"] == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


SAVER = """
import sys, torch
from vidtrain.training import checkpoint
from pathlib import Path
for step in range(1, 10_000):
    checkpoint.save({"model": {"w": torch.full((200_000,), float(step))}, "state": {"step": step}}, Path(sys.argv[1]))
    print(step, flush=True)
"""


def test_a_kill_while_saving_leaves_one_that_loads(tmp_path):
    for round_, delay in enumerate((0.002, 0.006)):
        path = tmp_path / f"{round_}.pt"
        process = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(path)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3):
            written = int(process.stdout.readline())
        time.sleep(delay)
        process.kill()
        process.wait()
        found = checkpoint.load(path)
        assert found["state"]["step"] >= written
        assert (found["model"]["w"] == found["state"]["step"]).all()


def test_another_architecture_is_refused_before_anything_is_copied():
    wide, fresh = Model(width=8), Model(width=4)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(UserError, match=r"wide.pt is a checkpoint of another architecture .*encoder.bias"):
        checkpoint.restore(fresh, wide.state_dict(), "wide.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
