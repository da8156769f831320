"""Two checks that find all faults before anything is built: check_targets compares the arguments of components with the
signatures of their targets, check_settings compares settings with the ranges and choices in their dataclass."""

import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.config import dataset_schemas, schemas
from vidtrain.config.references import flat, guard_environment, register_published
from vidtrain.config.renames import rename_target
from vidtrain.errors import UserError
from vidtrain.files.folders import CONF

PRESETS = ("experiment", "debug")  # groups whose options set keys of other groups
Faults = list[tuple[str, str]]  # (key, what is wrong)
PROGRAMS = {
    "run": schemas.RunConfig,
    "benchmark": schemas.BenchmarkConfig,
    "evaluate": schemas.EvaluateConfig,
    "calibrate": schemas.CalibrateConfig,
    "export": schemas.ExportConfig,
    "audit": dataset_schemas.AuditConfig,
    "baselines": dataset_schemas.BaselinesConfig,
    "predict": schemas.PredictConfig,
    "embed": schemas.EmbedConfig,
    "labels": dataset_schemas.LabelsConfig,
    "prepare": dataset_schemas.PrepareConfig,
    "split": dataset_schemas.SplitConfig,
    "compare": schemas.CompareConfig,
    "sweep": schemas.SweepConfig,
}


def register_schemas() -> None:
    """Registers the schemas with Hydra, by the names in the defaults of conf/*.yaml, and the resolvers
    `${options:GROUP}` and `${groups:}` for the programs' help."""
    guard_environment()
    register_published()
    OmegaConf.register_new_resolver("options", lambda group: ", ".join(options(group)), replace=True)
    OmegaConf.register_new_resolver("groups", _groups, replace=True)
    for program, schema in PROGRAMS.items():
        ConfigStore.instance().store(name=f"{program}_schema", node=schema)


# --- groups, options and components -----------------------------------------------------------------------


def options(group: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """The options of a config group, sorted; `folders` are conf/ and config folders of the user."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("[!_]*.yaml")})


def is_group(group: str, folders: Sequence[Path]) -> bool:
    return any((folder / group).is_dir() for folder in folders)


def preset_settings(group: str, name: str) -> dict[str, Any]:
    """The settings of an option of a group in `PRESETS`: options by group, such as model/head, and values by dotted
    key.

    They are empty for an option that is not in conf/.
    """
    if name not in options(group):
        return {}
    preset = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(preset, dict)
    settings: dict[str, Any] = {}
    for entry in preset.pop("defaults", []):
        if isinstance(entry, dict):
            settings |= {str(key).removeprefix("override ").lstrip("/"): value for key, value in entry.items()}
        elif entry != "_self_":
            settings |= preset_settings(group, entry)
    return settings | flat(preset)


def _groups() -> str:
    """A line for each group in conf/ with its options. Hydra's own list includes every installed package."""
    folders = sorted({path.parent.relative_to(CONF) for path in CONF.glob("*/**/*.yaml")})
    return "\n".join(f"{folder}: {', '.join(options(str(folder)))}" for folder in folders if folder.parts[0] != "hydra")


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the most similar word of `known`, or a list of all if none is similar."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def components(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a `_target_` below `node`, with its dotted path, outermost first."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        if "_target_" in node.keys():  # noqa: SIM118, as `in node` is False for a missing value ("???")
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from components(node._get_node(key), f"{path}.{key!s}" if path else str(key))
    elif isinstance(node, ListConfig) and not node._is_none():
        for index in range(len(node)):
            yield from components(node._get_node(index), f"{path}[{index}]")


# --- settings against their dataclass ---------------------------------------------------------------------


def check_settings(cfg: Any, schema: type, prefix: str = "") -> Faults:
    """Faults of settings in `cfg` that are outside the range, or not among the choices, of their field in `schema`.

    Null is allowed if the type allows it. An absent setting, as in an old checkpoint, has no fault.
    """
    faults: Faults = []
    hints = typing.get_type_hints(schema)
    for setting in fields(schema):
        try:
            value = OmegaConf.select(cfg, setting.name)
        except OmegaConfBaseException:  # another check reports references that cannot be resolved
            continue
        key, rules = f"{prefix}{setting.name}", setting.metadata
        if value is None:
            continue
        if is_dataclass(hints[setting.name]):
            faults += check_settings(value, hints[setting.name], f"{key}.")
        elif "choices" in rules:
            known = list(rules["choices"]())
            chosen = list(value) if isinstance(value, ListConfig) else [value]
            faults += [(key, f"{word} is unknown{suggest(word, known)}") for word in chosen if word not in known]
        elif "allows" in rules and not rules["allows"](value):
            faults.append((key, f"{value} {rules['must']}"))
    return faults


def check_of_dataset(cfg: DictConfig, schema: type) -> Faults:
    """Faults of the components and settings of a program that needs a dataset, including that none is chosen."""
    faults = check_targets(cfg) + check_settings(cfg, schema)
    return faults if cfg.dataset is not None else [*faults, ("dataset", "must be chosen: dataset=OPTION")]


# --- components against signatures ------------------------------------------------------------------------


def check_targets(cfg: DictConfig) -> Faults:
    """Compares every component's arguments with the signature of its target.

    Finds targets that do not exist, unknown arguments, absent required arguments (unless the node is partial), and
    plain values (numbers, text, lists) of another type than annotated.
    """
    return [fault for path, node in components(cfg) for fault in _check_component(path, node)]


def _check_component(path: str, node: DictConfig) -> Iterator[tuple[str, str]]:
    if OmegaConf.is_missing(node, "_target_"):
        yield f"{path}._target_", "must be given a value"
        return
    target_name = node["_target_"]
    try:
        target = get_object(target_name)
    except Exception as error:  # importing a target runs foreign code, which may raise anything
        renamed = rename_target(str(target_name))
        hint = f"; it is called {renamed} now" if renamed != target_name else ""
        yield f"{path}._target_", f"{target_name} cannot be imported: {error}{hint}"
        return
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # not callable, or a built-in without a signature
        required = "a class or function with named arguments"
        yield f"{path}._target_", f"{target_name} cannot be a component: it must be {required}"
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    hints = hints_of(target)
    arguments = [str(key) for key in node if not str(key).startswith("_")]
    for name in arguments:
        if name in names or takes_any:
            why = _wrong_value(node, name, hints)
        else:
            others = [other for other in names if other not in arguments]
            why = f"{target_name} has no such argument{suggest(name, others)}"
        if why is not None:
            yield f"{path}.{name}", why
    if not OmegaConf.select(node, "_partial_"):
        for name in names:
            if parameters[name].default is inspect.Parameter.empty and name not in arguments:
                yield f"{path}.{name}", f"{target_name} needs this argument"


def _wrong_value(node: DictConfig, name: str, hints: Mapping[str, Any]) -> str | None:
    if OmegaConf.is_missing(node, name):
        return "must be given a value"
    try:
        value = node[name]
    except OmegaConfBaseException as error:
        return str(error).splitlines()[0]
    # The value of a reference is checked at the key that it refers to
    if name in hints and not OmegaConf.is_interpolation(node, name) and not fits(value, hints[name]):
        return f"{value!r} is not {spell(hints[name])}"
    return None


def reason(error: BaseException) -> str:
    """The message of the innermost cause of an error that Hydra wrapped."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return str(error)


# --- the origin of a fault --------------------------------------------------------------------------------


def label(override: str, stored: Mapping[str, str]) -> str:
    """An override in a message. `stored` maps overrides that are not from the command line to their file."""
    return f"'{override}'" + (f", stored in {stored[override]}" if override in stored else "")


def where(
    key: str,
    overrides: Sequence[str],
    choices: Mapping[str, str],
    stored: Mapping[str, str] = MappingProxyType({}),
    folders: Sequence[Path] = (CONF,),
) -> str:
    """The origin of a key's value: the overrides that set it or a key below it, or else the file that sets it."""
    setting_overrides = []
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        if key == name or name.startswith(f"{key}.") or ("." in name and key.startswith(f"{name}.")):
            setting_overrides.append(label(override, stored))
    if setting_overrides:
        return f"override {', '.join(setting_overrides)}"
    group = key.split(".")[0].split("[")[0]
    option = choices[group] if group in choices else None
    if not option:
        return "the configuration"
    user_files = [path for folder in folders[1:] if (path := folder / group / f"{option}.yaml").is_file()]
    return str(user_files[0]) if user_files else f"conf/{group}/{option}.yaml"


# --- comparing plain values of YAML with type annotations -------------------------------------------------

PLAIN_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}


