"""This process's rank, and the address where the ranks connect, from the environment of torchrun or SLURM.

This module needs no torch, so that a program can call it before it imports torch.
"""

import os
import re
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vidtrain.errors import UserError

# Ports below those that Linux assigns to outgoing connections (32768 and up)
FIRST_PORT, PORTS = 12000, 20000
SCONTROL_SECONDS, SCONTROL_TRIES, SCONTROL_PAUSE = 30.0, 6, 10.0


@dataclass(frozen=True)
class Place:
    """One process among `world_size`, started by `launcher`: torchrun, slurm, local (submitit's) or alone."""

    launcher: str = "alone"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def find_place(environ: Mapping[str, str] = os.environ) -> Place:
    """This process's place. The variables of torchrun, and of submitit's local jobs, come before those of SLURM, as
    both may run within a SLURM job.

    Only processes of a SLURM step (srun) are its tasks. The batch script and an interactive shell have the job's
    variables, too, but each is a single process.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        place = Place(
            "torchrun",
            int(environ["RANK"]),
            int(environ["WORLD_SIZE"]),
            _number(environ, "LOCAL_RANK", 0),
            _number(environ, "LOCAL_WORLD_SIZE", 1),
        )
        return place if place.world_size > 1 else Place()
    if "SUBMITIT_EXECUTOR" in environ and environ["SUBMITIT_EXECUTOR"] == "local":
        tasks, rank = int(environ["SUBMITIT_LOCAL_NTASKS"]), int(environ["SUBMITIT_LOCAL_GLOBALID"])
        return Place("local", rank, tasks, rank, tasks) if tasks > 1 else Place()
    if _number(environ, "SLURM_STEP_NUM_TASKS", 1) == 1 or "SLURM_PROCID" not in environ:
        return Place()
    by_node = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    return Place(
        "slurm",
        int(environ["SLURM_PROCID"]),
        int(environ["SLURM_STEP_NUM_TASKS"]),
        int(environ["SLURM_LOCALID"]),
        by_node[int(environ["SLURM_NODEID"])],
    )


def tasks_per_node(text: str) -> list[int]:
    """Expands SLURM's short form: `2(x3),1` is [2, 2, 2, 1]."""
    counts = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text} cannot be read; was it set by hand?")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def meeting_point(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port where the ranks connect: `MASTER_ADDR` and `MASTER_PORT` if they are set, else rank 0's node.

    The port depends on the job, the step and the number of requeues, so that no attempt connects to the processes of
    another one. Raises `UserError` if SLURM cannot tell the address of rank 0.
    """
    if "MASTER_PORT" in environ:
        port = int(environ["MASTER_PORT"])
    elif find_place(environ).launcher == "local":
        return "127.0.0.1", FIRST_PORT + int(environ["SUBMITIT_LOCAL_JOB_ID"]) % PORTS
    else:
        job, step = int(environ["SLURM_JOB_ID"]), int(environ["SLURM_STEP_ID"])
        port = FIRST_PORT + (job * 131 + step * 17 + _number(environ, "SLURM_RESTART_COUNT", 0)) % PORTS
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"], port
    if environ["SLURM_STEP_NUM_NODES"] == "1":
        return "127.0.0.1", port
    first = _scontrol("hostnames", environ["SLURM_STEP_NODELIST"]).split()[0]
    # The name of a node may not resolve; its address always works
    address = re.search(r"\bNodeAddr=(\S+)", _scontrol("node", first))
    return address[1] if address else first, port


def _scontrol(*arguments: str) -> str:
    """The output of `scontrol show`. It is tried several times: a controller that has just lost a node answers late."""
    command = ["scontrol", "--oneliner", "show", *arguments]
    for attempt in range(SCONTROL_TRIES):
        if attempt:
            time.sleep(SCONTROL_PAUSE)
        try:
            return subprocess.run(
                command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=SCONTROL_SECONDS
            ).stdout
        except subprocess.SubprocessError as error:
            cause: Exception = error
        except OSError as error:
            cause = error
            break
    raise UserError(
        f"where the ranks meet is not known, as `{' '.join(command)}` failed ({cause}): set MASTER_ADDR to the "
        "address of the first node"
    ) from cause


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    return int(environ[name]) if name in environ else default


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
