"""The Optuna study of a sweep: what is searched, the trials asked of it, and the word to end one early."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf

from vidtrain.build import parts as build
from vidtrain.errors import UserError
from vidtrain.files.escaping import is_masked
from vidtrain.files.folders import install_hint
from vidtrain.runs.status import PRUNED

try:
    import optuna
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.trial import TrialState
except ImportError as error:
    raise UserError(f"hydra/sweeper=optuna needs Optuna 4 or later: {install_hint('optuna')}") from error

LOCKED_SECONDS = 60  # that a process waits for the others at the same SQLite file

optuna.logging.set_verbosity(logging.WARNING)


def distribution(override: Override) -> BaseDistribution:
    """What an override searches: `interval(1e-5, 1e-2)`, with whole bounds or in int(...) of whole numbers, in
    tag(log, ...) on a logarithmic scale; `range(1, 9, 2)`; anything else that holds several values one by one."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        low, high, log = value.start, value.end, "log" in value.tags
        if isinstance(low, int) and isinstance(high, int):
            return IntDistribution(low, high, log=log)
        return FloatDistribution(float(low), float(high), log=log)
    if isinstance(value, RangeSweep) and not value.shuffle:
        numbers = value.range()  # leaves its end out, where a distribution holds it
        if isinstance(numbers, range) and numbers.step > 0 and len(numbers):
            return IntDistribution(numbers[0], numbers[-1], step=numbers.step)
    return CategoricalDistribution(list(override.sweep_string_iterator()))


def open_study(name: str, storage: str, direction: str) -> optuna.Study:
    """The study of a sweep, made where it is absent; `direction` is max or min."""
    try:
        return optuna.create_study(
            study_name=name,
            storage=_storage(storage),
            direction={"max": "maximize", "min": "minimize"}[direction],
            load_if_exists=True,
        )
    except Exception as error:  # whatever SQLAlchemy and the driver of a database raise
        raise UserError(f"hydra.sweeper.storage={storage} cannot be opened: {error}") from error


def sqlite_file(path: Path) -> str:
    return f"sqlite:///{path.absolute()}"


def _with_password(url: str) -> str:
    """trial.json holds the address of a study without its password, which the configuration of the sweep has."""
    if not is_masked(url):
        return url
    said = OmegaConf.select(HydraConfig.get(), "sweeper.storage") if HydraConfig.initialized() else None
    if said is None:
        raise KeyError("its password is not stored; it is known where the sweep is resumed")
    return said


def _storage(url: str) -> optuna.storages.RDBStorage:
    arguments = {"connect_args": {"timeout": LOCKED_SECONDS}} if url.startswith("sqlite") else {}
    return optuna.storages.RDBStorage(url, engine_kwargs=arguments)


def ask(
    study: optuna.Study, space: Mapping[str, BaseDistribution], sampler: DictConfig, seed: int | None
) -> tuple[int, list[str]]:
    """The next trial, as its number and the overrides that it sets.

    The sampler is made anew for each trial, from a seed of its own where `sampler` gives none: a sweep that was
    interrupted then does not draw its first trials a second time.
    """
    number = len(study.get_trials(deepcopy=False))
    own = OmegaConf.merge(sampler, {} if seed is None or "seed" in sampler else {"seed": seed + number})
    study.sampler = build.instantiate_component(own)
    trial = study.ask(dict(space))
    return trial.number, overrides_of(trial.params, space)


def overrides_of(params: Mapping[str, Any], space: Mapping[str, BaseDistribution]) -> list[str]:
    """`key=value` of a trial's parameters, in the order of the space. Floats are written so that they come back."""
    return [
        f"{key}={params[key]!r}" if isinstance(params[key], float) else f"{key}={params[key]}"
        for key in space
    ]


def unsettled(study: optuna.Study, space: Mapping[str, BaseDistribution]) -> Iterator[tuple[int, list[str]]]:
    """Trials that were asked for and not told of: what a launcher that was killed had under way."""
    for each in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if each.params.keys() == space.keys():
            strange = [
                f"{key}={each.params[key]}" for key in space if not _holds(space[key], each.params[key])
            ]
            if strange:
                raise UserError(
                    f"the study has trial {each.number} with {', '.join(strange)}, which is not searched: it is of "
                    "another sweep, or was changed"
                )
            yield each.number, overrides_of(each.params, space)
        else:  # killed while it drew them
            study.tell(each.number, state=TrialState.FAIL)


def _holds(searched: BaseDistribution, value: Any) -> bool:
    """Whether a value that a study's database holds is one of those that are searched."""
    try:
        return searched._contains(searched.to_internal_repr(value))
    except (ValueError, TypeError):  # of a choice that is none, or of text for a number
        return False


def tell(study: optuna.Study, number: int, objective: float | None, status: str) -> None:
    """What became of a trial: its objective where it finished, else that it was pruned or failed. A failed one gets no
    value at all."""
    if study.get_trials(deepcopy=False)[number].state.is_finished():
        return
    if objective is not None:
        study.tell(number, objective)
    else:
        study.tell(number, state=TrialState.PRUNED if status == PRUNED else TrialState.FAIL)


class Pruning:
    """A trial's side of a study: reports each validation, and asks whether to go on.

    A storage that cannot be reached ends no training: a warning says so once, and the trial goes on to its end.
    """

    def __init__(self, number: int, how: Mapping[str, Any], validations: int, console: Any):
        self._number, self._console, self._done = number, console, validations
        self._how = how
        self._trial: optuna.Trial | None = None
        self._reported: set[int] = set()
        self._try(self._open)

    def __call__(self, value: float) -> str | None:
        """Why the trial is to end now, or None."""
        self._done += 1
        return None if self._trial is None else self._try(lambda: self._ask(value))

    def _open(self) -> None:
        pruner = build.instantiate_component(OmegaConf.create(self._how["pruner"]))
        storage = _storage(_with_password(self._how["storage"]))
        study = optuna.load_study(study_name=self._how["study"], storage=storage, pruner=pruner)
        frozen = study.get_trials(deepcopy=False)[self._number]
        if frozen.state == TrialState.RUNNING:  # else it has been told of, and is run again by hand
            self._trial = optuna.Trial(study, frozen._trial_id)
            self._reported = set(frozen.intermediate_values)

    def _ask(self, value: float) -> str | None:
        if self._done not in self._reported:  # before it was resumed
            self._trial.report(value, self._done)
        if not self._trial.should_prune():
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
