"""What a published format of weights must say: how to know it, and how its tensors become ours and back."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Weights:
    """Tensors as they were published, by their published names."""

    source: str  # what the user named: a file, a folder, a hub name ...
    tensors: Mapping[str, Tensor]
    # config.json of a folder of transformers or timm; the configuration that a checkpoint of ours carries
    config: Mapping[str, Any] | None = None
    written_by: str | None = None  # what the file says of its own format, such as vidtrain/1


@dataclass
class Converted:
    """The same for one of our models, by the names of a `VideoClassifier`: encoder.* and head.*.

    `changed` says of a tensor what was done to it besides renaming (joined, folded ...), `resized` what of its
    shape was fitted to the model, `left_out` of a published tensor why ours needs none. `unexpected` names those
    that should have had a place. `requires` holds settings of the model, such as `encoder.num_heads`, without
    which the tensors would load cleanly and compute something else.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    requires: dict[str, Any] = field(default_factory=dict)


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
    convert: Callable[[Weights, nn.Module], Converted]
    revert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


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
        found = Converted()
        for name, tensor in tensors.items():
            ours = self.to_ours(name)
            if ours is None:
                found.unexpected.append(name)
            else:
                found.tensors[ours] = tensor
        return found

    def revert(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Our tensors by published names. Raises KeyError for one that the format has no name for."""
        found = {}
        for name, tensor in tensors.items():
            theirs = self.to_theirs(name)
            if theirs is None:
                raise KeyError(name)
            found[theirs] = tensor
        return found


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
