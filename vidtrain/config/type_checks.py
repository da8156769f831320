"""What a constructor's annotations allow of the plain values that YAML holds."""

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig

PLAIN_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
PLAIN = tuple(PLAIN_WORDS)


def hints_of(target: Any) -> dict[str, Any]:
    """Annotations by argument; one that cannot be resolved here says nothing and is left out."""
    function = target.__init__ if inspect.isclass(target) else target
    hints: dict[str, Any] = {}
    for name, hint in inspect.get_annotations(inspect.unwrap(function)).items():
        try:
            holder = type("holder", (), {"__annotations__": {name: hint}})
            hints |= typing.get_type_hints(holder, globalns=inspect.unwrap(function).__globals__)
        except (NameError, TypeError):
            continue
    return hints


def fits(value: Any, hint: Any) -> bool:
    """Whether a plain value may stand for a parameter annotated `hint`; what is not plain always may."""
    if isinstance(value, DictConfig):
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        # YAML holds no objects: beside a plain alternative, a class such as Tensor cannot be what was meant
        plain = [each for each in arguments if each in PLAIN or typing.get_origin(each)]
        return any(fits(value, each) for each in plain or arguments)
    if origin is typing.Literal:
        return value in arguments
    if hint is type(None):
        return value is None
    if hint is bool:
        return isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is str:
        return isinstance(value, str)
    if origin in (dict, Mapping):
        return False
    if origin in (list, tuple, Sequence):
        if not isinstance(value, ListConfig):
            return False
        if origin is tuple and arguments and arguments[-1] is not Ellipsis:
            return len(value) == len(arguments) and all(map(fits, value, arguments))
        return not arguments or all(fits(each, arguments[0]) for each in value)
    return True


def spell(hint: Any) -> str:
    """An annotation in words, such as `a list of float, or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        plain = [each for each in arguments if each in PLAIN or typing.get_origin(each)] or list(arguments)
        words = [spell(each) for each in plain if each is not type(None)]
        return " or ".join(words) + (", or null" if type(None) in plain else "")
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(map(spell, arguments))}"
    if origin in (dict, Mapping):
        return "a mapping: {name: ...}"
    if origin in (list, tuple, Sequence):
        return f"a list of {spell(arguments[0])}" if arguments else "a list"
    if hint in PLAIN_WORDS:
        return PLAIN_WORDS[hint]
    return hint.__name__ if isinstance(hint, type) else str(hint)
