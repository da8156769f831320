"""Position embeddings in time, height and width: fixed tables added to tokens, or rotations of q and k.

A grid is (t, h, w) in tokens; flat tokens run over t, then h, then w (w fastest). Names and values are those of the
published models, so that their weights give equal outputs:

- sincos            V-JEPA: half of the channels for t, a quarter each for h and w
- sincos_uniform    V-JEPA 1 (`uniform_power`): a third of the channels for each axis
- sincos_1d         VideoMAE: one axis over the flat token index
- rope              V-JEPA 2, with the error with which its weights were trained (see `_tile`)
- rope_interleaved  V-JEPA 2.1: the correct rotation

`TABLES` are added once, before the first block; `ROTARY` rotates queries and keys in every block.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from vidtrain.errors import UserError, check_multiple

Grid = tuple[int, int, int]


def _angles(positions: Tensor, dim: int) -> Tensor:
    """Positions [n] -> angles [n dim/2]: position * 10000^(-i / (dim/2)), in the dtype of positions. Source: "Attention
    Is All You Need", section 3.5. Computed by a product, not by matmul or einsum: autocast would compute those in half
    precision, which changes angles by up to 0.09 below position 32."""
    index = torch.arange(dim // 2, dtype=positions.dtype, device=positions.device)
    return positions[:, None] * (1.0 / 10000 ** (index / (dim / 2)))


def _join_axes(t: Tensor, h: Tensor, w: Tensor) -> Tensor:
    """Values of each axis, [t a], [h b] and [w c], at every token of the grid: [t h w a+b+c]."""
    grid = (len(t), len(h), len(w))
    t = t[:, None, None].expand(*grid, -1)
    h = h[None, :, None].expand(*grid, -1)
    w = w[None, None, :].expand(*grid, -1)
    return torch.cat((t, h, w), dim=-1)


# --- tables: computed in float64, returned as float32 [t h w dim] ---


def sincos(grid: Grid, dim: int) -> Tensor:
    """dim/2 channels for t, dim/4 for h, dim/4 for w, each divided into [sin | cos]. Raises UserError if 8 does not
    divide dim."""
    check_multiple("model.encoder.embed_dim", dim, 8, "8, which model.encoder.positions=sincos needs")
    return _sincos_3d(grid, (dim // 2, dim // 4, dim // 4))


def sincos_uniform(grid: Grid, dim: int) -> Tensor:
    """dim/3 channels for each axis, rounded up to even, each divided into [sin | cos]; the result is cut to dim."""
    return _sincos_3d(grid, (2 * math.ceil(dim / 6),) * 3)[..., :dim].contiguous()


def sincos_1d(grid: Grid, dim: int) -> Tensor:
    """One axis over the flat token index; sin in even channels, cos in odd ones. Raises UserError when dim is odd."""
    check_multiple("model.encoder.embed_dim", dim, 2, "2, which model.encoder.positions=sincos_1d needs")
    angles = _angles(torch.arange(math.prod(grid), dtype=torch.float64), dim)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1).unflatten(0, grid).float()


def _sincos_3d(grid: Grid, axis_dims: tuple[int, int, int]) -> Tensor:
    axes = []
    for length, axis_dim in zip(grid, axis_dims, strict=True):
        angles = _angles(torch.arange(length, dtype=torch.float64), axis_dim)
        axes.append(torch.cat((angles.sin(), angles.cos()), dim=-1))
    return _join_axes(*axes).float()


def fit_table(table: Tensor, grid: Grid, cut: bool = True) -> Tensor:
    """Fits a table [T H W d] to another grid: [t*h*w d]. With `cut`, a grid that only has fewer steps gets the first t
    steps; otherwise the table is interpolated trilinearly."""
    t, h, w = grid
    if table.shape[1:3] == (h, w) and (t == len(table) or (cut and t < len(table))):
        return table[:t].flatten(0, 2)
    # By size, not by scale_factor: the coordinates are the same, but 7 * (5 / 7) would round down to 4
    volume = rearrange(table, "t h w d -> 1 d t h w")
    resized = F.interpolate(volume, size=grid, mode="trilinear", align_corners=False)
    return rearrange(resized, "1 d t h w -> (t h w) d")


def take_tokens(tokens: Tensor, places: Tensor) -> Tensor:
    """The tokens [b m d] at the indices `places`, int64 [b m], of tokens [b n d]."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


