"""A run that is killed with SIGKILL, anywhere, and resumed ends with the same bits as one that was left alone."""

import json
import random
import signal

import pytest
from fault_injection import difference, saving, start_training, step_now

from vidtrain.errors import UserError
from vidtrain.training import checkpoint

STEPS = 12


def verifying(run) -> list[int]:
    """Steps of the resumable checkpoints of a run that verify."""
    steps = set()
    for path in (run / "checkpoints").glob("*.pt"):
        if path.name != "best.pt":
            try:
                steps.add(checkpoint.load(path)["state"]["total_step"])
            except UserError as error:
                raise AssertionError(f"{path.name} was left damaged") from error
    return sorted(steps)


@pytest.mark.slow
def test_killed_at_random_steps(faults, alone, tmp_path):
    """With another number of workers each time; the folder alone is enough to resume."""
    random.seed(0)
    targets, run = sorted(random.sample(range(4, STEPS), 3)), tmp_path / "run"
    for attempt, target in enumerate(targets):
        child = faults(run, f"trainer.num_workers={attempt % 2}", whole=attempt == 0)  # the program notes the command
        assert child.until(lambda target=target: step_now(run) >= target), child.said
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert not (run / "summary.json").exists()
    last = start_training(run, whole=True)
    assert last.wait() == 0, last.said
    assert f"resumed from {run}/checkpoints/last.pt at step" in last.words
    assert difference(alone, run) is None and verifying(run) == [4, 10, STEPS]
    again = start_training(run, whole=True)
    assert again.wait() == 0 and "is finished: best val top1" in again.words


@pytest.mark.slow
def test_killed_inside_saving(faults, alone, tmp_path):
    """At the instant at which a temporary file is there: before the first step is saved, and twice later."""
    run = tmp_path / "run"
    for step in (0, 4, 8):
        child = faults(run)
        assert child.until(lambda step=step: step_now(run) >= step, pause=0.01), child.said
        assert child.until(lambda: saving(run)), f"saving was not seen: {child.said}"
        child.kill()
        assert child.wait() == -signal.SIGKILL
        assert (run / "checkpoints/last.pt").exists() == bool(verifying(run))
    child = faults(run)
    assert child.wait() == 0, child.said
    assert difference(alone, run) is None
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.pt", "last.pt", "previous.pt", "step_0000004.pt", "step_0000010.pt"]  # fmt: skip
    assert verifying(run) == [4, 10, STEPS]


def test_the_undisturbed_run_is_what_the_others_are_held_against(alone):
    assert verifying(alone) == [4, 10, STEPS]
    rows = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/step_loss" in row] == list(range(1, STEPS + 1))
    assert not any("checkpoint/failed" in row for row in rows)
    assert difference(alone, alone) is None
