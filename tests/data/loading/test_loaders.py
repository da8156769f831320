"""Worker processes that crash, hang and are killed: the batches are those of a run whose files only cannot be read."""

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.dataset import Batch, Fault, Sample, draw
from vidtrain.data.loading.loaders import eval_loader, train_loader
from vidtrain.data.loading.quarantine import Quarantine
from vidtrain.data.loading.samplers import EvalShard, SampleKey, TrainStream
from vidtrain.errors import UserError

COUNT = 60
SEGV = "crashed: signal 11 (SIGSEGV)"


class Videos:
    """A data set like `VideoDataset`, of files n.mp4 whose clips are noise; `faults[n]` is done before n is read."""

    def __init__(self, root: Path, training: bool, faults: dict[int, Callable], path: Path | None = None):
        self.root = root
        self.training = training
        self.faults = faults
        self.quarantine = Quarantine(path, "train")

    def path(self, index: int) -> str:
        return str(self.root / f"{index}.mp4")

    def __getitem__(self, key: SampleKey) -> Sample:
        index, found = key.record, []
        while True:
            target = torch.tensor(index % 3)
            try:
                clips = self.quarantine.attempt(self.path(index), lambda n=index: self.read(key.epoch, n))
                return Sample(clips, target, index, torch.tensor([[key.epoch]]), found)
            except DecodeError as error:
                found.append(Fault(error.path, error.cause))
            if not self.training:
                return Sample(None, target, index, torch.empty(0, dtype=torch.int64), found)
            index = int(draw(0, key.epoch, key.record, len(found)).integers(COUNT))

    def read(self, epoch: int, index: int) -> torch.Tensor:
        with open(self.root / f"{index}.tried", "ab") as file:
            file.write(b".")
        if index in self.faults:
            self.faults[index](self.path(index))
        noise = draw(epoch, index).integers(0, 256, (1, 1, 3, 2, 64, 64), dtype="uint8")  # 24 kB
        return torch.from_numpy(noise)

    def tries(self, index: int) -> int:
        return (self.root / f"{index}.tried").stat().st_size


def by_signal(number: int) -> Callable[[str], None]:
    def fault(path: str) -> None:
        faulthandler.disable()  # or pytest's reports it
        os.kill(os.getpid(), number)

    return fault


def leave(path: str) -> None:
    os._exit(3)


def hang(path: str) -> None:
    ctypes.PyDLL(None).sleep(100)  # with the interpreter's lock


def unreadable(cause: str) -> Callable[[str], None]:
    def fault(path: str) -> None:
        raise DecodeError(path, cause)

    return fault


def once(fault: Callable[[str], None]) -> Callable[[str], None]:
    """The fault the first time that the file is tried, by whichever process."""

    def at_first(path: str) -> None:
        if Path(path).with_suffix(".tried").stat().st_size == 1:
            fault(path)

    return at_first


def same(batches: list[Batch], expected: list[Batch]) -> bool:
    return len(batches) == len(expected) and all(
        all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True)) and a[4:6] == b[4:6]
        for a, b in zip(batches, expected, strict=True)
    )


def stream(start: int = 0, stop: int = 30) -> TrainStream:
    """Two passes of 15 batches of 4, so many that no worker is a pass ahead."""
    return TrainStream(COUNT, 4, 0, start, stop)


def train(videos: Videos, workers: int = 2, limit: float = 20.0, **steps: int) -> list[Batch]:
    return list(train_loader(videos, stream(**steps), workers, False, limit))


def alone(videos: Videos, **steps: int) -> list[Batch]:
    """Without workers, where only `unreadable` faults are survived."""
    return list(train_loader(videos, stream(**steps), 0, False))


def at(position: int) -> int:
    """The file that is read at a position of the first pass."""
    return [key.record for batch in stream() for key in batch][position]


@pytest.fixture
def folder(tmp_path) -> Callable[[], Path]:
    """A new root for each data set of a test, all of the same path for the reader."""

    def empty() -> Path:
        for file in tmp_path.glob("*.tried"):
            file.unlink()
        return tmp_path

    return empty


