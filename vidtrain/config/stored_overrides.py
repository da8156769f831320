"""Overrides that the folder of a run or of a sweep holds: which may be taken from there, as it may be from elsewhere.

What is said on the command line is the user's own word; what stands in run.json, sweep.json or an Optuna study is taken
only where it can do no more than choose among what this package ships. Nothing is composed or imported to decide that.
"""

import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import PurePosixPath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, QuotedString, Sweep
from hydra.errors import HydraException

from vidtrain.config.schemas import RunConfig
from vidtrain.config.targets import CONF, options
from vidtrain.config.trust import REFERENCE, TARGET, first_lines, is_computed, is_trusted, shipped_pruners
from vidtrain.errors import UserError

# Of Hydra's own settings, those that a sweep's command line may say and that start nothing by themselves
CHOICES = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler", "hydra/sweeper/pruner")
SETTINGS = re.compile(
    r"hydra\.(sweep\.(dir|subdir)"
    r"|sweeper\.(n_trials|n_jobs|seed|retry)"
    r"|sweeper\.(sampler|pruner)\.[a-z]\w*"
    r"|launcher\.(nodes|tasks_per_node|gpus_per_node|cpus_per_task|mem_gb|timeout_min|partition|account|qos"
    r"|constraint|gres|cpus_per_gpu|gpus_per_task|mem_per_gpu|mem_per_cpu|signal_delay_s|max_restarts"
    r"|max_num_timeout|array_parallelism|stderr_to_stdout))"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
WORD = re.compile(
    r"[\w.,:@%=+/-]*"
)  # what a scheduler is told; a line break in it would begin another command


def overrides_of(record: Any, source: str) -> list[str]:
    """The overrides that a record holds. Raises `UserError` where they are none."""
    found = record["overrides"] if isinstance(record, Mapping) and "overrides" in record else None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UserError(f"{source} is damaged, or was changed: its overrides are not a list of text")
    return found


def check_stored(
    taken: Sequence[str], source: str, command: str, hydra: bool = False, said: Collection[str] = ()
) -> None:
    """Raises `UserError` for overrides that must not be taken from the file `source`, unless they are also in `said`,
    those of this command line.

    `command` is the command line to repeat them on; `hydra` tells whether settings of Hydra's may be among them.
    """
    refused = [each for each in taken if each not in said and not may_be_taken(each, hydra)]
    if refused:
        raise UserError(
            f"{source} holds settings that a folder from elsewhere could do harm with: they name code, look something "
            "up where they are read, or change how programs are started:\n  "
            + "\n  ".join(first_lines(refused))
            + f"\nIf they are yours, say them again: {command} {shlex.join(refused)}"
        )


def may_be_taken(override: str, hydra: bool = False) -> bool:
    """Whether an override does no more than to choose among what this package ships."""
    if override.startswith("-") or CONTROL.search(override):  # a flag; a line of a batch script
        return False
    try:
        parsed = OverridesParser.create().parse_override(override)
        value = parsed.value()
    except HydraException:
        return False
    key = parsed.key_or_group
    if key == "run_dir":  # this command line says where to write, or the sweep does
        return False
    own = f"{key}@{parsed.package or ''}"
    if "hydra" in re.split(r"\W", own):
        return hydra and parsed.package is None and _may_set_hydra(key, value)
    values = list(_leaves(value, key.rpartition(".")[2]))
    if _may_be_a_group(key) and any(
        PurePosixPath(each).is_absolute() or ".." in PurePosixPath(each).parts
        for _, each in values
        if isinstance(each, str)
    ):
        return False  # an option of a group is a file's name, and might lead out of conf/
    return TARGET not in key.split(".")[:-1] and all(_is_harmless(name, each) for name, each in values)


def _may_be_a_group(key: str) -> bool:
    """Of this package, or of a configuration folder of the user's own."""
    plain = {each.name for each in fields(RunConfig) if not (CONF / each.name).is_dir()}
    return "/" in key or ("." not in key and key not in plain)


def _is_harmless(name: Any, value: Any) -> bool:
    if name == TARGET:
        return is_trusted(value)
    return not (isinstance(value, str) and is_computed(value))


def _leaves(value: Any, name: Any) -> Iterator[tuple[Any, Any]]:
    """The plain values in an override's, each with the last part of its key."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield "", str(key)
            yield from _leaves(each, str(key))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _leaves(each, name)
    elif isinstance(value, QuotedString):
        yield name, value.text
    elif isinstance(value, Glob):
        yield from ((name, each) for each in [*value.include, *value.exclude])
    elif isinstance(value, Sweep):
        yield from _leaves(getattr(value, "list", None), name)  # ranges and intervals are of numbers
    else:
        yield name, value


def _may_set_hydra(key: str, value: Any) -> bool:
    if key in CHOICES:
        return value in options(key)
    if not SETTINGS.fullmatch(key) or isinstance(value, Mapping | list | tuple | Sweep):
        return False
    text = REFERENCE.sub("x", value.text if isinstance(value, QuotedString) else str(value))
    if key == "hydra.sweep.dir":  # where the user names the sweep, that counts
        return "$" not in text
    return WORD.fullmatch(text) is not None and is_inside(text)


def is_inside(folder: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    path = PurePosixPath(folder)
    return not path.is_absolute() and ".." not in path.parts


def check_trials(trials: Sequence[Any], said: Collection[str], source: str) -> None:
    """Raises `UserError` for trials in a sweep's record that set what must not be taken from it, or that lie outside of
    its folder. `said` is what the command line sweeps over and sets."""
    outside = [str(each.folder) for each in trials if not is_inside(str(each.folder))]
    if outside:
        raise UserError(
            f"{source} says that trials lie outside of the sweep: {', '.join(first_lines(outside))}; it is damaged, or "
            "was changed"
        )
    strange = [
        str(each)
        for trial in trials
        for each in trial.overrides
        if not (isinstance(each, str) and (each in said or may_be_taken(each)))
    ]
    if strange:
        raise UserError(
            f"{source} has trials with settings that a folder from elsewhere could do harm with, and that this command "
            "does not say:\n  " + "\n  ".join(first_lines(list(dict.fromkeys(strange))))
        )


def is_trusted_pruner(pruner: Any) -> bool:
    """Whether trial.json names a way to end trials early that conf/ ships, with plain settings."""
    return (
        isinstance(pruner, Mapping)
        and TARGET in pruner
        and pruner[TARGET] in shipped_pruners()
        and all(isinstance(each, int | float | bool | None) for key, each in pruner.items() if key != TARGET)
    )
