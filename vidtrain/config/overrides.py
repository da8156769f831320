"""The grammar of overrides: reading, quoting and explaining them, and the values of those that hold several."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from vidtrain.config.targets import CONF, options
from vidtrain.errors import UserError


def quoted(key: str, value: object) -> str:
    """`key=value` as it is written in a shell, in quotes where Hydra or the shell would else take it for more."""
    text = "null" if value is None else str(value)
    override = f"{key}={text}"
    if isinstance(value, str) and not (parses(override) and _value(override) == value):
        # Hydra takes a backslash for itself only before a quote or the end
        text = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + found[2].replace('"', r"\""), text)
        override = f'{key}="{text}"'
    return shlex.quote(override)


def in_quotes(text: str) -> str:
    """As a value in Hydra's grammar, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def parses(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _value(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


def is_sweep(override: str) -> bool:
    return parses(override) and OverridesParser.create().parse_override(override).is_sweep_override()


def explain_sweep(override: str) -> tuple[str, str]:
    key, _, value = override.lstrip("+~").partition("=")
    return key, (
        f"several values, {value}: for a run of each add -m, for a list write {shlex.quote(f'{key}=[{value}]')}, "
        f"for one text write {quoted(key, value)}"
    )


def explain_grammar(key: str, value: str) -> str:
    """Which characters of a value Hydra takes for its grammar, and how to write it so that it does not."""
    if not value or not parses(f"{key}=1"):
        return f"{key!r} is no name of a key, nor of a group"
    strange = [each for each in dict.fromkeys(value) if not _stands_for_itself(each)]
    named = " and ".join(strange) or value[0]
    unclosed = " is a bracket or a quote not closed?" if value[0] in "[{\"'" else ""
    return (
        f"Hydra cannot read '{value}':{unclosed} {named} means something else to it; to say just that text, write "
        f"{quoted(key, value)}"
    )


def _stands_for_itself(character: str) -> bool:
    override = f"key=a{character}a"
    return parses(override) and _value(override) == f"a{character}a"


def first_of_sweep(override: str, folders: Sequence[Path] = (CONF,)) -> str:
    """The first value of an override that a multirun would sweep over; others as they are."""
    parsed = OverridesParser.create().parse_override(override)
    if not parsed.is_sweep_override():
        return override
    if isinstance(parsed.value(), Glob):
        names = parsed.value().filter(options(parsed.key_or_group, folders))
        return f"{parsed.get_key_element()}={next(iter(names))}"
    return first_value(parsed)


def values(override: Override) -> list[str]:
    key = override.get_key_element()
    if override.is_sweep_override():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [first_value(override)]


def first_value(override: Override) -> str:
    """An override with its only value, or the first of several."""
    key = override.get_key_element()
    if override.is_delete() and override.value() is None:
        return key
    if override.is_interval_sweep():
        return f"{key}={override.value().start}"
    if override.is_sweep_override():
        return f"{key}={next(iter(override.sweep_string_iterator()))}"
    return f"{key}={override.get_value_element_as_str()}"


def search_path(overrides: Sequence[str], own: str | None) -> tuple[list[str], tuple[Path, ...]]:
    """Overrides that make Hydra look into the folder of --config-dir, too; and all folders, conf/ first.

    Raises `UserError` where `own` is no folder.
    """
    named = [override for override in overrides if override.lstrip("+").startswith("hydra.searchpath=")]
    kept = [override for override in overrides if override not in named]
    places = [str(place) for override in named if parses(override) for place in _value(override) or []]
    if own is not None:
        if not Path(own).is_dir():
            raise UserError(f"--config-dir {own}: there is no such folder")
        places.append(f"file://{Path(own).absolute()}")
        named = [f"hydra.searchpath=[{','.join(map(in_quotes, places))}]"]
    folders = [Path(place.removeprefix("file://")) for place in places if place.startswith("file://")]
    return [*kept, *named], (CONF, *folders)