def hints_of(target: Any) -> dict[str, Any]:
    """The annotations of a target's arguments, without those that cannot be resolved here."""
    function = target.__init__ if inspect.isclass(target) else target
    hints: dict[str, Any] = {}
    for name, hint in inspect.get_annotations(inspect.unwrap(function)).items():
        try:
            holder = type("holder", (), {"__annotations__": {name: hint}})
            hints |= typing.get_type_hints(holder, globalns=inspect.unwrap(function).__globals__)
        except (NameError, TypeError):
            continue
    return hints


def _alternatives(hint: Any) -> list[Any]:
    """The members of a union that a value in YAML can have: the plain ones, or all if none is plain."""
    arguments = typing.get_args(hint)
    return [kind for kind in arguments if kind in PLAIN_WORDS or typing.get_origin(kind)] or list(arguments)


def _is_pair(origin: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a hint is a tuple of a fixed number of values."""
    return origin is tuple and bool(arguments) and arguments[-1] is not Ellipsis


def fits(value: Any, hint: Any) -> bool:
    """Whether a value fits a parameter with the annotation `hint`. Only plain values are checked."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if isinstance(value, DictConfig):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, kind) for kind in _alternatives(hint))
    if origin is typing.Literal:
        return value in arguments
    if hint in PLAIN_WORDS:
        allowed = int | float if hint is float else hint
        return isinstance(value, allowed) and (hint is bool or not isinstance(value, bool))
    if origin in (dict, Mapping):
        return False
    if origin in (list, tuple, Sequence):
        if not isinstance(value, ListConfig):
            return False
        if _is_pair(origin, arguments):
            return len(value) == len(arguments) and all(map(fits, value, arguments))
        return not arguments or all(fits(item, arguments[0]) for item in value)
    return True


def spell(hint: Any) -> str:
    """An annotation in words, such as `a list of float, or null`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        plain = _alternatives(hint)
        spelled = " or ".join(spell(kind) for kind in plain if kind is not type(None))
        return spelled + (", or null" if type(None) in plain else "")
    if origin is typing.Literal:
        return "one of " + ", ".join(map(str, arguments))
    if _is_pair(origin, arguments):
        return f"a list of {len(arguments)}: {', '.join(map(spell, arguments))}"
    if origin in (dict, Mapping):
        return "a mapping: {name: ...}"
    if origin in (list, tuple, Sequence):
        return f"a list of {spell(arguments[0])}" if arguments else "a list"
    if hint in PLAIN_WORDS:
        return PLAIN_WORDS[hint]
    return hint.__name__ if isinstance(hint, type) else str(hint)
