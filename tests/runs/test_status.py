"""How an attempt at a run ended."""

import json

import pytest
import torch

from vidtrain.errors import DivergedError, Pruned, UserError
from vidtrain.runs.status import clear_outcome, last_step, outcome_of, read_outcome, record_outcome


def no_memory_on_cpu() -> Exception:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    return raised.value


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UserError("mend it"), "failed"),
        (RuntimeError("a defect"), "failed"),
        (DivergedError("the loss is nan"), "diverged"),
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (no_memory_on_cpu(), "out_of_memory"),
        (Pruned("below the median"), "pruned"),
    ],
)
def test_exceptions_are_told_apart(error, status):
    assert outcome_of(error) == status


def test_an_outcome_says_what_and_where(tmp_path):
    rows = [{"step": 5, "phase": "full"}, {"step": 7, "phase": "full"}, {"step": 8, "test/top1": 0.5}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        raise ZeroDivisionError("by none")
    except ZeroDivisionError as error:
        record_outcome(tmp_path, error)
    found = read_outcome(tmp_path)
    assert (found["status"], found["exception"], found["cause"], found["step"]) == (
        "failed", "ZeroDivisionError", "by none", 7,
    )  # fmt: skip
    assert 'raise ZeroDivisionError("by none")' in found["traceback"]
    clear_outcome(tmp_path)
    assert read_outcome(tmp_path) is None


def test_steps_count_that_no_row_of_metrics_tells_of(tmp_path):
    assert last_step(tmp_path) is None
    (tmp_path / "steps_rank0.csv").write_text("step,loss\n")
    assert last_step(tmp_path) is None
    (tmp_path / "steps_rank0.csv").write_text("step,loss\n1,0.5\n12,0.4\n13,")  # killed while writing
    assert last_step(tmp_path) == 12
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "phase": "full"}\n')
    assert last_step(tmp_path) == 12


def test_a_users_mistake_needs_no_traceback(tmp_path):
    record_outcome(tmp_path / "new", UserError("lower the rate"))
    found = read_outcome(tmp_path / "new")
    assert (found["cause"], found["step"], found["traceback"]) == ("lower the rate", None, None)


def test_an_outcome_that_cannot_be_written_hides_nothing(tmp_path):
    error = RuntimeError("the cause")
    (tmp_path / "file").write_text("")
    record_outcome(tmp_path / "file", error)
    assert "could not be written" in error.__notes__[0]


def test_a_damaged_outcome_is_named(tmp_path):
    (tmp_path / "outcome.json").write_text(json.dumps({"status": "failed"})[:-3])
    with pytest.raises(UserError, match="outcome.json cannot be read"):
        read_outcome(tmp_path)
