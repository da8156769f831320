"""References of a configuration to the environment, `${oc.env:NAME}`: followed where a part is built, and never where a
configuration is stored, shown or compared."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from vidtrain.files.escaping import hide, masked_values

Settings = TypeVar("Settings")

RESOLVER = "oc.env"
ABSENT = object()
_closed: ContextVar[bool] = ContextVar("closed", default=False)


class _NotRead(Exception):
    """Where the environment is not to be read, something leads there."""


def guard_environment() -> None:
    """Puts `read` in the place of OmegaConf's own resolver. Every program does so before it composes anything."""
    OmegaConf.register_new_resolver(RESOLVER, _read, replace=True)


def _read(name: str, default: Any = ABSENT) -> str | None:
    if _closed.get():
        raise _NotRead(name)
    value = oc.env(name) if default is ABSENT else oc.env(name, default)
    if value is not None:
        hide(name, value)
    return value


@contextmanager
def _environment_closed() -> Iterator[None]:
    guard_environment()
    token = _closed.set(True)
    try:
        yield
    finally:
        _closed.reset(token)


def settled(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain values, with its references followed, but for those that lead to the environment: they
    stay as they were written, and nothing is read there. Passwords in addresses are masked.

    Raises OmegaConf's exceptions for other references that cannot be followed.
    """
    with _environment_closed():
        return masked_values(_plain(config))


def _plain(node: DictConfig | ListConfig) -> Any:
    if isinstance(node, DictConfig):
        return {key: _value(node, key) for key in node}
    return [_value(node, place) for place in range(len(node))]


def _value(parent: DictConfig | ListConfig, key: Any) -> Any:
    child = parent._get_node(key)
    assert isinstance(child, Node)  # `key` is one of the parent's
    if child._is_missing():
        return "???"
    if child._is_none():
        return None
    if not child._is_interpolation():
        return _plain(child) if isinstance(child, DictConfig | ListConfig) else parent[key]
    try:
        value = parent[key]
        return _plain(value) if isinstance(value, DictConfig | ListConfig) else value
    except OmegaConfBaseException as error:
        if leads_to_environment(error):
            return child._value()
        raise


def leads_to_environment(error: BaseException | None) -> bool:
    """Whether following a reference ended because it leads to the environment."""
    while error is not None:
        if isinstance(error, _NotRead):
            return True
        error = error.__cause__ or error.__context__
    return False


def fingerprints(config: DictConfig, keys: Mapping[str, Any]) -> dict[str, str]:
    """Of the settings among `keys` (dotted) that lead to the environment, what tells whether they still read the same
    there, without telling what: a slow hash, so that a password is not found by trying."""
    return {
        key: hashlib.scrypt(
            f"{read(config, key)!r}".encode(), salt=key.encode(), n=1 << 13, r=8, p=1, dklen=8
        ).hex()
        for key, value in keys.items()
        if refers(value)
    }


def refers(value: Any) -> bool:
    """Whether a setting that `settled` gave leads to the environment, or one of its parts does."""
    if isinstance(value, Mapping):
        return any(map(refers, value.values()))
    return any(map(refers, value)) if isinstance(value, list) else isinstance(value, str) and "${" in value


def read(config: DictConfig, key: str) -> Any:
    """What a setting is where all of its references are followed, as plain values."""
    guard_environment()
    value = OmegaConf.select(config, key)
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value
