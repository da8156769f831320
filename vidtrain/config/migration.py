"""Configurations that checkpoints and run folders carry, perhaps from before the schema had all of its keys."""

import inspect
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.config.renames import rename_keys, rename_targets
from vidtrain.config.schemas import RunConfig
from vidtrain.config.targets import components
from vidtrain.config.trust import is_trusted
from vidtrain.errors import UserError

# The loss that runs had before there was a choice
LOSS = {"_target_": "vidtrain.training.losses.CrossEntropy", "label_smoothing": 0.0, "class_weights": None}


def migrate(stored: Mapping[str, Any], source: str) -> DictConfig:
    """A stored configuration with everything that the schema has gained since, at its default.

    `source` names the file that it is from. Raises `UserError` naming the keys that this version does not know.
    """
    config = OmegaConf.create({"loss": LOSS, **rename_targets(stored)})
    rename_keys(config)
    unknown = list(_unknown(OmegaConf.to_container(config), RunConfig))
    if unknown:
        raise UserError(
            f"{source} is from another version of vidtrain: its configuration holds {', '.join(unknown)}, which this "
            "version does not know; use the version that wrote it, or train anew"
        )
    try:
        return OmegaConf.merge(OmegaConf.structured(RunConfig), config)
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]
        raise UserError(
            f"{source} is from another version of vidtrain: {error.full_key}: {cause}; use the version that wrote it"
        ) from error


def targets_of(config: DictConfig) -> frozenset[str]:
    """The names of the components of a configuration."""
    return frozenset(_target(node) for _, node in components(config))


def _target(node: DictConfig) -> str:
    """As it is written: a reference is no name."""
    return str(node._get_node("_target_")._value())


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


def _unknown(stored: Mapping[str, Any], schema: type, prefix: str = "") -> Iterator[str]:
    """The dotted keys of `stored` that the dataclass `schema` has no field for; components are not looked into."""
    hints = typing.get_type_hints(schema)
    if not isinstance(stored, Mapping):  # a reference, or what does not belong there
        return
    for key, value in stored.items():
        if key not in hints:
            yield prefix + key
        elif is_dataclass(hints[key]):
            yield from _unknown(value, hints[key], f"{prefix}{key}.")
        elif typing.get_origin(hints[key]) is dict and isinstance(value, Mapping):
            of_each = typing.get_args(hints[key])[1]
            for name, each in value.items():
                yield from _unknown(each, of_each, f"{prefix}{key}.{name}.")
