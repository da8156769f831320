"""Hydra's sweepers for training: a sweep continues after a failed trial, and can be resumed in the same folder.

`grid` runs every combination, `optuna` searches. Both write sweep.json (vidtrain.sweeps.record), run the trials that
have not ended through Hydra's launcher, one or several at a time, and end with a table, and status 1 if any failed.
"""

import copy
import os
import shlex
import shutil
import subprocess
import sys
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from vidtrain.app.launch import fail
from vidtrain.config.overrides import check_trials, first_value, in_quotes, values
from vidtrain.config.references import to_list
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_lines
from vidtrain.files.folders import RunLock, check_links, is_held
from vidtrain.runs.attempts import clear_outcome, free_cuda_memory, read_outcome, record_outcome
from vidtrain.runs.folder import RESUMABLE, finished
from vidtrain.sweeps.record import (
    ENDED,
    FAULTY,
    QUEUED,
    RUNNING,
    SWEEP,
    SweepRecord,
    Trial,
    TrialState,
    identity,
    states_of,
    table_of,
    trial_state,
    write_trial,
)
from vidtrain.tracking.console import make_console

EXIT_FAILED_TRIALS, EXIT_INTERRUPTED = 1, 130
CHECK_SECONDS = 5  # between two checks of a trial that an earlier launcher started
SQUEUE_SECONDS = 10  # time limit of a call of squeue
IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class TrialSweeper(Sweeper):
    """Base class of both sweepers. `n_jobs` trials run at a time, if the launcher supports it; `retry` runs failed
    trials again; `params` are further overrides, from a configuration file."""

    def __init__(self, n_jobs: int | None, retry: bool, params: Mapping[str, Any] | None):
        self._n_jobs, self.retry, self._params = n_jobs, retry, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    @abstractmethod
    def check_swept(self) -> None:
        """Raises `UserError` for an override that this sweeper cannot sweep."""

    @abstractmethod
    def run_missing(self) -> None:
        """Runs the trials that have not ended yet."""

    def sweep(self, arguments: list[str]) -> None:
        self.console = make_console(is_main=True)
        try:
            faulty = self._sweep([f"{key}={value}" for key, value in self._params.items()] + arguments)
        except UserError as error:
            fail(str(error))
        if faulty:
            sys.exit(EXIT_FAILED_TRIALS)

    def _sweep(self, arguments: Sequence[str]) -> bool:
        """Runs the sweep; returns whether a trial failed."""
        parsed = OverridesParser.create(self._context.config_loader).parse_overrides(list(arguments))
        # The last override of a key counts
        self.overrides = {override.get_key_element(): override for override in parsed}
        self.swept = {key: override for key, override in self.overrides.items() if override.is_sweep_override()}
        if "run_dir" in self.overrides:
            raise UserError("run_dir= would give all trials of a sweep one folder; set hydra.sweep.dir= instead")
        if not self.swept:
            raise UserError(
                "-m starts a sweep, but no setting has several values: write optimizer.lr=1e-4,3e-4, or leave -m out"
            )
        if "trainer.monitor" in self.swept:
            raise UserError("trainer.monitor compares the trials, so it must have one value")
        first = self._compose([first_value(override) for override in self.overrides.values()])
        self.folder = Path(first.hydra.sweep.dir).absolute()
        self.check_swept()
        check_links(self.folder)
        with RunLock(self.folder):
            self.record = self._open(first)
            try:
                self.run_missing()
            except (KeyboardInterrupt, SystemExit) as stop:
                command = f"python -m vidtrain.sweep resume {shlex.quote(str(self.folder))}"
                print(shown_lines(f"to go on: {command}"), file=sys.stderr, flush=True)
                if self._at_a_time() is None:
                    raise
                # The threads wait for jobs, which go on running. An ordinary exit would wait for these threads
                os._exit(EXIT_INTERRUPTED if isinstance(stop, KeyboardInterrupt) else EXIT_FAILED_TRIALS)
        return self._close()

    @property
    def fixed(self) -> list[str]:
        """The overrides that all trials share."""
        return [first_value(override) for key, override in self.overrides.items() if key not in self.swept]

    def _open(self, first: DictConfig) -> SweepRecord:
        """The record of this sweep: a new one, or the one in the folder, updated from this command line."""
        from vidtrain.evaluation.metrics import DIRECTIONS

        overrides, choices = self._config.hydra.overrides, self._config.hydra.runtime.choices
        record = SweepRecord(
            program="vidtrain.train",
            hydra=[override for override in to_list(overrides.hydra) if not override.startswith("hydra.mode=")],
            task=to_list(overrides.task),
            started_in=os.getcwd(),
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
            launcher=choices["hydra/launcher"],
            sweeper=choices["hydra/sweeper"],
            objective=first.trainer.monitor,
            direction=DIRECTIONS[first.trainer.monitor],
            planned=0,
            keys=list(self.swept),
        )
        if not (self.folder / SWEEP).is_file():
            others = [path.name for path in self.folder.iterdir() if path.name != ".lock"]
            if others:
                raise UserError(
                    f"{self.folder} holds {min(others)} and no {SWEEP}, so it is not the folder of a sweep; choose "
                    "another hydra.sweep.dir"
                )
            return record
        earlier = SweepRecord.read(self.folder)
        compared = {
            "hydra/sweeper": (earlier.sweeper, record.sweeper),
            "trainer.monitor": (earlier.objective, record.objective),
        }
        self.refuse([f"{key}: {old} -> {new}" for key, (old, new) in compared.items() if old != new])
        listed = [override for override in self.overrides.values() if not override.is_interval_sweep()]
        allowed = {value for override in listed for value in values(override)}  # intervals hold only numbers
        check_trials(earlier.trials, allowed, str(self.folder / SWEEP))
        record.started, record.trials, record.planned = earlier.started, earlier.trials, earlier.planned
        record.complete(self.fixed)
        record.space = earlier.space
        record.keys = list(dict.fromkeys([*earlier.keys, *record.keys]))
        return record

    def refuse(self, changed: Sequence[str]) -> None:
        """Raises `UserError` if `changed` names any settings."""
        if changed:
            raise UserError(
                f"the sweep in {self.folder} was started with other settings:\n  "
                + "\n  ".join(changed)
                + "\nIts trials would not be comparable: undo these changes, or choose another hydra.sweep.dir"
            )

    # --- trials ---------------------------------------------------------------------------------------------

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        try:
            return self._context.config_loader.load_sweep_config(self._config, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"{shlex.join(overrides)}: {cause}") from error

    def add(self, overrides: Sequence[str], number: int) -> Trial:
        """Adds a trial to the record, in the folder named by hydra.sweep.subdir."""
        cfg = self._compose(overrides)
        with open_dict(cfg):
            cfg.hydra.job.num = number
        trial = Trial(number, str(cfg.hydra.sweep.subdir), list(overrides))
        if trial.folder in {other.folder for other in self.record.trials}:
            raise UserError(f"hydra.sweep.subdir gives two trials the folder {trial.folder}; leave it as it is")
        self.record.trials.append(trial)
        return trial

    def is_to_run(self, trial: Trial) -> bool:
        state = trial_state(self.folder, trial).state
        return state not in ENDED or (self.retry and state in FAULTY)

    def _ended_elsewhere(self, trial: Trial) -> bool:
        """Waits while an earlier launcher's job for this trial runs or is queued in SLURM. Returns whether it had to
        wait and the trial has ended."""
        waited = False
        while True:
            state = trial_state(self.folder, trial, jobs=slurm_jobs(self.folder))
            if state.state not in (RUNNING, QUEUED):
                return waited and state.state in ENDED
            if not waited:
                self.console.info(f"trial {trial.number} is {state.state} already, {state.where}: waiting for it")
            waited = True
            time.sleep(CHECK_SECONDS)

    def run_all(self, trials: Iterator[Trial], ended: Callable[[TrialState], object], pruning: Any = None) -> None:
        """Launches the trials, as many at a time as allowed, and calls `ended` with the state of each."""
        at_a_time = self._at_a_time()
        if at_a_time is None:
            for trial in trials:
                ended(self._final_state(trial, self._launch(trial, pruning)))
            return
        pool = ThreadPoolExecutor(at_a_time)  # its threads only wait for jobs
        running: dict[Future[Exception | None], Trial] = {}
        while True:
            while len(running) < at_a_time and (following := next(trials, None)) is not None:
                running[pool.submit(self._launch, following, pruning)] = following
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                ended(self._final_state(running.pop(future), future.result()))

    def _at_a_time(self) -> int | None:
        """How many trials may run at a time; None for a launcher that runs them in this process, one by one."""
        launcher = self._config.hydra.launcher
        if launcher._target_ == IN_PROCESS:
            return None
        if self._n_jobs is not None:
            return self._n_jobs
        # SLURM's queue limits how many jobs run; without it, trials would compete for the same machine
        return launcher.array_parallelism if "array_parallelism" in launcher else 1

    def _launch(self, trial: Trial, pruning: Any) -> Exception | None:
        """Runs a trial to its end, in a launcher of its own, so that its failure ends no other trial. Returns the
        exception of the trial, or that of the launcher if the job left no result."""
        if self._ended_elsewhere(trial):
            return None
        clear_outcome(self.folder / trial.folder)
        write_trial(self.folder, trial, pruning)
        if self._at_a_time() is None:
            swept = trial.text(self.record.keys)
            self.console.info(f"\ntrial {trial.number} of {self.record.planned}: {swept}")
        try:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self._context, task_function=self._task, config=self._config_of(trial)
            )
            (returned,) = launcher.launch([trial.overrides], initial_job_idx=trial.number)
        except Exception as error:  # from submitit, for a job that was cancelled, killed, or left no result
            # The job may in fact have been requeued and still run
            return None if self._ended_elsewhere(trial) else error
        return returned._return_value if returned.status == JobStatus.FAILED else None

    def _config_of(self, trial: Trial) -> DictConfig:
        """Hydra's configuration for the launcher of a trial. The folders are plain text, as interpolations in them
        could resolve differently for each trial."""
        config = copy.deepcopy(self._config)
        folders = {"hydra.sweep.dir": str(self.folder), "hydra.sweep.subdir": trial.folder}
        with open_dict(config):
            config.hydra.overrides.hydra += [f"{key}={in_quotes(value)}" for key, value in folders.items()]
            config.hydra.sweep.dir, config.hydra.sweep.subdir = str(self.folder), trial.folder
            launcher = config.hydra.launcher
            if "submitit_folder" in launcher:  # submitit replaces %j by the id of the job
                forget_results(self.folder, trial)
                launcher.submitit_folder = str(self.folder / ".submitit" / str(trial.number) / "%j")
                launcher.name = f"{launcher.name}-{trial.number}"
        return config

    def _final_state(self, trial: Trial, error: Exception | None) -> TrialState:
        """The state of a launched trial. A failure that the trial's process could not record is recorded here."""
        folder = self.folder / trial.folder
        if error is not None:
            if finished(folder) is None and read_outcome(folder) is None and not is_held(folder):
                record_outcome(folder, error)
            free_cuda_memory(error)
        state = trial_state(self.folder, trial)
        self.console.info(f"trial {trial.number}: {state.words(self.record.objective)}")
        return state

    def _close(self) -> bool:
        """Prints the final table; returns whether a trial failed."""
        # SLURM is not asked: its queue may still list the last job, which has ended
        states = states_of(self.folder, self.record)
        title, columns, rows, below = table_of(self.folder, self.record, states)
        self.console.info("")
        self.console.table(title, columns, rows)
        for line in below:
            self.console.info(line)
        return any(state.state in FAULTY for state in states)


