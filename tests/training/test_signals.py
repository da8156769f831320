"""Signals: what they stop, when, and that nothing is lost by it."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch
from clock import TIMED

from vidtrain.training import checkpoint
from vidtrain.training.process import EXIT_STOPPED, PreemptionHandler, Stopped


def send(number=signal.SIGTERM):
    signal.raise_signal(number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_ends_what_has_nothing_to_save_at_once_and_with_status_75(number):
    with PreemptionHandler() as preemption, pytest.raises(Stopped) as stopped:
        send(number)
    assert (stopped.value.status, preemption.number) == (75, number)
    assert str(stopped.value) == signal.Signals(number).name


def test_in_training_it_only_sets_a_flag_and_later_ones_change_nothing():
    with PreemptionHandler() as preemption, pytest.raises(Stopped, match="SIGUSR1"), preemption.deferred():
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
        send(signal.SIGUSR2)
        assert preemption.number == signal.SIGUSR1


def test_the_first_interrupt_is_heard_like_the_others_and_ends_with_130():
    with PreemptionHandler() as preemption, pytest.raises(Stopped) as stopped, preemption.deferred():
        send(signal.SIGINT)
    assert stopped.value.status == 130


def test_the_second_interrupt_ends_the_process_at_once():
    script = (
        "import signal, time; from vidtrain.training.process import PreemptionHandler\n"
        "with PreemptionHandler() as preemption, preemption.deferred():\n"
        "    signal.raise_signal(signal.SIGTERM); signal.raise_signal(signal.SIGINT); print('still here')\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100)
    assert (found.returncode, found.stdout) == (130, "")


def test_a_run_that_fails_is_not_disturbed_while_it_ends():
    with PreemptionHandler() as preemption:
        with pytest.raises(ZeroDivisionError), preemption.deferred():
            raise ZeroDivisionError
        send()  # is not raised
        assert preemption.stop_requested


def test_it_gives_the_signals_back():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with PreemptionHandler():
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_thread_takes_no_signals_and_leaves_the_handlers_alone():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work():
        with PreemptionHandler() as preemption:
            inside.append((signal.getsignal(signal.SIGTERM), preemption.stop_requested))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [(before, False)]


def test_items_end_with_the_signal():
    with PreemptionHandler() as preemption, pytest.raises(Stopped), preemption.deferred():
        seen = []
        for item in preemption.until_stop_requested(range(10)):
            seen.append(item)
            if item == 2:
                send()
        assert seen == [0, 1, 2]


# --- the loop: a run of 12 steps, 4 an epoch, in two phases


def rows_of(found):
    return [{key: value for key, value in row.items() if key not in TIMED} for row in found.rows]


def assert_same(one, other):
    for name in ("last", "best"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine["model"].keys() == theirs["model"].keys()
        assert all(torch.equal(mine["model"][key], theirs["model"][key]) for key in mine["model"])
        assert {**mine["state"], "seconds": 0} == {**theirs["state"], "seconds": 0}
    assert rows_of(one) == rows_of(other)


SETTINGS = {"save_every": "3ep", "ema": 0.9, "eval_every": "3it"}  # nothing but the signal has it save early


class After:
    """Sends itself a signal when it is called for the n-th time."""

    def __init__(self, calls, number=signal.SIGTERM):
        self.calls, self.number = calls, number

    def __call__(self, *_):
        self.calls -= 1
        if self.calls == 0:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("step", [1, 2, 3, 5, 8, 12])
def test_stopped_at_any_step_and_resumed_is_bit_identical(run_loop, tmp_path, monkeypatch, step):
    whole = run_loop("whole", **SETTINGS)
    with monkeypatch.context() as patched, PreemptionHandler() as preemption:
        after = After(step)
        original = torch.optim.SGD.step
        patched.setattr(torch.optim.SGD, "step", lambda self: (original(self), after())[0])
        assert run_loop("stopped", preemption=preemption, **SETTINGS) is None
    saved = checkpoint.load(tmp_path / "stopped/checkpoints/last.pt")["state"]
    # an evaluation that is due is left to the next attempt; in an evaluated run best.pt would be there
    assert (saved["total_step"], saved["eval_pending"]) == (step, step in (3, 6, 9, 12))
    assert_same(run_loop("stopped", **SETTINGS), whole)


@pytest.mark.parametrize("evaluation", [1, 2, 4, 8])
def test_an_evaluation_is_left_at_once_and_done_again(run_loop, tmp_path, evaluation):
    """Each evaluation is two, as an average is kept; the last ones are those of the run's last step."""
    whole = run_loop("whole", **SETTINGS)
    with PreemptionHandler() as preemption:
        assert run_loop("stopped", preemption=preemption, on_evaluation=After(evaluation), **SETTINGS) is None
    saved = checkpoint.load(tmp_path / "stopped/checkpoints/last.pt")["state"]
    assert (saved["total_step"], saved["eval_pending"]) == (3 * ((evaluation + 1) // 2), True)
    assert (saved["phase"], saved["step"]) == (0, saved["total_step"])
    assert_same(run_loop("stopped", **SETTINGS), whole)


def test_a_signal_while_saving_does_not_disturb_it(run_loop, tmp_path, monkeypatch):
    whole = run_loop("whole", **SETTINGS)
    with monkeypatch.context() as patched, PreemptionHandler() as preemption:
        after, original = After(1, signal.SIGUSR1), os.fsync
        patched.setattr(os, "fsync", lambda handle: (after(), original(handle))[1])
        assert run_loop("stopped", preemption=preemption, **SETTINGS) is None
    assert not list((tmp_path / "stopped/checkpoints").glob(".*tmp"))
    assert_same(run_loop("stopped", **SETTINGS), whole)


def test_ending_with_75_is_what_sysexits_calls_a_temporary_failure():
    assert EXIT_STOPPED == os.EX_TEMPFAIL == 75
