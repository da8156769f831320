"""Plain values of a configuration, and its references: to the environment, and to the published clips of the model.

`${oc.env:NAME}` is resolved when a component is built, and not when a configuration is stored, shown or compared.
`${of_model:KEY,DEFAULT}` in `clip` resolves to the value in the model's node `published`, unless the command line or a
recipe sets the key. The fusion of a published model is a reference to its `published`, too.
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from omegaconf import Container, DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from vidtrain.files.escaping import hide, masked_values
from vidtrain.training.run import PhaseSettings

RESOLVER = "oc.env"
ABSENT = object()
STRIDES = ("frame_step", "fps", "duration")
KEYS = (*(f"clip.{key}" for key in ("frames", *STRIDES, "size", "interpolation", "mean", "std")), "model.fusion")
FUSION = "${.published.fusion}"
COLOR_ROUNDING = 0.005  # publishers round means and deviations differently
Settings = TypeVar("Settings")
_closed: ContextVar[bool] = ContextVar("closed", default=False)


# --- plain values -----------------------------------------------------------------------------------------


def to_settings(node: Any, schema: type[Settings]) -> Settings:
    """A node of a composed configuration as an instance of its dataclass `schema`."""
    settings = OmegaConf.to_object(node)
    assert isinstance(settings, schema)
    return settings


def to_phases(stage: DictConfig) -> dict[str, PhaseSettings]:
    return {str(name): to_settings(stage[name], PhaseSettings) for name in stage}


def to_dict(node: Any, resolve: bool = False) -> dict[str, Any]:
    """A mapping as plain values, with its references resolved if `resolve`."""
    plain: Any = OmegaConf.to_container(node, resolve=resolve)
    assert isinstance(plain, dict)
    return plain


def to_list(node: Any) -> list[Any]:
    """A list as plain values, with unresolved references."""
    plain: Any = OmegaConf.to_container(node)
    assert isinstance(plain, list)
    return plain


# --- references to the environment ------------------------------------------------------------------------


class _NotRead(Exception):
    """A reference leads to the environment, which must not be read here."""


def guard_environment() -> None:
    """Replaces OmegaConf's resolver of `${oc.env:NAME}` by `_read`. Every program calls this before it composes."""
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


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys; lists stay whole."""
    if not isinstance(node, Mapping) or not node:
        return {prefix: node}
    return {
        key: value
        for name, child in node.items()
        for key, value in flat(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def settled(config: DictConfig) -> dict[str, Any]:
    """A configuration as plain values, with resolved references. References that lead to the environment are not
    resolved. Passwords in addresses are masked.

    Raises OmegaConf's exceptions for other references that cannot be resolved.
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
    """Whether a reference could not be resolved because it leads to the environment."""
    while error is not None:
        if isinstance(error, _NotRead):
            return True
        error = error.__cause__ or error.__context__
    return False


