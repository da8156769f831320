"""LoRA: low-rank adapters for frozen linear layers (Hu et al. 2021, arXiv:2106.09685), and their checkpoint entries.

`add_adapters` turns linear layers of an encoder into `LoRALinear` ones, `merge_adapters` turns them back.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import Encoder, EncoderWithHead

# The names of the linear layers of attention and MLP in our, torchvision's and timm's models
ATTENTION_AND_MLP = (
    "*.attn.qkv",
    "*.attn.proj",
    "*.attn.project.0",
    "*.attn.[qkv]",
    "*.attn.kv",
    "*.attn.[qkv]_proj",
    "*.mlp.fc*",
    "*.mlp.0",
    "*.mlp.3",
)
A, B = "lora_A", "lora_B"


class LoRALinear(nn.Linear):
    """x [... in] -> W x + b + scale * B A dropout(x) [... out], with A [rank in], B [out rank], scale = alpha / rank.

    W and b keep their names (`weight`, `bias`) and their values. A and B are `lora_A` and `lora_B`.

    The attribute `weight` returns W + scale * B A: torchvision's Swin, and BEiT and Swin V2 of timm, multiply by the
    weight without calling the layer, and so use the adapter too. Dropout is impossible there: reading `weight` in
    training with a dropout above 0 raises `UserError`.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    lora_scale: float
    lora_dropout: float

    @property
    def base_weight(self) -> Tensor:
        """W, which the state dict calls `weight`."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a plain attribute in nn.Linear
        if self.training and self.lora_dropout:
            raise UserError(
                f"lora.dropout={self.lora_dropout:g}: a layer of the encoder multiplies by the weight of a linear "
                "layer without calling it, so the input of the adapter cannot be dropped out; set lora.dropout=0"
            )
        return self.merged_weight()

    def merged_weight(self) -> Tensor:
        """W + scale * B A."""
        return self.base_weight + self.lora_scale * (self.lora_B @ self.lora_A)

    def forward(self, x: Tensor) -> Tensor:
        dropped = F.dropout(x, self.lora_dropout, self.training) if self.lora_dropout else x
        low_rank = F.linear(F.linear(dropped, self.lora_A), self.lora_B)
        return F.linear(x, self.base_weight, self.bias) + self.lora_scale * low_rank

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rank={len(self.lora_A)}, scale={self.lora_scale:g}"


# --- adding and merging adapters --------------------------------------------------------------------------


def add_adapters(
    encoder: Encoder,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Adds adapters to linear layers of the encoder and returns the names of these layers. The encoder's outputs do not
    change, as B is zero.

    `targets` are patterns of names in the encoder, such as "*.attn.qkv"; None means `ATTENTION_AND_MLP`. A is drawn
    from the Kaiming-uniform distribution with a = sqrt(5), as in PyTorch's linear layers, from `seed` alone. Raises
    `UserError` if a setting is out of range, a pattern matches no linear layer, the rank is above the width of a layer,
    or the encoder already has adapters.
    """
    if rank < 1:
        raise UserError(f"lora.rank={rank} must be 1 or more")
    if not 0 < alpha < math.inf:
        raise UserError(f"lora.alpha={alpha:g} must be above 0")
    if not 0 <= dropout < 1:
        raise UserError(f"lora.dropout={dropout:g} must be 0 or more, and below 1")
    if any(isinstance(module, LoRALinear) for module in encoder.modules()):
        raise UserError("lora: the encoder already has adapters; merge them before adding others")
    layers = target_layers(encoder, targets)
    for name, layer in layers.items():
        width = min(layer.in_features, layer.out_features)
        if rank > width:
            raise UserError(
                f"lora.rank={rank} is above the width {width} of {name} ({layer.in_features} to "
                f"{layer.out_features}); lower it, or leave that layer out of lora.targets"
            )
    generator = torch.Generator().manual_seed(seed)
    for layer in layers.values():
        _adapt(layer, rank, alpha / rank, dropout, generator)
    return list(layers)


def _adapt(layer: nn.Linear, rank: int, scale: float, dropout: float, generator: torch.Generator) -> None:
    """Changes the class of the layer to `LoRALinear`, as PyTorch's parametrizations do, so that references to it stay
    valid."""
    down = torch.empty(rank, layer.in_features)
    nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
    up, like = torch.zeros(layer.out_features, rank), layer.weight
    layer.__class__ = LoRALinear
    assert isinstance(layer, LoRALinear)
    layer.lora_A = nn.Parameter(down.to(like.device, like.dtype))
    layer.lora_B = nn.Parameter(up.to(like.device, like.dtype))
    layer.lora_scale, layer.lora_dropout = scale, dropout


def target_layers(encoder: Encoder, targets: Sequence[str] | None) -> dict[str, nn.Linear]:
    """The linear layers of the encoder that `targets` name, by name. Raises `UserError` as `add_adapters` does."""
    kind = type(encoder).__name__
    linear = {
        name: module
        for name, module in encoder.named_modules()
        # a subclass with its own forward pass is not a plain linear layer
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    }
    if not linear:
        raise UserError(f"lora: {kind} has no linear layers for adapters; choose a stage without lora")
    patterns = ATTENTION_AND_MLP if targets is None else targets
    matched = {pattern: {name for name in linear if fnmatchcase(name, pattern)} for pattern in patterns}
    chosen = set().union(*matched.values())
    unmatched = [pattern for pattern, names in matched.items() if not names]
    if not chosen or (targets is not None and unmatched):
        available = Counter(re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in linear)
        shown = ", ".join(f"{name} ({count})" for name, count in available.items())
        raise UserError(
            f"lora.targets={'null' if targets is None else list(targets)}: no linear layer of {kind} matches "
            f"{', '.join(unmatched) or 'a pattern'}; it has {shown}"
        )
    return {name: layer for name, layer in linear.items() if name in chosen}


