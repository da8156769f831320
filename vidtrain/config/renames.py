"""Old names of components, keys and values, which earlier versions stored and users may still write; and `migrate`,
which converts a stored configuration to the present version."""

import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, cast

# Hydra has no public way to change a configuration file's content before it is merged into the schema
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.default_element import ResultDefault
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vidtrain.config.references import to_dict
from vidtrain.config.schemas import RunConfig
from vidtrain.errors import UserError

TARGETS = {
    "vidtrain.data.augment.color.ColorJitter": "vidtrain.data.augment.device.ColorJitter",
    "vidtrain.data.augment.erasing.RandomErasing": "vidtrain.data.augment.device.RandomErasing",
    "vidtrain.data.augment.mixing.Mixing": "vidtrain.data.augment.device.Mixing",
    "vidtrain.training.timm_optimizer.timm_optimizer": "vidtrain.training.optimizers.timm_optimizer",
    "vidtrain.data.temporal.TemporalJitter": "vidtrain.data.sampling.temporal.TemporalJitter",
    **{
        f"vidtrain.tracking.{old}": f"vidtrain.tracking.trackers.{name}Logger"
        for name in ("Wandb", "TensorBoard", "Mlflow")
        for old in (
            f"{name.lower()}_mirror.{name}Mirror",
            f"loggers.{name.lower()}_logger.{name}Mirror",
            f"loggers.{name.lower()}_logger.{name}Logger",
        )
    },
    **{
        f"vidtrain.models.{module}.{name}": f"vidtrain.models.{place}.{name}"
        for module, place, name in (
            ("attentive", "heads", "AttentiveClassifier"),
            ("linear_heads", "heads", "MeanPoolClassifier"),
            ("linear_heads", "heads", "FullyConvolutionalClassifier"),
            ("temporal_transformer", "temporal_heads", "TemporalTransformerClassifier"),
            ("whole_module", "classifier", "Pixels"),
            ("whole_module", "classifier", "WholeModule"),
            ("x3d", "residual3d", "X3D"),
            ("resnext3d", "residual3d", "ResNeXt3D"),
        )
    },
    **{
        f"vidtrain.models.pretraining.{old}": f"vidtrain.models.{new}"
        for old, new in (
            ("masks.TubeMasks", "masks.TubeMasks"),
            ("masks.BlockMasks", "masks.BlockMasks"),
            ("masked_autoencoder.MaskedAutoencoder", "masked_models.MaskedAutoencoder"),
            ("joint_embedding.JointEmbedding", "masked_models.JointEmbedding"),
        )
    },
    "vidtrain.launching.LocalLauncher": "vidtrain.sweeps.submitit_launchers.LocalLauncher",
    "vidtrain.launching.SlurmLauncher": "vidtrain.sweeps.submitit_launchers.SlurmLauncher",
    "vidtrain.sweep_grid.GridSweeper": "vidtrain.sweeps.base.GridSweeper",
    "vidtrain.sweeps.grid.GridSweeper": "vidtrain.sweeps.base.GridSweeper",
    "vidtrain.sweep_optuna.OptunaSweeper": "vidtrain.sweeps.optuna_sweeper.OptunaSweeper",
    "vidtrain.data.sources.class_folders.ClassFolders": "vidtrain.data.sources.folders.ClassFolders",
    "vidtrain.data.sources.frame_folders.FrameFolders": "vidtrain.data.sources.folders.FrameFolders",
    "vidtrain.data.sources.kinetics.Kinetics": "vidtrain.data.sources.published.Kinetics",
    "vidtrain.data.sources.mixture.Mixture": "vidtrain.data.sources.listings.Mixture",
    "vidtrain.data.sources.mixture.Part": "vidtrain.data.sources.listings.Part",
    "vidtrain.data.sources.npy_listings.NpyListing": "vidtrain.data.sources.listings.NpyListing",
    "vidtrain.data.sources.official_splits.HMDB51": "vidtrain.data.sources.published.HMDB51",
    "vidtrain.data.sources.official_splits.UCF101": "vidtrain.data.sources.published.UCF101",
    "vidtrain.data.sources.something_something.SomethingSomething": (
        "vidtrain.data.sources.published.SomethingSomething"
    ),
}
# Old -> new keys of a run's configuration
KEYS = {
    "trainer.label_smoothing": "loss.label_smoothing",
    "clip.short": "clip.short_video_policy",
    "clip.train_copies": "clip.repeated_augmentation",
    "data.balance": "data.class_balanced_sampling",
    "data.time_limit": "data.decode_timeout_s",
    "trainer.max_fault_share": "trainer.max_unreadable_fraction",
    "trainer.one_batch": "trainer.overfit_one_batch",
}
# Program -> old -> new keys of its own
PROGRAM_KEYS = {
    "evaluate": {"short": "short_video_policy", "probes": "frame_order_ablations"},
    "predict": {"time_limit": "decode_timeout_s"},
    "audit": {"time_limit": "decode_timeout_s"},
    "prepare": {"time_limit": "decode_timeout_s"},
}
VALUES = {"clip.sampling": {"reference": "vjepa2"}}
# Keys of clip that older view tables and cached tokens do not have, with the value that behaves as before the key
LATER_DEFAULTS = {"sample_aspect": "ignore", "resize": "antialiased"}
_load = ConfigLoaderImpl._load_single_config


