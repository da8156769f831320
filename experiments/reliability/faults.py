"""Tries each fault a number of times on a small run and prints the matrix of README.md.

experiments/reliability/launch.sh --times 10

Every trial disturbs a run of twelve steps from outside, has it resumed where it ended, and compares what it left, bit
for bit (weights, optimizer, sums, metrics, closing numbers), with a run that nothing disturbed. The helpers are those
of tests/faults.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from damage import flip
from fault_injection import (
    TINY,
    difference,
    fill,
    saving,
    small_disk,
    start_training,
    step_now,
)
from fork_server import Child

from vidtrain.errors import UserError
from vidtrain.training import checkpoint
from vidtrain.training.checkpoint import resumable

SAME = "the same bits in the end"
NOT_MOUNTED = "not tried: mounting is not allowed"
SMALL = 50_000  # bytes: more than any log of these runs, less than any checkpoint


class Bench(NamedTuple):
    """The context of one attempt: the folder where runs start, the undisturbed run, its duration, and a folder."""

    data: Path
    alone: Path
    seconds: float
    folder: Path
    random: random.Random

    def start(self, run: Path, *overrides: str) -> Child:
        return start_training(run, f"data_root={self.data}", *TINY, *overrides)

    def finished(self, run: Path, *overrides: str) -> str:
        """Resumes a run and compares its end with the undisturbed run."""
        child = self.start(run, *overrides)
        status = child.wait()
        if status != 0:
            return f"resuming ended with status {status}: {child.words[-200:]}"
        found = difference(self.alone, run)
        return SAME if found is None else f"DIFFERENT: {found}"


def reached(run: Path, step: int) -> Callable[[], bool]:
    return lambda: step_now(run) >= step


def killed_at_any_time(bench: Bench) -> str:
    run = bench.folder / "run"
    child = bench.start(run)
    time.sleep(bench.random.uniform(0.02, 1.0) * bench.seconds)
    over = not child.running()
    if not over:
        child.kill()
        child.wait()
    damaged = [path.name for path in resumable(run / "checkpoints") if not _verifies(path)]
    if damaged:
        return f"DAMAGED: {damaged}"
    return "the run was over" if over else bench.finished(run)


def killed_inside_saving(bench: Bench) -> str:
    run = bench.folder / "run"
    child = bench.start(run)
    child.until(reached(run, bench.random.randint(0, 8)))
    if not child.until(lambda: saving(run)):
        return "saving was not seen"
    child.kill()
    child.wait()
    damaged = [path.name for path in resumable(run / "checkpoints") if not _verifies(path)]
    return f"DAMAGED: {damaged}" if damaged else bench.finished(run)


@contextmanager
def filled_up(bench: Bench, first: int, last: int) -> Iterator[tuple[Path, Child] | None]:
    """A run on a small disk that is filled at a step from `first` to `last`; None if no disk can be mounted."""
    with small_disk(bench.folder / "disk") as mounted:
        if not mounted:
            yield None
            return
        run = bench.folder / "disk" / "run"
        child = bench.start(run)
        child.until(reached(run, bench.random.randint(first, last)))
        fill(run.parent)
        yield run, child


def disk_full_for_a_while(bench: Bench) -> str:
    with filled_up(bench, 2, 6) as made:
        if made is None:
            return NOT_MOUNTED
        run, child = made
        warned = child.until(lambda: "tries again with the next checkpoint" in child.words)
        (run.parent / "ballast").unlink()
        status = child.wait()
        if status != 0:
            return f"ended with status {status}; resumed: {bench.finished(run)}"
        found = difference(bench.alone, run)
        word = "warned, went on" if warned else "went on"
        return f"{word}; {SAME if found is None else found}"


def disk_that_stays_full(bench: Bench) -> str:
    with filled_up(bench, 3, 9) as made:
        if made is None:
            return NOT_MOUNTED
        run, child = made
        status = child.wait()
        whole = all(_verifies(path) for path in resumable(run / "checkpoints"))
        warned = status == 2 and "could not be saved" in child.words
        said = "status 2 and a word" if warned else f"status {status}"
        (run.parent / "ballast").unlink()
        return f"{said}; checkpoints {'whole' if whole else 'DAMAGED'}; {bench.finished(run)}"


def no_room_for_rows(bench: Bench) -> str:
    run = bench.folder / "run"
    child = bench.start(run)
    child.until(reached(run, bench.random.randint(2, 6)))
    child.limit_files((run / "metrics.jsonl").stat().st_size + bench.random.randrange(100))
    waited = child.until(lambda: "rows wait in memory" in child.words)
    child.limit_files(-1)
    status = child.wait()
    found = difference(bench.alone, run) if status == 0 else f"status {status}"
    return f"{'rows waited' if waited else 'went on'}; {SAME if found is None else found}"


def _ended(bench: Bench) -> Path:
    """A copy of the undisturbed run, as if it had been killed before its final evaluation."""
    run = bench.folder / "run"
    shutil.copytree(bench.alone, run)
    (run / "summary.json").unlink()
    return run


def bit_flipped_in_the_last(bench: Bench) -> str:
    run = _ended(bench)
    last = run / "checkpoints" / "last.pt"
    flip(last, bench.random.random())
    return f"{bench.finished(run)}{_passed_over(run)}"


def last_cut_short(bench: Bench) -> str:
    run = _ended(bench)
    last = run / "checkpoints" / "last.pt"
    os.truncate(last, bench.random.randrange(last.stat().st_size))
    return f"{bench.finished(run)}{_passed_over(run)}"


def _passed_over(run: Path) -> str:
    aside = (run / "checkpoints" / "damaged_last.pt").is_file()
    return ", from the one before" if aside else ", UNNOTICED"


def bits_flipped(bench: Bench) -> str:
    """Flips a thousand single bits of a checkpoint's content, each of which loading must notice."""
    path = bench.folder / "last.pt"
    unnoticed = 0
    for _ in range(1000):
        shutil.copyfile(bench.alone / "checkpoints" / "last.pt", path)
        flip(path, bench.random.random())
        unnoticed += _verifies(path)
    return f"{unnoticed} UNNOTICED" if unnoticed else "1000 of 1000 noticed"


