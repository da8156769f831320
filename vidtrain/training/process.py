"""This process as its launcher started it: its rank and the address where the ranks connect, from the environment of
torchrun or SLURM; and the signals by which a scheduler or a user stops it.

This module needs no torch, so that a program can use it before its slow imports.
"""

import atexit
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn, Self, TypeVar

from vidtrain.errors import UserError

T = TypeVar("T")
# Ports below those that Linux assigns to outgoing connections (32768 and up)
FIRST_PORT, PORTS = 12000, 20000
SCONTROL_SECONDS, SCONTROL_TRIES, SCONTROL_PAUSE = 30.0, 6, 10.0


@dataclass(frozen=True)
class LaunchInfo:
    """One process among `world_size`, started by `launcher`: torchrun, slurm, local (submitit's) or alone."""

    launcher: str = "alone"
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def launch_info(environ: Mapping[str, str] = os.environ) -> LaunchInfo:
    """How this process was started. The variables of torchrun and of submitit's local jobs take precedence over
    SLURM's, since both may run within a SLURM job.

    Only the processes of a SLURM step (srun) are ranks. The batch script and an interactive shell also have the job's
    variables, but each of them is a single process.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        launch = LaunchInfo(
            "torchrun",
            int(environ["RANK"]),
            int(environ["WORLD_SIZE"]),
            _number(environ, "LOCAL_RANK", 0),
            _number(environ, "LOCAL_WORLD_SIZE", 1),
        )
        return launch if launch.world_size > 1 else LaunchInfo()
    if "SUBMITIT_EXECUTOR" in environ and environ["SUBMITIT_EXECUTOR"] == "local":
        tasks, rank = int(environ["SUBMITIT_LOCAL_NTASKS"]), int(environ["SUBMITIT_LOCAL_GLOBALID"])
        return LaunchInfo("local", rank, tasks, rank, tasks) if tasks > 1 else LaunchInfo()
    if _number(environ, "SLURM_STEP_NUM_TASKS", 1) == 1 or "SLURM_PROCID" not in environ:
        return LaunchInfo()
    by_node = tasks_per_node(environ["SLURM_STEP_TASKS_PER_NODE"])
    return LaunchInfo(
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


def master_address(environ: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Host and port where the ranks connect: `MASTER_ADDR` and `MASTER_PORT` if they are set, else rank 0's node.

    The port depends on the job, the step and the number of requeues, so an attempt never connects to processes of
    another attempt. Raises `UserError` if SLURM cannot tell the address of rank 0.
    """
    if "MASTER_PORT" in environ:
        port = int(environ["MASTER_PORT"])
    elif launch_info(environ).launcher == "local":
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
    """The output of `scontrol show`. It is tried several times, as a controller that has just lost a node answers
    late."""
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
        f"the address of rank 0 is unknown, because `{' '.join(command)}` failed ({cause}): set MASTER_ADDR to the "
        "address of the first node"
    ) from cause


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    return int(environ[name]) if name in environ else default


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- signals that stop a run ---------------------------------------------------------------------------------

EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: trying again may succeed
EXIT_INTERRUPTED = 130  # the status that shells report after Ctrl-C
# SLURM sends TERM when it preempts, requeues or ends a job, and USR1 or USR2 before that if the job asks for it
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Stopped(BaseException):
    """A signal ended the run early. It is not an `Exception`, so that no handler of errors catches it."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.status = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_STOPPED


class PreemptionHandler:
    """A context that handles the signals in `STOP_SIGNALS`, and restores the previous handlers at its end.

    Later signals are ignored, so that they do not interrupt saving; only Ctrl-C after another signal ends the process
    at once. Outside the main thread, where Python delivers no signals, the context does nothing.
    """

    def __init__(self) -> None:
        self.number: int | None = None  # number of the first signal received
        self._deferred = False
        self._previous_handlers: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous_handlers = {}

    @property
    def stop_requested(self) -> bool:
        return self.number is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A context in which a signal only sets the flag `stop_requested`, which the code inside must check. Raises
        `Stopped` at its end if the flag is set."""
        self._deferred = True
        yield  # after an exception, signals stay deferred: they must not interrupt the cleanup either
        self._deferred = False
        if self.stop_requested:
            self.raise_stopped()

    def keep_deferring(self) -> None:
        """From now on signals only set the flag, as the run is ending anyway."""
        self._deferred = True

    def raise_stopped(self) -> NoReturn:
        """Raises `Stopped` with the signal of this rank, or with SIGTERM if only another rank received one. All ranks
        must call it together."""
        raise Stopped(signal.SIGTERM if self.number is None else self.number)

    def until_stop_requested(self, items: Iterable[T]) -> Iterator[T]:
        """Yields `items` until a stop is requested."""
        for item in items:
            if self.stop_requested:
                return
            yield item

    def _handle(self, number: int, _: object) -> None:
        if self.stop_requested:
            if number == signal.SIGINT:
                os._exit(EXIT_INTERRUPTED)
            return
        self.number = number
        if not self._deferred:
            raise Stopped(number)


def leave_at_exit(status: int, seconds: float = 0.0) -> None:
    """Makes Python's exit end the process with `status`, after `seconds` more.

    The ordinary exit could wait for ranks that have ended, and a caller could have replaced the status by success.
    """

    def leave() -> None:
        time.sleep(seconds)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
