"""What the formats that fit a ViT3D have in common."""

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

# Heads of the published encoders by width, where all families agree. They show in no shape: another number loads and
# computes something else
HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
PATCHES = "encoder.patch_embed.proj.weight"
KINDS = ("weight", "bias")


def vit_of(model: EncoderWithHead) -> ViT3D:
    """The encoder of a model that a format of these is converted for: `Format.encoder` says that it is one."""
    assert isinstance(model.encoder, ViT3D)
    return model.encoder


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def first_prefix(tensors: Mapping[str, Tensor], prefixes: Sequence[str], name: str) -> str | None:
    """The first prefix under which `name` is there, or None."""
    return next((prefix for prefix in prefixes if prefix + name in tensors), None)


def explain_rest(converted: Converted, tensors: Mapping[str, Tensor], prefix: str, reasons: Mapping[str, str]) -> None:
    """Every tensor outside of `prefix` is left out, for the reason given for how its name begins, or unexpected."""
    converted.unexpected += [name for name in tensors if not name.startswith(prefix)]
    leave_out(converted, reasons)


def set_aside(tensors: Mapping[str, Tensor], reasons: Mapping[str, str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors without those whose names begin with a key of `reasons`; and those, each with its reason."""
    left_out = {
        name: next(reason for start, reason in reasons.items() if name.startswith(start))
        for name in tensors
        if name.startswith(tuple(reasons))
    }
    return {name: each for name, each in tensors.items() if name not in left_out}, left_out


def leave_out(converted: Converted, reasons: Mapping[str, str]) -> None:
    """Moves what begins with a key of `reasons` from the unexpected names to those left out."""
    for name in list(converted.unexpected):
        reason = next((reason for start, reason in reasons.items() if name.startswith(start)), None)
        if reason is not None:
            converted.unexpected.remove(name)
            converted.left_out[name] = reason


def leave_out_head(converted: Converted, names: Renaming, reason: str, prefix: str = "") -> None:
    """The head's tensors, where the model's head is of another kind; `prefix` stands before names in the file."""
    for name in [name for name in converted.tensors if name.startswith("head.")]:
        del converted.tensors[name]
        converted.left_out[f"{prefix}{names.to_theirs(name) or name}"] = reason


def fit_patches(converted: Converted, encoder: ViT3D) -> None:
    """The patch embedding for the model's patch and tubelet size."""
    tubelet = (encoder.tubelet_size, encoder.patch_size, encoder.patch_size)
    converted.tensors[PATCHES], how = fit_patch_embed(converted.tensors[PATCHES], tubelet)
    if how:
        converted.resized[PATCHES] = how


def heads_of(converted: Converted, family: Mapping[int, int]) -> dict[str, int]:
    """The setting of heads that the width of an encoder asks for: as in `HEADS`, or in what a family has besides. None
    for a width that was never published."""
    heads, width = HEADS | dict(family), len(converted.tensors[PATCHES])
    return {"encoder.num_heads": heads[width]} if width in heads else {}


def activation_of(converted: Converted) -> str:
    return "swiglu" if "encoder.blocks.0.mlp.fc3.weight" in converted.tensors else "gelu"


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


def fit_patch_embed(weight: Tensor, tubelet: tuple[int, int, int]) -> tuple[Tensor, str]:
    """Weight of an image's or a video's patch embedding, [d c p p] or [d c t p p], for tubelets (t, p, p).

    Also returns what was done, in words; "" where nothing was. In time, the sum over a tubelet is kept, so a still
    clip gives the tokens it gave before; for an image's weight these are the image's tokens (I3D's inflation,
    arXiv:1705.07750). In space, patches enlarged by bicubic interpolation give the tokens of those they were
    made from, and smaller ones the nearest to it (FlexiViT, arXiv:2212.08013, section 3.4).
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
        from timm.layers import resample_patch_embed  # which takes seconds

        images = resample_patch_embed(images, [height, width])
        weight = rearrange(images, "d (c t) p q -> d c t p q", t=length)
    return weight, "; ".join(notes)


def fit_learned_table(table: Tensor, grid: Grid, prefix_tokens: int = 0) -> Tensor:
    """Learned positions of a square image, [1 n d] or [n d], for a video's grid: [t h w d]. The first `prefix_tokens`
    rows, of a class token and its like, are dropped. Rows and columns are interpolated (bicubic, antialiased); every t
    gets the same. Raises ValueError when the rest is not a square."""
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
    """Learned positions of places and of times that are summed, [n d] or [1 n d], fitted to a model's grid as it would
    interpolate them itself. Tokens are of 2x4x4 pixels, and a file's clips are square, as all published ones."""
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
    """[old new]: which share of each of `old` equal spans of time lies in each of `new`; rows sum to 1."""
    edges = torch.arange(old + 1, dtype=torch.float64) / old
    bounds = torch.arange(new + 1, dtype=torch.float64) / new
    start = torch.maximum(edges[:-1, None], bounds[None, :-1])
    stop = torch.minimum(edges[1:, None], bounds[None, 1:])
    return (stop - start).clamp(min=0) * old
