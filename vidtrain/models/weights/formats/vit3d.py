"""What the formats that fit a ViT3D have in common."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Converted, Renaming
from vidtrain.models.weights.resize import fit_patch_embed

Setting = TypeVar("Setting", float, int)

# Heads of the published encoders by width. They show in no shape: another number loads and computes something else
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 22, 1664: 26}
PATCHES = "encoder.patch_embed.proj.weight"
KINDS = ("weight", "bias")


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def first_prefix(tensors: Mapping[str, Tensor], prefixes: Sequence[str], name: str) -> str | None:
    """The first prefix under which `name` is there, or None."""
    return next((prefix for prefix in prefixes if prefix + name in tensors), None)


def explain_rest(
    found: Converted, tensors: Mapping[str, Tensor], prefix: str, reasons: Mapping[str, str]
) -> None:
    """Every tensor outside of `prefix` is left out, for the reason given for how its name begins, or unexpected."""
    found.unexpected += [name for name in tensors if not name.startswith(prefix)]
    leave_out(found, reasons)


def set_aside(
    tensors: Mapping[str, Tensor], reasons: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors without those whose names begin with a key of `reasons`; and those, each with its reason."""
    left_out = {
        name: next(reason for start, reason in reasons.items() if name.startswith(start))
        for name in tensors
        if name.startswith(tuple(reasons))
    }
    return {name: each for name, each in tensors.items() if name not in left_out}, left_out


def leave_out(found: Converted, reasons: Mapping[str, str]) -> None:
    """Moves what begins with a key of `reasons` from the unexpected names to those left out."""
    for name in list(found.unexpected):
        reason = next((reason for start, reason in reasons.items() if name.startswith(start)), None)
        if reason is not None:
            found.unexpected.remove(name)
            found.left_out[name] = reason


def leave_out_head(found: Converted, names: Renaming, reason: str) -> None:
    """The head's tensors, where the model's head is of another kind."""
    for name in [name for name in found.tensors if name.startswith("head.")]:
        del found.tensors[name]
        found.left_out[names.to_theirs(name) or name] = reason


def fit_patches(found: Converted, encoder: ViT3D) -> None:
    """The patch embedding for the model's patch and tubelet size."""
    tubelet = (encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
    found.tensors[PATCHES], how = fit_patch_embed(found.tensors[PATCHES], tubelet)
    if how:
        found.resized[PATCHES] = how


def heads_of(found: Converted) -> dict[str, int]:
    """The setting of heads that the width of an encoder asks for; none for a width that was never published."""
    width = len(found.tensors[PATCHES])
    return {"encoder.num_heads": HEADS[width]} if width in HEADS else {}


def activation_of(found: Converted) -> str:
    return "swiglu" if "encoder.blocks.0.mlp.fc3.weight" in found.tensors else "gelu"


def one_of(value: Setting, right: Sequence[Setting]) -> Setting:
    """The setting to ask for where several are right: the model's own if it is one of them, else the first."""
    return next((each for each in right if math.isclose(value, each)), right[0])


def join(
    tensors: Mapping[str, Tensor], whole: str, parts: Sequence[str], no_bias: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Linear layers named `parts` become one of their rows, named `whole`; `no_bias` gives zeros where one has none.

    >>> list(join({"a.k.weight": torch.ones(1, 2), "a.v.weight": torch.ones(1, 2)}, "kv", ("k", "v")))
    ['a.kv.weight']
    """
    joined = dict(tensors)
    first = f"{parts[0]}.weight"
    for stem in [name.removesuffix(first) for name in tensors if name.endswith(f".{first}")]:
        for kind in KINDS:
            names = {part: f"{stem}{part}.{kind}" for part in parts}
            there = {part: joined.pop(name) for part, name in names.items() if name in joined}
            if there and kind == "bias":
                like = next(iter(there.values()))
                there |= {part: torch.zeros_like(like) for part in no_bias if part not in there}
            if there:
                joined[f"{stem}{whole}.{kind}"] = torch.cat([there[part] for part in parts if part in there])
    return joined


def split(
    tensors: Mapping[str, Tensor], whole: str, parts: Sequence[str], no_bias: Sequence[str] = ()
) -> dict[str, Tensor]:
    """The reverse of `join`."""
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        stem, kind = name.rpartition(".")[::2]
        if not stem.endswith(f".{whole}"):
            apart[name] = tensor
            continue
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            if kind == "weight" or part not in no_bias:
                apart[f"{stem.removesuffix(whole)}{part}.{kind}"] = rows
    return apart