def adapted_layers(model: nn.Module | Encoder) -> Iterator[LoRALinear]:
    return (module for module in model.modules() if isinstance(module, LoRALinear))


def adapter_parameters(model: nn.Module | Encoder) -> list[nn.Parameter]:
    """A and B of every adapter."""
    return [parameter for layer in adapted_layers(model) for parameter in (layer.lora_A, layer.lora_B)]


@torch.no_grad()
def merge_adapters(model: nn.Module | Encoder) -> None:
    """Replaces each adapted layer by an ordinary linear layer with the weight W + scale * B A. The model's outputs stay
    the same up to rounding. Raises `UserError` if the model has no adapters."""
    layers = list(adapted_layers(model))
    if not layers:
        raise UserError("lora: the model has no adapters to merge, or they were merged already")
    for layer in layers:
        layer.base_weight.copy_(layer.merged_weight())
        for name in (A, B, "lora_scale", "lora_dropout"):
            delattr(layer, name)
        layer.__class__ = nn.Linear  # type: ignore[assignment]


def merge_tensors(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Converts the state dict of an adapted model to that of the merged model. Adapters without their weight stay."""
    merged = dict(tensors)
    for name in tensors:
        layer, _, ending = name.rpartition(".")
        names = [f"{layer}.{part}" for part in ("weight", A, B)]
        if ending != A or any(part not in tensors for part in names):
            continue
        weight, down, up = (tensors[part] for part in names)
        if up.ndim != 2 or weight.shape != (*up.shape[:1], *down.shape[1:]) or up.shape[1:] != down.shape[:1]:
            raise UserError(
                f"{layer}: adapters of {list(up.shape)} and {list(down.shape)} do not fit a weight of "
                f"{list(weight.shape)}"
            )
        merged[names[0]] = weight + scale * (up @ down)
        del merged[names[1]], merged[names[2]]
    return merged


# --- in a checkpoint --------------------------------------------------------------------------------------
#
# If the frozen weights of an adapted model come from published files, its checkpoints hold only the other tensors:
# adapters, head, and everything else that trains. They name the files by path and SHA-256, and loading a checkpoint
# loads these files first. Frozen weights that come from no file, such as random ones, are in the checkpoints.

KEYS = ("lora", "base")  # keys of a checkpoint


@dataclass(frozen=True)
class BaseFile:
    """A file or folder of weights: the name that the user gave, its path, and its `files.content_hash`.

    `stamp` (`files.stamp`) was taken when the file was hashed. If it is still the same, the file counts as unchanged,
    as hashing gigabytes takes seconds. Earlier checkpoints have none.
    """

    source: str
    path: str
    sha256: str
    stamp: str = ""


@dataclass(frozen=True)
class Base:
    """The `files` of weights that were loaded into a model, in this order, and the names of the model's `tensors` that
    are unchanged since then."""

    files: tuple[BaseFile, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Adapters:
    """The adapters of a model, by the arguments of `add_adapters`, and the base that its checkpoints leave out."""

    rank: int
    alpha: float
    dropout: float
    targets: tuple[str, ...] | None
    base: Base | None = None

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def left_out(self) -> frozenset[str]:
        """The tensors of the model that its checkpoints do not hold."""
        return frozenset() if self.base is None else frozenset(self.base.tensors)

    def add_to(self, model: EncoderWithHead, seed: int = 0) -> list[str]:
        """Adds these adapters to the encoder of `model`; returns the names of the adapted layers."""
        return add_adapters(model.encoder, self.rank, self.alpha, self.dropout, self.targets, seed)

    def payload(self) -> dict[str, Any]:
        """The entries of a checkpoint, under `KEYS`."""
        targets = None if self.targets is None else list(self.targets)
        lora = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout, "targets": targets}
        if self.base is None:
            return {"lora": lora, "base": None}
        files = [asdict(file) for file in self.base.files]
        return {"lora": lora, "base": {"files": files, "tensors": list(self.base.tensors)}}

    @classmethod
    def of(cls, payload: Mapping[str, Any], checkpoint: Path) -> Self | None:
        """The adapters of a checkpoint; None if its model has none. Raises `UserError` if the entries are damaged."""
        if "lora" not in payload or payload["lora"] is None:
            return None
        try:
            lora, stored = payload["lora"], payload["base"]
            base = None
            if stored is not None:
                rows = [{key: str(text) for key, text in file.items()} for file in stored["files"]]
                base = Base(tuple(BaseFile(**row) for row in rows), tuple(map(str, stored["tensors"])))
            targets = None if lora["targets"] is None else tuple(map(str, lora["targets"]))
            adapters = cls(int(lora["rank"]), float(lora["alpha"]), float(lora["dropout"]), targets, base)
            if adapters.rank < 1 or not math.isfinite(adapters.alpha):
                raise ValueError(f"rank {adapters.rank}, alpha {adapters.alpha}")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"checkpoint {checkpoint} is damaged, or was changed: its entries for adapters are invalid ({error!r})"
            ) from error
        return adapters
