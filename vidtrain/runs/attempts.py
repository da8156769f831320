"""How attempts at a run end: outcome.json and attempts.jsonl in its folder, and whether a scheduler should try again.

outcome.json describes how the last attempt at an unfinished run ended. A finished run has a summary.json instead; a
killed one has neither. attempts.jsonl has rows for the start and the end of every attempt. An attempt exits with status
75 if a signal stopped it, or if it failed and may succeed when repeated. experiments/slurm/requeue.sh then puts its job
back into the queue, unless the flag file says that the end is final.
"""

import gc
import os
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.errors import DivergedError, Pruned, UserError
from vidtrain.files.atomic import JsonLines, read_json, read_json_lines, whole_lines, write_json_atomic
from vidtrain.files.escaping import shown_lines
from vidtrain.tracking.run_log import each_metric
from vidtrain.training.process import EXIT_STOPPED, PreemptionHandler, Stopped

if TYPE_CHECKING:  # importing torch takes seconds, which --help should not
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.heartbeat import RunEnd

OUTCOME, ATTEMPTS = "outcome.json", "attempts.jsonl"
OUTCOME_KEYS = ("status", "exception", "cause", "step", "ended", "traceback")
STARTED, STOPPED, FINISHED = "started", "stopped", "finished"
FAILED, DIVERGED, OUT_OF_MEMORY, PRUNED = "failed", "diverged", "out_of_memory", "pruned"
NO_MEMORY_ON_CPU = "DefaultCPUAllocator: can't allocate memory"  # PyTorch raises a plain RuntimeError there
REQUEUE_FLAG = "VIDTRAIN_VERDICT"  # variable set by requeue.sh: path of the flag file, which prevents a requeue
MAX_SILENT = 3  # attempts in a row that may end without a record and without progress
LOST = "lost"  # the signature of a lost rank


def outcome_of(error: BaseException) -> str:
    """The status of a run that ends with an exception: failed, diverged, out_of_memory or pruned."""
    if isinstance(error, Pruned):
        return PRUNED
    if isinstance(error, DivergedError):
        return DIVERGED
    # torch.OutOfMemoryError is compared by name, so that reading outcomes does not import torch
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if named or isinstance(error, MemoryError) or NO_MEMORY_ON_CPU in str(error):
        return OUT_OF_MEMORY
    return FAILED


def record_outcome(folder: Path, error: BaseException) -> None:
    """Writes outcome.json for an attempt that `error` ended. If it cannot be written, `error` gets a note."""
    expected = isinstance(error, UserError | Pruned)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        outcome = {
            "status": outcome_of(error),
            "exception": type(error).__name__,
            "cause": str(error) or type(error).__name__,
            "step": last_step(folder),
            "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
            "traceback": None if expected else "".join(traceback.format_exception(error)),
        }
        write_json_atomic(folder / OUTCOME, outcome)
    except (OSError, UserError) as refusal:
        error.add_note(f"{folder / OUTCOME} could not be written: {refusal}")


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """The content of outcome.json, or None if there is none. Raises `UserError` if the file is damaged."""
    path = folder / OUTCOME
    if not path.is_file():
        return None
    return read_json(path, "delete it, and the trial runs again", OUTCOME_KEYS)


def clear_outcome(folder: Path) -> None:
    (folder / OUTCOME).unlink(missing_ok=True)


def last_step(folder: Path) -> int | None:
    """The last optimizer step in the logs, or None."""
    steps = []
    if (folder / "metrics.jsonl").is_file():  # the closing row has no phase, and a step after the last one
        steps += [row["step"] for row in each_metric(folder) if "phase" in row]
    table = folder / "steps_rank0.csv"
    if table.is_file():
        last = [row.partition(",")[0] for row in whole_lines(table).splitlines()[-1:]]
        steps += [int(step) for step in last if step.isdigit()]  # unless only the header is there
    return max(steps, default=None)


