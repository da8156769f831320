"""Checkpoints: whole or absent, refused where they could run code, and loaded with a report."""

import hashlib
import io
import itertools
import os
import pickle
import random
import re
import resource
import signal
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.files.torch_files import verify
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
    with pytest.raises(UserError, match="plain.pt is truncated"):
        checkpoint.load("plain.pt")
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_no_checkpoint_are_named(tmp_path):
    path = tmp_path / "last.pt"
    with pytest.raises(UserError, match=r"last\.pt is not a file"):
        checkpoint.load(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="last.pt is truncated"):
        checkpoint.load(path)
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match=r"last\.pt was not written by vidtrain"):
        checkpoint.load(path)
    checkpoint.save({"model": {"w": torch.zeros(10_000)}}, path)
    whole = path.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 1000):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match="last.pt is truncated"):
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


def content(payload: dict) -> tuple:
    model = {name: tensor.tolist() for name, tensor in payload["model"].items()}
    return model, payload["state"], payload["classes"], payload["format"]


@pytest.fixture
def is_noticed(tmp_path, whole):
    """Whether reading other bytes than `whole` is refused; else they must say the same: archives hold unused bytes."""
    expected, path = content(checkpoint.load(tmp_path / "whole.pt")), tmp_path / "last.pt"

    def noticed(data: bytes) -> bool:
        path.write_bytes(data)
        try:
            assert content(checkpoint.load(path)) == expected
        except UserError as error:
            assert re.search(r"last\.pt is (truncated or )?(damaged|not a PyTorch file)", str(error))
            return True
        return False

    return noticed


def test_a_flipped_bit_is_noticed_or_changes_nothing(is_noticed, whole):
    """In the data and headers of the archive, and many in its directory, at its end."""
    random.seed(0)
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        directory = archive.start_dir
    places = random.sample(range(8 * directory), 300) + random.sample(range(8 * directory, 8 * len(whole)), 600)
    assert sum(is_noticed(flipped(whole, bit)) for bit in places) > 500


def test_every_flipped_bit_of_a_tensor_is_noticed(is_noticed, whole):
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        data = archive.read("archive/data/0")
    first = whole.index(data)
    random.seed(0)
    assert all(is_noticed(flipped(whole, 8 * first + bit)) for bit in random.sample(range(8 * len(data)), 100))


def test_every_cut_is_noticed(is_noticed, whole):
    random.seed(0)
    sizes = [*random.sample(range(len(whole)), 100), *range(len(whole) - 120, len(whole))]
    assert all(is_noticed(whole[:size]) for size in sizes)
    for more in (b"\0", b"\0" * 4096, whole):
        is_noticed(whole + more)


def test_one_with_the_checksum_of_earlier_versions(tmp_path, whole):
    """BLAKE2b of everything before it, in the comment of the archive."""
    path, mark = tmp_path / "old.pt", b"vidtrain blake2b "
    sealed = whole[:-2] + (len(mark) + 64).to_bytes(2, "little") + mark
    path.write_bytes(sealed + hashlib.blake2b(sealed, digest_size=32).hexdigest().encode())
    assert checkpoint.load(path)["state"] == {"step": 7}
    verify(path)
    path.write_bytes(flipped(path.read_bytes(), 8 * len(whole) // 2))
    for read in (checkpoint.load, verify):
        with pytest.raises(UserError, match=r"old\.pt is damaged"):
            read(path)


def test_a_disk_that_cannot_be_read_is_named(tmp_path, whole):
    path = tmp_path / "last.pt"
    with pytest.raises(UserError, match=r"last\.pt cannot be read: No such file"):
        verify(path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(checkpoint.NotSaved, match=r"last\.pt \(File exists\)"):
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


@pytest.mark.slow
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
    with pytest.raises(UserError, match="wide.pt .*architecture .*encoder.bias"):
        checkpoint.restore(fresh, wide.state_dict(), "wide.pt")
    assert all(torch.equal(tensor, before[name]) for name, tensor in fresh.state_dict().items())
