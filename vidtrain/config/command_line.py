"""A command line as Hydra takes it: flags apart from overrides, bare words such as paths as overrides."""

import difflib
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from typing import NoReturn

# The parser that hydra.main itself uses: the only way to tell Hydra's flags from overrides as it does
from hydra._internal.utils import get_args_parser

from vidtrain.config.overrides import in_quotes
from vidtrain.errors import UserError


def overrides_in(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command line that are neither flags nor what belongs to one."""
    return parsed(arguments).overrides


def flags_last(arguments: Sequence[str]) -> list[str]:
    """The same command line as Hydra takes it: its parser refuses overrides on both sides of a flag."""
    overrides = overrides_in(arguments)
    left, flags = Counter(overrides), []
    for each in arguments:
        if left[each]:
            left[each] -= 1
        else:
            flags.append(each)
    return [*overrides, *flags]


def parsed(arguments: Sequence[str]) -> Namespace:
    """Hydra's flags and, as `overrides`, all else, in whatever order. Raises `UserError` for other flags."""
    parser = get_args_parser()
    parser.error = _refuse_flags
    found, strange = parser.parse_known_intermixed_args(list(arguments))
    flags = [each for each in strange if each.startswith("-")]
    if flags:
        text = flags[0].lstrip("-")
        every = [each for action in parser._actions for each in action.option_strings]
        known = [each[2:] for each in every if each.startswith("--")]
        near = difflib.get_close_matches(text, known, n=1)
        written = text if "=" in text else f"{text or 'key'}=VALUE"
        hint = f"did you mean --{near[0]}?" if near else f"settings are written without dashes: {written}"
        _refuse_flags(f"there is no flag {flags[0]}; {hint}")
    return found


def _refuse_flags(why: str) -> NoReturn:
    raise UserError(f"the command line cannot be read: {why}")


def bare_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are no flags and no overrides (or name what exists), and the others."""
    given = overrides_in(arguments)
    bare = [each for each in given if os.path.exists(each) or ("=" not in each and each[:1] not in "~+")]
    return bare, [each for each in arguments if each not in bare]


def positional_to_override(arguments: Sequence[str], key: str) -> list[str]:
    """The command line with its bare words gathered into the list `key=[...]`.

    Raises `UserError` where that is given in both ways.
    """
    bare, rest = bare_words(arguments)
    if not bare:
        return list(arguments)
    if any(each.startswith(f"{key}=") for each in overrides_in(arguments)):
        raise UserError(f"{key} are given twice, by {key}= and by {' '.join(bare)}; give all in one way")
    return [*rest, f"{key}=[{','.join(map(in_quotes, bare))}]"]
