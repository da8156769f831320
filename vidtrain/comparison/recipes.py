"""Which settings differ between runs, which runs are one recipe over several seeds, and which recipes are compared."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vidtrain.comparison.runs import Run
from vidtrain.config.schemas import CompareConfig
from vidtrain.config.targets import suggest
from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import CLOSING_DIRECTIONS
from vidtrain.evaluation.resampling import FROM_LOGITS, FROM_PREDICTIONS, PRECISION_DRAWS, PRECISIONS
from vidtrain.reports.pages import setting
from vidtrain.runs.folder import RESUMABLE

# Settings that change only names, speed or the log, and not the results
IGNORED = (*RESUMABLE, "name", "trainer.cpu_threads", "trainer.eval_batch_size", "trainer.log_every")
MOST_BINS = 4  # numbers that hardly repeat are put into at most this many bins
RUNS_PER_BIN = 3  # at least
ABSENT = "absent"  # shown for a setting that other runs have and this run does not
UNNAMED = "default"  # shown for a config group or experiment that no override of the run sets
MOST_NAMED = 4  # at most this many settings are in a label
KEY_LENGTH = 16  # longer keys are shortened in a label

Settings = Mapping[str, Any]  # by dotted key


@dataclass(frozen=True)
class Recipe:
    """Runs that have the same settings, except those that are repeated, such as the seed."""

    number: int
    settings: dict[str, Any]  # the swept keys and their values
    runs: list[int]  # indices in the list of all runs


def differing(runs: Sequence[Settings], ignored: Collection[str]) -> dict[str, list[Any]]:
    """The values, in each run, of every key that differs between runs. `ignored` keys and keys below them are left
    out."""
    keys = dict.fromkeys(key for run in runs for key in run)
    values = {key: [run[key] if key in run else ABSENT for run in runs] for key in keys}
    return {key: row for key, row in values.items() if not _is_below(key, ignored) and len(set(_texts(row))) > 1}


def swept(
    runs: Sequence[Settings], overrides: Sequence[Sequence[str]], ignored: Collection[str]
) -> dict[str, list[Any]]:
    """The choices that differ between runs, by key, with the value of each run. They are the keys of `differing`, but
    keys that only follow from another choice are replaced by it: the settings of a config group by the group's option
    (`augmentation=none`), and the settings of an experiment by its name."""
    pairs = [[override.lstrip("+~").partition("=") for override in run] for run in overrides]
    assigned = [{key: value for key, _, value in run} for run in pairs]
    differ = differing(runs, ignored)
    explicit = {key for run in assigned for key in run}
    # An override whose key is not a single setting chooses a config group or an experiment
    single = {key for run in runs for key in run}
    choices: dict[str, list[Any]] = {
        name: [run[name] if name in run else UNNAMED for run in assigned]
        for name in sorted(explicit - single)
        if not _is_below(name, ignored)
    }
    kept: dict[str, list[Any]] = {}
    followers: dict[str, list[list[Any]]] = {}
    for key, row in differ.items():
        leaders = (name for name in choices if _may_set(name, key, single) and _follows(row, choices[name]))
        leader = None if key in explicit else next(leaders, None)
        if leader:
            followers.setdefault(leader, []).append(row)
        elif key in explicit or not any(
            name in explicit and _texts(row) == _texts(other) for name, other in differ.items() if name != key
        ):
            kept[key] = row
    for name, rows in followers.items():
        kept[name] = _option_names(choices[name], rows)
    return {**{name: kept[name] for name in choices if name in kept}, **kept}


def _may_set(choice: str, key: str, single: Collection[str]) -> bool:
    """Whether `choice` may set `key`: a config group sets the keys below it; an experiment may set any key."""
    node = f"{choice.partition('@')[2] or choice}."
    return key.startswith(node) or not any(name.startswith(node) for name in single)


def _follows(row: Sequence[Any], options: Sequence[Any]) -> bool:
    """Whether equal options always come with equal values."""
    pairs = set(zip(_texts(options), _texts(row), strict=True))
    return len(pairs) == len(set(_texts(options)))


def _option_names(options: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[Any]:
    """The option of each run. Runs with equal settings get the same one, preferably one that an override names."""
    run_settings = list(zip(*map(_texts, rows), strict=True))
    names: dict[tuple[str, ...], Any] = {}
    for settings, option in zip(run_settings, options, strict=True):
        if settings not in names or names[settings] == UNNAMED:
            names[settings] = option
    return [names[settings] for settings in run_settings]


def recipes(
    settings: Sequence[Settings], overrides: Sequence[Sequence[str]], apart: Sequence[Any], ignored: Collection[str]
) -> tuple[dict[str, list[Any]], list[Recipe]]:
    """The swept keys with every run's value, and the recipes in the order of their first runs. Runs belong to one
    recipe if all their settings except the `ignored` ones are equal, and their values of `apart`, such as how they were
    evaluated."""
    differ, keys = differing(settings, ignored), swept(settings, overrides, ignored)
    members: dict[tuple[str, ...], list[int]] = {}
    for run, kind in enumerate(apart):
        members.setdefault(_texts([kind, *(row[run] for row in differ.values())]), []).append(run)
    return keys, [
        Recipe(number, {key: row[runs[0]] for key, row in keys.items()}, runs)
        for number, runs in enumerate(members.values(), start=1)
    ]


def labels(grouped: Sequence[Recipe], compared: Collection[int]) -> dict[int, str]:
    """A label for every recipe, by number. Recipes in `compared` are labeled by the settings that differ between them,
    all others by all swept settings. Without any, the label is empty."""
    keys = list(grouped[0].settings)
    among = [recipe.settings for recipe in grouped if recipe.number in compared]
    differing_keys = [key for key in keys if len(set(_texts([settings[key] for settings in among]))) > 1]
    names = {}
    for recipe in grouped:
        shown = differing_keys if recipe.number in compared and differing_keys else keys
        short = short_names(shown)
        names[recipe.number] = label({short[key]: recipe.settings[key] for key in shown})
    return names


def label(settings: Settings) -> str:
    """Settings as a short text, such as `lr=0.001, augmentation=none`."""
    short = {key: key if len(key) <= KEY_LENGTH else f"{key[: KEY_LENGTH - 1]}…" for key in settings}
    assignments = [f"{short[key]}={setting(value)}" for key, value in settings.items()]
    if len(assignments) > MOST_NAMED:
        assignments = [*assignments[: MOST_NAMED - 1], f"and {len(assignments) - MOST_NAMED + 1} more"]
    return ", ".join(assignments)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key, the shortest of its endings that is no ending of another key."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        others = [f".{other}" for other in keys if other != key]
        names[key] = next((end for end in ends if not any(other.endswith(f".{end}") for other in others)), key)
    return names


def _is_below(key: str, above: Collection[str]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in above)


def _texts(row: Iterable[Any]) -> tuple[str, ...]:
    return tuple(map(str, row))


# --- the recipes to compare -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Study:
    """The runs, grouped into recipes, and how to compare them."""

    settings: CompareConfig
    runs: Sequence[Run]
    recipes: Sequence[Recipe]
    keys: Mapping[str, Sequence[Any]]  # the swept keys, with every run's value
    baseline: Recipe
    comparable: Sequence[Recipe]  # recipes that may be compared with the baseline, which is one of them
    metric: str
    tested: str  # the metric whose intervals are computed: `metric`, if it follows from the stored predictions

    @property
    def of_pretraining(self) -> bool:
        return of_pretraining(self.runs)

    @property
    def draws(self) -> int:
        """The number of draws of the bootstrap."""
        wanted = self.settings.bootstrap
        return min(wanted, PRECISION_DRAWS) if self.tested in PRECISIONS else wanted

    def runs_of(self, recipe: Recipe) -> list[Run]:
        return [self.runs[place] for place in recipe.runs]

    def repeat_of(self, run: Run) -> dict[str, Any]:
        """The run's values of the settings that are repeated, such as the seed."""
        return {key: run.settings.get(key) for key in self.settings.repeats}