class TestUndisturbed:
    @pytest.mark.parametrize("workers", [1, 3])
    def test_any_number_of_workers(self, folder, workers):
        faults = {at(5): unreadable("broken"), at(6): once(unreadable("for a moment"))}
        expected = alone(Videos(folder(), True, faults))
        assert [len(batch.faults) for batch in expected[:6]] == [0, 1, 0, 0, 0, 0]
        assert same(train(Videos(folder(), True, faults), workers), expected)

    def test_a_part_of_the_stream(self, folder):
        expected = alone(Videos(folder(), True, {}))
        assert same(train(Videos(folder(), True, {}), 2, start=4, stop=7), expected[4:7])
        assert train(Videos(folder(), True, {}), 2, start=4, stop=4) == []

    def test_length(self, folder):
        assert len(train_loader(Videos(folder(), True, {}), stream(2, 30), 2, False)) == 28

    def test_batches_are_writable_and_hold_on(self, folder):
        """Their memory is their own, whatever becomes of the loader."""
        batches = train(Videos(folder(), True, {}))
        batches[0].clips.zero_()
        assert same(batches[1:], alone(Videos(folder(), True, {}))[1:])

    def test_an_abandoned_loader_leaves_no_process(self, folder):
        batches = iter(train_loader(Videos(folder(), True, {}), stream(), 2, False))
        next(batches)
        assert len(multiprocessing.active_children()) == 2
        batches.close()
        assert multiprocessing.active_children() == []

    def test_workers_stay_for_the_next_evaluation(self, folder):
        loader = eval_loader(Videos(folder(), False, {}), EvalShard(COUNT, 7), 2, False)
        first = list(loader)
        pids = {process.pid for process in multiprocessing.active_children()}
        second = list(loader)
        assert len(pids) == 2 and pids == {process.pid for process in multiprocessing.active_children()}
        assert [len(batch.labels) for batch in first] == [7, 7, 7, 7, 7, 7, 7, 7, 4] and same(first, second)
        del loader
        assert multiprocessing.active_children() == []

    def test_signals_are_left_to_the_main_process(self, folder):
        batches = iter(train_loader(Videos(folder(), True, {}), stream(), 2, False))
        read = [next(batches)]  # with workers that may be only half up
        pids = {process.pid for process in multiprocessing.active_children()}
        for pid in pids:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(pid, number)
        read += [next(batches) for _ in range(12)]
        assert pids == {process.pid for process in multiprocessing.active_children()}
        assert same(read + list(batches), alone(Videos(folder(), True, {})))


FATAL = [
    (by_signal(signal.SIGSEGV), SEGV),
    (leave, "crashed: exit status 3"),
    (hang, "hung: over 0.5 s"),
    (by_signal(signal.SIGKILL), "killed: signal 9 (SIGKILL), perhaps because memory ran out"),
]


