"""The log files in a run's folder. Every rank calls every method; `RunLog` decides which rank writes which file.

metrics.jsonl         rank 0      one row per call of `log`; the complete record, of which loggers hold a copy
summary.json          rank 0      the final numbers
steps_rank{r}.csv     each rank   one row per optimizer step
faults_rank{r}.jsonl  each rank   videos that could not be read

`write_provenance` adds the machine, packages and code of the run: environment.json, git.json and git.diff.
"""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.atomic import JsonLines, Ledger, StepTable, each_json_line, write_json_atomic, write_text_atomic
from vidtrain.files.escaping import shown
from vidtrain.files.folders import IN_CHECKOUT, ROOT
from vidtrain.tracking.console import Console, NullConsole
from vidtrain.tracking.logger_process import Loggers, Metric

FAULTS_SHOWN = 20  # at most this many unreadable videos are named on the console
MAX_WAITING_ROWS = 100_000  # of a file, in memory, while the disk is full: about 10 MB


class RunLog:
    """The log files of one rank. The program has started `loggers`; on other ranks than 0 there are none. Images, pages
    and checkpoints go to `loggers` alone.

    A full disk does not end the run: at most `MAX_WAITING_ROWS` rows of each file wait in memory until there is space.
    """

    def __init__(self, run_dir: Path, loggers: Loggers, console: Console | NullConsole, is_main: bool, rank: int):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.loggers = loggers if is_main else Loggers({})
        self.console = console
        self.is_main = is_main
        self._metrics = JsonLines(run_dir / "metrics.jsonl", MAX_WAITING_ROWS)
        self._steps = StepTable(run_dir / f"steps_rank{rank}.csv", most_held=MAX_WAITING_ROWS)
        self._faults = JsonLines(run_dir / f"faults_rank{rank}.jsonl", MAX_WAITING_ROWS)
        self._ledgers = (self._metrics, self._steps, self._faults)
        self._waiting_files: set[Path] = set()
        self._unreadable: set[str] = set()
        self.last_step = 0  # the last step whose numbers were logged

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Records numbers that are known after optimizer step `step`. Non-finite numbers are written as null."""
        self.last_step = step
        if self.is_main:
            self._metrics.append({"step": step, **metrics})
            self._watch(self._metrics)
            self.loggers.log(metrics, step)

    def step(self, row: Mapping[str, Metric]) -> None:
        """Records one optimizer step of this rank; the row has a "step" and always the same keys."""
        self._steps.append(row)
        self._watch(self._steps)

    def fault(self, path: str, cause: str, step: int, split: str) -> None:
        """Records a video that could not be read. The console shows each video once, and only the first few."""
        self._faults.append({"step": step, "split": split, "path": path, "cause": cause})
        self._watch(self._faults)
        if path in self._unreadable:
            return
        self._unreadable.add(path)
        if len(self._unreadable) <= FAULTS_SHOWN:
            self.console.warn(f"unreadable video in {split}: {shown(path)} ({shown(cause)})")
        if len(self._unreadable) == FAULTS_SHOWN:
            self.console.warn(f"further unreadable videos are named only in {self._faults.path}")

    def summary(self, values: Mapping[str, Any]) -> None:
        """Records the final numbers, in place of any earlier ones."""
        if self.is_main:
            write_json_atomic(self.run_dir / "summary.json", values)
            self.loggers.summary(values)

    def rewind(self, step: int, world_size: int) -> None:
        """Drops all rows after `step`, from which the run resumes, now with `world_size` ranks.

        So the files end up like those of a run that was never interrupted. If the earlier attempt had more ranks, rank
        0 also rewinds the files of the additional ranks.
        """
        if self.is_main:
            self._metrics.keep(lambda row: row["step"] <= step)
            for table in self.run_dir.glob("steps_rank*.csv"):
                rank = int(table.stem.removeprefix("steps_rank"))
                if rank >= world_size:
                    StepTable(table).rewind(step)
                    JsonLines(self.run_dir / f"faults_rank{rank}.jsonl").keep(lambda row: row["step"] <= step)
        self._steps.rewind(step)
        self._faults.keep(lambda row: row["step"] <= step)

    def flush(self) -> str | None:
        """Writes every row to the disk; returns why that failed, or None. To be called before a checkpoint is saved: a
        run resumed from it does not write these rows again."""
        for ledger in self._ledgers:
            ledger.flush()
            self._watch(ledger)
        troubles = [f"{ledger.path}: {ledger.trouble}" for ledger in self._ledgers if ledger.trouble is not None]
        return "; ".join(troubles) or None

    def close(self, status: str) -> None:
        """Closes the files and loggers; `status` is as in `Logger.close`. Logging afterwards opens the files again.

        Rows that wait because the disk is full are lost: that raises UserError, or warns if the run has failed anyway.
        """
        lost = []
        for ledger in self._ledgers:
            try:
                ledger.close()
            except UserError as error:
                lost.append(str(error))
        self.loggers.close("failed" if lost else status)
        if lost and status == "finished":
            raise UserError("\n".join(lost))
        for message in lost:
            self.console.warn(message)

    def _watch(self, ledger: Ledger) -> None:
        """Prints a message when rows begin to wait in memory, and another when they are written."""
        if ledger.trouble is not None and ledger.path not in self._waiting_files:
            self._waiting_files.add(ledger.path)
            self.console.warn(
                f"cannot write {ledger.path} ({ledger.trouble}): its rows wait in memory, and the run goes on; free "
                "some space"
            )
        elif ledger.trouble is None and ledger.path in self._waiting_files:
            self._waiting_files.discard(ledger.path)
            self.console.info(f"{ledger.path} is written again, with every row that waited")


class NullRunLog:
    """A log that records nothing, for the steps of the benchmark."""

    def log(self, metrics: Mapping[str, object], step: int) -> None: ...
    def step(self, row: Mapping[str, object]) -> None: ...
    def flush(self) -> str | None: ...
    def fault(self, path: str, cause: str, step: int, split: str) -> None: ...


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first. The run may still be writing them."""
    return list(each_metric(run_dir))