def rename_target(target: str) -> str:
    return TARGETS[target] if target in TARGETS else target


def rename_targets(node: Any) -> Any:
    """Plain data with the new name of every `_target_`."""
    if isinstance(node, Mapping):
        renamed = {key: rename_targets(value) for key, value in node.items()}
        if "_target_" in renamed and isinstance(renamed["_target_"], str):
            renamed["_target_"] = rename_target(renamed["_target_"])
        return renamed
    return [rename_targets(value) for value in node] if isinstance(node, list | tuple) else node


def rename_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, with the new names of keys and values."""
    return {KEYS[key] if key in KEYS else key: _rename_value(key, value) for key, value in settings.items()}


def with_first_names(group: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a group with their oldest names and values. Digests are computed of these, so that they stay
    valid when a setting is renamed."""
    first = {new: old for old, new in KEYS.items()}
    values = {key: {new: old for old, new in names.items()} for key, names in VALUES.items()}
    renamed = {}
    for name, value in settings.items():
        key = f"{group}.{name}"
        if key in values and value in values[key]:
            value = values[key][value]
        renamed[first[key].rpartition(".")[2] if key in first else name] = value
    return renamed


def _rename_value(key: str, value: Any) -> Any:
    if key in VALUES and isinstance(value, str) and value in VALUES[key]:
        return VALUES[key][value]
    return value


def _keys_of(program: str) -> dict[str, str]:
    return KEYS | (PROGRAM_KEYS[program] if program in PROGRAM_KEYS else {})


def rename_override(override: str, program: str = "train") -> str:
    """An override with its new names. Old overrides logger.KEY are of W&B, which was the only logger."""
    name, equals, value = override.partition("=")
    key = name.lstrip("+~")
    mark = name.removesuffix(key)
    if not equals and "~" not in mark:  # a flag, or an argument without =
        return override
    keys = _keys_of(program)
    if key.endswith("._target_"):
        value = rename_target(value)
    elif key in keys:
        key = keys[key]
    elif key in VALUES:
        value = re.sub(r"\w+", lambda word: _rename_value(key, word[0]), value)
    elif re.match(r"logger\.(mode|project|entity|group|job_type|tags|notes)$", key):
        key = key.replace("logger.", "logger.wandb.", 1)
    return f"{mark}{key}{equals}{value}"


