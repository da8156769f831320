"""The interface of a published format of weights: how it is recognized, and how its tensors are converted and back; and
the format of vidtrain's own checkpoints."""

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import Encoder, EncoderWithHead
from vidtrain.models.dense_joint_embedding import LEVEL_NORMS, STEPS
from vidtrain.models.lora import A, Adapters, merge_tensors


@dataclass(frozen=True)
class Weights:
    """Published tensors, by their published names."""

    source: str  # the name that the user gave: a file, a folder, a hub name ...
    tensors: Mapping[str, Tensor]
    # config.json of a folder of transformers or timm, or the configuration in a checkpoint of ours
    config: Mapping[str, Any] | None = None
    written_by: str | None = None  # the format that the file states, such as vidtrain/1
    adapters: Adapters | None = None  # those of a checkpoint of ours
    # the encoder to take from a pretraining checkpoint: encoder or teacher; None: the teacher if there is one
    part: str | None = None


@dataclass
class Converted:
    """Published tensors by the names in a `VideoClassifier`: encoder.* and head.*.

    `changed` describes changes of tensors besides renaming (joined, folded ...), and `resized` those that were fitted
    to the model's size. `left_out` gives reasons why published tensors are not needed. `unexpected` names tensors for
    which the model has no place. `requires` holds settings of the model, such as `encoder.num_heads`: with other values
    the tensors would load, but compute something else. `seen` holds the clip settings with which the weights were
    trained, as far as known, by keys of vidtrain.models.classifier.PUBLISHED.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    requires: dict[str, Any] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A published format.

    `convert(weights, model)` does not change the model. `revert(tensors)` is the reverse: it converts the state dict of
    a VideoClassifier (encoder.*, head.*) to the published names and layout, without the tensors that `convert` left
    out.
    """

    name: str  # as in messages: "VideoMAE, original"
    encoder: type[nn.Module]  # the class of encoder that the tensors fit
    models: str  # the models to choose, for messages: "model=videomae_base, or another videomae_*"
    recognizes: Callable[[Weights], bool]
    convert: Callable[[Weights, EncoderWithHead], Converted]
    revert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def split_number(source: str) -> tuple[str, int | None]:
    """Splits FILE:3 into the file and the number of a model in it, from 0, as V-JEPA's files hold several probes. The
    number is None for other sources."""
    file, _, number = source.rpartition(":")
    if Path(source).exists() or not number.isdecimal() or not Path(file).is_file():
        return source, None
    return file, int(number)


def known(prefix: str | None) -> str:
    """Returns `prefix`, which is not None for weights that the format has recognized."""
    assert prefix is not None
    return prefix