class TestTraining:
    @pytest.mark.parametrize(("fault", "cause"), FATAL)
    def test_a_fatal_file_is_as_one_that_cannot_be_read(self, folder, caplog, fault, cause):
        culprit = at(9)
        videos = Videos(folder(), True, {culprit: fault})
        read = train(videos, limit=0.5 if fault is hang else 1.0)
        assert [entry[1:4] for entry in videos.quarantine.blamed] == [(videos.path(culprit), cause, 2)]
        assert videos.tries(culprit) == 2  # in the second pass too nobody tried
        assert f"{videos.path(culprit)} ended two worker processes ({cause})" in caplog.text
        assert same(read, alone(Videos(folder(), True, {culprit: unreadable(cause)})))
        assert [Fault(videos.path(culprit), cause) in batch.faults for batch in read[:4]] == [0, 0, 1, 0]

    @pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
    def test_once_is_forgiven(self, folder, caplog, number):
        """As where memory ran out: the file is read in the end, and nothing is missing."""
        videos = Videos(folder(), True, {at(2): once(by_signal(number))})
        assert same(train(videos), alone(Videos(folder(), True, {})))
        assert videos.quarantine.blamed == []
        assert f"while it was reading {videos.path(at(2))}; the file is tried once more" in caplog.text

    @pytest.mark.parametrize("places", [(1, 5), (0, 1), (60, 119), (119,)])
    def test_several_culprits(self, folder, places):
        """In the first two batches at once, in one batch, in the second pass too, in the last batch."""
        steps = [key.record for batch in stream() for key in batch]
        culprits = {steps[place] for place in places}
        videos = Videos(folder(), True, dict.fromkeys(culprits, by_signal(signal.SIGSEGV)))
        read = train(videos)
        assert {entry.path for entry in videos.quarantine.blamed} == {videos.path(n) for n in culprits}
        assert same(read, alone(Videos(folder(), True, dict.fromkeys(culprits, unreadable(SEGV)))))

    @pytest.mark.slow
    @pytest.mark.parametrize("when", ["reading", "waiting"])
    def test_stopped_from_outside(self, folder, caplog, monkeypatch, when):
        """As by a debugger, or in a frozen cgroup: no signal but SIGKILL reaches it then."""
        monkeypatch.setitem(watchdog.START_SECONDS, "fork", 3.0)  # one that waits may not have been up
        expected = alone(Videos(folder(), True, {}))
        faults = {at(9): once(by_signal(signal.SIGSTOP))} if when == "reading" else {}
        batches = iter(train_loader(Videos(folder(), True, faults), stream(), 2, False, 1.0))
        read = [next(batches)]
        if when == "waiting":
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGSTOP)
        assert same(read + list(batches), expected)
        assert "a worker process was lost (hung: over 1 s)" in caplog.text

    @pytest.mark.slow
    def test_a_file_that_stops_its_reader_is_as_one_that_hangs(self, folder):
        culprit, cause = at(9), "hung: over 0.5 s"
        videos = Videos(folder(), True, {culprit: by_signal(signal.SIGSTOP)})
        read = train(videos, limit=0.5)
        assert [entry[1:4] for entry in videos.quarantine.blamed] == [(videos.path(culprit), cause, 2)]
        assert same(read, alone(Videos(folder(), True, {culprit: unreadable(cause)})))

    @pytest.mark.slow
    def test_long_work_is_no_hang(self, folder):
        def slow(path: str) -> None:
            for _ in range(15):
                time.sleep(0.1)
                watchdog.progress()

        videos = Videos(folder(), True, {at(3): slow})
        assert same(train(videos, limit=0.5), alone(Videos(folder(), True, {})))
        assert videos.tries(at(3)) == 2  # once in each pass

    @pytest.mark.slow
    def test_an_idle_owner_loses_nobody(self, folder, caplog):
        """One that validates, or waits for a device, for longer than the time limit."""
        batches = iter(train_loader(Videos(folder(), True, {}), stream(), 2, False, 0.5))
        read = [next(batches)]
        time.sleep(4)
        assert same(read + list(batches), alone(Videos(folder(), True, {})))
        assert "was lost" not in caplog.text

    def test_killed_from_outside(self, folder):
        batches = iter(train_loader(Videos(folder(), True, {}), stream(), 2, False))
        read = []
        for number in range(28):
            read.append(next(batches))
            # A file that two kills meet in one batch is blamed; up to eight batches are read ahead
            if number % 9 == 0:
                for process in multiprocessing.active_children():
                    os.kill(process.pid, signal.SIGKILL)
        assert same(read + list(batches), alone(Videos(folder(), True, {})))

    def test_a_later_run_does_not_try(self, folder, tmp_path):
        culprit, record = at(3), tmp_path / "quarantine.jsonl"
        fault = {culprit: by_signal(signal.SIGSEGV)}
        first = Videos(folder(), True, fault, record)
        expected = train(first)
        again = Videos(first.root, True, fault, record)
        assert same(train(again, 1), expected) and same(alone(again), expected)
        assert again.tries(culprit) == 2

    @pytest.mark.parametrize("workers", [0, 1, 3])
    def test_a_file_is_missing_from_the_batch_on_that_ended_workers(self, folder, tmp_path, workers):
        """It crashes in the second pass alone. A run resumed before that reads it as the first did, and after too."""
        culprit = at(9)

        def later(videos: Videos) -> Videos:
            read = videos.read

            def second(epoch: int, index: int) -> torch.Tensor:
                if (epoch, index) == (1, culprit):
                    by_signal(signal.SIGSEGV)("")
                return read(epoch, index)

            videos.read = second
            return videos

        whole = train(later(Videos(folder(), True, {}, tmp_path / "q")), 2, stop=45)
        found = [number for number, batch in enumerate(whole) if batch.faults]
        assert len(found) == 2 and 15 <= found[0] < 30 <= found[1]  # once in the second pass, once in the third
        resumed = later(Videos(folder(), True, {}, tmp_path / "q"))
        assert [entry.since for entry in resumed.quarantine.blamed] == [found[0]]
        assert same(train(resumed, workers, start=1, stop=45), whole[1:])

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [1, 4])
    def test_what_was_read_ahead_is_read_again(self, folder, workers):
        """Every batch holds the culprit, which crashes for the fourth one alone: from there on it is missing."""
        videos = Videos(folder(), True, {})
        read = videos.read

        def crash(epoch: int, index: int) -> torch.Tensor:
            if index == 0 and videos.quarantine.number == 3:
                time.sleep(0.2)  # the others are ahead
                by_signal(signal.SIGSEGV)("")
            return read(epoch, index)

        videos.read = crash
        loader = eval_loader(videos, [[SampleKey(n, 0), SampleKey(n, n)] for n in range(1, 12)], workers, False)
        for _ in range(2):
            assert [len(batch.faults) for batch in loader] == [0, 0, 0] + [1] * 8

    def test_workers_that_die_of_everything_end_the_run(self, folder):
        videos = Videos(folder(), True, dict.fromkeys(range(COUNT), once(by_signal(signal.SIGKILL))))
        with pytest.raises(UserError, match="17 worker processes") as caught:
            train(videos)
        assert "memory ran out: lower trainer.num_workers" in str(caught.value)
        assert multiprocessing.active_children() == []


