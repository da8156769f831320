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
from vidtrain.config.overrides import first_value, in_quotes, values
from vidtrain.config.references import as_said
from vidtrain.config.stored_overrides import check_trials
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_lines
from vidtrain.files.folders import RunLock, check_links, is_held
from vidtrain.runs.folder import finished
from vidtrain.runs.status import clear_outcome, free_cuda_memory, read_outcome, record_outcome
from vidtrain.sweeps.record import SWEEP, SweepRecord, Trial, write_trial
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
SLURM = "vidtrain.sweeps.submitit_launchers.SlurmLauncher"


class TrialSweeper(Sweeper):
    """What both have in common. `n_jobs` trials run at a time, where the launcher can; `retry` runs those that failed
    again; `params` are further overrides, of a configuration file."""

    def __init__(self, n_jobs: int | None, retry: bool, params: Mapping[str, Any]):
        self._n_jobs, self.retry, self._params = n_jobs, retry, params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._task, self._config = hydra_context, task_function, config

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
        given = {each.get_key_element(): each for each in parsed}  # the last of a key counts
        if "run_dir" in given:
            raise UserError(
                "run_dir gives all trials of a sweep one folder; name the sweep's with hydra.sweep.dir="
            )
        if not any(each.is_sweep_override() for each in given.values()):
            raise UserError(
                "-m sweeps, and no setting has several values: write optimizer.lr=1e-4,3e-4, or leave -m out"
            )
        if "trainer.monitor" in given and given["trainer.monitor"].is_sweep_override():
            raise UserError("trainer.monitor is what trials are compared by: give one")
        self.said = given
        first = self._compose([first_value(each) for each in given.values()])
        self.folder = Path(first.hydra.sweep.dir).absolute()
        self.check_said(first)
        check_links(self.folder)
        with RunLock(self.folder):
            self.record = self._open(first)
            try:
                self.run_missing()
            except (KeyboardInterrupt, SystemExit) as stop:
                words = shown_lines(
                    f"to go on: python -m vidtrain.sweep resume {shlex.quote(str(self.folder))}"
                )
                print(words, file=sys.stderr, flush=True)
                if self._at_a_time() is None:
                    raise
                # the threads wait for jobs, which go on; leaving in the ordinary way would wait for them too
                os._exit(EXIT_INTERRUPTED if isinstance(stop, KeyboardInterrupt) else EXIT_FAILED_TRIALS)
        return self._close()

    def _open(self, first: DictConfig) -> SweepRecord:
        """The record of this sweep: a new one, or that in the folder with what this command line changes."""
        from vidtrain.evaluation.metrics import DIRECTIONS

        overrides, choices = self._config.hydra.overrides, self._config.hydra.runtime.choices
        swept = {key: each for key, each in self.said.items() if each.is_sweep_override()}
        record = SweepRecord(
            program="vidtrain.train",
            hydra=[each for each in as_said(overrides.hydra) if not each.startswith("hydra.mode=")],
            task=as_said(overrides.task),
            started_in=os.getcwd(),
            started=datetime.now().astimezone().isoformat(timespec="seconds"),
            launcher=choices["hydra/launcher"],
            sweeper=choices["hydra/sweeper"],
            objective=first.trainer.monitor,
            direction=DIRECTIONS[first.trainer.monitor],
            planned=0,
            keys=list(swept),
        )
        if not (self.folder / SWEEP).is_file():
            others = [each.name for each in self.folder.iterdir() if each.name != ".lock"]
            if others:
                raise UserError(
                    f"{self.folder} holds {min(others)} and no {SWEEP}: it is no sweep to go on with; choose another "
                    "hydra.sweep.dir"
                )
            return record
        earlier = SweepRecord.read(self.folder)
        changed = [
            f"{what}: {old} -> {new}"
            for what, old, new in (
                ("hydra/sweeper", earlier.sweeper, record.sweeper),
                ("trainer.monitor", earlier.objective, record.objective),
            )
            if old != new
        ]
        if changed:
            self.refuse(changed)
        listed = [
            each for each in self.said.values() if not each.is_interval_sweep()
        ]  # numbers need no saying
        said = {value for each in listed for value in values(each)}
        check_trials(earlier.trials, said, str(self.folder / SWEEP))
        record.started, record.trials, record.planned = earlier.started, earlier.trials, earlier.planned
        record.complete([first_value(each) for each in self.said.values() if not each.is_sweep_override()])
        record.space = earlier.space
        record.keys = list(dict.fromkeys([*earlier.keys, *record.keys]))
        return record

    def refuse(self, changed: Sequence[str]) -> None:
        raise UserError(
            f"the sweep in {self.folder} was started with other settings:\n  "
            + "\n  ".join(changed)
            + "\nIts trials would not be comparable: take these back, or choose another hydra.sweep.dir"
        )

    @abstractmethod
    def check_said(self, first: DictConfig) -> None:
        """Raises `UserError` for what cannot be swept."""

    @abstractmethod
    def run_missing(self) -> None:
        """Runs what is missing."""

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
        if trial.folder in {each.folder for each in self.record.trials}:
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
        said = False
        while True:
            state = trial_state(self.folder, trial, jobs=slurm_jobs(self.folder))
            if state.state not in (RUNNING, QUEUED):
                return said and state.state in ENDED
            if not said:
                self.console.info(
                    f"trial {trial.number} is {state.state} already, {state.where}: waiting for it"
                )
            said = True
            time.sleep(LOOK_SECONDS)

    def run_all(
        self, trials: Iterator[Trial], ended: Callable[[TrialState], None], pruning: Any = None
    ) -> None:
        """Launches trials as there is room for them; `ended` is told what became of each."""
        at_a_time = self._at_a_time()
        if at_a_time is None:
            for trial in trials:
                ended(self._settled(trial, self._launch(trial, pruning)))
            return
        pool = ThreadPoolExecutor(at_a_time)  # they do nothing but wait
        running: dict[Future, Trial] = {}
        while True:
            while len(running) < at_a_time and (trial := next(trials, None)) is not None:
                running[pool.submit(self._launch, trial, pruning)] = trial
            if not running:
                return
            for each in wait(running, return_when=FIRST_COMPLETED).done:
                ended(self._settled(running.pop(each), each.result()))

    def _at_a_time(self) -> int | None:
        """None for a launcher that works in this process, and so one after the other."""
        target = self._config.hydra.launcher._target_
        if target == IN_PROCESS:
            return None
        if self._n_jobs is not None:
            return self._n_jobs
        # SLURM's queue knows what there is room for; elsewhere trials would compete
        launcher = self._config.hydra.launcher
        return launcher.array_parallelism if "array_parallelism" in launcher else 1

    def _launch(self, trial: Trial, pruning: Any) -> Exception | None:
        """Runs a trial to its end, through a launcher of its own, so that one that fails ends no other. Returns what it
        raised: the trial's own exception, or the launcher's word on a job that left no result."""
        folder = self.folder / trial.folder
        if self._outlived(trial):
            return None
        clear_outcome(folder)
        write_trial(self.folder, trial, pruning)
        config = copy.deepcopy(self._config)
        # said outright, for what they refer to may differ from trial to trial
        pinned = [
            f"hydra.sweep.dir={in_quotes(str(self.folder))}",
            f"hydra.sweep.subdir={in_quotes(trial.folder)}",
        ]
        with open_dict(config):
            config.hydra.overrides.hydra.extend(pinned)
            config.hydra.sweep.dir, config.hydra.sweep.subdir = str(self.folder), trial.folder
            own = config.hydra.launcher
            if "submitit_folder" in own:  # the names in it are the numbers of the trial's jobs
                forget_results(self.folder, trial)
                own.submitit_folder = str(self.folder / ".submitit" / str(trial.number) / "%j")
                own.name = f"{own.name}-{trial.number}"
        if self._at_a_time() is None:
            values = trial.values()
            swept = " ".join(f"{key}={values[key]}" for key in self.record.keys if key in values)
            self.console.info(f"\ntrial {trial.number} of {self.record.planned}: {swept}")
        try:
            launcher = Plugins.instance().instantiate_launcher(
                hydra_context=self._context, task_function=self._task, config=config
            )
            (returned,) = launcher.launch([trial.overrides], initial_job_idx=trial.number)
        except (
            Exception
        ) as error:  # submitit raises for a job that was cancelled, killed, or ended without a result
            return None if self._outlived(trial) else error  # it may be wrong: the job may have been requeued
        return returned._return_value if returned.status == JobStatus.FAILED else None

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
        return any(each.state in FAULTY for each in states)