def rename_keys(config: DictConfig, program: str = "train") -> list[str]:
    """Renames old keys and values in a configuration, or in a part of one, in place. Returns the text `OLD is called
    NEW now` for each."""
    renamed = []
    for old, new in _keys_of(program).items():
        parent, _, name = old.rpartition(".")
        group = _plain_node(config, parent)
        if isinstance(group, DictConfig) and name in group:
            node = group._get_node(name)
            del group[name]
            OmegaConf.update(config, new, node, force_add=True)
            renamed.append(f"{old} is called {new} now")
    for key, names in VALUES.items():
        value = _plain_node(config, key)
        if isinstance(value, str) and value in names:
            OmegaConf.update(config, key, names[value])
            renamed.append(f"{key}={value} is called {names[value]} now")
    return renamed


def _plain_node(config: DictConfig, key: str) -> Any:
    """The node or value at a dotted key, with a reference as its text; None if there is none."""
    node: Node | None = config
    for name in key.split(".") if key else ():
        if not isinstance(node, DictConfig) or node._is_none() or node._is_missing() or node._is_interpolation():
            return None
        node = node._get_node(name)
    return node if isinstance(node, DictConfig) or node is None else node._value()


def rename_arguments(arguments: Sequence[str], program: str, warn: Callable[[str], object]) -> list[str]:
    """A command line with the new names; `warn` gets a message for each renamed override."""
    renamed = [rename_override(argument, program) for argument in arguments]
    for old, new in zip(arguments, renamed, strict=True):
        if old != new:
            warn(f"{old} is called {new} now")
    return renamed


def accept_old_keys(program: str, warn: Callable[[str], object]) -> None:
    """Lets YAML files of users use old names of keys and values; `warn` gets one message for each."""
    warned: set[str] = set()

    def load(loader: ConfigLoaderImpl, default: ResultDefault, repo: IConfigRepository) -> ConfigResult:
        result = _load(loader, default, repo)
        if isinstance(result.config, DictConfig) and not result.is_schema_source:
            for renamed in rename_keys(result.config, program):
                text = f"{result.path.removeprefix('file://')}/{default.config_path}.yaml: {renamed}"
                if text not in warned:
                    warned.add(text)
                    warn(text)
        return result

    setattr(ConfigLoaderImpl, "_load_single_config", load)  # noqa: B010


# --- stored configurations --------------------------------------------------------------------------------

# The loss of stored configurations without a key `loss`
LOSS = {"_target_": "vidtrain.training.losses.CrossEntropy", "label_smoothing": 0.0, "class_weights": None}


def migrate(stored: Mapping[str, Any], source: str) -> DictConfig:
    """A stored configuration with new names, and with defaults for settings that the schema has gained since.

    `source` names its file in messages. Raises `UserError` naming the keys that this version does not know.
    """
    config = OmegaConf.create({"loss": LOSS, **rename_targets(stored)})
    rename_keys(config)
    unknown = list(_unknown(to_dict(config), RunConfig))
    if unknown:
        raise UserError(
            f"{source} is from another version of vidtrain: its configuration holds {', '.join(unknown)}, which this "
            "version does not know; use the version that wrote it, or train again"
        )
    try:
        return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(RunConfig), config))
    except OmegaConfBaseException as error:
        cause = str(error).splitlines()[0]
        raise UserError(
            f"{source} is from another version of vidtrain: {error.full_key}: {cause}; use the version that wrote it"
        ) from error


def _unknown(stored: Any, hint: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of `stored` that are not fields of its type in the schema; keys of components are not checked."""
    if not isinstance(stored, Mapping):  # a reference, or a wrong value, which merging reports
        return
    if is_dataclass(hint):
        below = typing.get_type_hints(hint)
    elif typing.get_origin(hint) is dict:
        below = dict.fromkeys(stored, typing.get_args(hint)[1])
    else:
        return
    for key, value in stored.items():
        if key in below:
            yield from _unknown(value, below[key], f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
