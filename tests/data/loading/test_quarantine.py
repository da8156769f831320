"""What is not tried again, who else knows, and when lost workers end a run."""

import json
import logging
import os
import pickle
import resource
import signal
from pathlib import Path

import pytest

from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.quarantine import MOST_LOST, Entry, Losses, Quarantine
from vidtrain.errors import UserError


class Reader:
    """Fails the first `failures` times, then gives its own number of calls."""

    def __init__(self, path: str, failures: int):
        self.path = path
        self.failures = failures
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        if self.calls <= self.failures:
            raise DecodeError(self.path, f"fault {self.calls}")
        return self.calls


@pytest.fixture
def video(tmp_path: Path) -> str:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"1234")
    os.utime(path, ns=(1_000, 1_000))
    return str(path)


class TestAttempt:
    def test_a_sound_file_is_read_once(self, video):
        assert Quarantine().attempt(video, Reader(video, 0)) == 1

    def test_a_failing_file_is_retried_once(self, video):
        quarantine, read = Quarantine(), Reader(video, 1)
        assert quarantine.attempt(video, read) == 2
        assert quarantine.attempt(video, read) == 3

    def test_what_fails_twice_fails(self, video):
        """Another clip of the file may still be sound: it is tried anew."""
        quarantine, read = Quarantine(), Reader(video, 4)
        for last in (2, 4):
            with pytest.raises(DecodeError) as caught:
                quarantine.attempt(video, read)
            assert (caught.value.path, caught.value.cause) == (video, f"fault {last}")
        assert quarantine.attempt(video, read) == 5

    def test_other_errors_are_not_retried(self, video):
        """The protocol may forbid a video that can be read well."""
        calls = []

        def read():
            calls.append(1)
            raise UserError("too short")

        with pytest.raises(UserError, match="too short"):
            Quarantine().attempt(video, read)
        assert len(calls) == 1


class TestOpened:
    def open_once(self, quarantine: Quarantine, video: str, read: Reader) -> tuple[str, str]:
        with pytest.raises(DecodeError) as caught:
            quarantine.attempt(video, lambda: quarantine.opened(video, read))
        return caught.value.path, caught.value.cause

    def test_a_file_that_cannot_be_opened_is_tried_twice_in_all(self, video):
        quarantine, read = Quarantine(), Reader(video, 99)
        assert [self.open_once(quarantine, video, read) for _ in range(3)] == [(video, "fault 2")] * 3
        assert read.calls == 2
        assert quarantine.blamed == []  # other processes find out by themselves

    def test_a_moment_is_forgiven(self, video):
        quarantine, read = Quarantine(), Reader(video, 1)
        assert quarantine.attempt(video, lambda: quarantine.opened(video, read)) == 2

    def test_the_fault_names_what_the_reader_named(self, tmp_path):
        """A video that is a folder fails because of one of its images."""
        quarantine, read = Quarantine(), Reader("folder/7.png", 99)
        assert [self.open_once(quarantine, str(tmp_path), read)[0] for _ in range(2)] == ["folder/7.png"] * 2
        assert read.calls == 2

    @pytest.mark.parametrize("mend", ["size", "time"])
    def test_a_mended_file_is_new(self, video, mend):
        quarantine = Quarantine()
        self.open_once(quarantine, video, Reader(video, 99))
        if mend == "size":
            Path(video).write_bytes(b"12345")
        os.utime(video, ns=(2_000, 2_000) if mend == "time" else (1_000, 1_000))
        assert quarantine.opened(video, Reader(video, 0)) == 1

    def test_an_absent_file_may_come(self, tmp_path):
        absent, quarantine = str(tmp_path / "b.mp4"), Quarantine()
        read = Reader(absent, 99)
        for _ in range(2):
            self.open_once(quarantine, absent, read)
        assert read.calls == 2
        Path(absent).write_bytes(b"1")
        assert quarantine.opened(absent, Reader(absent, 0)) == 1


