import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vidtrain.errors import UserError
from vidtrain.files.lock import RunLock, holder, is_held

REPO = Path(__file__).resolve().parents[2]

HOLD = """
import os, signal, sys
from pathlib import Path
from vidtrain.files.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
if sys.argv[2] == "with_worker" and os.fork() != 0:
    signal.pause()
print(os.getpid(), flush=True)  # with a worker: by the worker, which has then let go of the lock
signal.pause()
"""


def start_holder(run_dir: Path, kind: str) -> tuple[subprocess.Popen[str], int]:
    """A process that holds the folder; and the pid of its forked worker, or its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, run_dir, kind], cwd=REPO, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def test_second_process_is_told_who_holds_the_folder(tmp_path: Path):
    run_dir = tmp_path / "runs" / "a"
    holder, pid = start_holder(run_dir, "alone")
    try:
        with pytest.raises(UserError) as raised:
            RunLock(run_dir)
        started = json.loads((run_dir / ".lock").read_text())["started"]
        assert str(raised.value) == (
            f"the run folder {run_dir} is in use by process {pid} on {socket.gethostname()}, "
            f"started {started}: wait for it, stop it, or choose another folder."
        )
    finally:
        holder.kill()
        holder.wait()


@pytest.mark.parametrize("kind", ["alone", "with_worker"])
def test_kill_9_frees_the_folder_at_once(tmp_path: Path, kind: str):
    holder, pid = start_holder(tmp_path, kind)
    holder.kill()
    holder.wait()
    try:
        with RunLock(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    finally:
        if kind == "with_worker":
            os.kill(pid, signal.SIGKILL)


def test_worker_that_ends_does_not_free_the_folder(tmp_path: Path):
    holder, worker = start_holder(tmp_path, "with_worker")
    try:
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(UserError, match="is in use by process"):
            RunLock(tmp_path)
    finally:
        holder.kill()
        holder.wait()


def test_released_folder_can_be_locked_again(tmp_path: Path):
    first = RunLock(tmp_path)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()} on"):
        RunLock(tmp_path)
    first.release()
    first.release()
    RunLock(tmp_path).release()


def test_holder_that_has_written_nothing_yet(tmp_path: Path):
    lock = RunLock(tmp_path)
    (tmp_path / ".lock").write_text("")
    with pytest.raises(UserError, match="in use by another process, which has only just started"):
        RunLock(tmp_path)
    lock.release()


def test_file_system_without_locks_is_used_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    RunLock(tmp_path).release()
    assert caplog.messages == [f"{tmp_path} is on a file system without locks: start no second process there"]


def test_folder_that_cannot_be_made_or_written_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write into the run folder .*file/run \(Not a directory\)"):
        RunLock(tmp_path / "file" / "run")
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot write into the run folder .*run \(Is a directory\)"):
        RunLock(tmp_path / "run")


def test_others_can_see_whether_it_is_held(tmp_path):
    folder = tmp_path / "run"
    assert not is_held(folder)
    with RunLock(folder):
        assert is_held(folder)
        assert holder(folder).startswith(f"process {os.getpid()} on ")
        assert is_held(folder)  # looking has not taken it away
    assert not is_held(folder)
    with RunLock(folder):
        pass