def of_pretraining(runs: Sequence[Run]) -> bool:
    """Whether the runs are of pretraining, as then all are."""
    return runs[0].objective is not None


def have_logits(runs: Sequence[Run]) -> bool:
    return all(run.predictions is not None and run.predictions.logits is not None for run in runs)


def study_of(runs: Sequence[Run], settings: CompareConfig) -> Study:
    """Groups the runs into recipes, and chooses metric and baseline. Raises `UserError` for a metric that not all runs
    report, and for a baseline that is none of the runs."""
    metric = _metric(runs, settings.metric)
    keys, grouped = _recipes(runs, settings)
    place = _place_of_baseline(runs, settings.baseline)
    baseline, kind = recipe_of(grouped, place), runs[place].kind
    comparable = [
        recipe
        for recipe in grouped
        if (other := runs[recipe.runs[0]].kind) == kind or (settings.across_protocols and other.several == kind.several)
    ]
    compared = [runs[number] for recipe in comparable for number in recipe.runs]
    tested = metric
    if not (of_pretraining(runs) or metric in FROM_PREDICTIONS or (metric in FROM_LOGITS and have_logits(compared))):
        tested = "exact_match" if kind.several else "top1"
    return Study(settings, runs, grouped, keys, baseline, comparable, metric, tested)


def _metric(runs: Sequence[Run], wanted: str | None) -> str:
    shared = sorted(set.intersection(*(set(run.metrics) for run in runs)) & set(CLOSING_DIRECTIONS))
    usual = ["top1", *(["map"] if have_logits(runs) else []), "exact_match"]
    if of_pretraining(runs):
        usual = ["linear_top1", "knn_top1", *(["loss"] if len({run.objective for run in runs}) == 1 else [])]
    metric = wanted or next((name for name in usual if name in shared), None)
    if metric is None:
        choices = ", ".join(shared) or "none"
        raise UserError(f"the runs do not share {' or '.join(usual)}; choose metric= from {choices}")
    if metric not in shared:
        not_reported = next((f"{run.folder} does not report it" for run in runs if metric not in run.metrics), None)
        reason = not_reported or "it is not known which way is better"
        raise UserError(f"metric={metric}: {reason}{suggest(metric, shared)}")
    if all(run.metrics[metric] is None for run in runs):
        raise UserError(f"metric={metric} is not a number in any of the runs; choose another")
    return metric


