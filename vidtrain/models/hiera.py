"""Hiera: a transformer that pools its tokens; its first stages attend within mask units, the last over the whole clip.

Source: Ryali et al. 2023, "Hiera: A Hierarchical Vision Transformer without the Bells-and-Whistles" (arXiv:2306.00989),
figure 2 and section 3. The names of modules are those of its published weights. Its head is heads.MeanPoolClassifier.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError, check_drop_path, check_multiple, check_positive
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid, fit_table
from vidtrain.models.vit3d import DropPath, Mlp, init_weights

POOLED = 4  # tokens, 2x2 in space, that are pooled to one at the start of a stage
UNIT = 32  # pixels: the side of a mask unit, which has 8 tokens at first and one after three poolings
WINDOWED = (True, True, False, False)  # whether a stage attends within mask units


class HieraStem(nn.Module):
    """Video [b c t h w] -> tokens [b m n d] of patches of 2x4x4, with positions added.

    n counts the mask units, in the order of (t, h, w), and m the 8x8 tokens of a unit. The tokens of a unit are ordered
    so that the four that are pooled together lie m/4 apart, in every stage: pooling is then a maximum over four equal
    parts. `grid` is that of the position tables, one over time and one over space.
    """

    def __init__(self, in_channels: int, dim: int, grid: Grid):
        super().__init__()
        self.table_grid = grid
        self.proj = nn.Conv3d(in_channels, dim, (3, 7, 7), (2, 4, 4), (1, 3, 3))
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, grid[1] * grid[2], dim))
        self.pos_embed_temporal = nn.Parameter(torch.zeros(1, grid[0], dim))
        nn.init.trunc_normal_(self.pos_embed_spatial, std=0.02)
        nn.init.trunc_normal_(self.pos_embed_temporal, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.proj(x)
        t, h, w = x.shape[2:]
        table = self.pos_embed_temporal[0][:, None] + self.pos_embed_spatial[0]
        positions = fit_table(table.unflatten(1, self.table_grid[1:]), (t, h, w), cut=False)
        x = x + rearrange(positions, "(t h w) d -> d t h w", t=t, h=h)
        twos = dict.fromkeys(("a2", "b2", "c2", "a3", "b3", "c3"), 2)
        return rearrange(x, "b d t (h c2 b2 a2) (w c3 b3 a3) -> b (a2 a3 b2 b3 c2 c3) (t h w) d", **twos)


def pool(x: Tensor) -> Tensor:
    """[b m n d] -> [b m/4 n d], the maximum of each 2x2 tokens."""
    return x.unflatten(1, (POOLED, -1)).amax(dim=1)


class MaskUnitAttention(nn.Module):
    """Tokens [b m n d] of n mask units -> [b m n d_out]; with `pooled` queries are pooled, so the output has m/4
    tokens. With `windowed` tokens attend to those of their own unit, else to all."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, pooled: bool, windowed: bool):
        super().__init__()
        self.num_heads, self.pooled, self.windowed = num_heads, pooled, windowed
        self.qkv = nn.Linear(dim, 3 * dim_out)
        self.proj = nn.Linear(dim_out, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[2]
        q, k, v = rearrange(self.qkv(x), "b m n (qkv h d) -> qkv b m n (h d)", qkv=3, h=self.num_heads)
        if self.pooled:
            q = pool(q)
        split = "b m n (h d) -> (b n) h m d" if self.windowed else "b m n (h d) -> b h (m n) d"
        q, k, v = (rearrange(part, split, h=self.num_heads) for part in (q, k, v))
        x = F.scaled_dot_product_attention(q, k, v)
        join = "(b n) h m d -> b m n (h d)" if self.windowed else "b h (m n) d -> b m n (h d)"
        return self.proj(rearrange(x, join, n=n))


class HieraBlock(nn.Module):
    """x = x + attention(norm(x)), then x + mlp(norm(x)). If the width changes, the first x is replaced by pool(proj(
    norm(x))), and attention pools its queries."""

    def __init__(self, dim: int, dim_out: int, num_heads: int, mlp_ratio: float, windowed: bool, drop_path: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = MaskUnitAttention(dim, dim_out, num_heads, dim != dim_out, windowed)
        self.norm2 = nn.LayerNorm(dim_out, eps=1e-6)
        self.mlp = Mlp(dim_out, int(dim_out * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.proj = nn.Linear(dim, dim_out) if dim != dim_out else None

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        if self.proj is not None:
            x = pool(self.proj(normed))
        x = x + self.drop_path(self.attn(normed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Hiera(nn.Module):
    """Encoder: video [b c t h w] of normalized floats -> tokens [b n d], n = (t/2)(h/32)(w/32), without a last norm.

    `depths` are the numbers of blocks of the four stages. `embed_dim` and `num_heads` are those of the first stage;
    each next stage has twice as many, and a quarter of the tokens. The first block of a stage attends (within units or
    not) as the stage before.

    `image_size` (side, or height and width) and `num_frames` set the sizes of the position tables; for other clips the
    tables are interpolated. h and w must be multiples of 32, the side of a mask unit; t is rounded up. `drop_path`
    grows linearly over depth from 0 to the given value. Raises UserError for invalid settings, and for clips whose
    sides 32 does not divide.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        num_frames: int,
        embed_dim: int = 96,
        num_heads: int = 1,
        depths: Sequence[int] = (2, 3, 16, 3),
        in_channels: int = 3,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_drop_path("model.encoder.drop_path", drop_path)
        check_positive("model.encoder.num_heads", num_heads)
        check_multiple("model.encoder.embed_dim", embed_dim, num_heads, f"model.encoder.num_heads={num_heads}")
        if len(depths) != len(WINDOWED) or min(depths) < 1:
            raise UserError(f"model.encoder.depths={list(depths)} must be four numbers above 0, one for each stage")
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.depths, self.num_heads = list(depths), num_heads
        self.stem = HieraStem(in_channels, embed_dim, (-(-num_frames // 2), max(1, height // 4), max(1, width // 4)))
        self.blocks = nn.ModuleList()
        dim = embed_dim
        for stage, depth in enumerate(depths):
            for _ in range(depth):
                dim_out = embed_dim * 2**stage
                block = HieraBlock(
                    dim,
                    dim_out,
                    num_heads * 2**stage,
                    mlp_ratio,
                    WINDOWED[stage - 1 if dim != dim_out else stage],
                    drop_path * len(self.blocks) / max(1, sum(depths) - 1),
                )
                self.blocks.append(block)
                dim = dim_out
        self.embed_dim = dim
        self.apply(init_weights)
        if activation_checkpointing:
            recompute_activations(self.blocks)

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth; together they hold every parameter."""
        return [self.stem, *self.blocks]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip. Raises UserError for sides that are not multiples of 32."""
        for side in (height, width):
            check_multiple("clip.size", side, UNIT, f"{UNIT}, the side of Hiera's mask units")
        return -(-frames // 2), height // UNIT, width // UNIT

    def forward(self, x: Tensor) -> Tensor:
        self.grid(*x.shape[2:])
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]