def free_cuda_memory(error: BaseException) -> None:
    """Frees what the frames of an exception refer to, such as a model on the GPU, whose memory the next trial needs."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


# --- attempts ---------------------------------------------------------------------------------------------


@contextmanager
def write_requeue_flag() -> Iterator[None]:
    """A context that writes a final end, finished or failed, into the flag file, if a scheduler has asked for one."""
    try:
        yield
    except BaseException as error:
        requeue = isinstance(error, Stopped) or (isinstance(error, SystemExit) and error.code == EXIT_STOPPED)
        if not requeue:
            _write_flag(FAILED)
        raise
    _write_flag(FINISHED)


def _write_flag(ending: str) -> None:
    if REQUEUE_FLAG in os.environ:
        Path(os.environ[REQUEUE_FLAG]).write_text(ending + "\n", encoding="utf-8")


class RunAttempt:
    """One attempt at the run in `folder`, by all ranks. Rank 0 writes its rows in attempts.jsonl; the first rank to
    fail writes the row of the failure."""

    def __init__(self, folder: Path, ranks: "Ranks"):
        self.folder = folder
        self.ranks = ranks
        self._step: int | None = None  # the step at which it starts, once known
        # read once, on rank 0: another rank may write to the file later
        self._earlier: list[dict[str, Any]] = list(ranks.on_main(lambda: read_attempts(folder)))

    def begin(self, step: int) -> None:
        """Records that the attempt starts at `step`. Raises `UserError` under a scheduler if the last attempts all
        started at this step and left no record of their end, as after a crash."""
        self._step = step
        silent = 0
        for row in reversed(self._earlier):
            if row["event"] != STARTED or row["step"] != step:
                break
            silent += 1
        if REQUEUE_FLAG in os.environ and silent >= MAX_SILENT:
            raise UserError(
                f"{silent} attempts in a row ended without a record at step {step} of the run in {self.folder}, so it "
                "is not tried again. The end of their output shows the cause: a crash, or too little memory"
            )
        if self.ranks.is_main:
            job = os.environ["SLURM_JOB_ID"] if "SLURM_JOB_ID" in os.environ else None
            restart = int(os.environ["SLURM_RESTART_COUNT"]) if "SLURM_RESTART_COUNT" in os.environ else 0
            self.record(STARTED, ranks=self.ranks.world_size, job=job, restart=restart)

    def record(self, event: str, **more: Any) -> None:
        """Adds a row to attempts.jsonl. For the end of an attempt, `step` is the last step in the logs, and `from` is
        the step at which it started."""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        row: dict[str, Any] = {"event": event, "time": now}
        row |= {"step": self._step} if event == STARTED else {"step": self._reached(), "from": self._step}
        ledger = JsonLines(self.folder / ATTEMPTS)
        try:
            ledger.append({**row, "host": socket.gethostname(), "pid": os.getpid(), **more})
            ledger.close()
        except UserError as error:  # a full disk must not hide the cause of the end
            print(shown_lines(f"warning: {error}"), file=sys.stderr, flush=True)

    def _reached(self) -> int | None:
        if self._step is None:
            return None
        try:
            return max(last_step(self.folder) or 0, self._step)
        except (OSError, UserError):
            # the failure may have damaged the logs; it is recorded anyway
            return self._step

    def status_after(self, signature: str) -> int:
        """The exit status after a failure: 75 if a scheduler should try again, else 1. It is 1 if the previous attempt
        failed with the same signature at the same step. A lost rank is usually not the program's fault, so such an
        attempt is repeated up to `MAX_SILENT` times."""
        if REQUEUE_FLAG not in os.environ:
            return 1
        same = 0
        for row in reversed([row for row in self._earlier if row["event"] == FAILED]):
            start = row["from"] if "from" in row else row["step"]  # old rows have no `from`
            if (row["signature"], start) != (signature, self._step):
                break
            same += 1
        return 1 if same >= (MAX_SILENT if signature == LOST else 1) else EXIT_STOPPED

    def end_failed(self, error: Exception) -> None:
        """Ends the process, or returns if the caller should raise `error`. The first rank to fail records it."""
        monitor, is_user_error = self.ranks.monitor, isinstance(error, UserError)
        signature = signature_of(error)
        status = 2 if is_user_error else self.status_after(signature)
        if monitor is not None:
            run_end = monitor.end_after(error, status)
            if not monitor.should_report(error, run_end):
                line = shown_lines(f"error: rank {self.ranks.rank} ends, as {run_end.message}")
                print(line, file=sys.stderr, flush=True)
                sys.exit(run_end.status)
            if run_end.rank != self.ranks.rank:
                return
            if not self.ranks.is_main:
                record_outcome(self.folder, error)
            if not is_user_error:
                print(f"error: rank {self.ranks.rank} of {self.ranks.world_size} failed", file=sys.stderr)
        requeue = status == EXIT_STOPPED
        self.record(
            FAILED,
            rank=self.ranks.rank,
            signature=signature,
            again=requeue,
            cause=f"{type(error).__name__}: {error}",
            traceback=None if is_user_error else "".join(traceback.format_exception(error)),
        )
        if requeue:
            print(shown_lines("".join(traceback.format_exception(error))), file=sys.stderr)
            print("error: the job goes back into the queue, once", file=sys.stderr, flush=True)
            sys.exit(status)

    def record_lost(self, run_end: "RunEnd") -> None:
        """Records that another rank was lost."""
        requeue = run_end.status == EXIT_STOPPED
        if not requeue:
            _write_flag(FAILED)  # the process may end before `write_requeue_flag` writes it
        self.record(FAILED, rank=run_end.rank, signature=LOST, again=requeue, cause=run_end.message, traceback=None)


@contextmanager
def run_attempt(folder: Path, ranks: "Ranks", preemption: PreemptionHandler) -> Iterator[RunAttempt]:
    """A context in which the ranks of a run end together, and attempts.jsonl records how."""
    attempt = RunAttempt(folder, ranks)
    if ranks.monitor is not None:
        ranks.monitor.stop_signal = lambda: preemption.number
        ranks.monitor.lost_status = lambda: attempt.status_after(LOST)
        ranks.monitor.on_lost = attempt.record_lost
    try:
        yield attempt
    except Stopped as stop:
        if ranks.is_main:
            from vidtrain.config.overrides import quoted

            attempt.record(STOPPED, signal=str(stop))
            command = f"python -m vidtrain.train {quoted('run_dir', str(folder))}"
            print(shown_lines(f"stopped by {stop}; to go on: {command}"), file=sys.stderr, flush=True)
        sys.exit(stop.status)
    except Pruned:
        if ranks.is_main:
            attempt.record(PRUNED)
        raise
    except Exception as error:
        preemption.keep_deferring()  # a scheduler signals the other ranks as soon as one has failed
        attempt.end_failed(error)
        raise
    if ranks.is_main:
        attempt.record(FINISHED)


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's attempts.jsonl, oldest first."""
    path = folder / ATTEMPTS
    return read_json_lines(path) if path.is_file() else []


def signature_of(error: BaseException) -> str:
    """A text that is equal for equal failures: the exception's type and the line that raised it. Messages are not part
    of it, as they hold numbers that change."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
