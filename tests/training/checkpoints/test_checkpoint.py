"""Checkpoints: whole or absent, refused where they could run code, and loaded with a report."""

import hashlib
import io
import itertools
import os
import pickle
import random
import resource
import signal
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.files.torch_files import DIGEST_BYTES, MARK, read_torch_file, verify
from vidtrain.training.checkpoints import checkpoint


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
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"last\.pt is truncated or not a PyTorch file"):
            checkpoint.load(path)


def flipped(whole: bytes, bit: int) -> bytes:
    data = bytearray(whole)
    data[bit // 8] ^= 1 << bit % 8
    return bytes(data)


@pytest.fixture
def whole(tmp_path) -> bytes:
    """A checkpoint's bytes."""
    path = tmp_path / "whole.pt"
    payload = {
        "model": {"w": torch.randn(2000), "b": torch.zeros(3)},
        "state": {"step": 7},
        "classes": ["a", "b"],
    }
    checkpoint.save(payload, path)
    return path.read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path, whole):
    """Anywhere, and every single one of the archive's last record, of the checksum and of its mark."""
    path, bits = tmp_path / "last.pt", 8 * len(whole)
    random.seed(0)
    places = [*random.sample(range(bits), 300), *range(bits - 8 * (22 + len(MARK) + DIGEST_BYTES), bits)]
    assert len(places) == 300 + 8 * 103
    for bit in places:
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(UserError, match=r"last\.pt is (truncated or )?(damaged|not a PyTorch file)"):
            checkpoint.load(path)
    path.write_bytes(whole)
    assert checkpoint.load(path)["state"] == {"step": 7}


def test_every_cut_and_every_addition_is_noticed(tmp_path, whole):
    path = tmp_path / "last.pt"
    random.seed(0)
    for size in [*random.sample(range(len(whole)), 100), *range(len(whole) - 120, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"last\.pt is truncated or "):
            checkpoint.load(path)
    for more in (b"\0", b"\0" * 4096, whole):
        path.write_bytes(whole + more)
        with pytest.raises(UserError, match=r"last\.pt is (truncated or )?damaged"):
            checkpoint.load(path)


def test_the_checksum_is_blake2b_in_the_comment_of_an_ordinary_archive(tmp_path, whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        assert archive.testzip() is None
        mark, method, digest = archive.comment.decode().split()
    assert (mark, method) == ("vidtrain", "blake2b")
    assert digest == hashlib.blake2b(whole[:-64], digest_size=32).hexdigest()
    for mapped in (False, True):  # which every other program reads
        assert torch.load(tmp_path / "whole.pt", weights_only=True, mmap=mapped)["classes"] == ["a", "b"]
    assert verify(tmp_path / "whole.pt")


def test_one_of_before_checksums_is_accepted_and_named(tmp_path, caplog):
    path = tmp_path / "old.pt"
    torch.save({"format": checkpoint.FORMAT, "state": {"step": 7}}, path)
    with caplog.at_level("INFO"):
        assert checkpoint.load(path)["state"] == {"step": 7}
    assert caplog.messages == [f"checkpoint {path} is of before checksums: damage to it cannot be ruled out"]
    assert not verify(path)


def test_damage_is_noticed_where_tensors_stay_in_the_file(tmp_path, whole):
    path = tmp_path / "last.pt"
    path.write_bytes(flipped(whole, 8 * len(whole) // 2))
    with pytest.raises(UserError, match=r"last\.pt is damaged: its content is not what its checksum says"):
        read_torch_file(path, lazy=True)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(
        checkpoint.NotSaved, match=r"could not write the checkpoint .*last\.pt \(File exists\)"
    ):
        checkpoint.save({}, tmp_path / "checkpoints/last.pt")


def test_a_fault_that_is_not_of_the_disk_stays_what_it_is(tmp_path):
    with pytest.raises(AttributeError, match="local object"):
        checkpoint.save({"model": lambda: None}, tmp_path / "last.pt")
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save({"state": {"step": 1}}, path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # what writing to a full disk is like
    try:
        why = r"could not write the checkpoint .*last\.pt \(File too large\); the previous one is intact"
        with pytest.raises(checkpoint.NotSaved, match=why):
            checkpoint.save({"model": {"w": torch.zeros(1_000_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoint.load(path)["state"] == {"step": 1}
    assert os.listdir(tmp_path) == ["last.pt"]


def test_a_kill_while_saving_leaves_one_that_loads(tmp_path):
    """At twenty random times or more, in a process that does nothing but save."""
    random.seed(0)
    path = tmp_path / "last.pt"

    def save(step):
        weights = torch.from_numpy(np.full(200_000, step))  # not by torch, whose threads a fork lacks
        checkpoint.save({"model": {"w": weights}, "state": {"step": step}}, path)

    started, before = time.perf_counter(), 0
    save(before)
    one = time.perf_counter() - started
    kills = 0
    while kills < 20 or before == 0:  # on a busy machine a save may take longer than the first did
        assert kills < 100
        child = os.fork()
        if child == 0:
            try:
                for step in itertools.count(before + 1):
                    save(step)
            finally:
                os._exit(1)
        time.sleep(random.uniform(0, 3 + kills) * one)
        kills += 1
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        found = checkpoint.load(path)
        assert found["state"]["step"] >= before
        assert (found["model"]["w"] == found["state"]["step"]).all()
        before = found["state"]["step"]


def test_another_architecture_is_refused_before_anything_is_copied():
    wide, fresh = Model(width=8), Model(width=4)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    with pytest.raises(UserError, match=r"wide.pt is a checkpoint of another architecture .*encoder.bias"):
        checkpoint.restore(fresh, wide.state_dict(), "wide.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
