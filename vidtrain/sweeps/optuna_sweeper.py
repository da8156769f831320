"""hydra/sweeper=optuna: a search with a persistent Optuna study, which may end trials early."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from vidtrain.build import parts as build
from vidtrain.config.references import to_dict
from vidtrain.config.renames import rename_override
from vidtrain.errors import UserError, pluralize
from vidtrain.files.escaping import is_masked
from vidtrain.files.folders import install_hint
from vidtrain.runs.attempts import PRUNED
from vidtrain.runs.folder import RESUMABLE
from vidtrain.sweeps.base import TrialSweeper, changed_settings
from vidtrain.sweeps.record import ENDED, Trial, TrialState, trial_state

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import TrialState as OptunaState
except ImportError as error:
    raise UserError(f"hydra/sweeper=optuna needs Optuna 4 or later: {install_hint('optuna')}") from error

if TYPE_CHECKING:
    from vidtrain.training.run import Console

Space = Mapping[str, BaseDistribution]
LOCKED_SECONDS = 60  # a process waits so long for the lock of a SQLite file that others use, too

optuna.logging.set_verbosity(logging.WARNING)


class OptunaSweeper(TrialSweeper):
    """Runs `n_trials` trials in all, whose values come from a persistent Optuna study. `pruner` ends trials early that
    do worse than others did (null: none). `storage` is the URL of a database; null is a file in the sweep's folder."""

    def __init__(
        self,
        n_trials: int,
        sampler: DictConfig,
        pruner: DictConfig | None,
        n_jobs: int = 1,
        seed: int | None = 0,
        storage: str | None = None,
        retry: bool = False,
        params: Mapping[str, Any] | None = None,
    ):
        super().__init__(n_jobs, retry, params)
        self._n_trials, self._seed, self._storage = n_trials, seed, storage
        self._sampler, self._pruner = sampler, pruner

    def check_swept(self) -> None:
        if "seed" in self.swept:
            raise UserError(
                "seed: Optuna would search for the luckiest seed. Search with one seed, and run the best settings with "
                "several: hydra/sweeper=grid seed=0,1,2"
            )
        self._space = {key: distribution(override) for key, override in self.swept.items()}
        # So that a wrong setting is an error before the first trial
        build.instantiate_component(self._pruner)

    def run_missing(self) -> None:
        record, folder = self.record, self.folder
        space = {key: override.get_value_string().replace(" ", "") for key, override in self.swept.items()}
        if record.trials:
            self._refuse_changes(space)
        storage = self._storage or sqlite_file(folder / "study.db")
        study = open_study(folder.name, storage, record.direction)
        record.space, record.planned = space, max(self._n_trials, len(record.trials))
        record.write(folder)
        done = sum(trial_state(folder, trial).state in ENDED for trial in record.trials)
        self.console.info(f"sweep {folder}: {pluralize(record.planned, 'trial')} of a search; {done} have ended")
        pruning = None
        if self._pruner is not None:
            pruner = to_dict(self._pruner, resolve=True)
            pruning = {"storage": storage, "study": folder.name, "pruner": pruner}
        self.run_all(self._missing(study), lambda state: self._tell(study, state), pruning)

    def _refuse_changes(self, space: Mapping[str, str]) -> None:
        earlier = self.record.space
        earlier_overrides = [
            [override for override in trial.overrides if override.partition("=")[0] not in space]
            for trial in self.record.trials
        ]
        changed = changed_settings(earlier_overrides, [self.fixed], RESUMABLE)
        for key in {**earlier, **space}:
            old, new = (some_space.get(key, "not searched") for some_space in (earlier, space))
            changed += [f"{key}: {old} -> {new}"] if old != new else []
        self.refuse(changed)

    def _missing(self, study: optuna.Study) -> Iterator[Trial]:
        for number, drawn in list(unsettled(study, self._space)):
            trial = self._known_trial(number, drawn)
            if self.is_to_run(trial):
                yield trial
            else:
                self._tell(study, trial_state(self.folder, trial))
        # Optuna cannot reopen a failed trial: the result of a retried one counts, but the search does not learn it
        if self.retry:
            yield from filter(self.is_to_run, list(self.record.trials))
        while len(self.record.trials) < self.record.planned:
            yield self._known_trial(*ask(study, self._space, self._sampler, self._seed))

    def _known_trial(self, number: int, drawn: Sequence[str]) -> Trial:
        for trial in self.record.trials:
            if trial.number == number:
                return trial
        trial = self.add([*self.fixed, *drawn], number)
        self.record.write(self.folder)
        return trial

    def _tell(self, study: optuna.Study, state: TrialState) -> None:
        if state.state in ENDED:
            tell(study, state.number, state.objective, state.state)


