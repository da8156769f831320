"""The configuration: its typed schema, and a check that reports every fault at once, before anything is built."""

import difflib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.config.published import register_published
from vidtrain.config.references import guard_environment
from vidtrain.config.renames import rename_target
from vidtrain.config.schemas import (
    BenchmarkConfig,
    CompareConfig,
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    RunConfig,
    SweepConfig,
)
from vidtrain.config.schemas_data import AuditConfig, PrepareConfig, SplitConfig
from vidtrain.config.type_checks import fits, hints_of, spell
from vidtrain.errors import UserError
from vidtrain.files.folders import CONF


def register_schemas() -> None:
    """Makes the schemas known to Hydra, by the names that conf/*.yaml put first in their defaults, and the resolver
    `${options:GROUP}` and `${groups:}` of the programs' help."""
    guard_environment()
    register_published()
    OmegaConf.register_new_resolver("options", lambda group: ", ".join(options(group)), replace=True)
    OmegaConf.register_new_resolver("groups", _groups, replace=True)
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    store.store(name="benchmark_schema", node=BenchmarkConfig)
    store.store(name="evaluate_schema", node=EvaluateConfig)
    store.store(name="export_schema", node=ExportConfig)
    store.store(name="audit_schema", node=AuditConfig)
    store.store(name="predict_schema", node=PredictConfig)
    store.store(name="prepare_schema", node=PrepareConfig)
    store.store(name="split_schema", node=SplitConfig)
    store.store(name="compare_schema", node=CompareConfig)
    store.store(name="sweep_schema", node=SweepConfig)


# --- what fits what ---------------------------------------------------------------------------------------


def options(group: str, folders: Sequence[Path] = (CONF,)) -> list[str]:
    """The names that a config group offers, sorted; `folders` are conf/ and those of the user's own."""
    return sorted({path.stem for folder in folders for path in (folder / group).glob("[!_]*.yaml")})


def is_group(group: str, folders: Sequence[Path] = (CONF,)) -> bool:
    return any((folder / group).is_dir() for folder in folders)


def _groups() -> str:
    """A line for each group with its options: ours alone, where Hydra lists those of every installed package."""
    folders = sorted({path.parent.relative_to(CONF) for path in CONF.glob("*/**/*.yaml")})
    return "\n".join(
        f"{each}: {', '.join(options(str(each)))}" for each in folders if each.parts[0] != "hydra"
    )


def suggest(word: str, known: Sequence[str]) -> str:
    """`; did you mean ...?` with the nearest of `known`, or what there is to choose from."""
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; known: {', '.join(known)}" if known else ""


def components(node: Any, path: str = "") -> Iterator[tuple[str, DictConfig]]:
    """Every node with a `_target_` below `node`, with its dotted path, outermost first."""
    if isinstance(node, DictConfig) and not node._is_none() and not node._is_missing():
        if "_target_" in node.keys():  # noqa: SIM118, which counts one that is missing, too
            yield path, node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from components(node._get_node(key), f"{path}.{key}" if path else str(key))
    elif isinstance(node, ListConfig) and not node._is_none():
        for index in range(len(node)):
            yield from components(node._get_node(index), f"{path}[{index}]")


def check_targets(cfg: DictConfig) -> list[tuple[str, str]]:
    """Holds every component's arguments against its target's signature; returns faults as (key, what is wrong).

    Finds targets that do not exist, arguments that they do not take, required ones that are absent (unless
    the node is partial), and plain values (numbers, text, lists) of another type than annotated.
    """
    faults = []
    for path, node in components(cfg):
        if OmegaConf.is_missing(node, "_target_"):
            faults.append((f"{path}._target_", "must be given a value"))
            continue
        try:
            target = get_object(node["_target_"])
        except Exception as error:  # importing a target runs foreign code, which may raise anything
            renamed = rename_target(str(node["_target_"]))
            hint = f"; it is called {renamed} now" if renamed != node["_target_"] else ""
            faults.append((f"{path}._target_", f"{node['_target_']} cannot be imported: {error}{hint}"))
            continue
        try:
            parameters = inspect.signature(target).parameters
        except (TypeError, ValueError):  # not callable, or a built-in that does not tell
            faults.append(
                (
                    f"{path}._target_",
                    f"{node['_target_']} is nothing that a component can be: a class or function with named arguments",
                )
            )
            continue
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        names = [p.name for p in parameters.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        hints = hints_of(target)
        given = [str(key) for key in node if not str(key).startswith("_")]
        for name in given:
            if name not in names and not takes_any:
                known = [each for each in names if each not in given]
                faults.append(
                    (f"{path}.{name}", f"{node['_target_']} has no such argument{suggest(name, known)}")
                )
                continue
            if OmegaConf.is_missing(node, name):
                faults.append((f"{path}.{name}", "must be given a value"))
                continue
            try:
                value = node[name]
            except OmegaConfBaseException as error:
                faults.append((f"{path}.{name}", str(error).splitlines()[0]))
                continue
            # what is referred to is checked where it stands
            if name in hints and not OmegaConf.is_interpolation(node, name) and not fits(value, hints[name]):
                faults.append((f"{path}.{name}", f"{value!r} is not {spell(hints[name])}"))
        if not OmegaConf.select(node, "_partial_"):
            for name in names:
                if parameters[name].default is inspect.Parameter.empty and name not in given:
                    faults.append((f"{path}.{name}", f"{node['_target_']} needs this argument"))
    return faults


def reason(error: BaseException) -> str:
    """The innermost cause of an error that Hydra wrapped, without Hydra's frame."""
    while error.__cause__ is not None and not isinstance(error, UserError):
        error = error.__cause__
    return str(error)


def label(override: str, stored: Mapping[str, str]) -> str:
    """How a fault names an override; `stored` says of those that were not given now which file they are from."""
    return f"'{override}'" + (f", stored in {stored[override]}" if override in stored else "")


def where(
    key: str,
    overrides: Sequence[str],
    choices: dict[str, str],
    stored: Mapping[str, str] = MappingProxyType({}),
    folders: Sequence[Path] = (CONF,),
) -> str:
    """Where a key got its value: the overrides that set it or something below it, or the file that did."""
    set_here = []
    for override in overrides:
        name = override.lstrip("+~").split("=", 1)[0].split("@")[0]
        if key == name or name.startswith(f"{key}.") or ("." in name and key.startswith(f"{name}.")):
            set_here.append(label(override, stored))
    if set_here:
        return f"override {', '.join(set_here)}"
    group = key.split(".")[0].split("[")[0]
    option = choices[group] if group in choices else None
    if not option:
        return "the configuration"
    own = [path for folder in folders[1:] if (path := folder / group / f"{option}.yaml").is_file()]
    return str(own[0]) if own else f"conf/{group}/{option}.yaml"
