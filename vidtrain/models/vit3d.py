"""ViT-3D: a video is divided into tubelets, and a plain pre-norm transformer processes all of them.

Parameter names and initialization are those of V-JEPA and VideoMAE, so that published weights can be loaded.
"""

import math
from collections import OrderedDict
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError, check_choice, check_drop_path, check_multiple, check_positive
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import (
    ROTARY,
    STRETCHED,
    TABLES,
    Grid,
    check_rotary,
    fit_table,
    rotary_table,
    rotate,
    take_rotary,
    take_tokens,
)

Rotary = tuple[Tensor, Tensor]  # (cos, sin) of positions.rotary_table
ACTIVATIONS = ("gelu", "swiglu")


class PatchEmbed3D(nn.Module):
    """[b c t h w] -> [b n d], one token for each tubelet of tubelet_size x patch_size x patch_size pixels. With
    `modality_embed` a learned vector for the modality video is added to every token, as in V-JEPA 2.1."""

    pos_embed: nn.Parameter  # only with learned positions

    def __init__(
        self,
        in_channels: int,
        embed_dim: int,
        patch_size: int,
        tubelet_size: int,
        modality_embed: bool = False,
    ):
        super().__init__()
        tubelet = (tubelet_size, patch_size, patch_size)
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel_size=tubelet, stride=tubelet)
        # a vector, so that weight decay does not apply: it acts as a second bias
        self.video_mod_embed = nn.Parameter(1e-6 * torch.randn(embed_dim)) if modality_embed else None

    def forward(self, x: Tensor, visible: Tensor | None = None) -> Tensor:
        """All tokens, or with `visible`, int64 [b n], only those at these flat places."""
        if visible is None:
            tokens = rearrange(self.proj(x), "b d t h w -> b (t h w) d")
        else:  # the convolution as a matrix product, which is computed only for visible tubelets
            sizes = dict(zip("upq", self.proj.kernel_size, strict=True))
            tubelets = rearrange(x, "b c (t u) (h p) (w q) -> b (t h w) (c u p q)", **sizes)
            tokens = F.linear(take_tokens(tubelets, visible), self.proj.weight.flatten(1), self.proj.bias)
        return tokens if self.video_mod_embed is None else tokens + self.video_mod_embed


class SelfAttention(nn.Module):
    """Tokens [b n d] -> [b n d]; `dropout` is that of attention weights. `key_mask` bool [b n] is False for tokens to
    which no token attends, such as padding."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, dropout: float = 0.0):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rotary: Rotary | None, key_mask: Tensor | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (three h d) -> three b h n d", three=3, h=self.num_heads)
        if rotary is not None:
            # v is copied, as a view would keep all of qkv in memory for the backward pass
            q, k, v = rotate(q, rotary), rotate(k, rotary), v.contiguous()
        attn_mask = None if key_mask is None else key_mask[:, None, None]
        x = F.scaled_dot_product_attention(q, k, v, attn_mask, self.dropout if self.training else 0.0)
        return self.proj(rearrange(x, "b h n d -> b n (h d)"))


class Mlp(nn.Sequential):
    """fc2(gelu(fc1(x))), with the parameter names of published weights."""

    fc1: nn.Linear
    fc2: nn.Linear

    def __init__(self, dim: int, hidden: int):
        layers = {"fc1": nn.Linear(dim, hidden), "act": nn.GELU(), "fc2": nn.Linear(hidden, dim)}
        super().__init__(OrderedDict(layers))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, drops the branch of a sample with probability `rate`."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty((len(x), *[1] * (x.ndim - 1))).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class SwiGLU(nn.Module):
    """fc3(silu(fc1(x)) * fc2(x)). Not timm's SwiGLU: the names here are those of published weights."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(dim, hidden)
        self.fc3 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.silu(self.fc1(x)) * self.fc2(x))


