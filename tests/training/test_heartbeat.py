"""Two ranks: the failure of one ends both, with the first cause and a status that a scheduler sees; a signal to one
stops both, and the resumed run has the same bits."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ports import free_ports

from vidtrain.training import checkpoint

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("ranks_script.py")
STOPPED = ("step_5", "step_12", "evaluation_4")  # step 12 is the last, and evaluated
SCENARIOS = (
    "raise_0",
    "raise_1",
    "refuse_1",
    "refuse_all",
    "refuse_main",
    "memory_1",
    "kill_0",
    "kill_1",
    "freeze_0",
    "freeze_1",
    "signal_1",
)


def launch(root, scenarios):
    arguments = [str(word) for pair in enumerate(scenarios, free_ports(len(scenarios))) for word in reversed(pair)]
    env = {key: value for key, value in os.environ.items() if key != "VIDTRAIN_VERDICT"}
    command = [sys.executable, str(SCRIPT), str(root), *arguments]
    subprocess.run(command, check=True, timeout=300, env=env | {"OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Every scenario, all at once: they mostly wait."""
    root = tmp_path_factory.mktemp("ranks")
    launch(root, SCENARIOS)
    return root


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """Runs that were stopped and resumed, and one that was not."""
    root = tmp_path_factory.mktemp("runs")
    launch(root, ["whole", *STOPPED])
    for each in STOPPED:
        state = checkpoint.load(root / each / "run/checkpoints/last.pt")["state"]
        (root / each / "stopped_at").write_text(json.dumps([state["total_step"], state["eval_pending"]]))
    launch(root, STOPPED)
    return root


class Found:
    def __init__(self, folder: Path):
        self.folder = folder
        self.statuses = {rank: int((folder / f"status_{rank}").read_text().split()[0]) for rank in (0, 1)}
        self.said = {rank: (folder / f"output_{rank}").read_text() for rank in (0, 1)}
        self.rows = [json.loads(line) for line in (folder / "attempts.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("rank", [0, 1])
def test_an_exception_on_one_rank_ends_both_and_its_trace_is_shown_once(ended, rank):
    found = Found(ended / f"raise_{rank}")
    assert found.statuses == {0: 1, 1: 1}
    assert found.said[rank].count("Traceback (most recent call last)") == 1
    assert "ValueError: a defect in step 20" in found.said[rank]
    assert f"error: rank {rank} of 2 failed" in found.said[rank]
    other = found.said[1 - rank]
    host = socket.gethostname()
    assert f"error: rank {1 - rank} ends, as rank {rank} on {host} failed: ValueError: a defect in step 20" in other
    assert "Traceback" not in other
    started, failed = found.rows
    assert (started["event"], started["ranks"], started["step"]) == ("started", 2, 0)
    assert (failed["event"], failed["rank"], failed["again"]) == ("failed", rank, False)
    assert failed["cause"] == "ValueError: a defect in step 20"
    assert "ranks_script.py" in failed["traceback"]
    if rank:  # rank 0's own is written by the program
        outcome = json.loads((found.folder / "outcome.json").read_text())
        assert (outcome["status"], outcome["cause"]) == ("failed", "a defect in step 20")


def test_a_mistake_of_the_user_found_on_one_rank_ends_both_with_status_2(ended):
    found = Found(ended / "refuse_1")
    assert found.statuses == {0: 2, 1: 2}
    assert "rank 0 ends, as rank 1 on" in found.said[0] and "failed: mend this setting" in found.said[0]
    assert (found.rows[-1]["event"], found.rows[-1]["traceback"]) == ("failed", None)


def test_a_mistake_found_on_all_ranks_is_told_whole_by_the_first(ended):
    found = Found(ended / "refuse_all")
    assert found.statuses == {0: 2, 1: 2}
    assert "UserError: mend this setting" in found.said[0] and "and that one\n" in found.said[0]
    assert [row["event"] for row in found.rows] == ["started", "failed"]  # once


def test_what_the_first_rank_refuses_is_said_to_be_its(ended):
    found = Found(ended / "refuse_main")
    assert found.statuses == {0: 2, 1: 2}
    assert "UserError: mend this setting" in found.said[0] and "and that one\n" in found.said[0]
    assert "rank 1 ends, as rank 0 on" in found.said[1] and "failed: mend this setting\n" in found.said[1]
    assert [(row["event"], row.get("rank")) for row in found.rows] == [("started", None), ("failed", 0)]


def test_running_out_of_memory_on_one_rank_ends_both(ended):
    found = Found(ended / "memory_1")
    assert found.statuses == {0: 1, 1: 1}
    assert "rank 0 ends, as rank 1 on" in found.said[0]
    assert json.loads((found.folder / "outcome.json").read_text())["status"] == "out_of_memory"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_takes_the_other_with_it(ended, rank):
    found = Found(ended / f"kill_{rank}")
    assert found.statuses == {rank: -9, 1 - rank: 1}
    assert f"rank {rank} on {socket.gethostname()} is gone" in found.said[1 - rank]
    assert (found.rows[-1]["event"], found.rows[-1]["rank"]) == ("failed", rank)
    assert "is gone" in found.rows[-1]["cause"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_stopped_is_named_and_waited_for_no_longer(ended, rank):
    found = Found(ended / f"freeze_{rank}")
    assert found.statuses == {0: 1, 1: 1}
    said = f"rank {rank} on {socket.gethostname()} sent no heartbeat for 6 s: it was stopped, hangs, or is gone"
    assert said in found.said[1 - rank]
    failed = [row["cause"] for row in found.rows if row["event"] == "failed"]
    assert failed == [said]  # and not, by the one that goes on when it is too late, that it lost the other


def test_a_signal_to_one_rank_stops_both_at_the_same_step(ended):
    found = Found(ended / "signal_1")
    assert found.statuses == {0: 75, 1: 75}
    assert [(found.folder / f"stopped_at_{rank}").read_text() for rank in (0, 1)] == ["20", "20"]
    assert (found.rows[-1]["event"], "Traceback" in found.said[0] + found.said[1]) == ("stopped", False)


@pytest.mark.parametrize(
    ("name", "where"), [("step_5", [5, False]), ("step_12", [12, True]), ("evaluation_4", [6, True])]
)
def test_stopped_together_and_resumed_is_bit_identical(resumed, name, where):
    assert json.loads((resumed / name / "stopped_at").read_text()) == where
    for file in ("last.pt", "best.pt"):
        one, other = (checkpoint.load(resumed / each / "run/checkpoints" / file) for each in ("whole", name))
        assert one["state"]["total_step"] > 0
        assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
        assert {**one["state"], "seconds": 0} == {**other["state"], "seconds": 0}
