"""What a sweep is made of: sweep.json in its folder, and trial.json in the folder of each trial.

A trial is known by its overrides, so that starting the same sweep again in the same folder finds what is there.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from vidtrain.config.renames import rename_override
from vidtrain.errors import UserError
from vidtrain.files.atomic import write_json_atomic
from vidtrain.files.escaping import is_masked, masked

SWEEP, TRIAL = "sweep.json", "trial.json"


@dataclass
class Trial:
    """One run of a sweep. `folder` is below the sweep's."""

    number: int
    folder: str
    overrides: list[str]

    def values(self) -> dict[str, str]:
        """What each override sets, by key as it was written."""
        return {key: value for key, _, value in (each.partition("=") for each in self.overrides)}


@dataclass
class SweepRecord:
    """A sweep as its folder knows it. `hydra` and `task` are the overrides of the command that started it last, in the
    folder `started_in`; `keys` are swept, in order; `planned` is how many trials there are to be."""

    program: str
    hydra: list[str]
    task: list[str]
    started_in: str
    started: str
    launcher: str
    sweeper: str
    objective: str  # the metric on val that training selects by
    direction: str  # max or min
    planned: int
    keys: list[str]
    space: dict[str, str] = field(default_factory=dict)  # what is searched, by key, as it was written
    trials: list[Trial] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises `UserError` where the folder holds no sweep, or its record is damaged."""
        path = folder / SWEEP
        if not path.is_file():
            why = "there is no such folder" if not folder.is_dir() else f"it holds no {SWEEP}"
            raise UserError(
                f"{folder} is not the folder of a sweep: {why}. Give the one that python -m vidtrain.train -m named"
            )
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            trials = [Trial(**each) for each in found["trials"]]
            values = {each.name: found[each.name] for each in fields(cls)} | {"trials": trials}
            for each in trials:
                _check_types(isinstance(each.number, int), isinstance(each.folder, str))
            for texts in (
                values["hydra"],
                values["task"],
                values["keys"],
                *(each.overrides for each in trials),
            ):
                _check_types(isinstance(texts, list), all(isinstance(each, str) for each in texts))
            return cls(**values)._renamed()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read ({error}): it is damaged, or from other code") from error

    def _renamed(self) -> Self:
        """With the names that settings have now."""
        self.hydra, self.task = (
            [rename_override(each) for each in texts] for texts in (self.hydra, self.task)
        )
        for trial in self.trials:
            trial.overrides = [rename_override(each) for each in trial.overrides]
        self.keys = [rename_override(f"{key}=").removesuffix("=") for key in self.keys]
        space = [rename_override(f"{key}={value}").partition("=") for key, value in self.space.items()]
        self.space = {key: value for key, _, value in space}
        return self

    def write(self, folder: Path) -> None:
        write_json_atomic(folder / SWEEP, asdict(self))

    def find(self, overrides: Sequence[str], free: Sequence[str]) -> Trial | None:
        """The trial of these overrides, whatever their order; keys that begin with one of `free` do not matter."""
        wanted = _identity(overrides, free)
        return next((each for each in self.trials if _identity(each.overrides, free) == wanted), None)

    def complete(self, said: Sequence[str]) -> None:
        """Puts the passwords of addresses, which are not stored, back into the trials: `said` are the overrides of the
        command line."""
        by_key = {each.partition("=")[0]: each for each in said}
        for trial in self.trials:
            trial.overrides = [
                by_key[key] if is_masked(each) and (key := each.partition("=")[0]) in by_key else each
                for each in trial.overrides
            ]

    def best(self, objectives: dict[int, float]) -> int | None:
        """The number of the best of some trials, by number -> objective."""
        if not objectives:
            return None
        return (max if self.direction == "max" else min)(objectives, key=lambda number: objectives[number])

    def next_number(self) -> int:
        return max((each.number for each in self.trials), default=-1) + 1


def _check_types(*right: bool) -> None:
    if not all(right):
        raise TypeError("values of other types than are written there")


def _identity(overrides: Sequence[str], free: Sequence[str]) -> frozenset[str]:
    """As they are stored: without passwords."""
    return frozenset(masked(each) for each in overrides if not each.lstrip("+~").startswith(tuple(free)))


def changed_settings(
    before: Sequence[Sequence[str]], now: Sequence[Sequence[str]], free: Sequence[str]
) -> list[str]:
    """Settings that all trials of a sweep share and that all of another share with another value, as lines for a
    message. They are why another cannot be added to it: its trials would differ in more than what is swept."""
    old, new = (_shared(each, free) for each in (before, now))
    return [
        f"{key}: {_said(old, key)} -> {_said(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if _said(old, key) != _said(new, key)
        and not (_varies(before, key) or _varies(now, key))  # one of them sweeps over it
    ]


def _shared(trials: Sequence[Sequence[str]], free: Sequence[str]) -> dict[str, str]:
    sets = [_identity(each, free) for each in trials]
    return dict(each.partition("=")[::2] for each in (frozenset.intersection(*sets) if sets else ()))


def _varies(trials: Sequence[Sequence[str]], key: str) -> bool:
    return len({each for trial in trials for each in trial if each.partition("=")[0] == key}) > 1


def _said(shared: dict[str, str], key: str) -> str:
    return shared[key] if key in shared else "not said"


# --- the trial's own record, which is how a run knows that it is one -----------------------------------------


def write_trial(sweep: Path, trial: Trial, pruning: dict[str, Any] | None) -> None:
    """`pruning` is for a study that may end the trial early: storage, study and pruner."""
    folder = sweep / trial.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_json_atomic(folder / TRIAL, {**asdict(trial), "sweep": str(sweep), "pruning": pruning})


def read_trial(folder: Path) -> dict[str, Any] | None:
    """trial.json of a run folder; None for a run that is no trial. Raises `UserError` where it is damaged."""
    path = folder / TRIAL
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: found[key] for key in ("number", "folder", "overrides", "sweep", "pruning")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}): delete it, and resume the sweep") from error