class Renaming:
    """Names of modules in a published format and in ours, both ways.

    Each pair is (theirs, ours), dotted names of modules or parameters in which `{n}` stands for a number. A tensor is
    renamed by the first pair that names it, or a module that contains it.

        >>> Renaming([("layer.{n}.norm_before", "encoder.blocks.{n}.norm1")]).to_ours("layer.3.norm_before.weight")
        'encoder.blocks.3.norm1.weight'
    """

    def __init__(self, pairs: Sequence[tuple[str, str]]):
        self._to_ours = [(_pattern(theirs), ours) for theirs, ours in pairs]
        self._to_theirs = [(_pattern(ours), theirs) for theirs, ours in pairs]

    def to_ours(self, name: str) -> str | None:
        """Our name for a published one, or None."""
        return _rename(name, self._to_ours)

    def to_theirs(self, name: str) -> str | None:
        """The published name for one of ours, or None."""
        return _rename(name, self._to_theirs)

    def convert(self, tensors: Mapping[str, Tensor]) -> Converted:
        """Renames all tensors to our names; those without one are unexpected."""
        converted = Converted()
        for name, tensor in tensors.items():
            ours = self.to_ours(name)
            if ours is None:
                converted.unexpected.append(name)
            else:
                converted.tensors[ours] = tensor
        return converted

    def revert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Renames our tensors to published names. Raises KeyError for a tensor without one."""
        reverted = {}
        for name, tensor in tensors.items():
            theirs = self.to_theirs(name)
            if theirs is None:
                raise KeyError(name)
            reverted[theirs] = tensor
        return reverted


def _pattern(name: str) -> re.Pattern[str]:
    numbers = r"(\d+)".join(re.escape(part) for part in name.split("{n}"))
    return re.compile(rf"{numbers}(?P<rest>\..+)?")


def _rename(name: str, pairs: list[tuple[re.Pattern[str], str]]) -> str | None:
    for pattern, target in pairs:
        match = pattern.fullmatch(name)
        if match:
            for number in match.groups()[: target.count("{n}")]:
                target = target.replace("{n}", number, 1)
            return target + (match["rest"] or "")
    return None


# Why tensors are not loaded, for the report
KINDS = {
    "skipped": " of a head for other classes",
    "missing": " that only the model has",
    "unexpected": " that only the file has",
    "mismatched": " of another shape",
}


@dataclass
class LoadReport:
    """What happened to each tensor. Names are ours; those in `left_out` and `unexpected` are the file's.

    `changed` describes the loaded tensors that were joined, split or folded, `resized` those that were fitted to the
    model's size. `skipped` is a head for other classes, which keeps its initialization. `left_out` gives reasons for
    tensors that the model does not need. `seen` is as in `Converted`.
    """

    source: str
    format: str
    loaded: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    seen: dict[str, Any] = field(default_factory=dict)
    match: float = 0.0  # the share of the relevant tensors that were loaded

    def lines(self) -> list[str]:
        """Lines for the log: one for the source, then one for each kind that is not empty, with count, reason and the
        first names."""
        rows = [f"{self.source}: {self.format}; {self.match:.1%} of the tensors match"]
        rows.append(f"loaded {len(self.loaded)}{_reasons(self.changed, ', among them ')}")
        if self.resized:
            how = [f"{name} ({why})" for name, why in self.resized.items()]
            rows.append(f"resized {len(how)}: {_some(how, 3)}")
        for kind, why in KINDS.items():
            names = getattr(self, kind)
            if names:
                rows.append(f"{kind} {len(names)}{why}: {_some(names, 4)}")
        if self.left_out:
            rows.append(f"left out {len(self.left_out)}{_reasons(self.left_out, ': ')}")
        return rows

    def as_dict(self) -> dict[str, Any]:
        """The report for starting_point.json: all names of every kind, and the counts."""
        kinds = asdict(self)
        named = {kind: names for kind, names in kinds.items() if isinstance(names, list | dict)}
        counts = {kind: len(names) for kind, names in named.items() if kind != "seen"}
        return {"source": self.source, "format": self.format, "match": self.match, "counts": counts} | kinds


def _reasons(why: Mapping[str, str], before: str) -> str:
    counted = [f"{reason} ({count})" for reason, count in Counter(why.values()).most_common()]
    return before + "; ".join(counted) if counted else ""


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if names[most:] else "")


# --- checkpoints of vidtrain, and models that it exported to safetensors --------------------------------------
#
# They hold the configuration of their model. So settings that no tensor shows, such as the number of heads, are
# compared with the model that loads them. Adapters are merged into the weights.

MODEL_PREFIX = "model."
ENCODER, TEACHER = "encoder.", "teacher."
# Settings that may differ from those of the checkpoint: sizes of clips, regularization, memory
FREE_SETTINGS = {"image_size", "num_frames", "pool_size", "drop_path", "dropout", "attention_dropout"}
FREE_SETTINGS |= {"activation_checkpointing", "zero_init_residual", "zero_init_residual_transform"}
# Encoder settings that depend on the head: another head may need other tokens
HEAD_SETTINGS = {"out_layers", "final_norm", "features", "tokens", "spatial_size"}
PLAIN = (bool, int, float, str)


def _convert_own(weights: Weights, model: EncoderWithHead) -> Converted:
    """Converts a checkpoint; a head of another class is left out. Raises UserError for another class of encoder."""
    names = weights.tensors
    prefix = MODEL_PREFIX if any(name.startswith(MODEL_PREFIX) for name in names) else ""
    converted = Converted(
        tensors={name.removeprefix(prefix): tensor for name, tensor in names.items() if name.startswith(prefix)}
    )
    if weights.adapters is not None:
        unmerged = converted.tensors
        converted.tensors = merge_tensors(unmerged, weights.adapters.scale)
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
            _continue_pretraining(converted, weights, objective, model)
            return converted
        _take_encoder(converted, weights, objective, model)
    elif weights.part is not None:
        raise UserError(f"{weights.source} is not a pretraining checkpoint: remove init_part={weights.part}")
    same_head = kinds["head"] == type(model.head).__name__
    if not same_head:
        for name in [name for name in converted.tensors if name.startswith("head.")]:
            del converted.tensors[name]
            converted.left_out[name] = f"of {kinds['head']}, but the model's head is {type(model.head).__name__}"
    free = FREE_SETTINGS if same_head else FREE_SETTINGS | HEAD_SETTINGS
    for part in ("encoder", "head") if same_head else ("encoder",):
        converted.requires |= _settings(weights.config["model"][part], part, getattr(model, part), free)
    return converted


def _continue_pretraining(
    converted: Converted, weights: Weights, objective: Mapping[str, Any], model: EncoderWithHead
) -> None:
    """Continues pretraining with all networks of a pretraining checkpoint. A head with another number of attention
    heads is left out, as it would compute something else."""
    assert weights.config is not None  # it holds the objective
    converted.requires = _settings(weights.config["model"]["encoder"], "encoder", model.encoder, FREE_SETTINGS)
    own = model.head.get_submodule("blocks.0.attn").num_heads
    for key in ("decoder_heads", "predictor_heads"):
        if key in objective and objective[key] != own:
            for name in [name for name in converted.tensors if name.startswith("head.")]:
                del converted.tensors[name]
                converted.left_out[name] = f"of objective.{key}={objective[key]}, and the model's has {own}"


def _take_encoder(converted: Converted, weights: Weights, objective: Mapping[str, Any], model: EncoderWithHead) -> None:
    """Takes the encoder from a pretraining checkpoint: `weights.part`, by default the teacher if it is a moving
    average, else the encoder. Norms of levels (see dense_joint_embedding.py) are taken if `model` has them."""
    has_teacher = any(name.startswith(TEACHER) for name in converted.tensors)
    if weights.part == "teacher" and not has_teacher:
        raise UserError(f"{weights.source} has no teacher: remove init_part=teacher")
    follows = has_teacher and objective.get("momentum") != 1
    part = weights.part or ("teacher" if follows else "encoder")
    chosen, other = (TEACHER, ENCODER) if part == "teacher" else (ENCODER, TEACHER)
    _take_level_norms(converted, chosen, model)
    for name in [name for name in converted.tensors if name.startswith(other)]:
        del converted.tensors[name]
        converted.left_out[name] = f"the {chosen[:-1]} is taken"
    if chosen == TEACHER:
        for name in [name for name in converted.tensors if name.startswith(TEACHER)]:
            own = ENCODER + name.removeprefix(TEACHER)
            converted.tensors[own] = converted.tensors.pop(name)
            converted.changed[own] = "of the teacher"


def _take_level_norms(converted: Converted, chosen: str, model: EncoderWithHead) -> None:
    own, of_chosen = model.state_dict().keys(), LEVEL_NORMS[chosen[:-1]]
    for name in [name for name in converted.tensors if name == STEPS or name.startswith(tuple(LEVEL_NORMS.values()))]:
        norm = f"norm.{name.removeprefix(of_chosen)}"
        if name.startswith(of_chosen) and ENCODER + norm in own:
            converted.tensors[chosen + norm] = converted.tensors[name]
        else:
            converted.left_out[name] = "of the objective, which only pretraining needs"
        del converted.tensors[name]


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
    convert=_convert_own,
    revert=lambda tensors: {MODEL_PREFIX + name: tensor for name, tensor in tensors.items()},
)