class TestWhatReadingRaises:
    def test_a_defect_comes_with_its_traceback_where_it_is_due(self, folder):
        def defect(path: str) -> None:
            raise KeyError("a defect")

        batches = iter(train_loader(Videos(folder(), True, {at(10): defect}), stream(), 2, False))
        next(batches), next(batches)
        with pytest.raises(RuntimeError, match="(?s)in defect.*KeyError: 'a defect'"):
            next(batches)
        assert multiprocessing.active_children() == []

    def test_a_users_error_stays_one(self, folder):
        def refuse(path: str) -> None:
            raise UserError("what to do")

        with pytest.raises(UserError, match="^what to do$"):
            train(Videos(folder(), True, {at(0): refuse}))


class TestEvaluation:
    def test_the_culprit_is_missing_with_its_cause(self, folder):
        """Batches of 5: file 7 is the third of the second."""
        videos = Videos(folder(), False, {7: by_signal(signal.SIGSEGV)})
        loader = eval_loader(videos, EvalShard(COUNT, 5), 2, False)
        for _ in range(2):
            batches = list(loader)
            assert [batch.indices.tolist() for batch in batches[:2]] == [[0, 1, 2, 3, 4], [5, 6, 8, 9]]
            assert [batch.faults for batch in batches[:3]] == [[], [Fault(videos.path(7), SEGV)], []]
        assert videos.tries(7) == 2

    def test_workers_killed_between_evaluations(self, folder):
        loader = eval_loader(Videos(folder(), False, {}), EvalShard(COUNT, 5), 2, False)
        first = list(loader)
        for process in multiprocessing.active_children():
            os.kill(process.pid, signal.SIGKILL)
        assert same(list(loader), first)

    def test_every_file_is_fatal(self, folder):
        """It still comes to an end."""
        videos = Videos(folder(), False, dict.fromkeys(range(6), leave))
        (batch,) = eval_loader(videos, EvalShard(6, 6), 1, False)
        assert len(batch.labels) == 0
        assert batch.faults == [Fault(videos.path(n), "crashed: exit status 3") for n in range(6)]


