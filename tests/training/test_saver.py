"""Saving while the disk is full: what is tried again, what ends the run, and what a checkpoint waits for."""

from types import SimpleNamespace

import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.files import torch_files
from vidtrain.tracking.console import NullConsole
from vidtrain.training import checkpoint
from vidtrain.training.checkpoint import Saver
from vidtrain.training.distributed import Ranks


class Said(NullConsole):
    def __init__(self):
        self.said = []

    def info(self, text):
        self.said.append(text)

    warn = info


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A saver into `folder`, whose disk is full while `full` is set; `rows` is what it logged."""
    made = SimpleNamespace(full=False, rows=[], console=Said(), folder=tmp_path)
    log = SimpleNamespace(log=lambda metrics, step: made.rows.append((step, metrics)))
    write = torch_files.write_torch_file

    def limited(payload, file):
        if made.full:
            file.write(b"half of it")
            raise OSError(28, "No space left on device")
        write(payload, file)

    monkeypatch.setattr(torch_files, "write_torch_file", limited)
    ranks = Ranks(torch.device("cpu"))
    made.saver = Saver(tmp_path, {"classes": ["a"]}, ranks, log, made.console)

    def save(step, keep=False, must=False, unwritten=(None,)):
        payload = {"model": {"w": torch.tensor(float(step))}, "state": {"total_step": step}}
        made.saver.save(payload, unwritten, keep, must)

    made.save = save
    made.step = lambda name: checkpoint.load(tmp_path / name)["state"]["total_step"]
    made.files = lambda: sorted(path.name for path in tmp_path.iterdir())
    return made


def test_two_are_kept_and_some_for_good(disk):
    for step in (2, 4, 6):
        disk.save(step, keep=step == 4)
    assert disk.files() == ["last.pt", "previous.pt", "step_0000004.pt"]
    assert (disk.step("last.pt"), disk.step("previous.pt")) == (6, 4)
    assert checkpoint.load(disk.folder / "last.pt")["classes"] == ["a"]
    assert disk.rows == [] and disk.console.said == []


def test_a_full_disk_is_a_warning_and_a_row_and_the_next_save_tries_again(disk):
    disk.save(2)
    disk.save(4)
    disk.full = True
    disk.save(6)
    disk.save(8)
    assert (disk.step("last.pt"), disk.step("previous.pt")) == (4, 2)
    assert disk.files() == ["last.pt", "previous.pt"]
    assert disk.rows == [(6, {"checkpoint/failed": 1}), (8, {"checkpoint/failed": 2})]
    assert disk.console.said[0] == (
        f"step 6: could not write the checkpoint {disk.folder}/last.pt (No space left on device); the previous one is "
        "intact. The run goes on and tries again with the next checkpoint (failure 1 in a row; 10 end the run)"
    )
    disk.full = False
    disk.save(10)
    assert disk.console.said[2:] == ["step 10: the checkpoint is written, after 2 failures"]
    disk.full = True
    disk.save(12)
    assert disk.rows[2:] == [(12, {"checkpoint/failed": 1})]  # counted anew


def test_ten_failures_in_a_row_end_the_run(disk):
    disk.save(1)
    disk.full = True
    for step in range(2, 11):
        disk.save(step)
    with pytest.raises(
        UserError,
        match="10 checkpoints .* step 11; .* step 1. ",
    ):
        disk.save(11)
    assert checkpoint.MAX_FAILED_SAVES == 10
    assert disk.step("last.pt") == 1


def test_the_last_of_a_run_must_be_saved(disk):
    disk.full = True
    with pytest.raises(
        UserError,
        match="step 9, .*; no checkpoint was saved before",
    ):
        disk.save(9, must=True)


def test_no_checkpoint_is_written_before_the_rows_up_to_it(disk):
    disk.save(2)
    disk.save(4, unwritten=(None, "steps_rank1.csv: No space left on device"))
    assert disk.step("last.pt") == 2
    assert disk.rows == [(4, {"checkpoint/failed": 1})]
    assert "step 4: log rows of rank 1 are not written (steps_rank1.csv: No space left" in disk.console.said[0]


def test_the_best_weights_wait_in_memory_and_are_written_before_the_next_checkpoint(disk):
    weights = {"w": torch.tensor([3.0])}
    disk.saver.best({"model": {"w": torch.tensor([1.0])}, "state": {"total_step": 1}})
    disk.full = True
    disk.saver.best({"model": weights, "state": {"total_step": 3}})
    weights["w"].fill_(4.0)  # training goes on
    assert checkpoint.load(disk.folder / "best.pt")["model"]["w"].item() == 1
    assert disk.console.said[0].endswith("These weights are kept in memory and written with the next checkpoint")
    disk.save(4)
    assert not (disk.folder / "last.pt").exists()  # it would speak of a best.pt that is not there
    disk.full = False
    disk.save(6)
    assert disk.step("last.pt") == 6
    best = checkpoint.load(disk.folder / "best.pt")
    assert (best["model"]["w"].item(), best["state"]["total_step"], best["classes"]) == (3, 3, ["a"])


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".last.pt.77.tmp").write_bytes(b"half")
    Saver(tmp_path, {}, Ranks(torch.device("cpu")), None, Said())
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_write_nothing(tmp_path):
    saver = Saver(tmp_path, {}, Ranks(torch.device("cpu"), rank=1), None, Said())
    saver.best({"model": {}})
    assert list(tmp_path.iterdir()) == []
