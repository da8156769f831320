"""The records of a sweep: sweep.json in its folder, and trial.json in the folder of each trial. Also what a run does
differently as a trial: it is compared on val alone, and may be ended early.

A trial is identified by its overrides, so the same sweep, started again in the same folder, finds its earlier trials.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from vidtrain.config.renames import rename_override
from vidtrain.config.trust import is_trusted_pruner
from vidtrain.errors import Pruned, UserError
from vidtrain.files.atomic import read_json, write_json_atomic
from vidtrain.files.escaping import is_masked, masked
from vidtrain.tracking.run_log import read_metrics

if TYPE_CHECKING:
    from vidtrain.data.manifest.manifest import Manifest
    from vidtrain.training.distributed import Ranks
    from vidtrain.training.run import Console

SWEEP, TRIAL = "sweep.json", "trial.json"
DAMAGED = "it is damaged, or another program wrote it"


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
            reason = "there is no such folder" if not folder.is_dir() else f"it holds no {SWEEP}"
            raise UserError(
                f"{folder} is not the folder of a sweep: {reason}. Give the one that python -m vidtrain.train -m named"
            )
        stored = read_json(path, DAMAGED, [key.name for key in fields(cls)])
        try:
            trials = [Trial(**trial) for trial in stored["trials"]]
            values = {key.name: stored[key.name] for key in fields(cls)} | {"trials": trials}
            _check_types(*(isinstance(trial.number, int) and isinstance(trial.folder, str) for trial in trials))
            for texts in (values["hydra"], values["task"], values["keys"], *(trial.overrides for trial in trials)):
                _check_types(isinstance(texts, list), all(isinstance(text, str) for text in texts))
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
        identity = _identity(overrides, free, swept)
        return next((trial for trial in self.trials if _identity(trial.overrides, free, swept) == identity), None)

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


def _check_types(*right: bool) -> None:
    if not all(right):
        raise TypeError("it holds values of wrong types")


def _identity(overrides: Sequence[str], free: Sequence[str], swept: Sequence[str] = ()) -> frozenset[str]:
    """The overrides that identify a trial, as they are stored: without passwords and without keys in `free` that are
    not `swept`."""
    return frozenset(
        masked(override)
        for override in overrides
        if override.partition("=")[0] in swept or not override.lstrip("+~").startswith(tuple(free))
    )


def changed_settings(before: Sequence[Sequence[str]], now: Sequence[Sequence[str]], free: Sequence[str]) -> list[str]:
    """Lines `key: old -> new` for settings that are not swept and differ between two lists of trials' overrides. Trials
    that differ in more than the swept settings must not be in the same sweep."""
    old, new = (_shared(trials, free) for trials in (before, now))
    pairs = {key: [_value(shared, key) for shared in (old, new)] for key in sorted(old.keys() | new.keys())}
    return [
        f"{key}: {earlier} -> {later}"
        for key, (earlier, later) in pairs.items()
        if earlier != later and not (varies(before, key) or varies(now, key))  # swept before or now
    ]


def _shared(trials: Sequence[Sequence[str]], free: Sequence[str]) -> dict[str, str]:
    sets = [_identity(overrides, free) for overrides in trials]
    return dict(override.partition("=")[::2] for override in (frozenset.intersection(*sets) if sets else ()))


def varies(trials: Sequence[Sequence[str]], key: str) -> bool:
    """Whether trials, given by their overrides, set `key` to more than one value."""
    return len({override for trial in trials for override in trial if override.partition("=")[0] == key}) > 1


def _value(shared: Mapping[str, str], key: str) -> str:
    return shared[key] if key in shared else "not set"


# --- trial.json in a run's folder: it makes the run a trial --------------------------------------------------


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
    keys = ("number", "folder", "overrides", "sweep", "pruning")
    return read_json(path, "delete it, and resume the sweep", keys)


# --- what a run does as a trial -----------------------------------------------------------------------------


def check_objective(folder: Path, splits: Mapping[str, "Manifest"]) -> None:
    """Raises `UserError` for a trial whose val shares videos with test: the sweep would select on what it reports."""
    if read_trial(folder) is None or "test" not in splits:
        return
    shared = set(splits["val"].paths) & set(splits["test"].paths)
    if shared:
        raise UserError(
            f"val and test share {len(shared)} videos, such as {min(shared)}: a sweep selects a trial by val, whose "
            "test metrics would then be of the same videos. Hold val out of train, such as with "
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
