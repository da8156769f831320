"""Command lines: Hydra's flags, overrides, and bare words (arguments without =, such as paths). Parses, quotes and
explains overrides, lists the values of sweeps, and tells which overrides of a stored record are harmless."""

import argparse
import difflib
import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

# hydra.main uses this parser, so this is exactly its distinction of flags and overrides
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, QuotedString, Sweep
from hydra.errors import HydraException

from vidtrain.config.schemas import RunConfig
from vidtrain.config.targets import CONF, options
from vidtrain.config.trust import MAX_LISTED, REFERENCE, TARGET, is_computed, is_trusted
from vidtrain.errors import UserError
from vidtrain.files.escaping import first_lines

# --- flags and bare words ---------------------------------------------------------------------------------


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and, in `overrides`, all other arguments, in any order. Raises `UserError` for unknown flags."""
    parser = get_args_parser()
    setattr(parser, "error", _refuse_flags)  # noqa: B010
    known, unknown = parser.parse_known_intermixed_args(list(arguments))
    flags = [argument for argument in unknown if argument.startswith("-")]
    if flags:
        text = flags[0].lstrip("-")
        names = [name[2:] for action in parser._actions for name in action.option_strings if name[:2] == "--"]
        near = difflib.get_close_matches(text, names, n=1)
        written = text if "=" in text else f"{text or 'key'}=VALUE"
        hint = f"did you mean --{near[0]}?" if near else f"settings are written without dashes: {written}"
        _refuse_flags(f"there is no flag {flags[0]}; {hint}")
    return known


def _refuse_flags(why: str) -> NoReturn:
    raise UserError(f"the command line cannot be read: {why}")


def flags_last(arguments: Sequence[str]) -> list[str]:
    """The same arguments with the flags at the end: Hydra's parser refuses overrides on both sides of a flag."""
    overrides = parsed(arguments).overrides
    left, flags = Counter(overrides), []
    for argument in arguments:
        if left[argument]:
            left[argument] -= 1
        else:
            flags.append(argument)
    return [*overrides, *flags]


def bare_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are neither flags nor overrides, or that are existing paths; and the other arguments."""
    bare = [
        argument
        for argument in parsed(arguments).overrides
        if os.path.exists(argument) or ("=" not in argument and argument[:1] not in "~+")
    ]
    return bare, [argument for argument in arguments if argument not in bare]


def positional_to_override(arguments: Sequence[str], key: str) -> list[str]:
    """The command line with its bare words replaced by one override, `key=[...]`.

    Raises `UserError` if the command line also sets `key`.
    """
    bare, rest = bare_words(arguments)
    if not bare:
        return list(arguments)
    if any(override.startswith(f"{key}=") for override in parsed(arguments).overrides):
        raise UserError(f"{key} are given twice, by {key}= and by {' '.join(bare)}; give all of them in one way")
    return [*rest, f"{key}=[{','.join(map(in_quotes, bare))}]"]


def words_to_overrides(arguments: Sequence[str], keys: tuple[str, str], expected: str) -> list[str]:
    """The command line with its bare words, such as `status FOLDER`, as overrides of the two `keys`.

    Raises `UserError` for more than two; the message tells what is `expected`.
    """
    bare, rest = bare_words(arguments)
    if len(bare) > 2:
        raise UserError(f"{shlex.join(bare)}: {expected}")
    return [*rest, *(f"{key}={in_quotes(word)}" for key, word in zip(keys, bare, strict=False))]


def search_path(overrides: Sequence[str], own: str | None) -> tuple[list[str], tuple[Path, ...]]:
    """The overrides, with the folder of --config-dir, `own`, in hydra.searchpath; and all config folders, conf/ first.

    Raises `UserError` if `own` is not a folder.
    """
    search_paths = [override for override in overrides if override.lstrip("+").startswith("hydra.searchpath=")]
    kept = [override for override in overrides if override not in search_paths]
    lists = [_parse(override).value() for override in search_paths if parses(override)]
    places = [str(place) for value in lists if isinstance(value, list) for place in value]
    if own is not None:
        if not Path(own).is_dir():
            raise UserError(f"--config-dir {own}: there is no such folder")
        places.append(f"file://{Path(own).absolute()}")
        search_paths = [f"hydra.searchpath=[{','.join(map(in_quotes, places))}]"]
    folders = [Path(place.removeprefix("file://")) for place in places if place.startswith("file://")]
    return [*kept, *search_paths], (CONF, *folders)


# --- one override -----------------------------------------------------------------------------------------


def _parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def parses(override: str) -> bool:
    try:
        _parse(override)
    except HydraException:
        return False
    return True


def quoted(key: str, value: object) -> str:
    """`key=value` as it must be written in a shell, with the quotes that Hydra and the shell need."""
    text = "null" if value is None else str(value)
    override = f"{key}={text}"
    if isinstance(value, str) and not (parses(override) and _parse(override).value() == value):
        # In Hydra's quotes, a backslash is special only before a quote or at the end
        text = re.sub(r'(\\*)("|$)', lambda end: 2 * end[1] + end[2].replace('"', r"\""), text)
        override = f'{key}="{text}"'
    return shlex.quote(override)


def in_quotes(text: str) -> str:
    """`text` as a quoted value in Hydra's grammar; it may hold any characters."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def unquoted(text: str) -> str:
    """The inverse of `in_quotes`."""
    return text[1:-1].replace("\\'", "'").replace("\\\\", "\\") if text.startswith("'") else text


