"""Hydra's sweepers of the training app: a sweep that goes on past failing trials and can be started again.

`grid` runs every combination, `optuna` searches. Both keep sweep.json (vidtrain.sweeps.record), run what is missing of
it through Hydra's launcher, a trial at a time or several, and end with a table and status 1 if a trial failed.
"""

import copy
import os
import shlex
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
from vidtrain.sweeps.record import SWEEP, SweepRecord, Trial, changed_settings, write_trial
from vidtrain.sweeps.status import (
    ENDED,
    FAULTY,
    QUEUED,
    RUNNING,
    TrialState,
    forget_results,
    slurm_jobs,
    states_of,
    table_of,
    trial_state,
)
from vidtrain.tracking.console import make_console

EXIT_FAILED_TRIALS, EXIT_INTERRUPTED = 1, 130
LOOK_SECONDS = 5  # from one look at a trial of an earlier launcher to the next
IN_PROCESS = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


class TrialSweeper(Sweeper):
    """What both have in common. `n_jobs` trials run at a time, where the launcher can; `retry` runs those that failed
    again; `params` are further overrides, of a configuration file."""

    def __init__(self, n_jobs: int | None, retry: bool, params: Mapping[str, Any] | None):
        self._n_jobs, self.retry, self._params = n_jobs, retry, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

    @abstractmethod
    def check_swept(self) -> None:
        """Raises `UserError` for what cannot be swept."""

    @abstractmethod
    def run_missing(self) -> None:
        """Runs what is missing."""

    def sweep(self, arguments: list[str]) -> None:
        self.console = make_console(is_main=True)
        try:
            faulty = self._sweep([f"{key}={value}" for key, value in self._params.items()] + arguments)
        except UserError as error:
            fail(str(error))
        if faulty:
            sys.exit(EXIT_FAILED_TRIALS)

    def _sweep(self, arguments: Sequence[str]) -> bool:
        """Whether a trial failed."""
        parsed = OverridesParser.create(self._context.config_loader).parse_overrides(list(arguments))
        self.overrides = {
            override.get_key_element(): override for override in parsed
        }  # the last of a key counts
        self.swept = {
            key: override for key, override in self.overrides.items() if override.is_sweep_override()
        }
        if "run_dir" in self.overrides:
            raise UserError(
                "run_dir gives all trials of a sweep one folder; name the sweep's with hydra.sweep.dir="
            )
        if not self.swept:
            raise UserError(
                "-m sweeps, and no setting has several values: write optimizer.lr=1e-4,3e-4, or leave -m out"
            )
        if "trainer.monitor" in self.swept:
            raise UserError("trainer.monitor is what trials are compared by: give one")
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
                # the threads wait for jobs, which go on; leaving in the ordinary way would wait for them too
                os._exit(EXIT_INTERRUPTED if isinstance(stop, KeyboardInterrupt) else EXIT_FAILED_TRIALS)
        return self._close()

    @property
    def fixed(self) -> list[str]:
        """The overrides that all trials share."""
        return [first_value(override) for key, override in self.overrides.items() if key not in self.swept]

    def _open(self, first: DictConfig) -> SweepRecord:
        """The record of this sweep: a new one, or that in the folder with what this command line changes."""
        from vidtrain.evaluation.metrics import DIRECTIONS

        overrides, choices = self._config.hydra.overrides, self._config.hydra.runtime.choices
        record = SweepRecord(
            program="vidtrain.train",
            hydra=[
                override for override in to_list(overrides.hydra) if not override.startswith("hydra.mode=")
            ],
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
                    f"{self.folder} holds {min(others)} and no {SWEEP}: it is no sweep to go on with; choose another "
                    "hydra.sweep.dir"
                )
            return record
        earlier = SweepRecord.read(self.folder)
        compared = {
            "hydra/sweeper": (earlier.sweeper, record.sweeper),
            "trainer.monitor": (earlier.objective, record.objective),
        }
        self.refuse([f"{what}: {old} -> {new}" for what, (old, new) in compared.items() if old != new])
        listed = [override for override in self.overrides.values() if not override.is_interval_sweep()]
        allowed = {value for override in listed for value in values(override)}  # numbers are harmless
        check_trials(earlier.trials, allowed, str(self.folder / SWEEP))
        record.started, record.trials, record.planned = earlier.started, earlier.trials, earlier.planned
        record.complete(self.fixed)
        record.space = earlier.space
        record.keys = list(dict.fromkeys([*earlier.keys, *record.keys]))
        return record

    def refuse(self, changed: Sequence[str]) -> None:
        """Raises `UserError` where settings have changed."""
        if changed:
            raise UserError(
                f"the sweep in {self.folder} was started with other settings:\n  "
                + "\n  ".join(changed)
                + "\nIts trials would not be comparable: take these back, or choose another hydra.sweep.dir"
            )

    # --- trials ---------------------------------------------------------------------------------------------

    def _compose(self, overrides: Sequence[str]) -> DictConfig:
        try:
            return self._context.config_loader.load_sweep_config(self._config, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            cause = str(error.__cause__ or error).splitlines()[0]
            raise UserError(f"{shlex.join(overrides)}: {cause}") from error

    def add(self, overrides: Sequence[str], number: int) -> Trial:
        """A new trial, in the folder that hydra.sweep.subdir says."""
        cfg = self._compose(overrides)
        with open_dict(cfg):
            cfg.hydra.job.num = number
        trial = Trial(number, str(cfg.hydra.sweep.subdir), list(overrides))
        if trial.folder in {other.folder for other in self.record.trials}:
            raise UserError(
                f"hydra.sweep.subdir gives two trials the folder {trial.folder}; leave it as it is"
            )
        self.record.trials.append(trial)
        return trial

    def is_to_run(self, trial: Trial) -> bool:
        state = trial_state(self.folder, trial).state
        return state not in ENDED or (self.retry and state in FAULTY)

    def _outlived(self, trial: Trial) -> bool:
        """Waits for a trial of an earlier launcher that still runs, or waits in SLURM. Whether it has ended."""
        waited = False
        while True:
            state = trial_state(self.folder, trial, jobs=slurm_jobs(self.folder))
            if state.state not in (RUNNING, QUEUED):
                return waited and state.state in ENDED
            if not waited:
                self.console.info(
                    f"trial {trial.number} is {state.state} already, {state.where}: waiting for it"
                )
            waited = True
            time.sleep(LOOK_SECONDS)

    def run_all(
        self, trials: Iterator[Trial], ended: Callable[[TrialState], object], pruning: Any = None
    ) -> None:
        """Launches trials as there is room for them; `ended` is told what became of each."""
        at_a_time = self._at_a_time()
        if at_a_time is None:
            for trial in trials:
                ended(self._settled(trial, self._launch(trial, pruning)))
            return
        pool = ThreadPoolExecutor(at_a_time)  # they do nothing but wait
        running: dict[Future[Exception | None], Trial] = {}
        while True:
            while len(running) < at_a_time and (following := next(trials, None)) is not None:
                running[pool.submit(self._launch, following, pruning)] = following
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                ended(self._settled(running.pop(future), future.result()))

    def _at_a_time(self) -> int | None:
        """None for a launcher that works in this process, and so one after the other."""
        launcher = self._config.hydra.launcher
        if launcher._target_ == IN_PROCESS:
            return None
        if self._n_jobs is not None:
            return self._n_jobs
        # SLURM's queue knows what there is room for; elsewhere trials would compete
        return launcher.array_parallelism if "array_parallelism" in launcher else 1

    def _launch(self, trial: Trial, pruning: Any) -> Exception | None:
        """Runs a trial to its end, through a launcher of its own, so that one that fails ends no other. Returns what it
        raised: the trial's own exception, or the launcher's word on a job that left no result."""
        if self._outlived(trial):
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
        except Exception as error:  # of submitit: a job that was cancelled, killed, or ended without a result
            return None if self._outlived(trial) else error  # it may be wrong: the job may have been requeued
        return returned._return_value if returned.status == JobStatus.FAILED else None

    def _config_of(self, trial: Trial) -> DictConfig:
        """Hydra's configuration for the launcher of a trial, with the folders as text: what they refer to may differ
        from trial to trial."""
        config = copy.deepcopy(self._config)
        folders = {"hydra.sweep.dir": str(self.folder), "hydra.sweep.subdir": trial.folder}
        with open_dict(config):
            config.hydra.overrides.hydra += [f"{key}={in_quotes(value)}" for key, value in folders.items()]
            config.hydra.sweep.dir, config.hydra.sweep.subdir = str(self.folder), trial.folder
            launcher = config.hydra.launcher
            if "submitit_folder" in launcher:  # the names in it are the numbers of the trial's jobs
                forget_results(self.folder, trial)
                launcher.submitit_folder = str(self.folder / ".submitit" / str(trial.number) / "%j")
                launcher.name = f"{launcher.name}-{trial.number}"
        return config

    def _settled(self, trial: Trial, error: Exception | None) -> TrialState:
        """What became of a launched trial; recorded here where it could not record it itself."""
        folder = self.folder / trial.folder
        if error is not None:
            if finished(folder) is None and read_outcome(folder) is None and not is_held(folder):
                record_outcome(folder, error)
            free_cuda_memory(error)
        state = trial_state(self.folder, trial)
        self.console.info(f"trial {trial.number}: {state.words(self.record.objective)}")
        return state

    def _close(self) -> bool:
        """The closing table; whether a trial failed."""
        # not asking SLURM: the last job may still be leaving
        states = states_of(self.folder, self.record)
        title, columns, rows, below = table_of(self.folder, self.record, states)
        self.console.info("")
        self.console.table(title, columns, rows)
        for line in below:
            self.console.info(line)
        return any(state.state in FAULTY for state in states)


class GridSweeper(TrialSweeper):
    """Every combination of the values that overrides hold, the last one varied fastest."""

    def __init__(
        self, n_jobs: int | None = None, retry: bool = False, params: Mapping[str, Any] | None = None
    ):
        super().__init__(n_jobs, retry, params)

    def check_swept(self) -> None:
        for key, override in self.swept.items():
            if override.is_interval_sweep():
                raise UserError(
                    f"{key}: a grid has no end of values in an interval; list some, or hydra/sweeper=optuna"
                )

    def run_missing(self) -> None:
        combinations = [list(combination) for combination in product(*map(values, self.overrides.values()))]
        trials = self.record.trials
        if trials:
            self.refuse(changed_settings([trial.overrides for trial in trials], combinations, RESUMABLE))
        known, faults = len(trials), []
        for overrides in combinations:
            if self.record.find(overrides, RESUMABLE) is None:
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
        if known:
            counts |= {"new": len(trials) - known, "ended": len(trials) - len(missing)}
        counted = ", ".join(f"{count} {what}" for what, count in counts.items())
        self.console.info(f"sweep {self.folder}: {counted}")
        self.run_all(iter(missing), lambda state: None)
