"""How an attempt at a run ended, the record of all attempts, and what a scheduler is told to do."""

import json
import shlex
import signal

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser

from vidtrain.errors import DivergedError, Pruned, UserError
from vidtrain.runs.attempts import (
    LOST,
    MAX_SILENT,
    REQUEUE_FLAG,
    RunAttempt,
    clear_outcome,
    last_step,
    outcome_of,
    read_attempts,
    read_outcome,
    record_outcome,
    run_attempt,
    write_requeue_flag,
)
from vidtrain.training.distributed import Ranks
from vidtrain.training.heartbeat import RunEnd
from vidtrain.training.process import PreemptionHandler, Stopped

RANKS = Ranks(torch.device("cpu"))


@pytest.fixture
def scheduler(monkeypatch, tmp_path):
    """As under requeue.sh: the flag file."""
    path = tmp_path / "verdict"
    monkeypatch.setenv(REQUEUE_FLAG, str(path))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return path


def events(folder):
    return [row["event"] for row in read_attempts(folder)]


def fail(folder, step, error):
    with PreemptionHandler() as preemption, run_attempt(folder, RANKS, preemption) as mine:
        mine.begin(step)
        raise error


def test_an_attempt_that_comes_to_its_end(tmp_path, scheduler):
    with (
        write_requeue_flag(),
        PreemptionHandler() as preemption,
        run_attempt(tmp_path, RANKS, preemption) as mine,
    ):
        mine.begin(12)
    started, finished = read_attempts(tmp_path)
    assert (started["event"], started["step"], started["ranks"], started["job"], started["restart"]) == (
        "started", 12, 1, "77", 0,
    )  # fmt: skip
    assert (finished["event"], scheduler.read_text()) == ("finished", "finished\n")


def test_an_attempt_says_how_far_it_came(tmp_path, scheduler):
    def ended_at(start, *logged):
        with PreemptionHandler() as preemption, run_attempt(tmp_path, RANKS, preemption) as mine:
            mine.begin(start)
            for step in logged:
                with open(tmp_path / "metrics.jsonl", "a") as file:
                    file.write(json.dumps({"step": step, "phase": "full", "train/loss": 1.0}) + "\n")
        row = read_attempts(tmp_path)[-1]
        return row["event"], row["step"], row["from"]

    assert ended_at(0) == ("finished", 0, 0)  # nothing was logged
    assert ended_at(0, 10, 20) == ("finished", 20, 0)
    with pytest.raises(ZeroDivisionError), write_requeue_flag():
        (tmp_path / "metrics.jsonl").write_text("damaged\n")
        mine = RunAttempt(tmp_path, RANKS)
        mine.begin(7)
        mine.record("failed", signature="x")  # whatever the logs have become
        raise ZeroDivisionError
    assert [read_attempts(tmp_path)[-1][key] for key in ("step", "from")] == [7, 7]


def test_rows_of_before_there_was_from_count_as_they_did(tmp_path, scheduler):
    def status():
        mine = RunAttempt(tmp_path, RANKS)
        mine.begin(5)
        return mine.status_after("Fault at line 3")

    row = {"event": "failed", "step": 5, "signature": "Fault at line 3"}
    (tmp_path / "attempts.jsonl").write_text(json.dumps(row) + "\n")
    assert status() == 1
    (tmp_path / "attempts.jsonl").write_text(json.dumps({**row, "step": 9, "from": 5}) + "\n")
    assert status() == 1
    (tmp_path / "attempts.jsonl").write_text(json.dumps({**row, "step": 5, "from": 4}) + "\n")
    assert status() == 75


def test_one_that_is_stopped_leaves_with_75_and_no_requeue_flag(tmp_path, scheduler, capsys):
    with (
        pytest.raises(SystemExit) as ended,
        write_requeue_flag(),
        PreemptionHandler() as preemption,
        run_attempt(tmp_path, RANKS, preemption) as mine,
    ):
        mine.begin(3)
        signal.raise_signal(signal.SIGUSR2)
    assert ended.value.code == 75
    assert (read_attempts(tmp_path)[-1]["event"], read_attempts(tmp_path)[-1]["signal"]) == (
        "stopped",
        "SIGUSR2",
    )
    said = capsys.readouterr().err
    assert said == f"stopped by SIGUSR2; to go on: python -m vidtrain.train run_dir={tmp_path}\n"
    assert not scheduler.exists()