class Block(nn.Module):
    """x = x + attention(norm(x)), then x + mlp(norm(x)), for tokens [b n d]. `dropout` is that of the outputs of
    attention and MLP; `drop_path` drops either output for a whole sample. `key_mask`: see SelfAttention."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_hidden: int,
        activation: str,
        qkv_bias: bool,
        drop_path: float,
        norm_eps: float,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = SelfAttention(dim, num_heads, qkv_bias, attention_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp: SwiGLU | Mlp
        self.mlp = SwiGLU(dim, mlp_hidden) if activation == "swiglu" else Mlp(dim, mlp_hidden)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor, rotary: Rotary | None, key_mask: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x), rotary, key_mask)))
        return x + self.drop_path(self.dropout(self.mlp(self.norm2(x))))


class ViT3D(nn.Module):
    """Encoder: video [b c t h w] of normalized floats -> tokens [b n d], n = (t/tubelet)(h/patch)(w/patch).

    `out_layers` are the blocks (from 0, including the last) whose tokens are returned, in sequence, each after the
    final norm; by default only the last block. `norm_per_layer` gives each of them its own norm, as in V-JEPA 2.1.
    `modality_embed`: see PatchEmbed3D.

    `image_size` (side, or height and width) and `num_frames` are the size for which the position table is made. Other
    sizes and lengths that patch and tubelet divide work too; the table is then fitted to them.

    `mlp_hidden` is the width of the MLP; if None, it is computed from `mlp_ratio` (see `mlp_width`). `drop_path` grows
    linearly over depth from 0 to the given value; `dropout` and `attention_dropout` are those of every block.
    `positions` is a key of positions.TABLES or positions.ROTARY, or `learned`: a trained table. `rope_base_grid`
    stretches rotary positions (see positions.rotary_table). `final_norm=False` is for VideoMAE's fine-tuned encoder,
    whose last norm is in the head. Raises UserError for settings that do not fit together, and for a clip that does not
    fit.
    """

    norm: nn.Module
    pos_embed: Tensor

    def __init__(
        self,
        image_size: int | Sequence[int],
        num_frames: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        patch_size: int = 16,
        tubelet_size: int = 2,
        in_channels: int = 3,
        mlp_hidden: int | None = None,
        mlp_ratio: float = 4.0,
        positions: str = "sincos",
        rope_base_grid: int | None = None,
        activation: str = "gelu",
        qkv_bias: bool = True,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        norm_eps: float = 1e-6,
        final_norm: bool = True,
        out_layers: Sequence[int] | None = None,
        norm_per_layer: bool = False,
        modality_embed: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_choice("model.encoder.positions", positions, (*TABLES, *ROTARY, "learned"))
        check_choice("model.encoder.activation", activation, ACTIVATIONS)
        check_heads("model.encoder.num_heads", num_heads, embed_dim)
        check_drop_path("model.encoder.drop_path", drop_path)
        check_rotary(positions, embed_dim, num_heads, rope_base_grid)
        check_positive("model.encoder.depth", depth)
        check_out_layers(out_layers, depth)
        if norm_per_layer and not final_norm:
            raise UserError("model.encoder.norm_per_layer=true needs model.encoder.final_norm=true")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.patch_size = patch_size
        self.tubelet_size = tubelet_size
        self.positions = positions
        self.rope_base_grid = rope_base_grid
        self.activation = activation
        self.norm_eps = norm_eps
        self.final_norm = final_norm
        self.out_layers = (depth - 1,) if out_layers is None else tuple(out_layers)
        self.norm_per_layer = norm_per_layer
        self.modality_embed = modality_embed

        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.image_size = height if height == width else (height, width)
        self.num_frames = num_frames
        grid = self.native_grid = self.tubelets(num_frames, height, width)
        self.patch_embed = PatchEmbed3D(in_channels, embed_dim, patch_size, tubelet_size, modality_embed)
        if positions == "learned":
            self.patch_embed.pos_embed = nn.Parameter(torch.empty(*grid, embed_dim))
            nn.init.trunc_normal_(self.patch_embed.pos_embed, std=0.02)
        # Not persistent, so that a checkpoint loads at any clip size
        table = TABLES[positions](grid, embed_dim) if positions in TABLES else None
        self.register_buffer("pos_embed", table, persistent=False)

        if mlp_hidden is None:
            mlp_hidden = mlp_width(embed_dim, mlp_ratio, activation)
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_hidden,
                activation,
                qkv_bias=qkv_bias,
                drop_path=drop_path * index / max(depth - 1, 1),
                norm_eps=norm_eps,
                dropout=dropout,
                attention_dropout=attention_dropout,
            )
            for index in range(depth)
        )
        if norm_per_layer:
            self.norm = nn.ModuleDict({str(i): nn.LayerNorm(embed_dim, eps=norm_eps) for i in self.out_layers})
        else:
            self.norm = nn.LayerNorm(embed_dim, eps=norm_eps) if final_norm else nn.Identity()

        self.apply(init_weights)
        rescale_residual_branches(self.blocks)
        if activation_checkpointing:
            recompute_activations(self.blocks)

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth (patch embedding, blocks, norm); together they hold every parameter."""
        return [self.patch_embed, *self.blocks, self.norm]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip; several `out_layers` multiply t. Raises UserError if patch or tubelet size
        do not divide the clip."""
        t, h, w = self.tubelets(frames, height, width)
        return t * len(self.out_layers), h, w

    def tubelets(self, frames: int, height: int, width: int) -> Grid:
        """The grid of tubelets inside the encoder, to which positions belong. Raises as `grid` does."""
        check_multiple("clip.frames", frames, self.tubelet_size, f"model.encoder.tubelet_size={self.tubelet_size}")
        for side in (height, width):
            check_multiple("clip.size", side, self.patch_size, f"model.encoder.patch_size={self.patch_size}")
        return frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def interpolates(self, frames: int, height: int, width: int) -> bool:
        """Whether the position table is interpolated for a clip of this size."""
        if self.positions in ROTARY:
            return False
        (t, h, w), (steps, rows, columns) = self.tubelets(frames, height, width), self.native_grid
        return (h, w) != (rows, columns) or t > steps or (t < steps and self.positions in STRETCHED)

    def forward(self, x: Tensor, visible: Tensor | None = None, visible_valid: Tensor | None = None) -> Tensor:
        """With `visible`, int64 [b n], only the tokens at these flat places are encoded, with their positions: [b n d].
        `visible_valid` bool [b n] is False for padding, to which no token attends."""
        outputs = self.outputs_of(self.out_layers, x, visible, visible_valid)
        normed = [self.norm_of(block)(output) for block, output in zip(self.out_layers, outputs, strict=True)]
        return normed[0] if len(normed) == 1 else torch.cat(normed, dim=1)

    def norm_of(self, block: int) -> nn.Module:
        """The norm of the outputs of `block`, one of `out_layers`."""
        return self.norm[str(block)] if isinstance(self.norm, nn.ModuleDict) else self.norm

    def outputs_of(
        self, blocks: Sequence[int], x: Tensor, visible: Tensor | None = None, visible_valid: Tensor | None = None
    ) -> list[Tensor]:
        """The outputs [b n d] of `blocks`, numbers in rising order, before any norm; other arguments as in
        `forward`."""
        grid = self.tubelets(*x.shape[2:])
        x = self.patch_embed(x, visible)
        rotary = None
        if self.positions in ROTARY:
            head_dim = self.embed_dim // self.num_heads
            rotary = rotary_table(grid, head_dim, self.positions, self.rope_base_grid, x.device)
        else:
            table = self.patch_embed.pos_embed if self.positions == "learned" else self.pos_embed
            fitted = fit_table(table, grid, cut=self.positions not in STRETCHED)
            x = x + (fitted if visible is None else fitted[visible])
        if visible is not None and rotary is not None:
            rotary = take_rotary(rotary, visible)
        outputs = []
        for index, block in enumerate(self.blocks):
            x = block(x, rotary, visible_valid)
            if index in blocks:
                outputs.append(x)
        return outputs


def mlp_width(dim: int, ratio: float, activation: str) -> int:
    """The hidden width of an MLP: dim * ratio, or for SwiGLU 2/3 of that, rounded up to a multiple of 8. SwiGLU has a
    third matrix, so its number of parameters is then about the same."""
    hidden = int(dim * ratio)
    return math.ceil(int(2 * hidden / 3) / 8) * 8 if activation == "swiglu" else hidden


def init_weights(module: nn.Module) -> None:
    """Weights from a normal of std 0.02, biases zero. Norms already start at one and zero."""
    if isinstance(module, nn.Linear | nn.Conv3d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def rescale_residual_branches(blocks: Iterable[nn.Module]) -> None:
    """Divides the output weights of attention and MLP in block l (from 1) by sqrt(2 l), so that the variance of the
    residual stream grows slowly. The reference code scales `mlp.fc2` for SwiGLU too, where the output is fc3; here fc3
    is scaled."""
    for level, block in enumerate(blocks, start=1):
        assert isinstance(block, Block)
        mlp_output = block.mlp.fc3 if isinstance(block.mlp, SwiGLU) else block.mlp.fc2
        for linear in (block.attn.proj, mlp_output):
            linear.weight.div_(math.sqrt(2 * level))


def check_heads(key: str, num_heads: int, embed_dim: int) -> None:
    """Raises UserError if the heads do not divide the channels, with the nearest numbers that do."""
    if num_heads > 0 and embed_dim % num_heads == 0:
        return
    divisors = [n for n in range(1, embed_dim + 1) if embed_dim % n == 0]
    below = [n for n in divisors if n < num_heads][-1:]
    above = [n for n in divisors if n > num_heads][:1]
    raise UserError(
        f"{key}={num_heads} does not divide the embedding dimension model.encoder.embed_dim={embed_dim}; "
        f"nearest that fit: {', '.join(map(str, below + above))}."
    )


def check_out_layers(layers: Sequence[int] | None, depth: int) -> None:
    """Raises UserError for blocks that do not exist, are out of order, or do not include the last block."""
    if layers is not None and (sorted(set(layers)) != list(layers) or not layers or layers[0] < 0):
        raise UserError(f"model.encoder.out_layers={list(layers)} must be block numbers from 0, in rising order.")
    if layers is not None and layers[-1] != depth - 1:
        raise UserError(
            f"model.encoder.out_layers={list(layers)} must end with the last block, {depth - 1}; to leave out the "
            f"blocks after {layers[-1]}, set model.encoder.depth={layers[-1] + 1}."
        )
