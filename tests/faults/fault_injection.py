"""Training runs that can be disturbed from outside, started in a fraction of a second.

A nursery is one process that has imported torch and vidtrain. For each run it forks a child, which is then the program
`python -m vidtrain.train`, but for the seconds that importing and composing take. Nothing of the program knows that it
is tested: a child is killed by signals, starved by a limit on the size of its files or a full disk, and its files are
damaged.
"""

import csv
import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/reliability runs without pytest
from clock import TIMED
from small_run import small

# Two phases of two epochs, 12 steps in all; saved after every other one, so in the middle of an epoch, too
TINY = small(
    "augmentation=standard",  # random crops and color jitter
    "clip.frames=4",
    "model.encoder.drop_path=0.2",
    "stage=head_then_last",
    "logger=none",
    "trainer.epochs=4",
    "trainer.batch_size=6",
    "trainer.accumulation=2",
    "trainer.save_every=2it",
    "trainer.keep_every=4it",
    "trainer.log_every=1",
    "trainer.device=cpu",
    frames=16,
    depth=2,
)
PATIENCE = 300.0  # seconds until something that should happen is taken not to


class Child:
    """A run under way. What it prints goes through a pipe, which no full disk and no limit on files holds up."""

    def __init__(self, nursery: "Nursery", pid: int, said: int):
        self._nursery = nursery
        self.pid = pid
        self._said: list[bytes] = []
        self._reader = threading.Thread(target=self._read, args=(said,), daemon=True)
        self._reader.start()

    def _read(self, said: int) -> None:
        with open(said, "rb", buffering=0) as pipe:
            while chunk := pipe.read(1 << 16):
                self._said.append(chunk)

    @property
    def said(self) -> str:
        return b"".join(self._said).decode(errors="replace")

    @property
    def words(self) -> str:
        """What it said, without line breaks, which depend on the width."""
        return " ".join(self.said.split())

    def running(self) -> bool:
        return self._nursery.status(self.pid) is None

    def wait(self) -> int:
        """The exit status, or minus the signal that ended it."""
        deadline = time.monotonic() + PATIENCE
        while (status := self._nursery.status(self.pid)) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the run did not end:\n{self.said}")
            time.sleep(0.01)
        self._reader.join(10)  # a worker of its own may outlive it for a moment
        return status

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def limit_files(self, size: int) -> None:
        """From now on no file of the run can grow beyond `size` bytes: what it is like on a disk that is full."""
        with suppress(ProcessLookupError):  # it is over
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def until(self, happened: Callable[[], Any], pause: float = 0.0005) -> bool:
        """Waits until something has happened; whether it did before the run ended."""
        deadline = time.monotonic() + PATIENCE
        asked = 0.0
        while not happened():
            if (
                time.monotonic() < asked + 0.05
            ):  # asking takes longer than looking, and some things are soon over
                time.sleep(pause)
                continue
            asked = time.monotonic()
            if not self.running():
                return bool(happened())
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"what was waited for did not happen:\n{self.said}")
        return True


class Nursery:
    """Starts runs; see above. To be closed."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._ended: dict[int, int] = {}
        self._count = itertools.count(1)
        self._asking = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("nursery_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, run: Path, *overrides: str, whole: bool = False, **environment: str) -> Child:
        """A run in the folder `run` with these overrides and environment variables.

        With `whole` it is the program with its command line, which Hydra takes seconds to read; else the task that this
        launches, of a configuration composed once.
        """
        said = self._folder / f"said_{next(self._count)}"
        os.mkfifo(said)
        reading = os.open(said, os.O_RDONLY | os.O_NONBLOCK)  # or else it waits for the writer
        writing = os.open(said, os.O_WRONLY)  # and would find its end before there is one
        os.set_blocking(reading, True)
        request = {"run": str(run), "overrides": overrides, "whole": whole, "environment": environment}
        pid = self._ask({**request, "said": str(said)})
        os.close(writing)
        return Child(self, pid, reading)

    def status(self, pid: int) -> int | None:
        if pid not in self._ended:
            status = self._ask({"pid": pid})
            if status is not None:
                self._ended[pid] = status
        return self._ended[pid] if pid in self._ended else None

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(PATIENCE)
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> int | None:
        with self._asking:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())


@contextmanager
def nursery(folder: Path) -> Iterator[Nursery]:
    opened = Nursery(folder)
    try:
        yield opened
    finally:
        opened.close()


def step_now(run: Path) -> int:
    """The step of the newest row of a run's metrics; 0 where there is none."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


def flip(path: Path, bit: int) -> None:
    """Flips a bit of a file, as storage may."""
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def fill(disk: Path) -> None:
    """Leaves not a block of a file system free."""
    with open(disk / "ballast", "ab", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError:
                continue


@contextmanager
def small_disk(disk: Path) -> Iterator[bool]:
    """Within it a file system of three megabytes is mounted at `disk`; False where that is not allowed."""
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)]
    mounted = shutil.which("mount") is not None and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def saving(run: Path) -> list[Path]:
    """The checkpoints that are being written at this instant."""
    return list((run / "checkpoints").glob(".*.pt.*.tmp"))


def rows(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl and the table of steps, without what the clock decides, and without the count of failed saves,
    which an undisturbed run does not have."""
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [row for row in metrics if "checkpoint/failed" not in row]
    with open(run / "steps_rank0.csv", newline="") as file:
        steps = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if key not in TIMED} for row in metrics + steps]


def difference(one: Path, other: Path) -> str | None:
    """The first thing in which two finished runs differ, of all that is not a matter of time; None if nothing does.

    `other` may lack checkpoints that were to be kept for good: they are not made up for when the disk was full.
    """
    import torch

    from vidtrain.training.checkpoints import checkpoint

    names = sorted(path.name for path in (one / "checkpoints").glob("*.pt"))
    others = sorted(path.name for path in (other / "checkpoints").glob("*.pt") if "damaged" not in path.name)
    if any(not name.startswith("step_") for name in set(names) ^ set(others)) or set(others) - set(names):
        return f"checkpoints {names} and {others}"
    for name in others:
        mine, theirs = (checkpoint.load(run / "checkpoints" / name) for run in (one, other))
        left, right = dict(_leaves(mine)), dict(_leaves(theirs))
        if left.keys() != right.keys():
            return f"{name}: {sorted(left.keys() ^ right.keys())[:3]}"
        for key, value in left.items():
            if key in ("config.run_dir", "config.data_root", "config.trainer.num_workers", "state.seconds"):
                continue
            same = torch.equal(value, right[key]) if isinstance(value, torch.Tensor) else value == right[key]
            if not same:
                return f"{name}: {key}"
    if rows(one) != rows(other):
        return "the rows of metrics.jsonl and steps_rank0.csv"
    closing = [json.loads((run / "summary.json").read_text()) | {"minutes": 0} for run in (one, other)]
    return None if closing[0] == closing[1] else "summary.json"


def _leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, node