def test_the_command_that_goes_on_can_be_copied_whatever_the_folder_is_called(tmp_path, capsys):
    folder = tmp_path / "a [run"
    folder.mkdir()
    with pytest.raises(SystemExit), PreemptionHandler() as preemption, run_attempt(folder, RANKS, preemption):
        signal.raise_signal(signal.SIGUSR2)
    command = capsys.readouterr().err.partition("to go on: ")[2]
    [word] = shlex.split(command)[3:]
    assert OverridesParser.create().parse_override(word).value() == str(folder)


def test_a_fault_is_tried_again_once_and_then_only_after_progress(tmp_path, scheduler, capsys):
    def once(step):
        try:
            with write_requeue_flag():
                fail(tmp_path, step, ZeroDivisionError(f"at {step}"))
        except SystemExit as ended:
            return ended.code
        except ZeroDivisionError:
            return 1

    assert [once(5), once(5)] == [75, 1]
    assert scheduler.read_text() == "failed\n"
    assert [once(9), once(9)] == [75, 1]
    rows = [row for row in read_attempts(tmp_path) if row["event"] == "failed"]
    assert [row["again"] for row in rows] == [True, False, True, False]
    assert rows[0]["cause"] == "ZeroDivisionError: at 5" and "Traceback" in rows[0]["traceback"]
    assert capsys.readouterr().err.count("the job goes back into the queue") == 2


def test_another_fault_at_the_same_step_is_tried_again(tmp_path, scheduler):
    with pytest.raises(SystemExit):
        fail(tmp_path, 5, ZeroDivisionError())
    with pytest.raises(SystemExit):
        fail(tmp_path, 5, OSError())


def test_a_lost_rank_is_tried_three_times_without_progress(tmp_path, scheduler):
    statuses = []
    for _ in range(4):
        mine = RunAttempt(tmp_path, RANKS)
        mine.begin(5)
        statuses.append(mine.status_after(LOST))
        mine.record_lost(RunEnd(1, "n2", "is gone", statuses[-1]))
    assert statuses == [75, 75, 75, 1]
    assert read_attempts(tmp_path)[-1]["cause"] == "rank 1 on n2 is gone"


def test_without_a_scheduler_it_is_raised(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fail(tmp_path, 0, ZeroDivisionError())
    assert events(tmp_path) == ["started", "failed"]


@pytest.mark.parametrize(("error", "event"), [(UserError("mend it"), "failed"), (Pruned("others"), "pruned")])
def test_what_trying_again_cannot_mend_is_final(tmp_path, scheduler, error, event):
    with pytest.raises(type(error)), write_requeue_flag():
        fail(tmp_path, 0, error)
    assert events(tmp_path) == ["started", event]
    assert scheduler.read_text() == "failed\n"


def test_attempts_that_die_without_a_word_and_come_no_further_are_given_up(tmp_path, scheduler):
    for _ in range(MAX_SILENT):
        RunAttempt(tmp_path, RANKS).begin(8)
    RunAttempt(tmp_path, RANKS).begin(9)  # progress
    for _ in range(MAX_SILENT - 1):
        RunAttempt(tmp_path, RANKS).begin(9)
    with pytest.raises(UserError, match="3 attempts in a row .* at step 9"):
        RunAttempt(tmp_path, RANKS).begin(9)


def test_by_hand_they_are_not_counted(tmp_path):
    for _ in range(2 * MAX_SILENT):
        RunAttempt(tmp_path, RANKS).begin(8)


def test_a_signal_before_there_is_a_run_gives_no_requeue_flag(scheduler):
    with pytest.raises(Stopped), write_requeue_flag(), PreemptionHandler():
        signal.raise_signal(signal.SIGTERM)
    assert not scheduler.exists()


def test_rows_are_json_lines(tmp_path):
    RunAttempt(tmp_path, RANKS).begin(0)
    (line,) = (tmp_path / "attempts.jsonl").read_text().splitlines()
    assert json.loads(line)["host"]


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
