"""The classes that a configuration from somebody else may name, and its references that are resolved.

A checkpoint, an exported file and a run's folder hold a configuration, and a name in it could call any function of any
package. So all checks here use plain data, and import nothing that it names. Allowed are the targets in conf/, and
layers and optimizers of PyTorch and timm. References to other settings are resolved. Everything else that OmegaConf
would compute, such as `${oc.env:NAME}` from the user's environment, stays text.
"""

import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, Node

from vidtrain.config.renames import rename_target
from vidtrain.config.schemas import RunConfig
from vidtrain.config.targets import CONF, components
from vidtrain.errors import UserError
from vidtrain.files.escaping import first_lines, map_texts

TARGET = "_target_"
SHIPPED = re.compile(rf"^[ \t-]*{TARGET}:[ \t]*([\w.]+)", re.MULTILINE)
# Package -> (module that holds its classes, module and name of their base class). Constructors of layers and optimizers
# open and write no files. Functions, and classes that the package only imports, are not allowed
PACKAGES = {
    "torch.nn": ("torch.nn.modules", "torch.nn.modules.module", "Module"),
    "torch.optim": ("torch.optim", "torch.optim.optimizer", "Optimizer"),
    "timm.optim": ("timm.optim", "torch.optim.optimizer", "Optimizer"),
}
# A reference to another setting by its whole key, and one by a relative key
REFERENCE = re.compile(r"\$\{[A-Za-z_][\w-]*(?:\.[\w-]+|\[[\w-]+\])*\}")
RELATIVE_REFERENCE = re.compile(r"\$\{\.+[\w-]+(?:\.[\w-]+|\[[\w-]+\])*\}")
# Adjacent references, each replaced by a zero byte, whose values might together form a new reference
JOINED_REFERENCE = re.compile(r"\0[{\0]|\$\0")
# Replaces `${` in values that must stay text, as OmegaConf would otherwise resolve them when a component is built
KEPT = "$ {"
ABSENT = object()  # marks a value that is removed
PLAIN = (str, int, float, bool, types.NoneType)
# Limits of a stored configuration; vidtrain's own have a few hundred settings and a depth of five
MAX_SETTINGS, MAX_DEPTH = 100_000, 40
MAX_LISTED = 20  # at most this many faults are listed


# --- names ------------------------------------------------------------------------------------------------


def is_trusted(target: object) -> bool:
    """Whether `target` is a target in conf/, or a layer or an optimizer of PyTorch or timm.

    It imports only these packages.
    """
    return isinstance(target, str) and (rename_target(target) in shipped() or _is_layer_or_optimizer(target))


@cache
def shipped() -> frozenset[str]:
    """Every `_target_` in conf/, except in conf/hydra/, which is not part of a run's configuration."""
    return _targets(path for path in CONF.rglob("*.yaml") if path.relative_to(CONF).parts[0] != "hydra")


@cache
def shipped_pruners() -> frozenset[str]:
    """The targets in conf/ of pruners, which end trials early."""
    return _targets((CONF / "hydra" / "sweeper" / "pruner").glob("*.yaml"))


def _targets(files: Iterable[Path]) -> frozenset[str]:
    return frozenset(name for path in files for name in SHIPPED.findall(path.read_text(encoding="utf-8")))


def _is_layer_or_optimizer(target: str) -> bool:
    """Whether `target` names a class of a package in `PACKAGES`, by the module that defines it or by the package."""
    module, _, class_name = target.rpartition(".")
    package = next((name for name in PACKAGES if f"{module}.".startswith(f"{name}.")), None)
    if package is None:
        return False
    home, base_module, base = PACKAGES[package]
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    if module not in sys.modules:  # a file must not cause the import of a module
        return False
    part = vars(sys.modules[module]).get(class_name)
    return (
        isinstance(part, type)
        and issubclass(part, getattr(sys.modules[base_module], base))
        and part.__qualname__ == class_name
        and f"{part.__module__}.".startswith(f"{home}.")
        and module in (package, part.__module__)
    )


def check_trust(config: Mapping[str, Any], source: str) -> None:
    """Raises `UserError` if any component of a stored configuration has a target that is not trusted."""
    untrusted = []
    for path, node in _walk(config):
        if isinstance(node, Mapping):
            if TARGET in node and not is_trusted(node[TARGET]):
                untrusted.append(f"{path}: {node[TARGET]}")
            # A key of another type might turn into "_target_" when it is converted to text
            untrusted += [f"{path}: the key {key!r}" for key in node if not isinstance(key, str | int)]
        elif not isinstance(node, (*PLAIN, list, tuple)):
            untrusted.append(f"{path}: a {type(node).__name__}, which is not a plain value")
    if untrusted:
        raise UserError(
            f"the checkpoint {source} would build components that are not from vidtrain:\n  "
            + "\n  ".join(first_lines(untrusted, MAX_LISTED))
            + "\nIf you trust it and have them installed, set trust_targets=true"
        )


