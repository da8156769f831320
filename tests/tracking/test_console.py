"""What a person sees of a run, and output that cannot be written: the reader is gone, or the terminal."""

import errno
import io
import os
import pty
import subprocess
import sys
import tempfile
import time

import pytest
import rich.console

from vidtrain.tracking.console import (
    Console,
    NullConsole,
    PatientStream,
    Phase,
    format_seconds,
    format_value,
    make_console,
    stdout_reader_ended,
)


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Clock | None = None, width: int = 80) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(rich.console.Console(file=text, width=width), clock or Clock()), text


def terminal(clock: Clock | None = None) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    out = rich.console.Console(file=text, width=120, force_terminal=True, color_system=None, _environ={})
    return Console(out, clock or Clock()), text


def test_plain_lines_every_ten_seconds_and_at_the_end():
    clock = Clock()
    console, text = plain(clock)
    with console.phase("full", total_steps=30):
        for step in range(1, 31):
            clock.now += 1.0
            console.advance(step, {"epoch": step // 10, "loss": 1 / step, "lr": 3e-5})
    assert text.getvalue() == (
        "full 10/30  epoch 1  loss 0.1  lr 3e-05  00:20 left\n"
        "full 20/30  epoch 2  loss 0.05  lr 3e-05  00:10 left\n"
        "full 30/30  epoch 3  loss 0.03333  lr 3e-05\n"
    )


def test_a_validation_within_training():
    clock = Clock()
    console, text = plain(clock)
    with console.phase("full", total_steps=4, start_step=2):
        clock.now += 11
        console.advance(3, {})
        with console.phase("validation", total_steps=2):
            console.advance(1, {"videos": 7})  # too soon for a line
            clock.now += 11
            console.advance(2, {"videos": 14})
        console.advance(4, {"loss": float("nan")})
    assert text.getvalue() == "full 3/4  --:-- left\nvalidation 2/2  videos 14\nfull 4/4  loss nan\n"


def test_brackets_are_text_and_long_lines_stay_whole():
    console, text = plain(width=40)
    console.info("clips [b n c t h w] " + "x" * 60)
    console.warn("[red]no markup")
    assert text.getvalue() == "clips [b n c t h w] " + "x" * 60 + "\nwarning: [red]no markup\n"


def test_table():
    console, text = plain()
    console.table("Test split", ["metric", "[value]"], [["top1", 0.98765], ["videos", 12], ["top5", None]])
    assert text.getvalue() == (
        "Test split          \n"
        "┏━━━━━━━━┳━━━━━━━━━┓\n"
        "┃ metric ┃ [value] ┃\n"
        "┡━━━━━━━━╇━━━━━━━━━┩\n"
        "│ top1   │  0.9877 │\n"
        "│ videos │      12 │\n"
        "│ top5   │       - │\n"
        "└────────┴─────────┘\n"
    )


def test_bar_shows_the_last_state_and_gives_the_terminal_back():
    clock = Clock()
    console, text = terminal(clock)
    with pytest.raises(KeyboardInterrupt), console.phase("head", total_steps=10):
        clock.now += 1
        console.advance(1, {"loss": 0.5})
        clock.now += 2
        console.advance(2, {"loss": 0.25})
        with console.phase("validation", total_steps=3):
            console.advance(3, {"videos": 9})
        console.info("saved")
        raise KeyboardInterrupt
    shown = text.getvalue()
    last = shown[shown.rindex("head") :]
    assert "2/10 loss 0.25 00:16 left" in last
    assert "validation" in shown and "validation" not in last
    assert "saved\n" in shown
    assert shown.index("\x1b[?25l") < shown.index("\x1b[?25h")  # cursor hidden, then shown


def test_time_left_is_counted_from_the_first_step_of_this_process():
    phase = Phase("full", total_steps=100, step=40)
    assert phase.seconds_left(0.0) is None
    phase.move(41, {}, now=60.0)
    assert phase.seconds_left(60.0) is None
    phase.move(51, {}, now=80.0)
    assert phase.seconds_left(80.0) == 98.0


@pytest.mark.parametrize("make", [plain, terminal])
def test_advance_costs_less_than_100_microseconds(make):
    console, _ = make(time.monotonic)
    fields = {"epoch": 1, "loss": 0.5, "lr": 1e-3, "clips/s": 33.3}
    with console.phase("full", total_steps=10_000_000):
        start = time.perf_counter()
        for step in range(1, 20_001):
            console.advance(step, fields)
        each = (time.perf_counter() - start) / 20_000
    assert each < 100e-6


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str]):
    console = make_console(is_main=False)
    assert isinstance(console, NullConsole)
    console.info("a")
    console.warn("b")
    console.table("c", ["d"], [[1]])
    with console.phase("full", 2):
        console.advance(2, {})
    assert capsys.readouterr() == ("", "")