def fingerprints(config: DictConfig, keys: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of the settings, among the dotted `keys`, that refer to the environment. They show that a value has
    changed without revealing it. The hash is slow, so that nobody can find a password by trying."""
    return {
        key: hashlib.scrypt(f"{read(config, key)!r}".encode(), salt=key.encode(), n=1 << 13, r=8, p=1, dklen=8).hex()
        for key, value in keys.items()
        if refers(value)
    }


def refers(value: Any) -> bool:
    """Whether a setting from `settled`, or a part of it, refers to the environment."""
    if isinstance(value, Mapping):
        return any(map(refers, value.values()))
    return any(map(refers, value)) if isinstance(value, list) else isinstance(value, str) and "${" in value


def read(config: DictConfig, key: str) -> Any:
    """A setting as plain values with all references resolved, also those to the environment."""
    guard_environment()
    return _followed(OmegaConf.select(config, key))


def _followed(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value


# --- references to the published clips of a model ---------------------------------------------------------


def register_published() -> None:
    """Registers the resolver of `${of_model:KEY,DEFAULT}`."""
    OmegaConf.register_new_resolver("of_model", _of_model, replace=True)


def _of_model(key: str, default: Any, *, _root_: DictConfig, _parent_: DictConfig) -> Any:
    """The published value of `key`, or the default.

    A clip has one stride, so a key of `STRIDES` is None if another one is set, and with sampling=uniform.
    """
    published = published_clips(_root_)
    if key in STRIDES:
        others = [other for other in STRIDES if other != key and not _refers_to_model(_parent_, other)]
        if _parent_.sampling == "uniform" or any(_parent_[other] is not None for other in others):
            return None
        if not published.keys().isdisjoint(STRIDES):
            default = None
    return published[key] if key in published else default


def published_clips(cfg: DictConfig) -> dict[str, Any]:
    """The published clip settings of the chosen model, by keys of vidtrain.models.classifier.PUBLISHED."""
    published = OmegaConf.select(cfg, "model.published", default=None)
    return {str(key): _followed(value) for key, value in published.items()} if published else {}


def _refers_to_model(node: Any, key: str) -> bool:
    # `key in node` would resolve the reference, and with it those of the other strides
    child = node._get_node(key) if isinstance(node, DictConfig) and key in node.keys() else None  # noqa: SIM118
    written = None if child is None else child._value()
    return isinstance(written, str) and (written.startswith("${of_model:") or written == FUSION)


def unset_keys(cfg: DictConfig) -> list[str]:
    """The keys of `KEYS` that neither the command line nor a recipe sets."""
    parts = {key: key.split(".") for key in KEYS}
    return [key for key, (group, name) in parts.items() if group in cfg and _refers_to_model(cfg[group], name)]


def put_published(cfg: DictConfig) -> None:
    """Replaces the references of the `unset_keys` in `cfg` by their values."""
    for key in unset_keys(cfg):
        OmegaConf.update(cfg, key, OmegaConf.select(cfg, key))


def with_published(cfg: DictConfig) -> DictConfig:
    """A copy to store, without references to the model's clips, which would not be trusted when it is read."""
    stored = copy.deepcopy(cfg)
    put_published(stored)
    return stored


def describe_published(cfg: DictConfig, overrides: Sequence[str], choices: Mapping[str, str]) -> str | None:
    """A line for the log about the origin of the value of each of `KEYS`; None if the model has no `published`.

    `overrides` are those of the command line, `choices` the options of the groups.
    """
    published, unset = published_clips(cfg), unset_keys(cfg)
    if not published:
        return None
    recipes = [f"{group}={choices[group]}" for group in ("experiment", "debug") if choices.get(group)]
    origins: dict[str, list[str]] = {}
    for key in KEYS:
        name, value = key.split(".")[1], _followed(OmegaConf.select(cfg, key))
        if value is None:
            continue
        if name in published and value == published[name]:
            origin = "as published"
        elif key in unset:
            origin = "default"
        elif any(override.lstrip("+").startswith(f"{key}=") for override in overrides):
            origin = "set on the command line"
        else:
            origin = f"set by {' '.join(recipes) or 'the configuration'}"
        origins.setdefault(origin, []).append(f"{name}={value}")
    return f"clips of model={choices['model']}: " + "; ".join(
        f"{', '.join(texts)} ({origin})" for origin, texts in origins.items()
    )


def unseen_clips(cfg: DictConfig, file_settings: Mapping[str, Any]) -> list[str]:
    """A warning for each of size, mean and std that differs from the clips on which weights were trained.

    These clips are known from the model's `published`, and from `file_settings`, the settings found by the formats."""
    seen = published_clips(cfg) | dict(file_settings)
    warnings = []
    for key in ("size", "mean", "std"):
        value = _followed(cfg.clip[key])
        if key in seen and not _is_near(value, seen[key], 0 if key == "size" else COLOR_ROUNDING):
            shown, trained = (str(numbers).replace(" ", "") for numbers in (value, seen[key]))
            warnings.append(
                f"clip.{key}={shown} differs from the clips of the pretrained weights, which were trained with "
                f"clip.{key}={trained}"
            )
    return warnings


def _is_near(value: Any, other: Any, tolerance: float) -> bool:
    """Whether two lists of numbers differ by at most `tolerance`; a single number counts as two equal ones."""
    one, two = (part if isinstance(part, list) else [part, part] for part in (value, other))
    return all(abs(a - b) <= tolerance for a, b in zip(one, two, strict=True))
