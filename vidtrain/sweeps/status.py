"""The state of each trial of a sweep, read from its folder: while trials run, and from any machine."""

import math
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidtrain.files.folders import holder, is_held
from vidtrain.runs.attempts import DIVERGED, FAILED, OUT_OF_MEMORY, PRUNED, read_outcome
from vidtrain.runs.folder import finished, stored_settings
from vidtrain.sweeps.record import SweepRecord, Trial
from vidtrain.tracking.console import format_seconds
from vidtrain.tracking.run_log import read_metrics
from vidtrain.training.schedules import steps

FINISHED, WAITING, QUEUED, RUNNING, STALLED = "finished", "waiting", "queued", "running", "stalled"
FAULTY = (FAILED, DIVERGED, OUT_OF_MEMORY)
ENDED = (FINISHED, PRUNED, *FAULTY)
ORDER = (RUNNING, QUEUED, WAITING, STALLED, FINISHED, PRUNED, *FAULTY)
CAUSE_LENGTH = 100
SQUEUE_SECONDS = 10


@dataclass(frozen=True)
class TrialState:
    """`state` is waiting (not launched); queued (in SLURM); running; stalled (neither ended nor running: no process
    holds its folder); finished; pruned; failed, diverged or out_of_memory, with the `cause`."""

    number: int
    state: str
    objective: float | None = None  # best value on val of a finished trial; the last one of any other
    step: int | None = None
    total: int | None = None  # number of steps, if no phase ends early
    age: float | None = None  # seconds since its last log row
    minutes: float | None = None  # of training so far
    where: str | None = None  # the process that runs it, or its queued SLURM job
    cause: str | None = None

    def words(self, objective: str) -> str:
        """The state for a line of the log, such as `finished, best val top1 0.9300`."""
        if self.state == FINISHED:
            return f"{self.state}, best val {objective} {self.objective:.4f}"
        at = f" at step {self.step}" if self.step is not None else ""
        return f"{self.state.replace('_', ' ')}{at}" + (f": {shortened(self.cause)}" if self.cause else "")


def trial_state(
    sweep: Path, trial: Trial, objective: str | None = None, jobs: dict[str, str] | None = None
) -> TrialState:
    """The state of one trial. `objective` is the metric whose last value is shown; `jobs` comes from `slurm_jobs`."""
    folder = sweep / trial.folder
    # Read before the result: a run that ends in between then counts as finished, and is not launched once more
    held = is_held(folder)
    done = finished(folder)
    if done is not None:
        return TrialState(trial.number, FINISHED, done["best"], done["steps"], done["steps"], minutes=done["minutes"])
    ended = None if held else read_outcome(folder)
    metrics_file = folder / "metrics.jsonl"
    rows = read_metrics(folder) if metrics_file.is_file() else []
    values = [row[f"val/{objective}"] for row in rows if f"val/{objective}" in row]
    state = TrialState(
        trial.number,
        WAITING,
        objective=values[-1] if values else None,
        step=max((row["step"] for row in rows), default=None),
        total=_total_steps(folder, rows),
        minutes=max((row["time/total_s"] / 60 for row in rows if "time/total_s" in row), default=None),
    )
    waiting = [] if held or not jobs else [job for job in _jobs_of(sweep, trial) if job in jobs]
    if jobs and waiting:  # even if an earlier attempt has failed: the job tries again
        return replace(state, state=QUEUED, where=f"job {waiting[0]}, {jobs[waiting[0]].lower()}")
    if ended is not None:
        cause = " ".join(ended["cause"].split())
        if ended["status"] not in (PRUNED, DIVERGED) and ended["exception"] not in ("UserError", cause):
            cause = f"{ended['exception']}: {cause}"
        return replace(state, state=ended["status"], cause=cause)
    if held:
        written = max(path.stat().st_mtime for path in (metrics_file, folder / ".lock") if path.exists())
        where = holder(folder).partition(",")[0]
        return replace(state, state=RUNNING, age=time.time() - written, where=where)
    if (folder / "run.json").is_file():
        return replace(state, state=STALLED, age=time.time() - metrics_file.stat().st_mtime if rows else None)
    return TrialState(trial.number, WAITING)


def _total_steps(folder: Path, rows: Sequence[dict[str, Any]]) -> int | None:
    """The total number of steps of a run, from its settings and from the steps per epoch of its log rows."""
    last = next((row for row in reversed(rows) if "epoch" in row and row["epoch"]), None)
    if last is None:
        return None
    settings = stored_settings(folder)
    per_epoch = round(last["step"] / last["epoch"])
    durations = [value for key, value in settings.items() if key.startswith("stage.") and key.endswith(".duration")]
    return sum(steps(duration, settings["trainer.epochs"] * per_epoch, per_epoch) for duration in durations)


# --- jobs that wait in SLURM --------------------------------------------------------------------------------


def _jobs_of(sweep: Path, trial: Trial) -> list[str]:
    """The ids of the jobs that were submitted for a trial, the latest first."""
    folder = sweep / ".submitit" / str(trial.number)
    if not folder.is_dir():
        return []
    return [job.name for job in sorted(folder.iterdir(), key=lambda job: job.stat().st_mtime, reverse=True)]