def test_main_rank_prints_to_standard_output(capsys: pytest.CaptureFixture[str]):
    make_console(is_main=True).info("hello")
    assert capsys.readouterr() == ("hello\n", "")


@pytest.mark.parametrize(
    "value, text",
    [
        (0.123456, "0.1235"),
        (3e-5, "3e-05"),
        (12, "12"),
        (11284.6, "11285"),
        (2.5e7, "2.5e+07"),
        ("full", "full"),
        (None, "-"),
    ],
)
def test_format_value(value, text: str):
    assert format_value(value) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.4, "00:00"),
        (59.6, "01:00"),
        (3599, "59:59"),
        (3661, "1:01:01"),
        (None, "--:--"),
        (float("inf"), "--:--"),
    ],
)
def test_format_seconds(seconds: float | None, text: str):
    assert format_seconds(seconds) == text


def test_a_run_goes_on_when_its_output_is_a_file_on_a_full_disk():
    code = """
import resource
from vidtrain.tracking.console import make_console
console = make_console(True)
console.info("before")
resource.setrlimit(resource.RLIMIT_FSIZE, (7, resource.RLIM_INFINITY))
console.info("while")
with console.phase("full", 2):
    console.advance(2, {})
console.table("title", ["a"], [[1]])
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
console.info("after")
"""
    with tempfile.TemporaryFile("w+") as said:
        found = subprocess.run([sys.executable, "-c", code], stdout=said, stderr=subprocess.PIPE, text=True)
        assert (found.returncode, found.stderr) == (0, "")
        said.seek(0)
        lines = said.read().splitlines()
    assert lines[0] == "before" and lines[-1] == "after"


WORDS = """
import signal, sys, time
from pathlib import Path
from vidtrain.tracking.console import make_console
signal.signal(signal.SIGHUP, signal.SIG_IGN)
console = make_console(True)
console.info("first")
while not Path(sys.argv[1]).exists():
    time.sleep(0.01)
with console.phase("words", 2):
    console.advance(2, {})
console.table("title", ["a"], [[1]])
console.warn("last")
print("not even this matters")
sys.stdout.flush()
Path(sys.argv[1]).write_text("the end")
"""


def talk(closed, stdout):
    return subprocess.Popen(
        [sys.executable, "-c", WORDS, closed], stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip


def test_a_run_goes_on_when_nobody_reads_its_output(tmp_path):
    program = talk(tmp_path / "closed", subprocess.PIPE)
    assert program.stdout.readline() == "first\n"
    program.stdout.close()
    (tmp_path / "closed").touch()
    assert (program.wait(60), program.stderr.read()) == (0, "")
    assert (tmp_path / "closed").read_text() == "the end"


def test_a_run_goes_on_when_its_terminal_is_gone(tmp_path):
    ours, its = pty.openpty()
    program = talk(tmp_path / "closed", its)
    os.close(its)
    assert os.read(ours, 5) == b"first"
    os.close(ours)
    (tmp_path / "closed").touch()
    assert (program.wait(60), program.stderr.read()) == (0, "")
    assert (tmp_path / "closed").read_text() == "the end"


class Refusing:
    def write(self, text):
        raise OSError(errno.EBADF, "Bad file descriptor")


def test_other_faults_of_a_stream_are_raised(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Refusing())
    with pytest.raises(OSError, match="Bad file descriptor"):
        PatientStream("stdout").write("word")


@pytest.mark.parametrize("read", [True, False])
def test_a_pipe_that_nobody_reads_is_known(monkeypatch, read):
    reading, writing = os.pipe()
    if not read:
        os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert stdout_reader_ended() is not read
        monkeypatch.undo()
    if read:
        os.close(reading)
