"""Signals at any time: while a run starts, trains, evaluates and saves. It ends with status 75 and is resumed."""

import json
import random
import signal

import pytest
from fault_injection import difference, saving

EXIT_STOPPED = 75


def training(child) -> bool:
    return "preflight passed" in child.said


def evaluating(run) -> bool:
    """An epoch's row is there, and that of its evaluation is not."""
    if not (run / "metrics.jsonl").exists():
        return False
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().split("\n")[:-1]]
    ended, evaluated = ({row["step"] for row in rows if key in row} for key in ("train/loss", "val/loss"))
    return ended > evaluated


MOMENTS = {
    "starting": lambda child, run: "run folder" in child.said,
    "training": lambda child, run: training(child),
    "evaluating": lambda child, run: training(child) and evaluating(run),
    "saving": lambda child, run: saving(run),
}


@pytest.mark.slow
def test_a_signal_at_any_time_is_heard_and_the_run_resumed(faults, alone, tmp_path):
    random.seed(0)
    run, names = tmp_path / "run", (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    for name, moment in MOMENTS.items():
        child = faults(run)
        assert child.until(lambda moment=moment, child=child: moment(child, run)), f"{name}: {child.said}"
        child.kill(random.choice(names))
        child.kill(signal.SIGTERM)  # a second one changes nothing
        assert child.wait() == EXIT_STOPPED, f"{name}: {child.said}"
        assert not saving(run)
    child = faults(run)
    assert child.wait() == 0, child.said
    assert difference(alone, run) is None