class GridSweeper(TrialSweeper):
    """Runs every combination of the swept values; the last override varies fastest."""

    def __init__(self, n_jobs: int | None = None, retry: bool = False, params: Mapping[str, Any] | None = None):
        super().__init__(n_jobs, retry, params)

    def check_swept(self) -> None:
        for key, override in self.swept.items():
            if override.is_interval_sweep():
                raise UserError(
                    f"{key}: a grid cannot run every value of an interval; list some, or choose hydra/sweeper=optuna"
                )

    def run_missing(self) -> None:
        combinations = [list(combination) for combination in product(*map(values, self.overrides.values()))]
        trials = self.record.trials
        before = [trial.overrides for trial in trials]
        if trials:
            self.refuse(changed_settings(before, combinations, RESUMABLE))
        # a folder that is set once may have moved; of two that are swept each has its trial
        swept = [key for key in self.record.keys if varies(before, key) or varies(combinations, key)]
        known_before, faults = len(trials), []
        for overrides in combinations:
            if self.record.find(overrides, RESUMABLE, swept) is None:
                try:
                    self.add(overrides, self.record.next_number())
                except UserError as error:
                    faults.append(str(error))
        if faults:
            raise UserError("these trials cannot be composed; nothing was started\n  " + "\n  ".join(faults))
        self.record.planned = len(trials)
        self.record.write(self.folder)
        missing = [trial for trial in trials if self.is_to_run(trial)]
        counts = {"trials": len(trials), "to run": len(missing)}
        if known_before:
            counts |= {"new": len(trials) - known_before, "ended": len(trials) - len(missing)}
        summary = ", ".join(f"{count} {name}" for name, count in counts.items())
        self.console.info(f"sweep {self.folder}: {summary}")
        self.run_all(iter(missing), lambda state: None)