def forget_results(sweep: Path, trial: Trial) -> None:
    """Removes the pickles of earlier jobs before a trial is launched. Submitit would load one with the id of the next
    job, and somebody else may have written it. The jobs' folders stay, so their ids are still known."""
    folder = sweep / ".submitit" / str(trial.number)
    for link in (folder.parent, folder):
        if link.is_symlink():  # its target is outside of the sweep
            link.unlink()
    for job in folder.iterdir() if folder.is_dir() else ():
        if job.is_symlink() or not job.is_dir():
            job.unlink()
        else:
            for pickle_file in job.glob("*.pkl"):
                pickle_file.unlink()


def slurm_jobs(sweep: Path) -> dict[str, str] | None:
    """State of all the user's jobs that SLURM lists, by job id; None without SLURM, or if this sweep submitted none."""
    if shutil.which("squeue") is None or not (sweep / ".submitit").is_dir():
        return None
    command = ["squeue", "--noheader", "--me", "--format=%i %T"]
    try:
        squeue = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=SQUEUE_SECONDS, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return None  # SLURM does not answer: the states follow from the folders alone
    lines = (line.split(maxsplit=1) for line in squeue.stdout.splitlines() if " " in line)
    return {job: state for job, state in lines}


# --- all trials of a sweep ----------------------------------------------------------------------------------


def states_of(folder: Path, record: SweepRecord, jobs: dict[str, str] | None = None) -> list[TrialState]:
    """The state of every trial. `jobs` comes from `slurm_jobs`; without it, no trial counts as queued."""
    return [trial_state(folder, trial, record.objective, jobs) for trial in record.trials]


def table_of(
    folder: Path, record: SweepRecord, states: Sequence[TrialState]
) -> tuple[str, list[str], list[list[Any]], list[str]]:
    """Title, columns and rows of a table for the console, and lines to print below it."""
    counts = Counter(state.state for state in states)
    summary = ", ".join(f"{counts[state]} {state.replace('_', ' ')}" for state in ORDER if counts[state])
    to_come = record.planned - len(states)
    more = f", {to_come} to be drawn" if to_come > 0 else ""
    finished_states = [state for state in states if state.state == FINISHED]
    objectives = {state.number: state.objective for state in finished_states if state.objective is not None}
    best = record.best(objectives)
    columns = ["trial", *map(_short, record.keys), "state", "step", f"val {record.objective}", ""]
    rows = []
    for trial, state in zip(record.trials, states, strict=True):
        values = trial.values()
        step = None if state.step is None else f"{state.step}/{state.total or '?'}"
        rows.append(
            [
                trial.number,
                *(_number(values[key]) if key in values else None for key in record.keys),
                state.state.replace("_", " "),
                step,
                None if state.objective is None else f"{state.objective:.4f}",
                "best" if trial.number == best else _remark(state),
            ]
        )
    below, quoted = [], shlex.quote(str(folder))
    if best is not None:
        swept = next(trial for trial in record.trials if trial.number == best).text(record.keys)
        below.append(f"best on val: trial {best}, {record.objective} {objectives[best]:.4f}: {swept}")
    left = _seconds_left(record, states)
    if left is not None:
        below.append(f"about {format_seconds(left)} left, at the mean time of finished trials")
    unfinished = [state for state in states if state.state in (WAITING, STALLED)]
    if is_held(folder):
        below.append(f"running: {holder(folder)}")
    elif to_come > 0 or unfinished:
        below.append(f"to run the missing trials: python -m vidtrain.sweep resume {quoted}")
    if any(state.state in FAULTY for state in states):
        below.append(f"to run failed trials again: python -m vidtrain.sweep resume {quoted} retry=true")
    if counts[FINISHED] > 1:
        below.append(f"to compare: python -m vidtrain.compare {quoted}")
    return f"{len(states)} trial{'' if len(states) == 1 else 's'}: {summary}{more}", columns, rows, below


def _remark(state: TrialState) -> str:
    if state.cause is not None:
        return shortened(state.cause)
    parts = [state.where] if state.where else []
    if state.age is not None:
        parts.append(f"last row {format_seconds(state.age)} ago")
    if state.state == RUNNING and state.minutes and state.step and state.total:
        left = state.minutes * 60 * (state.total - state.step) / state.step
        parts.append(f"{format_seconds(left)} left")
    return ", ".join(parts)


def shortened(cause: str) -> str:
    return cause if len(cause) <= CAUSE_LENGTH else f"{cause[: CAUSE_LENGTH - 1]}…"


def _seconds_left(record: SweepRecord, states: Sequence[TrialState]) -> float | None:
    """Estimated seconds until all trials are done, if as many run at a time as now and take the mean time of finished
    trials; None without a running and a finished trial."""
    minutes = [state.minutes for state in states if state.state == FINISHED and state.minutes]
    running = [state for state in states if state.state == RUNNING]
    if not minutes or not running:
        return None
    mean_seconds = sum(minutes) / len(minutes) * 60
    waiting = sum(state.state in (WAITING, QUEUED, STALLED) for state in states) + record.planned - len(states)
    remaining = sum(1 - state.step / state.total if state.step and state.total else 1.0 for state in running)
    seconds = mean_seconds * (waiting + remaining) / len(running)
    return seconds if math.isfinite(seconds) else None


def _short(key: str) -> str:
    return key.lstrip("+~").rsplit(".", 1)[-1]


def _number(text: str) -> str:
    """A value for the table: a long number, such as a drawn 0.00031622776601683794, with four digits."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if len(text) <= 8 else f"{value:.4g}"
