"""What a published format of weights must say: how to know it, and how its tensors become ours and back."""

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
    """Tensors as they were published, by their published names."""

    source: str  # what the user named: a file, a folder, a hub name ...
    tensors: Mapping[str, Tensor]
    # config.json of a folder of transformers or timm; the configuration that a checkpoint of ours carries
    config: Mapping[str, Any] | None = None
    written_by: str | None = None  # what the file says of its own format, such as vidtrain/1
    adapters: Adapters | None = None  # of a checkpoint of ours whose model has adapters
    # of a checkpoint of pretraining, whose weights to take: encoder, or teacher; None: the teacher's where it has one
    part: str | None = None


@dataclass
class Converted:
    """Published tensors by the names of a `VideoClassifier`: encoder.* and head.*.

    `changed` says what was done to a tensor besides renaming (joined, folded ...), `resized` what was fitted to the
    model, `left_out` why a published tensor is not needed. `unexpected` names tensors that should have had a place.
    `requires` are settings of the model, such as `encoder.num_heads`, without which the tensors would load and compute
    something else. `seen` are the clips that the weights were trained on, as far as known, by keys of
    vidtrain.models.classifier.PUBLISHED.
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

    `convert(weights, model)` never changes the model. `revert(tensors)` takes the state dict of a VideoClassifier
    (encoder.*, head.*) to published names and layout: what `convert` gave, reverted, is what was published,
    but for what it left out.
    """

    name: str  # for people: "VideoMAE, original"
    encoder: type[nn.Module]  # the class of encoder that its tensors fit
    models: str  # which models to choose for it: "model=videomae_base, or another videomae_*"
    recognizes: Callable[[Weights], bool]
    convert: Callable[[Weights, EncoderWithHead], Converted]
    revert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def split_number(source: str) -> tuple[str, int | None]:
    """A file of several models, such as V-JEPA's probes, and which of them is meant: FILE:3 is number 3, from 0."""
    file, _, number = source.rpartition(":")
    if Path(source).exists() or not number.isdecimal() or not Path(file).is_file():
        return source, None
    return file, int(number)


def known(prefix: str | None) -> str:
    """The prefix of names in weights that a format has recognized by it."""
    assert prefix is not None
    return prefix


class Renaming:
    """Names of modules in a published format and in ours, both ways.

    Each pair is (theirs, ours), dotted names of modules or parameters in which `{n}` stands for a number. A tensor
    is renamed by the first pair whose name is its own or that of a module that holds it.

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
        """All tensors by our names; those without one are unexpected."""
        converted = Converted()
        for name, tensor in tensors.items():
            ours = self.to_ours(name)
            if ours is None:
                converted.unexpected.append(name)
            else:
                converted.tensors[ours] = tensor
        return converted

    def revert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by published names. Raises KeyError for one that the format has no name for."""
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


# What becomes of tensors that are not loaded, in words
KINDS = {
    "skipped": " of a head for other classes",
    "missing": " that the model has and the file has not",
    "unexpected": " that the file has and the model has not",
    "mismatched": " of another shape",
}


@dataclass
class LoadReport:
    """Tensors by what became of them, by our names; `left_out` and `unexpected` by those of the file.

    `changed` are those of `loaded` that were joined, split or folded, `resized` those that were fitted to the
    model's sizes; both say how. `skipped` is a head for other classes, left as it was initialized. `left_out` is
    what the model has no use for, with the reason. `seen` is as in `Converted`.
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
    match: float = 0.0  # the share of the tensors that should have found a place, and did

    def lines(self) -> list[str]:
        """A line for the source, then one for each kind that is not empty: how many, why, and the first names."""
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
        """For starting_point.json: every name of every kind, and the counts."""
        kinds = asdict(self)
        named = {kind: names for kind, names in kinds.items() if isinstance(names, list | dict)}
        counts = {kind: len(names) for kind, names in named.items() if kind != "seen"}
        return {"source": self.source, "format": self.format, "match": self.match, "counts": counts} | kinds


def _reasons(why: Mapping[str, str], before: str) -> str:
    counted = [f"{reason} ({count})" for reason, count in Counter(why.values()).most_common()]
    return before + "; ".join(counted) if counted else ""


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if names[most:] else "")
