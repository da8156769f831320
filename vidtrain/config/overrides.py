"""A command line as Hydra takes it: flags, bare words such as paths, and overrides, which are read, quoted and
explained here, with the values of those that hold several."""

import argparse
import difflib
import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

# The parser that hydra.main itself uses: the only way to tell Hydra's flags from overrides as it does
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from vidtrain.config.targets import CONF, options
from vidtrain.errors import UserError

# --- flags and bare words ---------------------------------------------------------------------------------


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """Hydra's flags and, as `overrides`, all else, in whatever order. Raises `UserError` for other flags."""
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
    """The same command line as Hydra takes it: its parser refuses overrides on both sides of a flag."""
    overrides = parsed(arguments).overrides
    left, flags = Counter(overrides), []
    for argument in arguments:
        if left[argument]:
            left[argument] -= 1
        else:
            flags.append(argument)
    return [*overrides, *flags]


def bare_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are no flags and no overrides (or name what exists), and the others."""
    words = [
        argument
        for argument in parsed(arguments).overrides
        if os.path.exists(argument) or ("=" not in argument and argument[:1] not in "~+")
    ]
    return words, [argument for argument in arguments if argument not in words]


def positional_to_override(arguments: Sequence[str], key: str) -> list[str]:
    """The command line with its bare words gathered into the list `key=[...]`.

    Raises `UserError` where that is given in both ways.
    """
    words, rest = bare_words(arguments)
    if not words:
        return list(arguments)
    if any(override.startswith(f"{key}=") for override in parsed(arguments).overrides):
        raise UserError(f"{key} are given twice, by {key}= and by {' '.join(words)}; give all in one way")
    return [*rest, f"{key}=[{','.join(map(in_quotes, words))}]"]


def search_path(overrides: Sequence[str], own: str | None) -> tuple[list[str], tuple[Path, ...]]:
    """Overrides that make Hydra look into the folder of --config-dir, too; and all folders, conf/ first.

    Raises `UserError` where `own` is no folder.
    """
    named = [override for override in overrides if override.lstrip("+").startswith("hydra.searchpath=")]
    kept = [override for override in overrides if override not in named]
    lists = [_parse(override).value() for override in named if parses(override)]
    places = [str(place) for value in lists if isinstance(value, list) for place in value]
    if own is not None:
        if not Path(own).is_dir():
            raise UserError(f"--config-dir {own}: there is no such folder")
        places.append(f"file://{Path(own).absolute()}")
        named = [f"hydra.searchpath=[{','.join(map(in_quotes, places))}]"]
    folders = [Path(place.removeprefix("file://")) for place in places if place.startswith("file://")]
    return [*kept, *named], (CONF, *folders)


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
    """`key=value` as it is written in a shell, in quotes where Hydra or the shell would else take it for more."""
    text = "null" if value is None else str(value)
    override = f"{key}={text}"
    if isinstance(value, str) and not (parses(override) and _parse(override).value() == value):
        # Hydra takes a backslash for itself only before a quote or the end
        text = re.sub(r'(\\*)("|$)', lambda end: 2 * end[1] + end[2].replace('"', r"\""), text)
        override = f'{key}="{text}"'
    return shlex.quote(override)


def in_quotes(text: str) -> str:
    """As a value in Hydra's grammar, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def unquoted(text: str) -> str:
    """The inverse."""
    return text[1:-1].replace("\\'", "'").replace("\\\\", "\\") if text.startswith("'") else text


def explain_grammar(key: str, value: str) -> str:
    """Which characters of a value Hydra takes for its grammar, and how to write it so that it does not."""
    if not value or not parses(f"{key}=1"):
        return f"{key!r} is no name of a key, nor of a group"
    strange = [character for character in dict.fromkeys(value) if not _stands_for_itself(character)]
    named = " and ".join(strange) or value[0]
    unclosed = " is a bracket or a quote not closed?" if value[0] in "[{\"'" else ""
    return (
        f"Hydra cannot read '{value}':{unclosed} {named} means something else to it; to say just that text, write "
        f"{quoted(key, value)}"
    )


def _stands_for_itself(character: str) -> bool:
    override = f"key=a{character}a"
    return parses(override) and _parse(override).value() == f"a{character}a"


# --- several values ---------------------------------------------------------------------------------------


def is_sweep(override: str) -> bool:
    return parses(override) and _parse(override).is_sweep_override()


def explain_sweep(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, (
        f"several values, {value}: for a run of each add -m, for a list write {shlex.quote(f'{key}=[{value}]')}, "
        f"for one text write {quoted(key, value)}"
    )


def first_of_sweep(override: str, folders: Sequence[Path] = (CONF,)) -> str:
    """The first value of an override that a multirun would sweep over; others as they are."""
    parsed_override = _parse(override)
    if not parsed_override.is_sweep_override():
        return override
    value = parsed_override.value()
    if isinstance(value, Glob):
        names = value.filter(options(parsed_override.key_or_group, list(folders)))
        return f"{parsed_override.get_key_element()}={next(iter(names))}"
    return first_value(parsed_override)


def values(override: Override) -> list[str]:
    if override.is_sweep_override():
        return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    return [first_value(override)]


def first_value(override: Override) -> str:
    """An override with its only value, or the first of several."""
    key, value = override.get_key_element(), override.value()
    if override.is_delete() and value is None:
        return key
    if isinstance(value, IntervalSweep):
        return f"{key}={value.start}"
    if override.is_sweep_override():
        return f"{key}={next(iter(override.sweep_string_iterator()))}"
    return f"{key}={override.get_value_element_as_str()}"