# --- the study ----------------------------------------------------------------------------------------------


def distribution(override: Override) -> BaseDistribution:
    """The Optuna distribution of an override: of `interval(1e-5, 1e-2)`, over integers if its bounds are integers or it
    is within int(...), on a logarithmic scale within tag(log, ...); of `range(1, 9, 2)`; or of a list of choices."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        assert low is not None and high is not None  # Hydra's parser requires both
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = value.range()  # a range excludes its end; Optuna's distribution includes it
        if isinstance(numbers, range) and numbers.step > 0 and len(numbers):
            return IntDistribution(numbers[0], numbers[-1], step=numbers.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def open_study(name: str, storage: str, direction: str) -> optuna.Study:
    """Opens the study of a sweep, or creates it; `direction` is max or min."""
    goal: Literal["maximize", "minimize"] = "maximize" if direction == "max" else "minimize"
    try:
        return optuna.create_study(study_name=name, storage=_storage(storage), direction=goal, load_if_exists=True)
    except Exception as error:  # SQLAlchemy and the database drivers raise many types
        raise UserError(f"hydra.sweeper.storage={storage} cannot be opened: {error}") from error


def sqlite_file(path: Path) -> str:
    return f"sqlite:///{path.absolute()}"


def _with_password(url: str) -> str:
    """`url` with its password, which trial.json does not hold: it comes from the sweep's configuration."""
    if not is_masked(url):
        return url
    stored: Any = HydraConfig.get() if HydraConfig.initialized() else None
    storage = None if stored is None else OmegaConf.select(stored, "sweeper.storage")
    if storage is None:
        raise KeyError("its password is not stored; it is known where the sweep is resumed")
    return storage