def _recipes(runs: Sequence[Run], settings: CompareConfig) -> tuple[dict[str, list[Any]], list[Recipe]]:
    """The swept keys and the recipes. If runs with equal settings have different training data, these count as a
    setting, and so does the commit if all runs would otherwise be one recipe."""
    run_settings, ignored = [run.settings for run in runs], ignored_keys(settings)
    overrides, kinds = [run.overrides for run in runs], [run.kind for run in runs]
    keys, grouped = recipes(run_settings, overrides, kinds, ignored)
    data = [run.digests["train"][:8] if "train" in run.digests else None for run in runs]
    if any(len({data[run] for run in recipe.runs} - {None}) > 1 for recipe in grouped):
        run_settings = [{**values, "training data": digest} for values, digest in zip(run_settings, data, strict=True)]
        keys, grouped = recipes(run_settings, overrides, kinds, ignored)
    if len(grouped) == 1 and len({run.commit for run in runs}) > 1:
        run_settings = [{**values, "commit": run.commit} for values, run in zip(run_settings, runs, strict=True)]
        keys, grouped = recipes(run_settings, overrides, kinds, ignored)
    return keys, grouped


def ignored_keys(settings: CompareConfig) -> tuple[str, ...]:
    return (*IGNORED, *settings.repeats)


def _place_of_baseline(runs: Sequence[Run], wanted: str | None) -> int:
    """The index of the baseline's run among all runs."""
    if wanted is None:
        return 0
    folders = [run.folder.resolve() for run in runs]
    if Path(wanted).resolve() not in folders:
        raise UserError(f"baseline={wanted} is none of the runs{suggest(wanted, [str(run.folder) for run in runs])}")
    return folders.index(Path(wanted).resolve())


def recipe_of(grouped: Sequence[Recipe], run: int) -> Recipe:
    return next(recipe for recipe in grouped if run in recipe.runs)


def same_seeds(study: Study, other: Recipe) -> list[tuple[int, int]]:
    """Pairs of run indices (baseline, other) with equal repeated settings, such as the seed; each run is used once."""
    if len(study.baseline.runs) == len(other.runs) == 1:
        return [(0, 0)]
    free = {b: study.repeat_of(run) for b, run in enumerate(study.runs_of(other))}
    pairs = []
    for a, run in enumerate(study.runs_of(study.baseline)):
        b = next((b for b, repeat in free.items() if repeat == study.repeat_of(run)), None)
        if b is not None:
            pairs.append((a, b))
            del free[b]
    return pairs


# --- importance of settings -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Importance:
    """The importance of one setting. `share` is eta squared, the part of the variance between runs that lies between
    the setting's values. `adjusted` is epsilon squared (Kelley, 1935), which subtracts what as many values explain by
    chance, and is cut at 0. It is None if no value was run twice.

    Each setting is considered alone: an effect that two settings have only together is credited to neither, and if
    settings were not varied independently, one may get the credit of another.
    """

    key: str
    values: int  # number of values, or of bins if numbers hardly repeat
    runs: int
    binned: bool
    share: float
    adjusted: float | None


def importance(metric: Sequence[float], settings: Mapping[str, Sequence[Any]]) -> list[Importance]:
    """The importance of every setting, the greatest first; empty if all runs have the same `metric`."""
    values = np.array(metric, dtype=np.float64)
    total = ((values - values.mean()) ** 2).sum() if len(values) else 0.0
    if total <= 0:
        return []
    rows = [_importance_of(key, values, total, row) for key, row in settings.items()]
    return sorted(rows, key=lambda row: -1.0 if row.adjusted is None else row.adjusted, reverse=True)


def _importance_of(key: str, metric: np.ndarray, total: float, row: Sequence[Any]) -> Importance:
    codes, binned = _values_or_bins(row)
    counts = np.bincount(codes)
    means = np.bincount(codes, metric) / counts
    within = float(((metric - means[codes]) ** 2).sum())
    adjusted = None
    if len(metric) > len(counts):
        between = total - within - (len(counts) - 1) * within / (len(metric) - len(counts))
        adjusted = max(0.0, float(between / total))
    return Importance(key, len(counts), len(metric), binned, float(1 - within / total), adjusted)


def _values_or_bins(row: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """An integer code for each run's value, and whether the values, as numbers that hardly repeat, were put into at
    most `MOST_BINS` bins of equal size first."""
    names, codes = np.unique([str(value) for value in row], return_inverse=True)
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in row)
    if numbers and 2 * len(names) > len(row) and len(row) >= 2 * RUNS_PER_BIN:
        bins = min(MOST_BINS, len(row) // RUNS_PER_BIN)
        column = np.array(row, dtype=np.float64)
        edges = np.quantile(column, np.arange(1, bins) / bins)
        return np.unique(np.searchsorted(edges, column), return_inverse=True)[1], True
    return codes, False
