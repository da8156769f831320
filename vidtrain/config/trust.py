"""What a configuration from elsewhere may ask for: which names become objects, and which references are followed.

A checkpoint, an exported file and a run's folder carry a configuration, and a name in it is enough to call any function
of any package. So everything here is decided from plain data, before anything that it names is imported: parts are
what conf/ ships, and layers and optimizers of PyTorch and timm. References to other settings are followed; all that
OmegaConf would compute (`${oc.env:NAME}`, above all the reader's environment) stays text.
"""

import importlib
import inspect
import re
import shlex
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, QuotedString, Sweep
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, Node

from vidtrain.config.renames import rename_target
from vidtrain.config.schemas import RunConfig
from vidtrain.config.targets import CONF, components, options
from vidtrain.errors import UserError

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
    module, _, name = target.rpartition(".")
    package = next((each for each in PACKAGES if f"{module}.".startswith(f"{each}.")), None)
    if package is None:
        return False
    home, base_module, base = PACKAGES[package]
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    if module not in sys.modules:  # nothing is imported because a file names it
        return False
    found = vars(sys.modules[module]).get(name)
    return (
        isinstance(found, type)
        and issubclass(found, getattr(sys.modules[base_module], base))
        and found.__qualname__ == name
        and f"{found.__module__}.".startswith(f"{home}.")
        and module in (package, found.__module__)
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
            + "\n  ".join(first_lines(strange))
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


def first_lines(lines: Sequence[str]) -> list[str]:
    """The first of many, and how many more there are."""
    more = len(lines) - MOST_SHOWN
    return [*lines[:MOST_SHOWN], f"and {more} more"] if more > 0 else list(lines)


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
    for each in (hint, *typing.get_args(hint)):
        if typing.get_origin(each) in (dict, list):
            return typing.get_args(each)[-1]
        if is_dataclass(each):
            return _hint_below(each, key)
    return Any


def with_references(plain: Any) -> Any:
    """Plain data with what `as_text` kept as it was written: for people, and for files that are read as text."""
    return _mapped(plain, lambda text: text.replace(KEPT, "${"))


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

    return _mapped(config, stand_in), kept


def put_back(plain: Any, kept: Mapping[str, str]) -> Any:
    """The inverse, of what became of the configuration."""
    return _mapped(plain, lambda text: kept[text] if text in kept else text)


def _mapped(node: Any, change: Callable[[str], str]) -> Any:
    if isinstance(node, Mapping):
        return {key: _mapped(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_mapped(value, change) for value in node]
    return change(node) if isinstance(node, str) else node


# --- overrides that the folder of a run or of a sweep holds --------------------------------------------------

# Of Hydra's own settings, those that a sweep's command line may say and that start nothing by themselves
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
WORD = re.compile(
    r"[\w.,:@%=+/-]*"
)  # what a scheduler is told; a line break in it would begin another command


def overrides_of(record: Any, source: str) -> list[str]:
    """The overrides that a record holds. Raises `UserError` where they are none."""
    found = record["overrides"] if isinstance(record, Mapping) and "overrides" in record else None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise UserError(f"{source} is damaged, or was changed: its overrides are not a list of text")
    return found


def check_stored(
    taken: Sequence[str], source: str, command: str, hydra: bool = False, said: Collection[str] = ()
) -> None:
    """Raises `UserError` for overrides that must not be taken from the file `source`, unless they are also in `said`,
    those of this command line.

    `command` is the command line to repeat them on; `hydra` tells whether settings of Hydra's may be among them.
    """
    refused = [each for each in taken if each not in said and not may_be_taken(each, hydra)]
    if refused:
        raise UserError(
            f"{source} holds settings that a folder from elsewhere could do harm with: they name code, look something "
            "up where they are read, or change how programs are started:\n  "
            + "\n  ".join(first_lines(refused))
            + f"\nIf they are yours, say them again: {command} {shlex.join(refused)}"
        )


def may_be_taken(override: str, hydra: bool = False) -> bool:
    """Whether an override does no more than to choose among what this package ships."""
    if override.startswith("-") or CONTROL.search(override):  # a flag; a line of a batch script
        return False
    try:
        parsed = OverridesParser.create().parse_override(override)
        value = parsed.value()
    except HydraException:
        return False
    key = parsed.key_or_group
    if key == "run_dir":  # this command line says where to write, or the sweep does
        return False
    own = f"{key}@{parsed.package or ''}"
    if "hydra" in re.split(r"\W", own):
        return hydra and parsed.package is None and _may_set_hydra(key, value)
    values = list(_leaves(value, key.rpartition(".")[2]))
    if _may_be_a_group(key) and any(
        PurePosixPath(each).is_absolute() or ".." in PurePosixPath(each).parts
        for _, each in values
        if isinstance(each, str)
    ):
        return False  # an option of a group is a file's name, and might lead out of conf/
    return TARGET not in key.split(".")[:-1] and all(_is_harmless(name, each) for name, each in values)


def _may_be_a_group(key: str) -> bool:
    """Of this package, or of a configuration folder of the user's own."""
    plain = {each.name for each in fields(RunConfig) if not (CONF / each.name).is_dir()}
    return "/" in key or ("." not in key and key not in plain)


def _is_harmless(name: Any, value: Any) -> bool:
    if name == TARGET:
        return is_trusted(value)
    return not (isinstance(value, str) and is_computed(value))


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The plain values in an override's, each with the last part of its key."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield "", str(key)
            yield from _leaves(child, str(key))
        return
    if isinstance(value, Glob):
        value = [*value.include, *value.exclude]
    elif isinstance(value, Sweep):
        value = getattr(value, "list", None)  # ranges and intervals are of numbers
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
    if key == "hydra.sweep.dir":  # where the user names the sweep, that counts
        return "$" not in text
    return WORD.fullmatch(text) is not None and is_inside(text)


def is_inside(folder: str) -> bool:
    """Whether a relative path stays below the folder that it is relative to."""
    path = PurePosixPath(folder)
    return not path.is_absolute() and ".." not in path.parts


def check_trials(trials: Sequence[Any], said: Collection[str], source: str) -> None:
    """Raises `UserError` for trials in a sweep's record that set what must not be taken from it, or that lie outside of
    its folder. `said` is what the command line sweeps over and sets."""
    outside = [str(each.folder) for each in trials if not is_inside(str(each.folder))]
    if outside:
        raise UserError(
            f"{source} says that trials lie outside of the sweep: {', '.join(first_lines(outside))}; it is damaged, or "
            "was changed"
        )
    strange = [
        str(each)
        for trial in trials
        for each in trial.overrides
        if not (isinstance(each, str) and (each in said or may_be_taken(each)))
    ]
    if strange:
        raise UserError(
            f"{source} has trials with settings that a folder from elsewhere could do harm with, and that this command "
            "does not say:\n  " + "\n  ".join(first_lines(list(dict.fromkeys(strange))))
        )


def is_trusted_pruner(pruner: Any) -> bool:
    """Whether trial.json names a way to end trials early that conf/ ships, with plain settings."""
    return (
        isinstance(pruner, Mapping)
        and TARGET in pruner
        and pruner[TARGET] in shipped_pruners()
        and all(isinstance(each, int | float | bool | None) for key, each in pruner.items() if key != TARGET)
    )


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
    found = {}
    for path, node in components(config):
        if _target(node) not in known and not is_trusted(_target(node)):
            continue
        try:
            parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        except Exception:  # what no longer exists has no defaults, and its _target_ is seen to differ
            continue
        for each in parameters:
            if each.default is not inspect.Parameter.empty and each.name not in node:
                found[f"{path}.{each.name}"] = (
                    list(each.default) if isinstance(each.default, tuple) else each.default
                )
    return found