# --- what must not change in a sweep that goes on -----------------------------------------------------------


def changed_settings(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]], free: Sequence[str]) -> list[str]:
    """Lines `key: old -> new` for settings that are not swept and differ between two lists of trials' overrides. Trials
    that differ in more than the swept settings must not be in the same sweep."""
    old, new = (_shared(trials, free) for trials in (before, now))
    pairs = {key: [shared.get(key, "not set") for shared in (old, new)] for key in sorted(old.keys() | new.keys())}
    return [
        f"{key}: {earlier} -> {later}"
        for key, (earlier, later) in pairs.items()
        if earlier != later and not (varies(before, key) or varies(now, key))  # swept before or now
    ]


def _shared(trials: Sequence[Sequence[str]], free: Sequence[str]) -> dict[str, str]:
    sets = [identity(overrides, free) for overrides in trials]
    return dict(override.partition("=")[::2] for override in (frozenset.intersection(*sets) if sets else ()))


def varies(trials: Sequence[Sequence[str]], key: str) -> bool:
    """Whether trials, given by their overrides, set `key` to more than one value."""
    return len({override for trial in trials for override in trial if override.partition("=")[0] == key}) > 1


# --- jobs in SLURM ------------------------------------------------------------------------------------------


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


def slurm_jobs(sweep: Path) -> dict[int, str] | None:
    """The latest job that SLURM lists for each trial, as `job 7, pending`, by number of the trial; None without SLURM,
    or if this sweep submitted no job."""
    folders = sweep / ".submitit"
    if shutil.which("squeue") is None or not folders.is_dir():
        return None
    command = ["squeue", "--noheader", "--me", "--format=%i %T"]
    try:
        squeue = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=SQUEUE_SECONDS, check=True
        )
    except (subprocess.SubprocessError, OSError):
        return None  # SLURM does not answer: the states follow from the folders alone
    states = dict(line.split(maxsplit=1) for line in squeue.stdout.splitlines() if " " in line)
    jobs = [job for job in folders.glob("*/*") if job.parent.name.isdecimal() and job.name in states]
    jobs.sort(key=lambda job: job.stat().st_mtime)
    return {int(job.parent.name): f"job {job.name}, {states[job.name].lower()}" for job in jobs}
