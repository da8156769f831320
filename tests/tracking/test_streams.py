"""Output that cannot be written: the reader is gone, or the terminal."""

import errno
import os
import pty
import subprocess
import sys

import pytest

from vidtrain.tracking.streams import PatientStream, unread

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
        assert unread() is not read
        monkeypatch.undo()
    if read:
        os.close(reading)