def explain_grammar(key: str, value: str) -> str:
    """A message about the characters of a value that are special in Hydra's grammar, and how to quote the value."""
    if not value or not parses(f"{key}=1"):
        return f"{key!r} is not the name of a key or a group"
    special = [character for character in dict.fromkeys(value) if not _stands_for_itself(character)]
    special_text = " and ".join(special) or value[0]
    has = "have" if len(special) > 1 else "has"
    bracket_hint = " is a bracket or a quote not closed?" if value[0] in "[{\"'" else ""
    return (
        f"Hydra cannot read '{value}':{bracket_hint} {special_text} {has} a special meaning in its grammar; to set "
        f"exactly this text, write {quoted(key, value)}"
    )


def _stands_for_itself(character: str) -> bool:
    override = f"key=a{character}a"
    return parses(override) and _parse(override).value() == f"a{character}a"


# --- overrides with several values ------------------------------------------------------------------------


def is_sweep(override: str) -> bool:
    return parses(override) and _parse(override).is_sweep_override()


def explain_sweep(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, (
        f"several values, {value}: to start a run for each, add -m; for a list, write "
        f"{shlex.quote(f'{key}=[{value}]')}; for one text, write {quoted(key, value)}"
    )


def first_of_sweep(override: str, folders: Sequence[Path]) -> str:
    """An override with only the first of the values that a multirun would sweep over; other overrides unchanged."""
    parsed_override = _parse(override)
    if not parsed_override.is_sweep_override():
        return override
    value = parsed_override.value()
    if isinstance(value, Glob):
        names = value.filter(options(parsed_override.key_or_group, folders))
        return f"{parsed_override.get_key_element()}={next(iter(names))}"
    return first_value(parsed_override)


def values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [first_value(override)]


def first_value(override: Override) -> str:
    """An override with its value, or with the first of several values."""
    key, value = override.get_key_element(), override.value()
    if override.is_delete() and value is None:
        return key
    if isinstance(value, IntervalSweep):
        return f"{key}={value.start}"
    if override.is_sweep_override():
        return f"{key}={next(iter(override.sweep_string_iterator()))}"
    return f"{key}={override.get_value_element_as_str()}"


# --- stored overrides, in the folder of a run or of a sweep --------------------------------------------------

# Hydra's own groups and settings that a sweep's record may set, as they cannot start other programs
CHOICES = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler", "hydra/sweeper/pruner")
SETTINGS = re.compile(
    r"hydra\.(sweep\.(dir|subdir)"
    r"|sweeper\.(n_trials|n_jobs|seed|retry)"
    r"|sweeper\.(sampler|pruner)\.[a-z]\w*"
    r"|launcher\.(nodes|tasks_per_node|gpus_per_node|cpus_per_task|mem_gb|timeout_min|partition|account|qos"
    r"|constraint|gres|cpus_per_gpu|gpus_per_task|mem_per_gpu|mem_per_cpu|signal_delay_s|max_restarts"
    r"|max_num_timeout|array_parallelism|look_seconds|stderr_to_stdout))"
)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
# Values in a batch script, where a line break or a quote could begin another command
WORD = re.compile(r"[\w.,:@%=+/-]*")


def overrides_of(record: Any, source: str) -> list[str]:
    """The overrides in a record. Raises `UserError` if they are not a list of texts."""
    overrides = record["overrides"] if isinstance(record, Mapping) and "overrides" in record else None
    if not isinstance(overrides, list) or not all(isinstance(override, str) for override in overrides):
        raise UserError(f"{source} is damaged or was changed: its overrides are not a list of texts")
    return overrides


def check_stored(taken: Sequence[str], source: str, command: str, hydra: bool = False) -> None:
    """Raises `UserError` for overrides that must not be taken from the file `source`.

    `command` is the command to which a user can add them. With `hydra` they may set Hydra's own settings.
    """
    refused = [override for override in taken if not may_be_taken(override, hydra)]
    if refused:
        raise UserError(
            f"{source} holds settings that could do harm if somebody else wrote them, because they name code, read "
            "your environment, or change how programs are started:\n  "
            + "\n  ".join(first_lines(refused, MAX_LISTED))
            + f"\nIf they are yours, repeat them: {command} {shlex.join(refused)}"
        )


def may_be_taken(override: str, hydra: bool = False) -> bool:
    """Whether an override is harmless: it only sets plain values, or chooses an option that vidtrain ships."""
    if override.startswith("-") or CONTROL.search(override):  # a flag, or a new line in a batch script
        return False
    try:
        parsed_override = _parse(override)
        value = parsed_override.value()
    except HydraException:
        return False
    key = parsed_override.key_or_group
    if key == "run_dir":  # only the command line or the sweep may set the output folder
        return False
    key_and_package = f"{key}@{parsed_override.package or ''}"
    if "hydra" in re.split(r"\W", key_and_package):
        return hydra and parsed_override.package is None and _may_set_hydra(key, value)
    values = list(_leaves(value, key.rpartition(".")[2]))
    if _may_be_a_group(key) and any(not is_inside(text) for _, text in values if isinstance(text, str)):
        return False  # a group's option is the name of a file, which must be inside conf/
    return TARGET not in key.split(".")[:-1] and all(_is_harmless(name, leaf) for name, leaf in values)


def _may_be_a_group(key: str) -> bool:
    """Whether a key may name a config group, of vidtrain or of a folder of the user."""
    plain = {field.name for field in fields(RunConfig) if not (CONF / field.name).is_dir()}
    return "/" in key or ("." not in key and key not in plain)


def _is_harmless(name: Any, value: Any) -> bool:
    if name == TARGET:
        return is_trusted(value)
    return not (isinstance(value, str) and is_computed(value))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The plain values within the value of an override, each with the last part of its key."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield "", str(key)
            yield from _leaves(child, str(key))
        return
    if isinstance(value, Glob):
        value = [*value.include, *value.exclude]
    elif isinstance(value, Sweep):
        value = getattr(value, "list", None)  # ranges and intervals hold only numbers
    if isinstance(value, list | tuple):
        for child in value:
            yield from _leaves(child, name)
    else:
        yield name, value.text if isinstance(value, QuotedString) else value


def _may_set_hydra(key: str, value: Any) -> bool:
    if key in CHOICES:
        return value in options(key)
    if not SETTINGS.fullmatch(key) or isinstance(value, Mapping | list | tuple | Sweep):
        return False
    text = REFERENCE.sub("x", value.text if isinstance(value, QuotedString) else str(value))
    if key == "hydra.sweep.dir":  # any path is allowed, as the user names the folder of the sweep
        return "$" not in text
    return WORD.fullmatch(text) is not None and is_inside(text)


def is_inside(folder: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    path = PurePosixPath(folder)
    return not path.is_absolute() and ".." not in path.parts


def check_trials(trials: Sequence[Any], written: Collection[str], source: str) -> None:
    """Raises `UserError` for trials in a sweep's record that are outside the sweep's folder, or have overrides that are
    not harmless and not `written` on the command line."""
    outside = [str(trial.folder) for trial in trials if not is_inside(str(trial.folder))]
    if outside:
        listed = ", ".join(first_lines(outside, MAX_LISTED))
        raise UserError(f"{source} names folders of trials outside the sweep: {listed}; it is damaged or was changed")
    overrides = dict.fromkeys(override for trial in trials for override in trial.overrides)
    refused = [str(override) for override in overrides if override not in written and not may_be_taken(override)]
    if refused:
        raise UserError(
            f"{source} has trials with settings that could do harm if somebody else wrote them; this command line does "
            "not set them:\n  " + "\n  ".join(first_lines(refused, MAX_LISTED))
        )
