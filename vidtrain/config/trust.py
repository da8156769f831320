"""What a configuration from elsewhere may ask for: which names become objects, and which references are followed.

A checkpoint, an exported file and a run's folder carry a configuration, and a name in it is enough to call any function
of any package. So everything here is decided from plain data, before anything that it names is imported: parts are
what conf/ ships, and layers and optimizers of PyTorch and timm. References to other settings are followed; all that
OmegaConf would compute (`${oc.env:NAME}`, above all the reader's environment) stays text.
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
# Package -> where its classes lie, and what they are all of: layers and optimizers, whose constructors open and write
# nothing. Its functions, and classes that it only imports, are not among them.
PACKAGES = {
    "torch.nn": ("torch.nn.modules", "torch.nn.modules.module", "Module"),
    "torch.optim": ("torch.optim", "torch.optim.optimizer", "Optimizer"),
    "timm.optim": ("timm.optim", "torch.optim.optimizer", "Optimizer"),
}
# To another setting, by its whole key
REFERENCE = re.compile(r"\$\{[A-Za-z_][\w-]*(?:\.[\w-]+|\[[\w-]+\])*\}")
RELATIVE = re.compile(r"\$\{\.+[\w-]+(?:\.[\w-]+|\[[\w-]+\])*\}")
# References, each as a zero byte, that touch what may begin or end another
JOINED = re.compile(r"\0[{\0]|\$\0")
# How what is kept as text begins: `${` would be looked up, if not now then when a part is built
KEPT = "$ {"
ABSENT = object()  # in place of a value that is left out
PLAIN = (str, int, float, bool, types.NoneType)
# A configuration of ours has some hundred settings, five deep
MOST_SETTINGS, DEEPEST = 100_000, 40
MOST_SHOWN = 20


# --- names ------------------------------------------------------------------------------------------------


def is_trusted(target: object) -> bool:
    """Whether `target` names a part that conf/ ships, or a layer or an optimizer of PyTorch or timm.

    Imports nothing but those packages.
    """
    return isinstance(target, str) and (rename_target(target) in shipped() or _is_layer_or_optimizer(target))


@cache
def shipped() -> frozenset[str]:
    """Every `_target_` of conf/, but those of Hydra's own groups, which no run's configuration holds."""
    return _targets(path for path in CONF.rglob("*.yaml") if path.relative_to(CONF).parts[0] != "hydra")


@cache
def shipped_pruners() -> frozenset[str]:
    """What may end trials early."""
    return _targets((CONF / "hydra" / "sweeper" / "pruner").glob("*.yaml"))


def _targets(files: Iterable[Path]) -> frozenset[str]:
    return frozenset(name for path in files for name in SHIPPED.findall(path.read_text(encoding="utf-8")))


def _is_layer_or_optimizer(target: str) -> bool:
    """Whether the name leads to a class that says itself that it lives there, or that its package lends the name."""
    module, _, class_name = target.rpartition(".")
    package = next((name for name in PACKAGES if f"{module}.".startswith(f"{name}.")), None)
    if package is None:
        return False
    home, base_module, base = PACKAGES[package]
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    if module not in sys.modules:  # nothing is imported because a file names it
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
    """Raises `UserError` if a stored configuration would build anything but the parts of this package, in any place."""
    strange = []
    for path, node in _walk(config):
        if isinstance(node, Mapping):
            if TARGET in node and not is_trusted(node[TARGET]):
                strange.append(f"{path}: {node[TARGET]}")
            # a key that is computed might come out as one that counts
            strange += [f"{path}: the key {key!r}" for key in node if not isinstance(key, str | int)]
        elif not isinstance(node, (*PLAIN, list, tuple)):
            strange.append(f"{path}: a {type(node).__name__}, which is no plain setting")
    if strange:
        raise UserError(
            f"the checkpoint {source} asks to build parts from outside of this package:\n  "
            + "\n  ".join(first_lines(strange, MOST_SHOWN))
            + "\nIf you trust it and have them installed, say trust_targets=true"
        )


def _walk(
    node: Any, path: str = "", depth: int = 0, seen: list[int] | None = None
) -> Iterator[tuple[str, Any]]:
    """`node` and everything in it, by dotted key. Raises `UserError` for what does not end."""
    seen = [0] if seen is None else seen
    seen[0] += 1
    if seen[0] > MOST_SETTINGS or depth > DEEPEST:
        raise UserError(
            f"a stored configuration holds more than {MOST_SETTINGS} settings, or is nested deeper than {DEEPEST}; "
            "vidtrain writes none like that"
        )
    yield path, node
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _walk(value, f"{path}.{key}" if path else str(key), depth + 1, seen)
    elif isinstance(node, list | tuple):
        for index, value in enumerate(node):
            yield from _walk(value, f"{path}[{index}]", depth + 1, seen)


def is_trusted_pruner(pruner: Any) -> bool:
    """Whether trial.json names a way to end trials early that conf/ ships, with plain settings."""
    return (
        isinstance(pruner, Mapping)
        and TARGET in pruner
        and pruner[TARGET] in shipped_pruners()
        and all(isinstance(value, int | float | None) for key, value in pruner.items() if key != TARGET)
    )


# --- references -------------------------------------------------------------------------------------------


def is_computed(text: str) -> bool:
    """Whether OmegaConf would do more with a value than to follow references to other settings.

    Whatever is not plainly a reference counts, escaped ones too, because building a part resolves values twice. So do
    those that may be one when others have been put into them, such as `${a}{oc.env:NAME}` where a is `$`.
    """
    marked = REFERENCE.sub("\0", text)
    return ("${" in marked or JOINED.search(marked) is not None) and not RELATIVE.fullmatch(text)


def as_text(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration in which nothing is computed any more; and what would have been, by dotted key.

    Such a value stays as text, where the schema takes text; elsewhere it is left out, for the schema's default.
    Raises `UserError` for a configuration that does not end.
    """
    for _ in _walk(config):
        pass
    computed: dict[str, str] = {}
    kept = _kept(config, "", RunConfig, computed)
    assert isinstance(kept, dict)
    return kept, computed


