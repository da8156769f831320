"""A tracker in its own process: whatever it does, the caller goes on, with one warning."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.tracking import logger_process as process_module
from vidtrain.tracking.logger_process import LoggedRun, Loggers, descendants

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
COMPLETE_COPY = "; metrics.jsonl has all"


@pytest.fixture
def notes(tmp_path, monkeypatch, caplog):
    """Makes a logger that notes its calls in a file, and the run to log."""
    monkeypatch.syspath_prepend(str(HERE))
    from faulty_loggers import Notes

    caplog.set_level(logging.INFO, "vidtrain")

    def make(name="notes", **settings):
        return Notes(tmp_path / name, **settings)

    return make


@pytest.fixture
def run(tmp_path):
    return LoggedRun(tmp_path / "run", "abc", "motion/1", "motion", {"seed": 0})


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def log_a_run(loggers: Loggers, run: LoggedRun, rows: int = 3) -> None:
    loggers.start(run)
    for step in range(rows):
        loggers.log({"loss": 0.5}, step)
    loggers.summary({"top1": 0.75})
    loggers.close("finished")


def only_child_gone() -> bool:
    return not [each for each in descendants(os.getpid()) if b"vidtrain.tracking.logger_process" in cmdline(each)]


def cmdline(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def test_every_call_arrives_in_order_at_each_of_several(notes, run, tmp_path, caplog):
    loggers = Loggers({"a": notes("a"), "b": notes("b", waits_for_start=True)})
    loggers.start(run)
    for step in range(500):
        loggers.log({"loss": step / 2}, step)
    loggers.image("curves", Path("plots/curves.png"), 500)
    loggers.page("report", Path("report.html"), 500)
    loggers.checkpoint("best", Path("checkpoints/best.pt"))
    loggers.summary({"top1": 0.75})
    loggers.close("finished")
    loggers.log({"late": 1.0}, 501)
    rows = [f"log {step} {step / 2}" for step in range(500)]
    closing = [
        "image curves curves.png 500",
        "page report report.html 500",
        "checkpoint best best.pt",
        "summary 0.75",
        "close finished",
    ]
    for name in "ab":
        assert (tmp_path / name).read_text().splitlines() == ["start abc", *rows, *closing]
    assert [record.getMessage() for record in caplog.records] == ["Notes: read the notes"] * 2
    assert list(run.folder.iterdir()) == []
    assert only_child_gone()


@pytest.mark.parametrize(
    ("fault", "trigger", "said"),
    [
        ("fail", "start", "OSError: no space left on the device"),
        ("fail", "log", "OSError: no space left on the device"),
        ("fail", "close", "OSError: no space left on the device"),
        ("die", "start", "its process has ended"),
        ("die", "log", "its process has ended"),
        ("hang", "start", "it did not end within 0.4 s, and lacks the calls that it had not read"),
        ("hang", "log", "it did not end within 0.4 s, and lacks the calls that it had not read"),
        ("stop", "log", "it did not end within 0.4 s, and lacks the calls that it had not read"),
        ("refuse", "start", "no key"),
    ],
)
def test_a_fault_switches_one_logger_off_with_one_warning(notes, run, tmp_path, caplog, fault, trigger, said):
    faulty, sound = notes("faulty", fault=fault, trigger=trigger), notes("sound")
    if fault in ("hang", "stop"):
        faulty.close_seconds = 0.4
    log_a_run(Loggers({"faulty": faulty, "sound": sound}), run)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"Notes is switched off for this run: {said}")
    if fault != "refuse":
        assert warning.endswith(COMPLETE_COPY)
    assert (tmp_path / "sound").read_text().splitlines()[-1] == "close finished"
    assert only_child_gone()
    kept = [path for path in run.folder.iterdir()]
    if fault == "fail":
        assert f"(it said more in {kept[0]})" in warning
        assert kept[0].read_text().startswith("what a tracker prints\nTraceback")
    else:
        assert kept == []


def test_a_refusal_that_is_waited_for_is_the_users_to_mend(notes, run, caplog):
    with pytest.raises(UserError, match="^no key$"):
        Loggers({"notes": notes(fault="refuse", trigger="start", waits_for_start=True)}).start(run)
    assert warnings(caplog) == []
    assert only_child_gone()


@pytest.mark.slow
def test_a_start_that_is_waited_for_is_bounded(notes, run, caplog):
    hanging = notes(fault="hang", trigger="start", waits_for_start=True)
    hanging.start_seconds = 1.0
    Loggers({"notes": hanging}).start(run)
    assert warnings(caplog) == [f"Notes is switched off for this run: it has not started within 1 s{COMPLETE_COPY}"]
    assert only_child_gone()


def test_rows_that_a_slow_logger_does_not_take_are_counted(notes, run, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(process_module, "MAX_QUEUED_BYTES", 20_000)
    loggers = Loggers({"notes": notes(fault="slow", trigger="log")})
    loggers.start(run)
    padding = "x" * 20_000
    for step in range(60):
        loggers.log({"padding": padding}, step)
    loggers.summary({"top1": 0.75})
    loggers.close("finished")
    lines = (tmp_path / "notes").read_text().splitlines()
    steps = [int(line.split()[1]) for line in lines if line.startswith("log")]
    assert steps == sorted(steps) and 0 < len(steps) < 60
    assert lines[-2:] == ["summary 0.75", "close finished"]
    assert warnings(caplog) == [f"Notes did not keep up: it lacks {60 - len(steps)} rows{COMPLETE_COPY}"]


@pytest.mark.slow
def test_a_logger_that_hangs_for_long_is_given_up_before_the_end(notes, run, caplog, monkeypatch):
    monkeypatch.setattr(process_module, "MAX_QUEUED_BYTES", 20_000)
    monkeypatch.setattr(process_module, "STALL_SECONDS", 1.0)
    hanging = notes(fault="hang", trigger="log")
    hanging.start_seconds = 1.0
    loggers = Loggers({"notes": hanging})
    loggers.start(run)
    until = time.monotonic() + 60
    while not warnings(caplog) and time.monotonic() < until:
        loggers.log({"padding": "x" * 50_000}, 1)
        time.sleep(0.01)
    assert warnings(caplog) == [f"Notes is switched off for this run: it has taken nothing for 1 s{COMPLETE_COPY}"]
    loggers.close("finished")
    assert len(warnings(caplog)) == 1
    assert only_child_gone()


def test_the_signals_of_a_scheduler_do_not_end_it(notes, run, tmp_path, caplog):
    log_a_run(Loggers({"notes": notes(fault="signals", trigger="log")}), run, rows=1)
    assert (tmp_path / "notes").read_text().splitlines()[-1] == "close finished"
    assert warnings(caplog) == []


@pytest.mark.slow
def test_it_closes_what_it_logs_when_training_is_killed_and_a_fork_lives_on(tmp_path):
    script = f"""
    import os, signal, sys, time
    from pathlib import Path
    sys.path.insert(0, {str(HERE)!r})
    from faulty_loggers import Notes
    from vidtrain.tracking.logger_process import LoggedRun, Loggers
    folder = Path({str(tmp_path)!r})
    loggers = Loggers({{"notes": Notes(folder / "notes", waits_for_start=True)}})
    loggers.start(LoggedRun(folder / "run", "abc", "name", "group", {{}}))
    if (fork := os.fork()) == 0:
        os.close(1)
        time.sleep(60)
        os._exit(0)
    print(fork, flush=True)
    loggers.log({{"loss": 0.5}}, 1)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], cwd=REPO, stdout=subprocess.PIPE)
    assert result.returncode == -signal.SIGKILL
    expected = ["start abc", "log 1 0.5", "close killed"]
    until = time.monotonic() + 60
    while (tmp_path / "notes").read_text().splitlines() != expected and time.monotonic() < until:
        time.sleep(0.1)
    os.kill(int(result.stdout), signal.SIGKILL)
    assert (tmp_path / "notes").read_text().splitlines() == expected
