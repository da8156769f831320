"""Functions that the formats for a ViT3D share."""

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.positions import Grid, fit_table
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Converted, Renaming

Setting = TypeVar("Setting", float, int)

# Attention heads of the published encoders by width, if all families agree. No shape shows them: with another number,
# weights would load but compute something else
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
PATCHES = "encoder.patch_embed.proj.weight"
KINDS = ("weight", "bias")


def vit_of(model: EncoderWithHead) -> ViT3D:
    """The encoder of a model, which is a ViT3D, as `Format.encoder` was checked."""
    assert isinstance(model.encoder, ViT3D)
    return model.encoder


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def first_prefix(tensors: Mapping[str, Tensor], prefixes: Sequence[str], name: str) -> str | None:
    """The first of `prefixes` with which `name` is in `tensors`, or None."""
    return next((prefix for prefix in prefixes if prefix + name in tensors), None)


def explain_rest(converted: Converted, tensors: Mapping[str, Tensor], prefix: str, reasons: Mapping[str, str]) -> None:
    """Adds every tensor without `prefix` to those left out, with the reason for the start of its name, or else to the
    unexpected ones."""
    converted.unexpected += [name for name in tensors if not name.startswith(prefix)]
    leave_out(converted, reasons)


def set_aside(tensors: Mapping[str, Tensor], reasons: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Splits tensors: those whose names do not start with a key of `reasons`, and the names of the others with their
    reasons."""
    left_out = {
        name: next(reason for start, reason in reasons.items() if name.startswith(start))
        for name in tensors
        if name.startswith(tuple(reasons))
    }
    return {name: tensor for name, tensor in tensors.items() if name not in left_out}, left_out


def leave_out(converted: Converted, reasons: Mapping[str, str]) -> None:
    """Moves names that start with a key of `reasons` from the unexpected ones to those left out."""
    for name in list(converted.unexpected):
        reason = next((reason for start, reason in reasons.items() if name.startswith(start)), None)
        if reason is not None:
            converted.unexpected.remove(name)
            converted.left_out[name] = reason


def leave_out_head(converted: Converted, names: Renaming, reason: str, prefix: str = "") -> None:
    """Leaves out the head's tensors, if the model's head is of another kind; `prefix` is that of names in the file."""
    for name in [name for name in converted.tensors if name.startswith("head.")]:
        del converted.tensors[name]
        converted.left_out[f"{prefix}{names.to_theirs(name) or name}"] = reason


def fit_patches(converted: Converted, encoder: ViT3D) -> None:
    """Fits the patch embedding to the model's patch and tubelet size."""
    tubelet = (encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
    converted.tensors[PATCHES], how = fit_patch_embed(converted.tensors[PATCHES], tubelet)
    if how:
        converted.resized[PATCHES] = how


def heads_of(converted: Converted, family: Mapping[int, int]) -> dict[str, int]:
    """The required number of attention heads for the encoder's width, from `HEADS` or the `family`; empty for widths
    that were never published."""
    heads, width = HEADS | dict(family), len(converted.tensors[PATCHES])
    return {"encoder.num_heads": heads[width]} if width in heads else {}


def activation_of(converted: Converted) -> str:
    return "swiglu" if "encoder.blocks.0.mlp.fc3.weight" in converted.tensors else "gelu"


def one_of(value: Setting, right: Sequence[Setting]) -> Setting:
    """The required setting if several values are right: the model's `value` if it is one of them, else the first."""
    return next((choice for choice in right if math.isclose(value, choice)), right[0])


def join(
    tensors: Mapping[str, Tensor], whole: str, parts: Sequence[str], no_bias: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Joins the rows of linear layers named `parts` into one layer named `whole`; parts in `no_bias` get biases of
    zero.

    >>> list(join({"a.k.weight": torch.ones(1, 2), "a.v.weight": torch.ones(1, 2)}, "kv", ("k", "v")))
    ['a.kv.weight']
    """
    joined = dict(tensors)
    first = f"{parts[0]}.weight"
    for stem in [name.removesuffix(first) for name in tensors if name.endswith(f".{first}")]:
        for kind in KINDS:
            names = {part: f"{stem}{part}.{kind}" for part in parts}
            present = {part: joined.pop(name) for part, name in names.items() if name in joined}
            if present and kind == "bias":
                like = next(iter(present.values()))
                present |= {part: torch.zeros_like(like) for part in no_bias if part not in present}
            if present:
                joined[f"{stem}{whole}.{kind}"] = torch.cat([present[part] for part in parts if part in present])
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


def fit_patch_embed(weight: Tensor, tubelet: tuple[int, int, int]) -> tuple[Tensor, str]:
    """Fits the weight of an image's or a video's patch embedding, [d c p p] or [d c t p p], to tubelets (t, p, p).

    Also returns a text about the changes, "" if there were none. In time, the sum over a tubelet stays the same, so a
    clip of equal frames gives the same tokens as before, or as the image (I3D's inflation, arXiv:1705.07750). In space,
    the weight is resampled so that patches that were enlarged by bicubic interpolation give the same tokens; for
    smaller patches they are as near as possible (FlexiViT, arXiv:2212.08013, section 3.4).
    """
    notes = []
    length, height, width = tubelet
    if weight.ndim == 4:
        weight = repeat(weight / length, "d c p q -> d c t p q", t=length)
        notes.append(f"image patches inflated to {length} frames")
    if weight.shape[2] != length:
        notes.append(f"tubelet length {weight.shape[2]} resized to {length}")
        shares = _shares(weight.shape[2], length).to(weight)
        weight = torch.einsum("dctpq,ts->dcspq", weight, shares)
    if weight.shape[3:] != (height, width):
        notes.append("patch size {}x{} resized to {}x{}".format(*weight.shape[3:], height, width))
        images = rearrange(weight, "d c t p q -> d (c t) p q")
        from timm.layers import resample_patch_embed  # importing timm takes seconds

        images = resample_patch_embed(images, [height, width])
        weight = rearrange(images, "d (c t) p q -> d c t p q", t=length)
    return weight, "; ".join(notes)


def fit_learned_table(table: Tensor, grid: Grid, prefix_tokens: int = 0) -> Tensor:
    """Fits learned positions of a square image, [1 n d] or [n d], to a video's grid: [t h w d]. The first
    `prefix_tokens` rows, such as that of a class token, are dropped. Rows and columns are interpolated (bicubic,
    antialiased), and repeated for every t. Raises ValueError if the image is not square."""
    t, h, w = grid
    places = table.reshape(-1, table.shape[-1])[prefix_tokens:]
    side = math.isqrt(len(places))
    if side * side != len(places):
        raise ValueError(f"{len(places)} positions are not those of a square image")
    image = rearrange(places, "(h w) d -> 1 d h w", h=side)
    if (side, side) != (h, w):
        resized = F.interpolate(image.float(), size=(h, w), mode="bicubic", antialias=True)
        image = resized.to(table.dtype)
    return repeat(image, "1 d h w -> t h w d", t=t)


def fit_separate_positions(converted: Converted, spatial: str, temporal: str, grid: Grid) -> None:
    """Fits learned positions in space and in time, which are added, [n d] or [1 n d], to a model's grid, as the model
    interpolates them. Tokens are 2x4x4 pixels, and the clips of the file are square, as in all published ones."""
    side, old = math.isqrt(converted.tensors[spatial].shape[-2]), converted.tensors[temporal].shape[-2]
    converted.seen["size"] = 4 * side
    tables = (
        (temporal, (old, 1, 1), (grid[0], 1, 1), f"clip.frames={2 * old}"),
        (spatial, (1, side, side), (1, *grid[1:]), f"clip.size={4 * side}"),
    )
    for name, theirs, ours, setting in tables:
        table = converted.tensors[name]
        if theirs != ours and math.prod(theirs) == table.shape[-2]:
            resized = fit_table(table.float().view(*theirs, -1), ours, cut=False)
            converted.tensors[name] = resized.to(table.dtype).view(*table.shape[:-2], -1, table.shape[-1])
            converted.resized[name] = (
                f"{table.shape[-2]} positions interpolated to {math.prod(ours)}, but with {setting}"
            )


def _shares(old: int, new: int) -> Tensor:
    """[old new]: the share of each of `old` equal spans of time that lies in each of `new` equal spans; rows sum to
    1."""
    edges = torch.arange(old + 1, dtype=torch.float64) / old
    bounds = torch.arange(new + 1, dtype=torch.float64) / new
    start = torch.maximum(edges[:-1, None], bounds[None, :-1])
    stop = torch.minimum(edges[1:, None], bounds[None, 1:])
    return (stop - start).clamp(min=0) * old