def _kept(node: Any, path: str, hint: Any, computed: dict[str, str]) -> Any:
    """`node`, whose place in the schema has the type `hint`, without what would be computed."""
    if isinstance(node, Mapping):
        children = {
            key: _kept(value, f"{path}.{key}" if path else str(key), _hint_below(hint, key), computed)
            for key, value in node.items()
        }
        return {key: value for key, value in children.items() if value is not ABSENT}
    if isinstance(node, list | tuple):
        values = [
            _kept(value, f"{path}[{index}]", _hint_below(hint, index), computed)
            for index, value in enumerate(node)
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
    """Plain data with what `as_text` kept as it was written: for people, and for files that are read as text."""
    return map_texts(plain, lambda text: text.replace(KEPT, "${"))


def set_aside(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A configuration to be shown and compared, in which a reference to the environment, of a name of its own, stands
    for all that would be computed; and what is to be put back in its place.

    `settled` follows no such reference, nor any that leads to one. Raises `UserError` for a configuration that does not
    end.
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
    """The inverse, of what became of the configuration."""
    return map_texts(plain, lambda text: kept[text] if text in kept else text)


# --- what components take -----------------------------------------------------------------------------------


def targets_of(config: DictConfig) -> frozenset[str]:
    """The names of the components of a configuration."""
    return frozenset(_target(node) for _, node in components(config))


def _target(node: DictConfig) -> str:
    """As it is written: a reference is no name."""
    written = node._get_node("_target_")
    assert isinstance(written, Node)  # components have one
    return str(written._value())


def defaults_of(config: DictConfig, known: Collection[str] = ()) -> dict[str, Any]:
    """What the components of a configuration take for the arguments that it leaves out, by dotted key.

    So two configurations can be compared, of which one was written before an argument was added to conf/. Components
    that are neither this package's nor `known` are left out: a name in a file must not import anything.
    """
    defaults = {}
    for path, node in components(config):
        if _target(node) not in known and not is_trusted(_target(node)):
            continue
        try:
            parameters = inspect.signature(get_object(node["_target_"])).parameters
        except Exception:  # what no longer exists has no defaults, and its _target_ is seen to differ
            continue
        for name, parameter in parameters.items():
            value = parameter.default
            if value is not inspect.Parameter.empty and name not in node:
                defaults[f"{path}.{name}"] = list(value) if isinstance(value, tuple) else value
    return defaults
