"""Time and memory of a manifest of millions of records: reading its listing, opening it, workers, shuffling.

python experiments/benchmarks/manifest/bench.py [--records 10000000] [--workers 4] [--folder FOLDER]

Each figure is taken in a process of its own. A worker's memory is counted once it has touched random records, less
that of a worker that touched none.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vidtrain.data.loading.samplers import TrainStream
from vidtrain.data.manifest.files import open_manifests
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sources.listings import Listing

CLASSES, VAL_RECORDS, BATCH = 400, 1000, 256
TOUCHED = 100_000  # records a worker
OBJECTS = 1_000_000  # records of the comparison with one object each
REPEATS = 5
MEGABYTE = 1e6
FIELDS = ("Pss", "Private_Clean", "Private_Dirty")


def write_listing(path: Path, records: int, salt: int) -> int:
    """Lines `FOLDER/NNN/ELEVENCHARS_000000_000010.mp4 LABEL`; returns the bytes of their paths."""
    rng = np.random.default_rng(salt)
    total = 0
    with open(path, "w", encoding="utf-8") as file:
        for first in range(0, records, 100_000):
            count = min(100_000, records - first)
            labels = rng.integers(CLASSES, size=count).tolist()
            starts = rng.integers(10_000, size=count).tolist()
            if first == 0:
                labels[: min(count, CLASSES)] = range(min(count, CLASSES))  # so that no class is absent
            numbers = range(first, first + count)
            lines = [
                f"/datasets/kinetics/videos/train/class_{label:03d}/"
                f"{salt}{number:010x}_{start:06d}_{start + 10:06d}.mp4 {label}\n"
                for number, label, start in zip(numbers, labels, starts, strict=True)
            ]
            total += sum(map(len, lines)) - sum(len(str(label)) + 2 for label in labels)
            file.writelines(lines)
    return total


def source(folder: Path) -> Listing:
    return Listing(train=str(folder / "train.csv"), val=str(folder / "val.csv"))


def memory(pid: str = "self") -> dict[str, float]:
    """Megabytes by kind."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
    known = {line.split(":")[0]: int(line.split()[1]) * 1024 / MEGABYTE for line in lines}
    return {name: known[name] for name in FIELDS}


# --- what is measured, each in a fresh process ------------------------------------------------------------


def read_once(folder: Path) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    found = open_manifests(source(folder), folder / "index")
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    columns = found["train"].columns
    arrays = [columns.paths.blob, columns.paths.offsets, columns.labels]
    return {
        "seconds": seconds,
        "peak": peak * 1024 / MEGABYTE,
        "bytes": sum(array.nbytes for array in arrays) / len(found["train"]),
    }


def open_again(folder: Path, forget: bool) -> float:
    """Seconds; with `forget` the file is dropped from the system's cache first."""
    if forget:
        for path in (folder / "index").rglob("*.npy"):
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    started = time.perf_counter()
    found = open_manifests(source(folder), folder / "index")
    assert found["train"][len(found["train"]) - 1].label < CLASSES
    return time.perf_counter() - started


def shuffle(records: int) -> dict[str, float]:
    """Time to the first batch of a rank of eight, and the permutation's memory."""
    before = memory()["Private_Dirty"]
    stream = iter(TrainStream(records, BATCH, seed=0, start_step=0, stop_step=1000, rank=3, world_size=8))
    started = time.perf_counter()
    next(stream)
    seconds = time.perf_counter() - started
    held = memory()["Private_Dirty"] - before
    started = time.perf_counter()
    for _ in range(999):
        next(stream)
    return {"seconds": seconds, "held": held, "step": (time.perf_counter() - started) / 999}


def as_objects() -> float:
    """Bytes a record where each is an object of its own."""
    before = memory()["Private_Dirty"]
    paths = [f"/datasets/kinetics/videos/train/class_{i % 400:03d}/{i:011x}_000000_000010.mp4" for i in range(OBJECTS)]
    records = tuple(Record(path, i % CLASSES, path) for i, path in enumerate(paths))
    del paths
    return (memory()["Private_Dirty"] - before) * MEGABYTE / len(records)


def fresh(task, *arguments):
    """What `task` gives in a new process, which may have children."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_answer, args=(answers, task, arguments))
    process.start()
    found = answers.get()
    process.join()
    return found


def _answer(answers, task, arguments) -> None:
    answers.put(task(*arguments))


# --- workers ----------------------------------------------------------------------------------------------


def work(manifest: Manifest | None, records: int, number: int, ready, answers) -> None:
    rng = np.random.default_rng(number)
    for index in rng.integers(records, size=TOUCHED).tolist():
        if manifest is not None:
            manifest[index]
    ready.wait()  # until every worker has read its records
    answers.put(memory())
    ready.wait()


def workers(folder: Path, method: str, count: int, records: int, hold: bool) -> dict[str, float]:
    """Mean megabytes of `count` workers, that get the manifest as an argument, or none."""
    manifest = open_manifests(source(folder), folder / "index")["train"] if hold else None
    context = multiprocessing.get_context(method)
    ready, answers = context.Barrier(count), context.Queue()
    processes = [
        context.Process(target=work, args=(manifest, records, number, ready, answers)) for number in range(count)
    ]
    for process in processes:
        process.start()
    found = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    return {name: statistics.mean(each[name] for each in found) for name in FIELDS}


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=10_000_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--folder", help="where to put some gigabytes; a temporary one by default")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        measure(Path(name), asked.records, asked.workers)


def measure(folder: Path, records: int, count: int) -> None:
    path_bytes = write_listing(folder / "train.csv", records, 1) / records
    write_listing(folder / "val.csv", VAL_RECORDS, 2)
    listing = (folder / "train.csv").stat().st_size / records
    first = fresh(read_once, folder)
    on_disk = sum(path.stat().st_size for path in (folder / "index").rglob("train/*")) / records
    warm = statistics.median(fresh(open_again, folder, False) for _ in range(REPEATS))
    cold = statistics.median(fresh(open_again, folder, True) for _ in range(REPEATS))
    order = fresh(shuffle, records)
    rows = [
        ("records", f"{records:,}; paths of {path_bytes:.1f} bytes, lines of {listing:.1f}"),
        ("reading the listing, once", f"{first['seconds']:.1f} s, at most {first['peak']:,.0f} MB of memory"),
        ("on disk", f"{on_disk:.1f} bytes a record"),
        ("in memory, shared by all processes", f"{first['bytes']:.1f} bytes a record"),
        (
            f"as Python objects ({OBJECTS:,} of them)",
            f"{fresh(as_objects):.0f} bytes a record, in each process",
        ),
        ("opening it again", f"{warm:.2f} s; {cold:.2f} s where the file must be read from disk"),
        ("an epoch's order, first batch", f"{order['seconds']:.2f} s, {order['held']:.0f} MB held"),
        ("a batch of 256 among 8 ranks", f"{order['step'] * 1e6:.0f} us"),
    ]
    for method in ("fork", "spawn"):
        with_it, without = (fresh(workers, folder, method, count, records, hold) for hold in (True, False))
        more = {name: with_it[name] - without[name] for name in FIELDS}
        rows.append(
            (
                f"each of {count} workers, {method}",
                f"{more['Private_Dirty']:.1f} MB of its own; {more['Pss']:.1f} MB with its share of the file's pages, "
                f"of which {more['Private_Clean']:.1f} MB that no other process has touched",
            )
        )
    print("| what | cost |\n|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
