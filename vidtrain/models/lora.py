"""LoRA: low-rank adapters beside frozen linear layers (Hu et al. 2021, arXiv:2106.09685); what checkpoints say of them.

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

# The linear layers of attention and MLP, by the names that our, torchvision's and timm's models give them
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

    The attribute `weight` gives W + scale * B A. torchvision's Swin, and BEiT and Swin V2 of timm, multiply by the
    weight of a layer without calling the layer, and so use the adapter too. They cannot drop its input out: reading
    `weight` in training with a dropout above 0 raises `UserError`.
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
    def weight(self) -> Tensor:  # type: ignore[override]  # nn.Linear lets it be assigned
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


# --- putting adapters in, and merging them ----------------------------------------------------------------


def add_adapters(
    encoder: Encoder,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> list[str]:
    """Gives linear layers of the encoder adapters, and returns their names. Nothing that the encoder computes changes.

    `targets` are patterns of names in the encoder, such as "*.attn.qkv"; None takes `ATTENTION_AND_MLP`. A is drawn
    from the Kaiming-uniform distribution with a = sqrt(5), as PyTorch draws linear layers, and B is zero. The draw
    depends on `seed` and on nothing else. Raises `UserError` where a setting is out of range, a pattern matches no
    linear layer, the rank is above the width of a layer, and where there are adapters already.
    """
    if rank < 1:
        raise UserError(f"lora.rank={rank} must be 1 or more")
    if not 0 < alpha < math.inf:
        raise UserError(f"lora.alpha={alpha:g} must be above 0")
    if not 0 <= dropout < 1:
        raise UserError(f"lora.dropout={dropout:g} must be 0 or more, and below 1")
    if any(isinstance(module, LoRALinear) for module in encoder.modules()):
        raise UserError("lora: the encoder has adapters already; merge them before it gets others")
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
    """Makes the layer itself a `LoRALinear`, as parametrizations of PyTorch do: what refers to it goes on doing so."""
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
        # a subclass that computes something else is none
        if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward
    }
    if not linear:
        raise UserError(f"lora: {kind} has no linear layers for adapters; choose a stage without lora")
    patterns = ATTENTION_AND_MLP if targets is None else targets
    matched = {pattern: {name for name in linear if fnmatchcase(name, pattern)} for pattern in patterns}
    chosen = set().union(*matched.values())
    unmatched = [pattern for pattern, names in matched.items() if not names]
    if not chosen or (targets is not None and unmatched):
        there = Counter(re.sub(r"(?<![^.])\d+(?=\.)", "*", name) for name in linear)
        shown = ", ".join(f"{name} ({count})" for name, count in there.items())
        raise UserError(
            f"lora.targets={'null' if targets is None else list(targets)}: no linear layer of {kind} is called "
            f"{', '.join(unmatched) or 'so'}; it has {shown}"
        )
    return {name: layer for name, layer in linear.items() if name in chosen}


def adapted_layers(model: nn.Module | Encoder) -> Iterator[LoRALinear]:
    return (module for module in model.modules() if isinstance(module, LoRALinear))


def adapter_parameters(model: nn.Module | Encoder) -> list[nn.Parameter]:
    """A and B of every adapter."""
    return [parameter for layer in adapted_layers(model) for parameter in (layer.lora_A, layer.lora_B)]


@torch.no_grad()
def merge_adapters(model: nn.Module | Encoder) -> None:
    """Makes W + scale * B A the weight of each adapted layer, which is an ordinary linear layer again. The model
    computes what it computed before, to rounding. Raises `UserError` where there is nothing to merge, so also for
    merging twice."""
    layers = list(adapted_layers(model))
    if not layers:
        raise UserError("lora: the model has no adapters to merge; they can be merged once")
    for layer in layers:
        layer.base_weight.copy_(layer.merged_weight())
        for name in (A, B, "lora_scale", "lora_dropout"):
            delattr(layer, name)
        layer.__class__ = nn.Linear  # type: ignore[assignment]


def merge_tensors(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The state dict of the merged model for that of an adapted one. Adapters of a weight that is not there stay."""
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
# Where the frozen weights of an adapted model come from published files, its checkpoints hold the other tensors alone:
# adapters, head, and what else trains. They name those files by path and SHA-256, and the model is built by loading
# these again. Frozen weights of no file, such as those initialized at random, are in the checkpoints.

KEYS = ("lora", "base")  # of a checkpoint


@dataclass(frozen=True)
class BaseFile:
    """A file or folder of weights: the name that the user gave, where it lies, and its `files.content_hash`.

    With the `stamp` (`files.stamp`) that it had when it was hashed it counts as unchanged, as hashing gigabytes takes
    seconds. Checkpoints from before have none.
    """

    source: str
    path: str
    sha256: str
    stamp: str = ""


@dataclass(frozen=True)
class Base:
    """The `files` of weights that were loaded into a model, in this order, and the `tensors` of the model that are as
    they were loaded, by name."""

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
        """Gives the encoder of `model` these adapters; the names of the layers that have them."""
        return add_adapters(model.encoder, self.rank, self.alpha, self.dropout, self.targets, seed)

    def payload(self) -> dict[str, Any]:
        """What a checkpoint holds of this, under `KEYS`."""
        targets = None if self.targets is None else list(self.targets)
        lora = {"rank": self.rank, "alpha": self.alpha, "dropout": self.dropout, "targets": targets}
        if self.base is None:
            return {"lora": lora, "base": None}
        files = [asdict(file) for file in self.base.files]
        return {"lora": lora, "base": {"files": files, "tensors": list(self.base.tensors)}}

    @classmethod
    def of(cls, payload: Mapping[str, Any], checkpoint: Path) -> Self | None:
        """What a checkpoint says; None where its model has no adapters. Raises `UserError` where it is damaged."""
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
                f"checkpoint {checkpoint} is damaged, or was changed: what it says of adapters is none ({error!r})"
            ) from error
        return adapters
