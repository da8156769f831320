"""The trials of a sweep: their records sweep.json and trial.json, the state that a folder tells, and what a run does
differently as a trial: it is compared on val alone, and may be ended early.

A trial is identified by its overrides, so the same sweep, started again in the same folder, finds its earlier trials.
"""

import math
import shlex
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vidtrain.config.renames import rename_override
from vidtrain.config.trust import is_trusted_pruner
from vidtrain.errors import Pruned, UserError, pluralize
from vidtrain.files.atomic import read_json, write_json_atomic
from vidtrain.files.escaping import is_masked, masked
from vidtrain.files.folders import holder, is_held
from vidtrain.runs.attempts import DIVERGED, FAILED, OUT_OF_MEMORY, PRUNED, read_outcome
from vidtrain.runs.folder import finished, stored_settings
from vidtrain.tracking.console import format_seconds
from vidtrain.tracking.run_log import read_metrics
from vidtrain.training.schedules import steps

if TYPE_CHECKING:
    from vidtrain.data.manifest.manifest import Manifest
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.run import Console

SWEEP, TRIAL = "sweep.json", "trial.json"
DAMAGED = "it is damaged, or another program wrote it"
FINISHED, WAITING, QUEUED, RUNNING, STALLED = "finished", "waiting", "queued", "running", "stalled"
FAULTY = (FAILED, DIVERGED, OUT_OF_MEMORY)
ENDED = (FINISHED, PRUNED, *FAULTY)
STATE_ORDER = (RUNNING, QUEUED, WAITING, STALLED, FINISHED, PRUNED, *FAULTY)
CAUSE_LENGTH = 100


@dataclass
class Trial:
    """One run of a sweep. `folder` is relative to the sweep's folder."""

    number: int
    folder: str
    overrides: list[str]

    def values(self) -> dict[str, str]:
        """The value of each override, by its key as written."""
        return dict(override.partition("=")[::2] for override in self.overrides)

    def text(self, keys: Iterable[str]) -> str:
        """The overrides of some keys, in one line."""
        values = self.values()
        return " ".join(f"{key}={values[key]}" for key in keys if key in values)


