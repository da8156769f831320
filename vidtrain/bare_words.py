"""Bare words of a command line, such as paths, as the overrides that Hydra takes alone."""

import os
from collections.abc import Sequence

from vidtrain.app import overrides_in
from vidtrain.errors import UserError


def bare_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments that are no flags and no overrides (or name what exists), and the others."""
    given = overrides_in(arguments)
    bare = [each for each in given if os.path.exists(each) or ("=" not in each and each[:1] not in "~+")]
    return bare, [each for each in arguments if each not in bare]


def gathered(arguments: Sequence[str], key: str) -> list[str]:
    """The command line with its bare words gathered into the list `key=[...]`.

    Raises `UserError` where that is given in both ways.
    """
    bare, rest = bare_words(arguments)
    if not bare:
        return list(arguments)
    if any(each.startswith(f"{key}=") for each in overrides_in(arguments)):
        raise UserError(f"{key} are given twice, by {key}= and by {' '.join(bare)}; give all in one way")
    return [*rest, f"{key}=[{','.join(map(in_quotes, bare))}]"]


def in_quotes(text: str) -> str:
    """As a value in Hydra's grammar, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
