"""Functions that crash, hang or raise, on items that others still get their turn after."""

import time
from pathlib import Path

import pytest

from vidtrain.data.loading.workers import guarded

# Workers import the function by name, so it lies in a module of its own
MODULE = """
import gc, os, signal, time
from vidtrain.data.decoding import watchdog

def act(item):
    kind, value = item
    if kind == "signal":
        os.kill(os.getpid(), value)
    if kind == "sleep":
        time.sleep(value)
    if kind == "work":
        for _ in range(value):
            time.sleep(0.1)
            watchdog.progress()
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "exit":
        os._exit(value)
    if kind == "raise":
        raise ValueError(value)
    if kind == "frozen":
        return gc.get_freeze_count()
    if kind == "pid":
        return os.getpid()
    return value
"""


@pytest.fixture
def act(tmp_path, monkeypatch):
    (tmp_path / "acting_for_tests.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    import acting_for_tests

    return acting_for_tests.act


def by_item(outcomes):
    return {outcome.item: (outcome.value, outcome.failure) for outcome in outcomes}


def test_whatever_one_item_does_the_others_get_their_result(act):
    items = [
        ("value", 1), ("signal", 11), ("sleep", 60), ("exit", 3), ("raise", "no"), ("signal", 6), ("value", 2),
        ("value", 3),
    ]  # fmt: skip
    assert by_item(guarded(act, items, num_workers=2, time_limit=0.5)) == {
        ("value", 1): (1, ""),
        ("signal", 11): (None, "crashed: signal 11 (SIGSEGV)"),
        ("sleep", 60): (None, "hung: over 0.5 s"),
        ("exit", 3): (None, "crashed: exit status 3"),
        ("raise", "no"): (None, "failed: ValueError: no"),
        ("signal", 6): (None, "crashed: signal 6 (SIGABRT)"),
        ("value", 2): (2, ""),
        ("value", 3): (3, ""),
    }


def test_the_last_item_may_crash_and_the_first_too(act):
    outcomes = by_item(guarded(act, [("signal", 9)], num_workers=4, time_limit=9))
    assert outcomes == {("signal", 9): (None, "killed: signal 9 (SIGKILL), perhaps because memory ran out")}


def test_sound_items_share_their_processes(act):
    pids = {outcome.value for outcome in guarded(act, [("pid", n) for n in range(40)], 2, 9)}
    assert 1 <= len(pids) <= 2


def test_the_time_limit_is_that_of_the_item_alone(act):
    """Starting a process takes longer than this limit, and is not counted."""
    items = [("value", n) for n in range(50)]
    assert all(not outcome.failure for outcome in guarded(act, items, 2, time_limit=0.25))


def test_nothing_to_do(act):
    assert list(guarded(act, [], 2, 1)) == []


def test_workers_end_with_the_iterator(act):
    outcomes = guarded(act, [("pid", 0), ("sleep", 60), ("sleep", 60)], 1, 90)
    pid = next(outcomes).value
    assert Path(f"/proc/{pid}").exists()
    outcomes.close()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)  # its parent, the fork server, has yet to collect it
    assert not Path(f"/proc/{pid}").exists()


def test_a_function_that_workers_cannot_have_is_a_defect_and_no_endless_loop(act, tmp_path):
    (tmp_path / "acting_for_tests.py").unlink()
    with pytest.raises(RuntimeError, match="crashed: exit status 1"):
        list(guarded(act, [("value", 1)], 1, 9))


@pytest.mark.slow
def test_a_time_limit_is_one_without_progress(act):
    """What takes four times as long, and gets on with it, does not hang."""
    assert by_item(guarded(act, [("work", 20), ("sleep", 60)], 2, time_limit=0.5)) == {
        ("work", 20): (20, ""),
        ("sleep", 60): (None, "hung: over 0.5 s"),
    }


@pytest.mark.slow
def test_a_stopped_process_hangs(act):
    began = time.monotonic()
    assert by_item(guarded(act, [("stop", 1), ("value", 2)], 1, time_limit=0.5)) == {
        ("stop", 1): (None, "hung: over 0.5 s"),
        ("value", 2): (2, ""),
    }
    assert time.monotonic() - began < 30


def test_garbage_collection_in_a_worker_leaves_alone_what_it_was_forked_with(act):
    (outcome,) = guarded(act, [("frozen", None)], num_workers=1, time_limit=10)
    assert outcome.value > 10_000  # objects