def _walk(node: Any, path: str = "", depth: int = 0, seen: list[int] | None = None) -> Iterator[tuple[str, Any]]:
    """`node` and all nodes in it, by dotted key. Raises `UserError` if it is too large or too deep, or holds a
    cycle."""
    seen = [0] if seen is None else seen
    seen[0] += 1
    if seen[0] > MAX_SETTINGS or depth > MAX_DEPTH:
        raise UserError(
            f"a stored configuration holds more than {MAX_SETTINGS} settings, or is nested deeper than {MAX_DEPTH}; "
            "vidtrain never writes such a configuration"
        )
    yield path, node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}" if path else str(key), depth + 1, seen)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _walk(value, f"{path}[{index}]", depth + 1, seen)


def is_trusted_pruner(pruner: Any) -> bool:
    """Whether the pruner in trial.json is a pruner in conf/ with plain settings."""
    return (
        isinstance(pruner, Mapping)
        and TARGET in pruner
        and pruner[TARGET] in shipped_pruners()
        and all(isinstance(value, int | float | None) for key, value in pruner.items() if key != TARGET)
    )


# --- references -------------------------------------------------------------------------------------------


def is_computed(text: str) -> bool:
    """Whether OmegaConf would do more with a value than resolve references to other settings.

    This is so for every `${` that is not such a reference, even if escaped, as building a component resolves values
    twice; and for text that could become a reference after others are resolved: `${a}{oc.env:NAME}`, where a is `$`.
    """
    marked = REFERENCE.sub("\0", text)
    return ("${" in marked or JOINED_REFERENCE.search(marked) is not None) and not RELATIVE_REFERENCE.fullmatch(text)


def as_text(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration without values that OmegaConf would compute (`is_computed`), and these values by dotted key.

    A computed value stays as text if the schema allows text. Otherwise it is removed, so that the schema's default is
    used. Raises `UserError` for a configuration that is too large or too deep.
    """
    for _ in _walk(config):
        pass
    computed: dict[str, str] = {}
    kept = _kept(config, "", RunConfig, computed)
    assert isinstance(kept, dict)
    return kept, computed


def _kept(node: Any, path: str, hint: Any, computed: dict[str, str]) -> Any:
    """`node` without computed values, which are added to `computed`; `hint` is the schema's type at this `path`."""
    if isinstance(node, Mapping):
        children = {
            key: _kept(value, f"{path}.{key}" if path else str(key), _hint_below(hint, key), computed)
            for key, value in node.items()
        }
        return {key: value for key, value in children.items() if value is not ABSENT}
    if isinstance(node, list | tuple):
        values = [
            _kept(value, f"{path}[{index}]", _hint_below(hint, index), computed) for index, value in enumerate(node)
        ]
        return [value for value in values if value is not ABSENT]
    if not isinstance(node, str) or not is_computed(node):
        return node
    computed[path] = node
    takes_text = hint in (Any, str) or str in typing.get_args(hint)
    return node.replace("${", KEPT) if takes_text else ABSENT


def _hint_below(hint: Any, key: Any) -> Any:
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hints[key] if key in hints else Any
    for part in (hint, *typing.get_args(hint)):
        if typing.get_origin(part) in (dict, list):
            return typing.get_args(part)[-1]
        if is_dataclass(part):
            return _hint_below(part, key)
    return Any


def with_references(plain: Any) -> Any:
    """Plain data with the original form of the values that `as_text` kept as text, for people and text files."""
    return map_texts(plain, lambda text: text.replace(KEPT, "${"))


def set_aside(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The configuration with each computed value replaced by a reference to an environment variable of a unique name,
    and the original values by these references, for `put_back`.

    `settled` does not resolve such references, so the result can be shown and compared. Raises `UserError` for a
    configuration that is too large or too deep.
    """
    for _ in _walk(config):
        pass
    kept: dict[str, str] = {}

    def stand_in(text: str) -> str:
        if not is_computed(text):
            return text
        name = f"${{oc.env:VIDTRAIN_KEPT_{len(kept)}_}}"
        kept[name] = text
        return name

    return map_texts(config, stand_in), kept


def put_back(plain: Any, kept: Mapping[str, str]) -> Any:
    """The inverse of `set_aside`, on plain data that was made from its configuration."""
    return map_texts(plain, lambda text: kept[text] if text in kept else text)


# --- targets and default arguments of components ------------------------------------------------------------


def targets_of(config: DictConfig) -> frozenset[str]:
    """The targets of all components of a configuration."""
    return frozenset(_target(node) for _, node in components(config))


def _target(node: DictConfig) -> str:
    """The `_target_` of a component as written; a reference is not resolved."""
    written = node._get_node("_target_")
    assert isinstance(written, Node)  # every component has one
    return str(written._value())


def defaults_of(config: DictConfig, known: Collection[str] = ()) -> dict[str, Any]:
    """The default values of arguments that the components of a configuration do not set, by dotted key.

    With these, a configuration can be compared with one from before an argument was added to conf/. Components that are
    neither trusted nor `known` are skipped, as a name in a file must not import anything.
    """
    defaults = {}
    for path, node in components(config):
        if _target(node) not in known and not is_trusted(_target(node)):
            continue
        try:
            parameters = inspect.signature(get_object(node["_target_"])).parameters
        # A target that no longer exists has no defaults; the comparison shows that _target_ differs
        except Exception:
            continue
        for name, parameter in parameters.items():
            value = parameter.default
            if value is not inspect.Parameter.empty and name not in node:
                defaults[f"{path}.{name}"] = list(value) if isinstance(value, tuple) else value
    return defaults
