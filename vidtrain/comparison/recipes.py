"""Which settings tell runs apart, and which runs are one recipe over several seeds."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ABSENT = "absent"  # a setting that another run's parts have and this run's lack
UNNAMED = "default"  # a choice that no override names
MOST_NAMED = 4  # settings in a label
KEY_LENGTH = 16

Settings = Mapping[str, Any]  # by dotted key


@dataclass(frozen=True)
class Recipe:
    """Runs that differ in nothing but what is repeated. `runs` are their places in the list of all runs."""

    number: int
    settings: dict[str, Any]  # the swept keys and their values
    runs: list[int]


def differing(runs: Sequence[Settings], ignored: Collection[str]) -> dict[str, list[Any]]:
    """The values of every key that is not the same in all runs, but for `ignored` keys and what lies below them."""
    keys = dict.fromkeys(key for run in runs for key in run)
    values = {key: [run[key] if key in run else ABSENT for run in runs] for key in keys}
    return {
        key: row for key, row in values.items() if not _is_below(key, ignored) and len(set(_texts(row))) > 1
    }


def swept(
    runs: Sequence[Settings], overrides: Sequence[Sequence[str]], ignored: Collection[str]
) -> dict[str, list[Any]]:
    """What was chosen differently, by key, with the value of each run.

    These are the keys that differ. Those that only follow from another choice stand under its name: all that lies
    below a config group by the option of the group (`augmentation=none`), and what an experiment sets by its name.
    """
    assigned = [_assignments(run) for run in overrides]
    differ = differing(runs, ignored)
    explicit = {key for run in assigned for key in run}
    # a choice is an override of what is no single setting: a group, or an experiment
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
        kept[name] = _name_alike(choices[name], rows)
    return {**{name: kept[name] for name in choices if name in kept}, **kept}


def _may_set(choice: str, key: str, single: Collection[str]) -> bool:
    """Whether a key is below the group of a choice; an experiment has no settings of its own, and may set any."""
    node = f"{choice.partition('@')[2] or choice}."
    return key.startswith(node) or not any(name.startswith(node) for name in single)


def _follows(row: Sequence[Any], options: Sequence[Any]) -> bool:
    """Whether equal options always come with equal values."""
    pairs = set(zip(_texts(options), _texts(row), strict=True))
    return len(pairs) == len(set(_texts(options)))


def _name_alike(options: Sequence[Any], rows: Sequence[Sequence[Any]]) -> list[Any]:
    """The options by run; runs with equal settings get one name, and rather the one that was given."""
    alike = list(zip(*map(_texts, rows), strict=True))
    names: dict[tuple[str, ...], Any] = {}
    for settings, option in zip(alike, options, strict=True):
        if settings not in names or names[settings] == UNNAMED:
            names[settings] = option
    return [names[settings] for settings in alike]


def recipes(
    settings: Sequence[Settings],
    overrides: Sequence[Sequence[str]],
    apart: Sequence[Any],
    ignored: Collection[str],
) -> tuple[dict[str, list[Any]], list[Recipe]]:
    """The swept keys with every run's value, and the recipes in the order of their first runs.

    Runs are of one recipe where all settings are equal but the `ignored` ones, and `apart` too, which is what else
    must not be mixed (how a run was evaluated).
    """
    differ, keys = differing(settings, ignored), swept(settings, overrides, ignored)
    members: dict[tuple[str, ...], list[int]] = {}
    for run, what in enumerate(apart):
        members.setdefault(_texts([what, *(row[run] for row in differ.values())]), []).append(run)
    return keys, [
        Recipe(number, {key: row[runs[0]] for key, row in keys.items()}, runs)
        for number, runs in enumerate(members.values(), start=1)
    ]


def labels(grouped: Sequence[Recipe], compared: Collection[int]) -> dict[int, str]:
    """A label for every recipe by number. Those that are `compared` are told by what differs between them, others by
    all that was swept; with nothing to tell it is empty.
    """
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
    """`lr=0.001, augmentation=none`"""
    parts = [f"{_cut(key)}={_plain(value)}" for key, value in settings.items()]
    if len(parts) > MOST_NAMED:
        parts = [*parts[: MOST_NAMED - 1], f"and {len(parts) - MOST_NAMED + 1} more"]
    return ", ".join(parts)


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """For each dotted key its shortest end that no other key ends with."""
    names = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-n:]) for n in range(1, len(parts) + 1))
        others = [f".{other}" for other in keys if other != key]
        names[key] = next(
            (end for end in ends if not any(other.endswith(f".{end}") for other in others)), key
        )
    return names


def _cut(key: str) -> str:
    return key if len(key) <= KEY_LENGTH else f"{key[: KEY_LENGTH - 1]}…"


def _plain(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _assignments(overrides: Sequence[str]) -> dict[str, str]:
    pairs = (override.lstrip("+~").partition("=") for override in overrides)
    return {key: value for key, _, value in pairs}


def _is_below(key: str, above: Collection[str]) -> bool:
    return any(key == node or key.startswith(f"{node}.") for node in above)


def _texts(row: Iterable[Any]) -> tuple[str, ...]:
    return tuple(map(str, row))
