"""Published tensors fitted to another size: patch embeddings and position tables."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from vidtrain.models.positions import Grid


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
    """Learned positions of a square image, [1 n d] or [n d], for a video's grid: [t h w d].

    The first `prefix_tokens` rows, of a class token and its like, are dropped. Rows and columns are interpolated
    (bicubic, antialiased); every t gets the same. Raises ValueError when the rest is not a square.
    """
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


def _shares(old: int, new: int) -> Tensor:
    """[old new]: which share of each of `old` equal spans of time lies in each of `new`; rows sum to 1."""
    edges = torch.arange(old + 1, dtype=torch.float64) / old
    bounds = torch.arange(new + 1, dtype=torch.float64) / new
    start = torch.maximum(edges[:-1, None], bounds[None, :-1])
    stop = torch.minimum(edges[1:, None], bounds[None, 1:])
    return (stop - start).clamp(min=0) * old