def _storage(url: str) -> optuna.storages.RDBStorage:
    arguments = {"connect_args": {"timeout": LOCKED_SECONDS}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


def as_drawn(study: optuna.Study, space: Space) -> Space:
    """`space` with the names and choices that the study's earlier trials have, in case settings were renamed since."""
    drawn = {
        name: choices for trial in study.get_trials(deepcopy=False) for name, choices in trial.distributions.items()
    }
    drawn_space = {}
    for key, searched in space.items():
        name = next((old for old in drawn if rename_override(f"{old}=") == f"{key}="), key)
        if isinstance(searched, CategoricalDistribution) and isinstance(
            old := drawn.get(name), CategoricalDistribution
        ):
            renamed = [rename_override(f"{name}={choice}") for choice in old.choices]
            searched = old if renamed == [f"{key}={choice}" for choice in searched.choices] else searched
        drawn_space[name] = searched
    return drawn_space


def ask(study: optuna.Study, space: Space, sampler: DictConfig, seed: int | None) -> tuple[int, list[str]]:
    """The number of the next trial, and its overrides.

    Each trial gets a new sampler, with a seed of its own unless `sampler` has one. So a sweep that was interrupted
    does not draw its first trials a second time.
    """
    number = len(study.get_trials(deepcopy=False))
    seed_option = {} if seed is None or "seed" in sampler else {"seed": seed + number}
    study.sampler = build.instantiate_component(cast(DictConfig, OmegaConf.merge(sampler, seed_option)))
    space = as_drawn(study, space)
    trial = study.ask(dict(space))
    return trial.number, overrides_of(trial.params, space)


def overrides_of(params: Mapping[str, Any], space: Iterable[str]) -> list[str]:
    """`key=value` for each parameter of a trial, in the order of the space. Floats are written with all digits."""
    values = {key: repr(params[key]) if isinstance(params[key], float) else params[key] for key in space}
    return [rename_override(f"{key}={value}") for key, value in values.items()]


def unsettled(study: optuna.Study, space: Space) -> Iterator[tuple[int, list[str]]]:
    """Trials that the study counts as running, as a launcher was killed meanwhile: their numbers and overrides."""
    space = as_drawn(study, space)
    for trial in study.get_trials(deepcopy=False, states=(OptunaState.RUNNING,)):
        params = trial.params
        if params.keys() != space.keys():  # the launcher was killed while it drew the values
            study.tell(trial.number, state=OptunaState.FAIL)
            continue
        outside = [f"{key}={params[key]}" for key in space if not _holds(space[key], params[key])]
        if outside:
            raise UserError(
                f"the study has trial {trial.number} with {', '.join(outside)}, outside of the searched space: it "
                "belongs to another sweep, or was changed"
            )
        yield trial.number, overrides_of(params, space)


def _holds(searched: BaseDistribution, value: Any) -> bool:
    """Whether a value from a study's database lies in the searched distribution."""
    try:
        return searched._contains(searched.to_internal_repr(value))
    except (ValueError, TypeError):  # the value is not among the choices, or is a text instead of a number
        return False


def tell(study: optuna.Study, number: int, objective: float | None, status: str) -> None:
    """Tells the study the result of a trial: its objective if it finished, else that it was pruned or failed. A failed
    trial gets no value."""
    if study.get_trials(deepcopy=False)[number].state.is_finished():
        return
    if objective is not None:
        study.tell(number, objective)
    else:
        study.tell(number, state=OptunaState.PRUNED if status == PRUNED else OptunaState.FAIL)


class Pruning:
    """Reports each validation of a trial to the sweep's study, and asks it whether the trial should end.

    If the study's storage cannot be reached, there is one warning, and the trial trains to its end.
    """

    def __init__(self, number: int, how: Mapping[str, Any], validations: int, console: "Console"):
        self._number, self._console, self._done = number, console, validations
        self._how = how
        self._trial: optuna.Trial | None = None
        self._reported: set[int] = set()
        self._try(self._open)

    def __call__(self, value: float) -> str | None:
        """Reports the objective of a validation; returns why the trial should end now, or None."""
        self._done += 1
        trial = self._trial
        return None if trial is None else self._try(lambda: self._ask(trial, value))

    def _open(self) -> None:
        pruner = build.instantiate_component(OmegaConf.create(self._how["pruner"]))
        storage = _storage(_with_password(self._how["storage"]))
        study = optuna.load_study(study_name=self._how["study"], storage=storage, pruner=pruner)
        frozen = study.get_trials(deepcopy=False)[self._number]
        if frozen.state == OptunaState.RUNNING:  # otherwise its result is known, and somebody runs it again
            self._trial = optuna.Trial(study, frozen._trial_id)
            self._reported = set(frozen.intermediate_values)

    def _ask(self, trial: optuna.Trial, value: float) -> str | None:
        if self._done not in self._reported:  # an earlier attempt of this run may have reported it
            trial.report(value, self._done)
        if not trial.should_prune():
            return None
        name = self._how["pruner"]["_target_"].rsplit(".", 1)[-1]
        return f"pruned by {name} after {self._done} validations, the last of {value:.4f}"

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except (optuna.exceptions.OptunaError, LookupError, RuntimeError, ValueError, TypeError) as error:
            self._trial = None
            cause = str(error).splitlines()[0]
            self._console.warn(f"the sweep's study cannot be reached, so this trial is not pruned: {cause}")
            return None
