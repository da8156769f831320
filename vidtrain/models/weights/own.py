"""Checkpoints of this project, and models that it exported to safetensors.

They hold the configuration of their model, so settings that no tensor shows, such as the number of heads, are compared
with the model that loads them. Adapters are merged into the weights.
"""

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import Encoder, EncoderWithHead
from vidtrain.models.lora import A, merge_tensors
from vidtrain.models.weights.format import Converted, Format, Weights

PREFIX = "model."
ENCODER, TEACHER = "encoder.", "teacher."
# Settings that may differ from those of the checkpoint: sizes of clips, regularization, memory
FREE = {"image_size", "num_frames", "pool_size", "drop_path", "dropout", "attention_dropout"}
FREE |= {"activation_checkpointing", "zero_init_residual", "zero_init_residual_transform"}
# Encoder settings that depend on the head: another head may need other tokens
OF_HEAD = {"out_layers", "final_norm", "features", "tokens", "spatial_size"}
PLAIN = (bool, int, float, str)


def _convert(weights: Weights, model: EncoderWithHead) -> Converted:
    """Converts a checkpoint; a head of another class is left out. Raises UserError for another class of encoder."""
    names = weights.tensors
    prefix = PREFIX if any(name.startswith(PREFIX) for name in names) else ""
    converted = Converted(
        tensors={name.removeprefix(prefix): tensor for name, tensor in names.items() if name.startswith(prefix)}
    )
    if weights.adapters is not None:
        unmerged, converted.tensors = (
            converted.tensors,
            merge_tensors(converted.tensors, weights.adapters.scale),
        )
        merged = [name for name in unmerged if name.endswith(f".{A}") and name not in converted.tensors]
        converted.changed = {f"{name.removesuffix(A)}weight": "merged with its adapter" for name in merged}
    if weights.config is None or "model" not in weights.config:
        return converted
    parts = weights.config["model"] if isinstance(weights.config, Mapping) else None
    for part in ("encoder", "head"):
        node = parts[part] if isinstance(parts, Mapping) and part in parts else None
        if not isinstance(node, Mapping) or "_target_" not in node:
            raise UserError(f"{weights.source} is damaged, or was changed: its configuration has no model.{part}")
    kinds = {part: str(parts[part]["_target_"]).rpartition(".")[2] for part in ("encoder", "head")}
    if kinds["encoder"] != type(model.encoder).__name__:
        raise UserError(
            f"{weights.source} was trained with {kinds['encoder']}, and the model is {type(model.encoder).__name__}; "
            "choose the model that it was trained with"
        )
    objective = weights.config.get("objective")
    if isinstance(objective, Mapping):
        kinds["head"] = f"the head of {str(objective['_target_']).rpartition('.')[2]}"
        if kinds["head"] == f"the head of {type(model).__name__}":
            _go_on(converted, weights, objective, model)
            return converted
        _take_encoder(converted, weights, objective)
    elif weights.part is not None:
        raise UserError(f"{weights.source} is no pretraining checkpoint: remove init_part={weights.part}")
    same_head = kinds["head"] == type(model.head).__name__
    if not same_head:
        for name in [name for name in converted.tensors if name.startswith("head.")]:
            del converted.tensors[name]
            converted.left_out[name] = f"of {kinds['head']}, but the model's head is {type(model.head).__name__}"
    free = FREE if same_head else FREE | OF_HEAD
    for part in ("encoder", "head") if same_head else ("encoder",):
        converted.requires |= _settings(weights.config["model"][part], part, getattr(model, part), free)
    return converted


def _go_on(converted: Converted, weights: Weights, objective: Mapping[str, Any], model: EncoderWithHead) -> None:
    """Continues pretraining with all networks of a pretraining checkpoint. A head with another number of attention
    heads is left out, as it would compute something else."""
    assert weights.config is not None  # it holds the objective
    converted.requires = _settings(weights.config["model"]["encoder"], "encoder", model.encoder, FREE)
    own = model.head.get_submodule("blocks.0.attn").num_heads
    for key in ("decoder_heads", "predictor_heads"):
        if key in objective and objective[key] != own:
            for name in [name for name in converted.tensors if name.startswith("head.")]:
                del converted.tensors[name]
                converted.left_out[name] = f"of objective.{key}={objective[key]}, and the model's has {own}"


def _take_encoder(converted: Converted, weights: Weights, objective: Mapping[str, Any]) -> None:
    """Takes the encoder from a pretraining checkpoint: `weights.part`, by default the teacher if it is a moving
    average, else the encoder."""
    has_teacher = any(name.startswith(TEACHER) for name in converted.tensors)
    if weights.part == "teacher" and not has_teacher:
        raise UserError(f"{weights.source} has no teacher: remove init_part=teacher")
    follows = has_teacher and objective.get("momentum") != 1
    part = weights.part or ("teacher" if follows else "encoder")
    chosen, other = (TEACHER, ENCODER) if part == "teacher" else (ENCODER, TEACHER)
    for name in [name for name in converted.tensors if name.startswith(other)]:
        del converted.tensors[name]
        converted.left_out[name] = f"the {chosen[:-1]} is taken"
    if chosen == TEACHER:
        for name in [name for name in converted.tensors if name.startswith(TEACHER)]:
            own = ENCODER + name.removeprefix(TEACHER)
            converted.tensors[own] = converted.tensors.pop(name)
            converted.changed[own] = "of the teacher"


def _settings(node: Mapping[str, Any], part: str, module: nn.Module | Encoder, free: set[str]) -> dict[str, Any]:
    """The stored settings of an encoder or a head that `module` has as attributes, by their paths. Settings that an old
    configuration lacks have their defaults."""
    holders: dict[str, Any] = {part: module}
    if hasattr(module, "pooler"):
        holders[f"{part}.pooler"] = module.pooler
    return {
        f"{holder}.{key}": value
        for key, value in (dict(node) | _defaults(module) | dict(node)).items()  # in the order of `node`
        for holder, owner in holders.items()
        # references, such as ${clip.size}, are settings of other groups
        if key not in free and not str(value).startswith("${") and hasattr(owner, key)
        # submodules are no settings; None for a list means that it follows from other settings
        if not isinstance(getattr(owner, key), nn.Module | Tensor)
        and not (value is None and isinstance(getattr(owner, key), tuple))
    }


def _defaults(module: nn.Module | Encoder) -> dict[str, Any]:
    """The defaults of a class's arguments that are plain values and kept as attributes; a default of None follows from
    other settings, and is left out."""
    parameters = inspect.signature(type(module)).parameters.values()
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if isinstance(parameter.default, PLAIN) and isinstance(getattr(module, parameter.name, None), PLAIN)
    }


OWN = Format(
    name="vidtrain checkpoint",
    encoder=nn.Module,
    models="the model that it was trained with",
    recognizes=lambda weights: weights.written_by is not None and weights.written_by.startswith("vidtrain"),
    convert=_convert,
    revert=lambda tensors: {PREFIX + name: tensor for name, tensor in tensors.items()},
)
