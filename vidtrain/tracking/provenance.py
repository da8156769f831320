"""Where a run came from: the machine, the packages and the exact code."""

import importlib.metadata
import os
import platform
import shlex
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vidtrain.files.atomic import write_json_atomic, write_text_atomic
from vidtrain.files.folders import IN_CHECKOUT, ROOT

GIT_TIMEOUT_S = 30
# By name, not by pattern: the environment holds keys and tokens too.
VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "LOCAL_RANK",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "RANK",
    "SLURM_JOB_ID",
    "SLURM_JOB_NODELIST",
    "SLURM_NTASKS",
    "SLURM_RESTART_COUNT",
    "WORLD_SIZE",
)


def write_provenance(run_dir: Path) -> None:
    """Write environment.json and git.json, and git.diff where the checkout differs from its commit.

    They tell of the latest start: a resumed run writes them anew.
    """
    git = git_state(ROOT) if IN_CHECKOUT else unknown_state("installed as a package, from no checkout")
    diff = git.pop("diff")
    write_json_atomic(run_dir / "environment.json", environment())
    write_json_atomic(run_dir / "git.json", git)
    if diff:
        write_text_atomic(run_dir / "git.diff", diff)
    else:
        (run_dir / "git.diff").unlink(missing_ok=True)


def environment() -> dict[str, Any]:
    """The interpreter, machine, devices, threads, packages and command line of this process."""
    import torch  # here, because this module is imported by programs that answer --help

    cuda = torch.cuda.is_available()
    return {
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
        "folder": str(Path.cwd()),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "cpus_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,  # with the build, such as +cu132
        "torch_threads": torch.get_num_threads(),
        "torch_interop_threads": torch.get_num_interop_threads(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else [],
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "packages": {
            dist.metadata["Name"]: dist.version
            for dist in sorted(
                importlib.metadata.distributions(), key=lambda dist: dist.metadata["Name"].lower()
            )
        },
    }


def git_state(repo: Path) -> dict[str, Any]:
    """Commit, branch, untracked files and the difference to the commit, as far as git can tell.

    `problem` says why nothing is known (no git, not a checkout, ...), or is None. `diff` leaves out
    the content of binary files.
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
        problem = "git is not installed"
    except subprocess.CalledProcessError as error:
        problem = error.stderr.strip() or f"git ended with status {error.returncode}"
        if "not a git repository" in problem:
            problem = "not a git checkout"
    except subprocess.TimeoutExpired:
        problem = f"git took longer than {GIT_TIMEOUT_S} s"
    return unknown_state(problem)


def unknown_state(problem: str) -> dict[str, Any]:
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