def barred(quarantine: Quarantine, video: str, number: int) -> str | None:
    """Why the file is not read for a batch, or None where it is."""
    read = Reader(video, 0)
    quarantine.number = number
    try:
        quarantine.attempt(video, read)
    except DecodeError as error:
        assert (error.path, read.calls) == (video, 0)
        return error.cause
    return None


class TestBlame:
    def test_from_the_batch_on(self, video):
        quarantine = Quarantine()
        quarantine.blame(video, "hung: over 60 s", 7)
        assert [barred(quarantine, video, number) for number in (6, 7, 800)] == [
            None,
            "hung: over 60 s",
            "hung: over 60 s",
        ]

    def test_the_earliest_batch_counts(self, video):
        quarantine = Quarantine()
        for number in (7, 5, 9):
            quarantine.blame(video, f"cause {number}", number)
        assert [barred(quarantine, video, number) for number in (4, 5, 9)] == [None, "cause 5", "cause 5"]

    def test_a_mended_file_is_new(self, video, tmp_path):
        quarantine = Quarantine(tmp_path / "q", "train")
        quarantine.blame(video, "a", 0)
        os.utime(video, ns=(2_000, 2_000))
        assert barred(quarantine, video, 3) is None
        quarantine.blame(video, "b", 8)
        for each in (quarantine, Quarantine(tmp_path / "q", "train")):
            assert [barred(each, video, number) for number in (7, 8)] == [None, "b"]

    def test_content(self, video, tmp_path):
        path = tmp_path / "quarantine.jsonl"
        Quarantine(path, "train").blame(video, "hung: over 60 s", 12)
        (row,) = [json.loads(line) for line in path.read_text().splitlines() if line]
        expected = {"split": "train", "path": video, "cause": "hung: over 60 s", "since": 12}
        assert row == expected | {"size": 4, "modified": 1_000}

    def test_a_later_process_knows_its_own_split(self, video, tmp_path):
        Quarantine(tmp_path / "q", "train").blame(video, "a", 3)
        Quarantine(tmp_path / "q", "val").blame("b.mp4", "b", 0)
        assert Quarantine(tmp_path / "q", "train").blamed == [Entry("train", video, "a", 3, 4, 1_000)]
        assert Quarantine(tmp_path / "q", "val").blamed == [Entry("val", "b.mp4", "b", 0, None, None)]

    def test_half_a_line_is_passed_over(self, video, tmp_path, caplog):
        """A process was killed, or the disk was full, within a write; the next line still counts."""
        path = tmp_path / "q"
        path.write_text('\n{"path": "x.mp4", "cau')
        Quarantine(path, "train").blame(video, "a", 0)
        assert [entry.path for entry in Quarantine(path, "train").blamed] == [video]
        assert 'b\'{"path"' in caplog.text

    def test_odd_names(self, tmp_path):
        odd = os.fsdecode(b"caf\xe9 \xff\n.mp4")
        Quarantine(tmp_path / "q").blame(odd, "a", 0)
        assert [entry.path for entry in Quarantine(tmp_path / "q").blamed] == [odd]

    def test_a_folder_in_its_place(self, tmp_path):
        with pytest.raises(UserError, match="cannot read .*: Is a directory"):
            Quarantine(tmp_path)
        with pytest.raises(UserError, match="cannot write .*: No such file"):
            Quarantine(tmp_path / "absent" / "q").blame("a.mp4", "a", 0)

    @pytest.mark.parametrize("size, trouble", [(0, "File too large"), (9, "no space for a whole row")])
    def test_a_full_disk_is_waited_for(self, video, tmp_path, caplog, request, size, trouble):
        """The run goes on; nothing or half a line was written, and when there is room all of it stands there."""
        path, before = tmp_path / "q", resource.getrlimit(resource.RLIMIT_FSIZE)
        request.addfinalizer(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before))
        quarantine = Quarantine(path, "train")
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))  # what a full disk is like
        quarantine.blame(video, "a", 3)
        quarantine.blame("b.mp4", "b", 4)
        quarantine.flush()
        assert barred(quarantine, video, 3) == "a"
        assert caplog.text.count(trouble) == 1
        assert Quarantine(path, "train").blamed == []
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        quarantine.flush()
        assert [entry.path for entry in Quarantine(path, "train").blamed] == [video, "b.mp4"]
        assert "no entry" not in caplog.text

    def test_goes_to_another_process(self, video, tmp_path):
        quarantine = Quarantine(tmp_path / "q")
        quarantine.blame(video, "a", 0)
        assert pickle.loads(pickle.dumps(quarantine)).blamed == quarantine.blamed


