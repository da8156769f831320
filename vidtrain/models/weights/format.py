"""The interface of a published format of weights: how it is recognized, and how its tensors are converted and back."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.lora import Adapters


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
