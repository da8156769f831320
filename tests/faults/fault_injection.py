"""Training runs that can be disturbed from outside, started in a fraction of a second.

Nothing of the program knows that it is tested: a child of the fork server is killed by signals, starved by a limit on
the size of its files or a full disk, and its files are damaged.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # experiments/reliability runs without pytest
from clock import TIMED
from fork_server import Child, server
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


def start_training(run: Path, *overrides: str, whole: bool = False, **environment: str) -> Child:
    """A run in the folder `run` with these overrides and environment variables.

    With `whole` it is the program with its command line, which Hydra takes seconds to read; else the task that this
    launches, of a configuration composed once.
    """
    env = {**os.environ, **environment}
    if whole:
        return server().start("train", f"run_dir={run}", *overrides, env=env)
    return server().start("train", *overrides, composed_for=run, env=env)


def step_now(run: Path) -> int:
    """The step of the newest row of a run's metrics; 0 where there is none."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return 0
    return json.loads(lines[-1])["step"] if lines else 0


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

    from vidtrain.training import checkpoint

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