def each_metric(run_dir: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of `read_metrics` one at a time: a long run has millions."""
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a folder: give the folder of a run.")
    path = run_dir / "metrics.jsonl"
    return each_json_line(path) if path.exists() else iter(())


# --- provenance: the machine, the packages and the exact code ---------------------------------------------

GIT_TIMEOUT_S = 30
# Environment variables that are recorded. A pattern instead of names could match keys and tokens
VARIABLES = (
    *("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "RANK", "SLURM_JOB_ID"),
    *("SLURM_JOB_NODELIST", "SLURM_NTASKS", "SLURM_RESTART_COUNT", "WORLD_SIZE"),
)


def write_provenance(run_dir: Path) -> None:
    """Writes environment.json and git.json, and git.diff if the checkout differs from its commit.

    They describe the latest start: a resumed run overwrites them.
    """
    git = git_state(ROOT) if IN_CHECKOUT else _unknown_state("installed as a package, from no checkout")
    diff = git.pop("diff")
    write_json_atomic(run_dir / "environment.json", environment())
    write_json_atomic(run_dir / "git.json", git)
    if diff:
        write_text_atomic(run_dir / "git.diff", diff)
    else:
        (run_dir / "git.diff").unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """The interpreter, machine, devices, threads, packages and command line of this process."""
    import torch  # here, because programs import this module for --help, which must be fast

    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    packages = _installed()
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,  # includes the build, such as +cu132
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": [torch.cuda.get_device_name(device) for device in devices],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "packages": {name: packages[name] for name in sorted(packages, key=str.lower)},
    }


@cache
def _installed() -> dict[str, str]:
    """The version of every installed package. It is cached, as a process may run many trials of a sweep."""
    return {package.metadata["Name"]: package.version for package in importlib.metadata.distributions()}


def git_state(repo: Path) -> dict[str, Any]:
    """Commit, branch, untracked files, and the diff to the commit without the content of binary files.

    `problem` says why they are not known (git is not installed, not a checkout, ...), or is None.
    """
    try:
        status = _git(repo, "status", "--porcelain=v2", "--branch", "--untracked-files=all").splitlines()
        head = dict(line[2:].split(" ", 1) for line in status if line.startswith("# "))
        has_commit = head["branch.oid"] != "(initial)"
        return {
            "commit": head["branch.oid"] if has_commit else None,
            "branch": head["branch.head"] if head["branch.head"] != "(detached)" else None,
            "dirty": any(not line.startswith("# ") for line in status),
            "untracked": [line[2:] for line in status if line.startswith("? ")],
            "diff": _git(repo, "diff", "--no-color", "--no-ext-diff", "HEAD" if has_commit else "--cached"),
            "problem": None,
        }
    except FileNotFoundError:
        return _unknown_state("git is not installed")
    except subprocess.TimeoutExpired:
        return _unknown_state(f"git took longer than {GIT_TIMEOUT_S} s")
    except subprocess.CalledProcessError as error:
        problem = error.stderr.strip() or f"git ended with status {error.returncode}"
        return _unknown_state("not a git checkout" if "not a git repository" in problem else problem)


def _unknown_state(problem: str) -> dict[str, Any]:
    return {"commit": None, "branch": None, "dirty": None, "untracked": [], "diff": "", "problem": problem}


def _git(repo: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(repo), *arguments],
        capture_output=True,
        check=True,
        encoding="utf-8",
        errors="replace",
        timeout=GIT_TIMEOUT_S,
        env={**os.environ, "LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0"},
    ).stdout