@dataclass
class SweepRecord:
    """The content of sweep.json. `hydra` and `task` are the overrides of the command that started the sweep last, in
    the folder `started_in`; `keys` are the swept keys, in order; `planned` is the final number of trials."""

    program: str
    hydra: list[str]
    task: list[str]
    started_in: str
    started: str
    launcher: str
    sweeper: str
    objective: str  # the val metric by which trials are compared
    direction: str  # max or min
    planned: int
    keys: list[str]
    space: dict[str, str] = field(default_factory=dict)  # of a search: the override of each key, as written
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the record in a folder, with renamed settings under their new names. Raises `UserError` if the folder
        holds no sweep, or its record is damaged."""
        path = folder / SWEEP
        if not path.is_file():
            reason = f"it holds no {SWEEP}" if folder.is_dir() else "there is no such folder"
            raise UserError(
                f"{folder} is not the folder of a sweep: {reason}. Give the one that python -m vidtrain.train -m named"
            )
        stored = read_json(path, DAMAGED, [key.name for key in fields(cls)])
        try:
            trials = [Trial(**trial) for trial in stored["trials"]]
            values = {key.name: stored[key.name] for key in fields(cls)} | {"trials": trials}
            lists = (values["hydra"], values["task"], values["keys"], *(trial.overrides for trial in trials))
            fits = [isinstance(trial.number, int) and isinstance(trial.folder, str) for trial in trials]
            fits += [isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists]
            if not all(fits):
                raise TypeError("it holds values of wrong types")
            return cls(**values)._renamed()
        except TypeError as error:
            raise UserError(f"{path} cannot be read ({error}); {DAMAGED}") from error

    def _renamed(self) -> Self:
        self.hydra, self.task = (list(map(rename_override, texts)) for texts in (self.hydra, self.task))
        for trial in self.trials:
            trial.overrides = list(map(rename_override, trial.overrides))
        self.keys = [rename_override(f"{key}=").removesuffix("=") for key in self.keys]
        space = [rename_override(f"{key}={value}") for key, value in self.space.items()]
        self.space = dict(override.partition("=")[::2] for override in space)
        return self

    def write(self, folder: Path) -> None:
        write_json_atomic(folder / SWEEP, asdict(self))

    def find(self, overrides: Sequence[str], free: Sequence[str], swept: Sequence[str] = ()) -> Trial | None:
        """The trial with these overrides, in any order; keys that begin with one of `free` are ignored unless they are
        among those `swept`."""
        wanted = identity(overrides, free, swept)
        return next((trial for trial in self.trials if identity(trial.overrides, free, swept) == wanted), None)

    def complete(self, overrides: Sequence[str]) -> None:
        """Replaces addresses whose passwords are masked in the stored trials by those of the command line."""
        by_key = {override.partition("=")[0]: override for override in overrides}
        for trial in self.trials:
            trial.overrides = [
                by_key[key] if is_masked(stored) and (key := stored.partition("=")[0]) in by_key else stored
                for stored in trial.overrides
            ]

    def best(self, objectives: Mapping[int, float]) -> int | None:
        """The number of the best trial; `objectives` maps number -> objective."""
        if not objectives:
            return None
        return (max if self.direction == "max" else min)(objectives, key=lambda number: objectives[number])

    def next_number(self) -> int:
        return max((trial.number for trial in self.trials), default=-1) + 1


def identity(overrides: Sequence[str], free: Sequence[str], swept: Sequence[str] = ()) -> frozenset[str]:
    """The overrides that identify a trial, as they are stored: without passwords and without keys in `free` that are
    not `swept`."""
    return frozenset(
        masked(override)
        for override in overrides
        if override.partition("=")[0] in swept or not override.lstrip("+~").startswith(tuple(free))
    )


def write_trial(sweep: Path, trial: Trial, pruning: Mapping[str, Any] | None) -> None:
    """Writes trial.json. `pruning` names the study that may end the trial early: storage, study and pruner."""
    folder = sweep / trial.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / TRIAL, {**asdict(trial), "sweep": str(sweep), "pruning": pruning})


def read_trial(folder: Path) -> dict[str, Any] | None:
    """The trial.json of a run folder; None for a run that is no trial. Raises `UserError` if it is damaged."""
    path = folder / TRIAL
    if not path.is_file():
        return None
    return read_json(path, "delete it, and resume the sweep", ["number", "folder", "overrides", "sweep", "pruning"])


# --- the state of each trial, read while trials run, on any machine ------------------------------------------


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
    sweep: Path, trial: Trial, objective: str | None = None, jobs: Mapping[int, str] | None = None
) -> TrialState:
    """The state of one trial. `objective` is the metric whose last value is shown; `jobs` comes from
    `base.slurm_jobs`."""
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
    if jobs and trial.number in jobs and not held:  # even if an earlier attempt has failed: the job tries again
        return replace(state, state=QUEUED, where=jobs[trial.number])
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


def states_of(folder: Path, record: SweepRecord, jobs: Mapping[int, str] | None = None) -> list[TrialState]:
    """The state of every trial. `jobs` comes from `base.slurm_jobs`; without it, no trial counts as queued."""
    return [trial_state(folder, trial, record.objective, jobs) for trial in record.trials]


def table_of(
    folder: Path, record: SweepRecord, states: Sequence[TrialState]
) -> tuple[str, list[str], list[list[Any]], list[str]]:
    """Title, columns and rows of a table for the console, and lines to print below it."""
    counts = Counter(state.state for state in states)
    summary = ", ".join(f"{counts[state]} {state.replace('_', ' ')}" for state in STATE_ORDER if counts[state])
    to_come = record.planned - len(states)
    more = f", {to_come} to be drawn" if to_come > 0 else ""
    finished_states = [state for state in states if state.state == FINISHED]
    objectives = {state.number: state.objective for state in finished_states if state.objective is not None}
    best = record.best(objectives)
    keys = [key.lstrip("+~").rsplit(".", 1)[-1] for key in record.keys]
    columns = ["trial", *keys, "state", "step", f"val {record.objective}", ""]
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
    return f"{pluralize(len(states), 'trial')}: {summary}{more}", columns, rows, below


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


def _number(text: str) -> str:
    """A value for the table: a long number, such as a drawn 0.00031622776601683794, with four digits."""
    try:
        value = float(text)
    except ValueError:
        return text
    return text if len(text) <= 8 else f"{value:.4g}"


def check_objective(folder: Path, splits: Mapping[str, "Manifest"]) -> None:
    """Raises `UserError` for a trial whose val shares videos with test: the sweep would select on what it reports."""
    if read_trial(folder) is None or "test" not in splits:
        return
    shared = set(splits["val"].paths) & set(splits["test"].paths)
    if shared:
        raise UserError(
            f"val and test share {pluralize(len(shared), 'video')}, such as {min(shared)}: a sweep selects a trial by "
            "val, whose test metrics would then be of the same videos. Hold val out of train, such as with "
            "dataset.source.val=train or dataset.source.val_share=0.1"
        )


def _is_of_its_sweep(folder: Path, pruning: Any) -> bool:
    if not isinstance(pruning, Mapping) or not {"storage", "study", "pruner"} <= pruning.keys():
        return False
    begin, _, name = str(pruning["storage"]).partition(":///")
    path = Path(name)
    return (
        begin == "sqlite"
        and path.parent.resolve() in folder.resolve().parents
        and path.name == "study.db"
        and path.is_file()
        and isinstance(pruning["study"], str)
        and is_trusted_pruner(pruning["pruner"])
    )


def on_validation(
    folder: Path, ranks: "Ranks", console: "Console", started_by_sweep: bool = False
) -> Callable[[float], None]:
    """Returns a function that the loop calls with the objective of each validation. It raises `Pruned`, on every rank,
    if the sweep's study says that the trial should end. For a run that is no such trial it does nothing.

    A study compares trials at the same number of validations, which is reported as their step. They are counted in
    metrics.jsonl, so call this after it was rewound to the step from which the run starts. Unless `started_by_sweep`,
    trial.json may come from somebody else: then only the study of the sweep folder around it is opened, and only with
    a pruner of conf/.
    """
    trial = ranks.on_main(lambda: read_trial(folder))
    if trial is None or trial["pruning"] is None:
        return lambda value: None
    if not started_by_sweep and not _is_of_its_sweep(folder, trial["pruning"]):
        console.warn(
            f"{folder / TRIAL} names a study that does not lie in the sweep's folder, or a pruner that vidtrain does "
            "not ship, so this trial is not pruned; python -m vidtrain.sweep resume runs it with both"
        )
        return lambda value: None
    number, pruning = trial["number"], trial["pruning"]
    # On rank 0 it holds the `Pruning`, elsewhere it is empty
    why_to_end: list[Callable[[float], str | None]] = []

    def begin() -> None:
        from vidtrain.sweeps.optuna_sweeper import Pruning

        done = sum(any(key.startswith("val") for key in row) for row in read_metrics(folder))
        why_to_end.append(Pruning(number, pruning, done, console))

    def ask(value: float) -> None:
        cause = ranks.on_main(lambda: why_to_end[0](value))
        if cause is not None:
            raise Pruned(cause)

    ranks.on_main(begin)
    return ask