class TestLosses:
    def test_the_second_one_in_a_batch_is_blamed(self, video, caplog):
        quarantine = Quarantine()
        losses = Losses(quarantine, 60)
        assert not losses.add(-signal.SIGSEGV, video, 5)
        assert not losses.add(-signal.SIGSEGV, video, 8)
        assert quarantine.blamed == []
        assert losses.add(-signal.SIGALRM, video, 5)
        assert quarantine.blamed == [Entry("", video, "hung: over 60 s", 5, 4, 1_000)]
        lost = "a worker process was lost (crashed: signal 11 (SIGSEGV))"
        first = f"{lost} while it was reading {video}; the file is tried once more"
        last = f"{video} ended two worker processes (hung: over 60 s); this run does not read it again"
        assert [record.getMessage() for record in caplog.records] == [first, first, last]

    def test_files_that_are_blamed_do_not_end_the_run(self):
        """The loop bounds their share."""
        losses = Losses(Quarantine(), 60)
        for number in range(10 * MOST_LOST):
            for _ in range(2):
                losses.add(-signal.SIGSEGV, f"{number}.mp4", 0)

    def test_too_many_without_a_reason_do(self, caplog):
        caplog.set_level(logging.ERROR)
        losses = Losses(Quarantine(), 60)
        for number in range(MOST_LOST):
            losses.add(-signal.SIGKILL, f"{number}.mp4", number)
        with pytest.raises(UserError) as caught:
            losses.add(3, None, 99)
        assert str(caught.value) == (
            "17 worker processes were lost within an hour, and no file ended two of them; the last:\n"
            "  killed: signal 9 (SIGKILL), perhaps because memory ran out, while reading 12.mp4\n"
            "  killed: signal 9 (SIGKILL), perhaps because memory ran out, while reading 13.mp4\n"
            "  killed: signal 9 (SIGKILL), perhaps because memory ran out, while reading 14.mp4\n"
            "  killed: signal 9 (SIGKILL), perhaps because memory ran out, while reading 15.mp4\n"
            "  crashed: exit status 3, while reading no file\n"
            "If they were killed, memory ran out: lower trainer.num_workers or trainer.batch_size. If they "
            "hung, storage was too slow, or data.decode_timeout_s is too short. If they crashed, "
            "trainer.num_workers=0 shows the error"
        )

    def test_all_at_once_is_one_loss(self, monkeypatch):
        """A job of many workers was suspended, now and then: each time all of them had hung when it went on."""
        now = 0.0
        monkeypatch.setattr("vidtrain.data.loading.quarantine.time.monotonic", lambda: now)
        losses = Losses(Quarantine(), 60)
        for time in range(MOST_LOST):
            for worker in range(64):
                now = 100.0 * time + worker / 100
                losses.add(-signal.SIGALRM, f"{time} {worker}.mp4", time)
        now = 100.0 * MOST_LOST
        with pytest.raises(UserError, match="17 worker processes were lost"):
            losses.add(-signal.SIGALRM, "z.mp4", 99)

    def test_now_and_then_is_no_reason_to_end(self, monkeypatch):
        now = iter(range(0, 10**6, 300))
        monkeypatch.setattr("vidtrain.data.loading.quarantine.time.monotonic", lambda: next(now))
        losses = Losses(Quarantine(), 60)
        for number in range(10 * MOST_LOST):
            losses.add(-signal.SIGKILL, f"{number}.mp4", number)
