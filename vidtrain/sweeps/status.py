"""Where each trial of a sweep stands, read from its folder alone: beside the running trials, and from any machine."""

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
    """`state` is waiting; queued (in SLURM); running; stalled (begun, not ended, and no process holds its folder);
    finished; pruned; failed, diverged or out_of_memory, with the `cause`."""

    number: int
    state: str
    objective: float | None = None  # the best on val, of one that finished; of another, its last validation
    step: int | None = None
    total: int | None = None  # steps, where no phase ends early
    age: float | None = None  # seconds since it last logged anything
    minutes: float | None = None  # of training so far
    where: str | None = None  # the process that runs it, or the SLURM job that waits
    cause: str | None = None

    def words(self, objective: str) -> str:
        """As a line of a log: `finished, best val top1 0.9300`"""
        if self.state == FINISHED:
            return f"{self.state}, best val {objective} {self.objective:.4f}"
        at = f" at step {self.step}" if self.step is not None else ""
        return f"{self.state.replace('_', ' ')}{at}" + (f": {shortened(self.cause)}" if self.cause else "")


def trial_state(
    sweep: Path, trial: Trial, objective: str | None = None, jobs: dict[str, str] | None = None
) -> TrialState:
    """The state of one trial. `objective` is the metric of which the last is shown, `jobs` what `slurm_jobs` gave."""
    folder = sweep / trial.folder
    # first, so that a run which ends meanwhile counts as finished and is not launched once more
    held = is_held(folder)
    done = finished(folder)
    if done is not None:
        return TrialState(
            trial.number, FINISHED, done["best"], done["steps"], done["steps"], minutes=done["minutes"]
        )
    ended = None if held else read_outcome(folder)
    logged = folder / "metrics.jsonl"
    rows = read_metrics(folder) if logged.is_file() else []
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
    if jobs and waiting:  # perhaps to try again what failed
        return replace(state, state=QUEUED, where=f"job {waiting[0]}, {jobs[waiting[0]].lower()}")
    if ended is not None:
        cause = " ".join(ended["cause"].split())
        if ended["status"] not in (PRUNED, DIVERGED) and ended["exception"] not in ("UserError", cause):
            cause = f"{ended['exception']}: {cause}"
        return replace(state, state=ended["status"], cause=cause)
    if held:
        written = max(path.stat().st_mtime for path in (logged, folder / ".lock") if path.exists())
        where = holder(folder).partition(",")[0]
        return replace(state, state=RUNNING, age=time.time() - written, where=where)
    if (folder / "run.json").is_file():
        return replace(state, state=STALLED, age=time.time() - logged.stat().st_mtime if rows else None)
    return TrialState(trial.number, WAITING)


def _total_steps(folder: Path, rows: Sequence[dict[str, Any]]) -> int | None:
    """How many steps the run is to make, from its settings and a row that says how far its epochs are."""
    last = next((row for row in reversed(rows) if "epoch" in row and row["epoch"]), None)
    if last is None:
        return None
    settings = stored_settings(folder)
    per_epoch = round(last["step"] / last["epoch"])
    durations = [
        value for key, value in settings.items() if key.startswith("stage.") and key.endswith(".duration")
    ]
    return sum(steps(duration, settings["trainer.epochs"] * per_epoch, per_epoch) for duration in durations)


# --- jobs that wait in SLURM --------------------------------------------------------------------------------


def _jobs_of(sweep: Path, trial: Trial) -> list[str]:
    """The ids of the jobs that were submitted for a trial, the latest first."""
    folder = sweep / ".submitit" / str(trial.number)
    if not folder.is_dir():
        return []
    return [job.name for job in sorted(folder.iterdir(), key=lambda job: job.stat().st_mtime, reverse=True)]


def forget_results(sweep: Path, trial: Trial) -> None:
    """Removes what earlier jobs of a trial that is to be launched have left as pickles: submitit would open one with
    the number of the next job, and the folder may be from elsewhere. The jobs themselves are still known."""
    folder = sweep / ".submitit" / str(trial.number)
    for link in (folder.parent, folder):
        if link.is_symlink():  # what it leads to is not the sweep's
            link.unlink()
    for job in folder.iterdir() if folder.is_dir() else ():
        if job.is_symlink() or not job.is_dir():
            job.unlink()
        else:
            for left in job.glob("*.pkl"):
                left.unlink()


def slurm_jobs(sweep: Path) -> dict[str, str] | None:
    """The state of every job of this sweep that SLURM has queued or running, by id; None where there is no SLURM."""
    if shutil.which("squeue") is None or not (sweep / ".submitit").is_dir():
        return None
    command = ["squeue", "--noheader", "--me", "--format=%i %T"]
    try:
        squeue = subprocess.run(
            command,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SQUEUE_SECONDS,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return None  # no controller to ask: what the folders say still holds
    lines = (line.split(maxsplit=1) for line in squeue.stdout.splitlines() if " " in line)
    return {job: state for job, state in lines}


# --- all of them --------------------------------------------------------------------------------------------


def states_of(folder: Path, record: SweepRecord, jobs: dict[str, str] | None = None) -> list[TrialState]:
    """The state of every trial. `jobs` is what `slurm_jobs` gave, and is not needed where no trial waits in SLURM."""
    return [trial_state(folder, trial, record.objective, jobs) for trial in record.trials]


def table_of(
    folder: Path, record: SweepRecord, states: Sequence[TrialState]
) -> tuple[str, list[str], list[list[Any]], list[str]]:
    """A title, columns, rows and closing lines for a console."""
    counts = Counter(state.state for state in states)
    counted = ", ".join(f"{counts[state]} {state.replace('_', ' ')}" for state in ORDER if counts[state])
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
    below, named = [], shlex.quote(str(folder))
    if best is not None:
        swept = next(trial for trial in record.trials if trial.number == best).text(record.keys)
        below.append(f"best on val: trial {best}, {record.objective} {objectives[best]:.4f}: {swept}")
    left = _seconds_left(record, states)
    if left is not None:
        below.append(f"about {format_seconds(left)} left, as long as finished trials took")
    unfinished = [state for state in states if state.state in (WAITING, STALLED)]
    if is_held(folder):
        below.append(f"under way: {holder(folder)}")
    elif to_come > 0 or unfinished:
        below.append(f"what is missing: python -m vidtrain.sweep resume {named}")
    if any(state.state in FAULTY for state in states):
        below.append(f"those that failed again: python -m vidtrain.sweep resume {named} retry=true")
    if counts[FINISHED] > 1:
        below.append(f"compare: python -m vidtrain.compare {named}")
    return f"{len(states)} trial{'' if len(states) == 1 else 's'}: {counted}{more}", columns, rows, below


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
    """Seconds until all trials are done, if as many run at a time as now, and each as long as those that finished; None
    where it is not known."""
    took = [state.minutes for state in states if state.state == FINISHED and state.minutes]
    running = [state for state in states if state.state == RUNNING]
    if not took or not running:
        return None
    each_takes = sum(took) / len(took) * 60
    waiting = (
        sum(state.state in (WAITING, QUEUED, STALLED) for state in states) + record.planned - len(states)
    )
    under_way = sum(1 - state.step / state.total if state.step and state.total else 1.0 for state in running)
    seconds = each_takes * (waiting + under_way) / len(running)
    return seconds if math.isfinite(seconds) else None


def _short(key: str) -> str:
    return key.lstrip("+~").rsplit(".", 1)[-1]


def _number(text: str) -> str:
    """A drawn 0.00031622776601683794 with four digits."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if len(text) <= 8 else f"{value:.4g}"
