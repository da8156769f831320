"""A worker's note and clock: what its owner finds after it has ended."""

import ctypes
import multiprocessing
import os
import signal
import time
from multiprocessing import heap

import pytest

from vidtrain.data.decoding import watchdog
from vidtrain.errors import UserError

FORK = multiprocessing.get_context("fork")


def end_of(work, time_limit: float = 30.0) -> tuple[str, str | None]:
    """How a watched process that does `work` ends, and what it had in hand."""
    note = watchdog.new_note(FORK)

    def serve():
        watchdog.arm(note, time_limit)
        work()

    process = FORK.Process(target=serve, daemon=True)
    process.start()
    process.join(20)
    assert not process.is_alive()
    return watchdog.describe_exit(process.exitcode, time_limit), watchdog.current_path(note)


def hang_with_the_lock() -> None:
    """A C function that never comes back nor lets other Python threads run."""
    ctypes.PyDLL(None).sleep(100)


@pytest.mark.parametrize("hang", [lambda: time.sleep(100), hang_with_the_lock])
def test_a_hang_is_ended_and_named(hang):
    def work():
        with watchdog.reading("/a/b.mp4"):
            hang()

    assert end_of(work, 0.3) == ("hung: over 0.3 s", "/a/b.mp4")


def test_a_fifo_that_nobody_writes_to(tmp_path):
    """What opening a video can really hang in."""
    os.mkfifo(tmp_path / "a.mp4")

    def work():
        with watchdog.reading(str(tmp_path / "a.mp4")):
            open(tmp_path / "a.mp4", "rb")  # noqa: SIM115

    assert end_of(work, 0.3) == ("hung: over 0.3 s", str(tmp_path / "a.mp4"))


@pytest.mark.slow
def test_the_clock_starts_anew_for_every_file():
    def work():
        for number in range(6):
            with watchdog.reading(f"{number}.mp4"):
                time.sleep(0.2)

    assert end_of(work, 0.6) == ("crashed: exit status 0", None)


def test_rest_stops_the_clock():
    def work():
        watchdog.disarm()
        time.sleep(0.5)

    assert end_of(work, 0.2) == ("crashed: exit status 0", None)


def test_a_hang_before_any_file_is_ended_too():
    assert end_of(lambda: time.sleep(100), 0.2) == ("hung: over 0.2 s", None)


def test_a_crash_leaves_the_name():
    odd = os.fsdecode(b"/caf\xe9/\xff.mp4")

    def work():
        with watchdog.reading("before.mp4"):
            pass
        with watchdog.reading(odd):
            os._exit(3)

    assert end_of(work) == ("crashed: exit status 3", odd)


def test_a_file_that_raises_is_out_of_hand():
    def work():
        try:
            with watchdog.reading("a.mp4"):
                raise ValueError
        except ValueError:
            os._exit(0)

    assert end_of(work) == ("crashed: exit status 0", None)


def test_outside_of_a_worker_nothing_happens():
    before = signal.getsignal(signal.SIGALRM)
    with watchdog.reading("a.mp4"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (-11, "crashed: signal 11 (SIGSEGV)"),
        (-7, "crashed: signal 7 (SIGBUS)"),
        (-9, "killed: signal 9 (SIGKILL), perhaps because memory ran out"),
        (-14, "hung: over 2.5 s"),
        (-40, "crashed: signal 40"),
        (1, "crashed: exit status 1"),
        (None, "crashed: exit status None"),
    ],
)
def test_spell(status, words):
    assert watchdog.describe_exit(status, 2.5) == words


def test_without_dev_shm_the_note_lies_in_a_temporary_file(monkeypatch, tmp_path, caplog):
    absent = str(tmp_path / "absent")
    monkeypatch.setattr(heap.Arena, "_dir_candidates", [absent])
    monkeypatch.setattr(heap.Arena, "_choose_dir", lambda self, size: (self._dir_candidates or [tmp_path])[0])
    monkeypatch.setattr(heap.BufferWrapper, "_heap", heap.Heap())
    note = watchdog.new_note(FORK)
    note.path.value = b"/a.mp4"
    assert watchdog.current_path(note) == "/a.mp4"
    assert "/dev/shm cannot be written (No such file or directory)" in caplog.text
    monkeypatch.setattr(heap.BufferWrapper, "_heap", heap.Heap())
    monkeypatch.setattr(heap.Arena, "_choose_dir", lambda self, size: absent)
    with pytest.raises(UserError, match="can be written .* set TMPDIR"):
        watchdog.new_note(FORK)