SCRIPT = textwrap.dedent("""
    import multiprocessing, os, sys, time
    import torch
    from vidtrain.data.loading.dataset import Sample
    from vidtrain.data.loading.loaders import eval_loader
    from vidtrain.data.loading.quarantine import Quarantine
    from vidtrain.data.loading.samplers import EvalShard

    class Videos:
        def __init__(self, fault):
            self.quarantine, self.fault = Quarantine(), fault
        def __getitem__(self, key):
            return self.quarantine.attempt(f"{key.record}.mp4", lambda: self.read(key.record))
        def read(self, index):
            if self.fault == "hang" and index == 1:
                time.sleep(100)
            clips, seeds = torch.full((1, 1, 20_000), index), torch.zeros(1, 1, dtype=torch.int64)
            return Sample(clips, torch.tensor(index), index, seeds, [])

    if __name__ == "__main__":
        fault, limit, workers, *methods = sys.argv[1:]
        loaders = [eval_loader(Videos(fault), EvalShard(3, 1), int(workers), False, float(limit), method)
                   for method in methods]
        for loader in loaders:
            for batch in loader:
                print(batch.clips[0, 0, :2].tolist(), flush=True)
                print(*(process.pid for process in multiprocessing.active_children()), flush=True)
""")


@pytest.fixture
def start(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def run(*arguments: object) -> subprocess.Popen:
        command = [sys.executable, str(tmp_path / "script.py"), *map(str, arguments)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    return run


@pytest.fixture
def pretend_pinning(monkeypatch) -> list[int]:
    """Stands in for a GPU, of which there need be none; gives the devices that threads were put on."""
    devices = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    return devices


class TestPinned:
    def test_the_same_batches(self, folder, pretend_pinning):
        culprit = at(9)
        expected = alone(Videos(folder(), True, {culprit: unreadable(SEGV)}))
        videos = Videos(folder(), True, {culprit: by_signal(signal.SIGSEGV)})
        assert same(list(train_loader(videos, stream(), 2, True)), expected)
        assert pretend_pinning == [3]  # else it would use memory of the first GPU, whichever the rank's is
        assert multiprocessing.active_children() == []

    def test_kept_workers(self, folder, pretend_pinning):
        loader = eval_loader(Videos(folder(), False, {}), EvalShard(COUNT, 5), 2, True)
        first = list(loader)
        pids = {process.pid for process in multiprocessing.active_children()}
        assert same(list(loader), first)
        assert pids == {process.pid for process in multiprocessing.active_children()}

    def test_abandoned_while_a_worker_hangs(self, folder, pretend_pinning):
        before = threading.active_count()
        batches = iter(train_loader(Videos(folder(), True, {at(4): hang}), stream(), 1, True))
        next(batches)
        started = time.monotonic()
        batches.close()
        assert time.monotonic() - started < 10
        assert threading.active_count() == before and multiprocessing.active_children() == []

    def test_what_reading_raises(self, folder, pretend_pinning):
        def refuse(path: str) -> None:
            raise UserError("what to do")

        batches = iter(train_loader(Videos(folder(), True, {at(4): refuse}), stream(), 2, True))
        next(batches)
        with pytest.raises(UserError, match="^what to do$"):
            next(batches)


class TestProcesses:
    @pytest.mark.slow  # three more processes import torch
    def test_start_methods(self, start):
        """And the program ends, though it leaves workers behind that ignore SIGTERM."""
        process = start("none", 60, 1, "fork", "spawn", "forkserver")
        lines = process.communicate(timeout=90)[0].splitlines()
        assert lines[::2] == ["[0, 0]", "[1, 1]", "[2, 2]"] * 3
        assert [len(line.split()) for line in lines[1::2]] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert process.returncode == 0

    @pytest.mark.slow
    def test_workers_do_not_outlive_a_killed_owner(self, start):
        """One waits for tasks, the other hangs in a file."""
        process = start("hang", 3, 2, "fork")
        assert process.stdout.readline() == "[0, 0]\n"
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2 and all(_lives(pid) for pid in pids)
        process.kill()
        process.communicate(timeout=20)
        patience = time.monotonic() + 20
        while any(_lives(pid) for pid in pids):
            assert time.monotonic() < patience, "a worker goes on without its owner"
            time.sleep(0.1)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