def worker_ended_by(number: int) -> Callable[[Bench], str]:
    def trial(bench: Bench) -> str:
        run = bench.folder / "run"
        child = bench.start(run, "trainer.num_workers=1")
        early = reached(run, bench.random.randint(1, 6))
        if not child.until(lambda: early() and _children(child.pid)):
            return "no worker was seen"
        for pid in _children(child.pid):
            os.kill(pid, number)
        status = child.wait()
        found = difference(bench.alone, run) if status == 0 else f"status {status}: {child.words[-200:]}"
        replaced = "replaced; " if "a worker process was lost" in child.words else ""
        return f"{replaced}{SAME if found is None else found}"

    return trial


def video_that_goes(bench: Bench) -> str:
    """During the run, a pipe without a writer replaces a training video."""
    run, data = bench.folder / "run", bench.folder / "data"
    shutil.copytree(bench.data, data)
    options = ("trainer.num_workers=1", "trainer.max_unreadable_fraction=0.5", "trainer.epochs=8")
    child = start_training(run, f"data_root={data}", *TINY, *options)
    child.until(reached(run, 2))
    video = bench.random.choice(sorted((data / "motion").rglob("train/*/*.mp4")))
    video.unlink()
    os.mkfifo(video)
    status = child.wait()
    ledger = run / "faults_rank0.jsonl"
    named = ledger.is_file() and str(video) in ledger.read_text(encoding="utf-8")
    return f"status {status}; {'named and counted' if named else 'NOT named'}"


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        return []


def _verifies(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except UserError:
        return False
    return True


FAULTS = {
    "kill -9 at a random time, from start to closing evaluation": (f"resumes: {SAME}", killed_at_any_time),
    "kill -9 inside saving": (
        f"no checkpoint damaged; {SAME}",
        killed_inside_saving,
    ),
    "disk full (ENOSPC on a tmpfs), freed later": ("warned, goes on; " + SAME, disk_full_for_a_while),
    "disk full until the end": (
        "status 2 and a word; checkpoints whole; resumes: " + SAME,
        disk_that_stays_full,
    ),
    "no room for a row of metrics.jsonl, then room": ("rows wait in memory; " + SAME, no_room_for_rows),
    "a bit of last.pt flipped": (SAME + ", from the one before", bit_flipped_in_the_last),
    "last.pt cut short": (SAME + ", from the one before", last_cut_short),
    "a bit of what a checkpoint holds flipped, loaded": ("noticed", bits_flipped),
    "data worker killed (kill -9)": ("replaced; " + SAME, worker_ended_by(signal.SIGKILL)),
    "data worker crashes (SIGSEGV)": ("replaced; " + SAME, worker_ended_by(signal.SIGSEGV)),
    "a video is replaced by a pipe": ("status 0; named and counted", video_that_goes),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=10, help="trials of each fault")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name holds this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults_") as name:
        root = Path(name)
        for run in ("warm", "alone"):  # the first makes the videos
            started = time.monotonic()
            child = start_training(root / run, f"data_root={root / 'data'}", *TINY)
            if child.wait() != 0:
                sys.exit(child.said)
        seconds = time.monotonic() - started
        print(f"an undisturbed run takes {seconds:.0f} s\n", flush=True)
        print("| fault | expected | observed | times tried |\n|---|---|---|---|", flush=True)
        chosen = [(fault, *told) for fault, told in FAULTS.items() if arguments.only in fault]

        def attempt(trial: Callable[[Bench], str], name: str) -> str:
            folder = root / name
            folder.mkdir()
            chance = random.Random(f"{arguments.seed} {name}")
            try:
                return trial(Bench(root / "data", root / "alone", seconds, folder, chance))
            except TimeoutError:
                return "TIMED OUT"
            finally:
                shutil.rmtree(folder)

        with ThreadPoolExecutor(arguments.jobs) as pool:
            found = [
                [pool.submit(attempt, trial, f"{number}_{time_}") for time_ in range(arguments.times)]
                for number, (_, _, trial) in enumerate(chosen)
            ]
            for (fault, expected, _), trials in zip(chosen, found, strict=True):
                outcomes = Counter(each.result() for each in trials)
                observed = "; ".join(f"{count} x {outcome}" for outcome, count in outcomes.most_common())
                print(f"| {fault} | {expected} | {observed} | {arguments.times} |", flush=True)


if __name__ == "__main__":
    main()