# --- rotary positions ---


def rotary_dim(head_dim: int) -> int:
    """Channels of a head that are rotated for each axis: a third, rounded down to even. The rest are not rotated."""
    return head_dim // 3 // 2 * 2


def check_rotary(positions: str, embed_dim: int, num_heads: int, base_grid: int | None) -> None:
    """Raises UserError for heads too narrow to rotate three axes, and for a base grid without effect."""
    if positions not in ROTARY and base_grid is not None:
        raise UserError(
            f"model.encoder.rope_base_grid={base_grid} has no effect with positions={positions}; "
            f"set it to null or choose one of {', '.join(ROTARY)}."
        )
    if positions in ROTARY and rotary_dim(embed_dim // num_heads) == 0:
        widest = [heads for heads in range(1, embed_dim // 6 + 1) if embed_dim % heads == 0][-1:]
        remedy = f"model.encoder.num_heads={widest[0]}" if widest else "model.encoder.embed_dim=6"
        raise UserError(
            f"model.encoder.positions={positions} rotates two channels of every head for each of t, h and w, "
            f"but model.encoder.embed_dim={embed_dim} over model.encoder.num_heads={num_heads} leaves "
            f"{embed_dim // num_heads} channels, fewer than 6; nearest that fits: {remedy}."
        )


def rotary_table(
    grid: Grid, head_dim: int, kind: str, base_grid: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(cos, sin), float32 [t*h*w 3*rotary_dim], for `rotate`. `kind` is a key of `ROTARY`. Positions are token indices.
    With `base_grid`, those of h and w are stretched to [0, base_grid - 1], so that images of any size span the same
    range as in pretraining."""
    positions = [torch.arange(length, dtype=torch.float32, device=device) for length in grid]
    if base_grid is not None:
        positions[1:] = [x * (base_grid - 1) / max(len(x) - 1, 1) for x in positions[1:]]
    angles = [_angles(x, rotary_dim(head_dim)) for x in positions]
    per_channel = ROTARY[kind]
    cos = _join_axes(*(per_channel(x.cos()) for x in angles))
    sin = _join_axes(*(per_channel(x.sin()) for x in angles))
    return cos.flatten(0, 2), sin.flatten(0, 2)


def take_rotary(rotary: tuple[Tensor, Tensor], places: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of a `rotary_table` at the indices `places`, int64 [b m], for all heads: (cos, sin) [b 1 m k]."""
    cos, sin = rotary
    return cos[places][:, None], sin[places][:, None]


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates adjacent pairs of channels of x [... n head_dim] by the angles of `rotary_table`."""
    cos, sin = rotary
    rotated, rest = x.split((cos.shape[-1], x.shape[-1] - cos.shape[-1]), dim=-1)
    even, odd = rotated.unflatten(-1, (-1, 2)).unbind(-1)
    quarter_turn = torch.stack((-odd, even), dim=-1).flatten(-2)
    return torch.cat(((rotated * cos + quarter_turn * sin).to(x.dtype), rest), dim=-1)


def _tile(x: Tensor) -> Tensor:
    """[n k] -> [n 2k]: a0 .. ak a0 .. ak. The two channels of a pair in `rotate` get different angles, which is an
    error; but the released V-JEPA 2 weights were trained with it and need it."""
    return torch.cat((x, x), dim=-1)


def _interleave(x: Tensor) -> Tensor:
    """[n k] -> [n 2k]: a0 a0 a1 a1 .. ak ak, one angle for each pair of channels."""
    return x.repeat_interleave(2, dim=-1)


TABLES: dict[str, Callable[[Grid, int], Tensor]] = {
    "sincos": sincos,
    "sincos_uniform": sincos_uniform,
    "sincos_1d": sincos_1d,
}
# Tables that are interpolated for a shorter clip too, as V-JEPA 1 does; others are cut
STRETCHED = ("sincos_uniform",)
# How the k angles of an axis are assigned to its 2k channels
ROTARY: dict[str, Callable[[Tensor], Tensor]] = {
    "rope": _tile,
    "rope_interleaved": _interleave,
}
