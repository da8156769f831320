"""Checkpoints that were damaged on the disk: the newest that verifies is used, and the log says why others were not."""

import shutil

import pytest
from damage import flip
from fault_injection import difference


@pytest.fixture
def ended(alone, tmp_path):
    """A run that was killed after its last step, before it was evaluated."""
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    (run / "summary.json").unlink()
    return run


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.slow
def test_a_flipped_bit_costs_the_steps_since_the_checkpoint_before(faults, alone, ended):
    flip(ended / "checkpoints/last.pt")
    child = faults(ended)
    assert child.wait() == 0, child.said
    said = child.words
    assert "skipped last.pt, and renamed it damaged_last.pt: checkpoint" in said
    assert "is damaged: its content does not match its checksum" in said
    assert "resuming from previous.pt instead, at step 10: the steps since are repeated" in said
    assert f"resumed from {ended}/checkpoints/previous.pt at step 10" in said
    assert difference(alone, ended) is None
    assert (ended / "checkpoints/damaged_last.pt").is_file()


@pytest.mark.slow
def test_checkpoints_that_are_kept_for_good_can_help(faults, alone, ended):
    cut(ended / "checkpoints/last.pt")
    cut(ended / "checkpoints/previous.pt")
    flip(ended / "checkpoints/step_0000010.pt")
    child = faults(ended)
    assert child.wait() == 0, child.said
    for name in ("last.pt", "previous.pt", "step_0000010.pt"):
        assert f"skipped {name}, and renamed it damaged_{name}" in child.words
    assert "last.pt is truncated or not a PyTorch file" in child.words
    assert f"resumed from {ended}/checkpoints/step_0000004.pt at step 4" in child.words
    assert difference(alone, ended) is None


@pytest.mark.slow
def test_nothing_starts_from_scratch_by_itself(faults, ended):
    names = ("last.pt", "previous.pt", "step_0000004.pt", "step_0000010.pt")
    for name in names:
        cut(ended / "checkpoints" / name)
    rows = (ended / "metrics.jsonl").read_bytes()
    child = faults(ended)
    assert child.wait() == 2
    assert "can be used, and a run does not start from scratch by itself" in child.words
    assert all(f"checkpoints/{name} is truncated or not a PyTorch file" in child.words for name in names)
    assert f"init_from={ended}/checkpoints/best.pt starts from its weights" in child.words
    assert (ended / "metrics.jsonl").read_bytes() == rows
    assert all((ended / "checkpoints" / name).is_file() for name in names)


def test_other_weights_are_never_reported_in_place_of_the_best(faults, ended):
    flip(ended / "checkpoints/best.pt")
    child = faults(ended)
    assert child.wait() == 2
    assert "Unless a later evaluation is better than" in child.words  # said before training goes on
    assert "which val selected" in child.words and "are lost, so nothing is reported" in child.words
    assert f"vidtrain.evaluate checkpoint={ended}/checkpoints/last.pt" in child.words
    assert not (ended / "summary.json").exists()
