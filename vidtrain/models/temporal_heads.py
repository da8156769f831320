"""Heads along time: they map the tokens [b n d] of a clip on a grid (t, h, w) to logits [b k].

They are for encoders that see single frames and so no motion: statistics of how features change over time, a small
convolutional network along time, and a small transformer along time.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import (
    UserError,
    check_choice,
    check_drop_path,
    check_multiple,
    check_odd,
    check_positive,
)
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid, fit_table, sincos_1d
from vidtrain.models.vit3d import Block, init_weights, mlp_width, rescale_residual_branches

STATISTICS = ("mean", "difference", "deviation", "trend")
POSITIONS = ("sincos", "learned")
# Added under the square root, whose slope at zero is infinite. The ONNX exporter removes the addition of 1e-8 or less
# (numpy counts it as zero), which would change the deviation of constant features, and the norm would amplify that
LEAST_VARIANCE = 1.1e-8


class TemporalStatisticsClassifier(nn.Module):
    """Statistics of features over time, each with a norm, then dropout and a linear layer: [b n d] -> logits [b k].

    `statistics` may hold: mean; difference, the mean of |x[t+1] - x[t]|; deviation, the standard deviation; trend, the
    rise of the least-squares line through the features over the clip, the only one that depends on the direction of
    time. They are averaged over places or, with `spatial_size` s, kept for each of the s x s places.

    `streams` is the number of encodings that are concatenated in a token: two if an encoder sees frames and their
    differences. Each has its own norm, as differences are small and a common norm would suppress them. The linear layer
    is initialized with the standard deviation `init_std`. With 0, its weights stay zero in all directions in which the
    training videos do not differ; with few videos, random weights there would add noise. Raises UserError for unknown
    statistics, a width that the streams do not divide, and a grid of other places.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        statistics: Sequence[str] = ("mean", "difference", "deviation"),
        spatial_size: int | None = None,
        streams: int = 1,
        norm_eps: float = 1e-6,
        init_std: float = 0.02,
        dropout: float = 0.0,
    ):
        super().__init__()
        for name in statistics:
            check_choice("model.head.statistics", name, STATISTICS)
        if not statistics or len(set(statistics)) < len(statistics):
            raise UserError(f"model.head.statistics={list(statistics)} must be one or more, each once")
        if spatial_size is not None:
            check_positive("model.head.spatial_size", spatial_size)
        check_positive("model.head.streams", streams)
        if not 0 <= init_std < math.inf:
            raise UserError(f"model.head.init_std={init_std} must be 0 or more")
        check_multiple("the width of a token", embed_dim, streams, f"model.head.streams={streams}")
        self.streams = streams
        self.statistics, self.spatial_size = tuple(statistics), spatial_size
        width = embed_dim // streams
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=norm_eps) for _ in range(len(statistics) * streams))
        self.dropout = nn.Dropout(dropout)
        places = 1 if spatial_size is None else spatial_size**2
        self.linear = nn.Linear(len(statistics) * places * embed_dim, num_classes)
        self.apply(init_weights)
        nn.init.normal_(self.linear.weight, std=init_std)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        t, h, w = grid
        if self.spatial_size is not None and (h, w) != (self.spatial_size, self.spatial_size):
            raise UserError(
                f"model.head.spatial_size={self.spatial_size}, but the features of a frame have {h}x{w} places: set "
                "model.encoder.spatial_size to the same, or model.head.spatial_size=null"
            )
        x = rearrange(tokens, "b (t n) d -> b t n d", t=t)
        values = [statistic(name, x) for name in self.statistics]
        if self.spatial_size is None:
            values = [value.mean(dim=1, keepdim=True) for value in values]
        parts = [part for value in values for part in value.chunk(self.streams, dim=-1)]
        normed = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
        return self.linear(self.dropout(torch.cat(normed, dim=1).flatten(1)))


def statistic(name: str, x: Tensor) -> Tensor:
    """One of `STATISTICS` of features [b t n d] over time -> [b n d]. With a single step, all but the mean are zero."""
    if name == "mean":
        return x.mean(dim=1)
    if x.shape[1] == 1:
        return torch.zeros_like(x[:, 0])
    if name == "difference":
        return (x[:, 1:] - x[:, :-1]).abs().mean(dim=1)
    if name == "deviation":
        return ((x - x.mean(dim=1, keepdim=True)).square().mean(dim=1) + LEAST_VARIANCE).sqrt()
    times = torch.linspace(-0.5, 0.5, x.shape[1], device=x.device, dtype=x.dtype)
    return torch.einsum("btnd,t->bnd", x, times / times.square().sum())


class ConvolutionBlock(nn.Module):
    """x + gelu(conv(norm(x))) for x [b t d], with a convolution along time."""

    def __init__(self, dim: int, kernel: int, norm_eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.conv = nn.Conv1d(dim, dim, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.gelu(rearrange(self.conv(rearrange(self.norm(x), "b t d -> b d t")), "b d t -> b t d"))


class TemporalConvolutionClassifier(nn.Module):
    """A small convolutional network along time at every place, then the mean of all tokens: [b n d] -> logits [b k].

    Tokens are normed and projected to `width` channels; `depth` residual blocks follow, each with a convolution over
    `kernel` steps. Clips of any length fit; they are padded with zeros. Raises UserError for an even kernel.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        width: int = 256,
        depth: int = 2,
        kernel: int = 3,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        check_positive("model.head.width", width)
        check_positive("model.head.depth", depth)
        check_odd("model.head.kernel", kernel)
        self.kernel = kernel
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps)
        self.proj = nn.Linear(embed_dim, width)
        self.blocks = nn.ModuleList(ConvolutionBlock(width, kernel, norm_eps) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(width, num_classes)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        t, h, w = grid
        x = rearrange(self.proj(self.fc_norm(tokens)), "b (t n) d -> (b n) t d", t=t)
        for block in self.blocks:
            x = block(x)
        x = rearrange(self.norm(x), "(b n) t d -> b (t n) d", n=h * w)
        return self.linear(self.dropout(x.mean(dim=1)))


class TemporalTransformerClassifier(nn.Module):
    """A small transformer along time at every place, then the mean of all tokens: [b n d] -> logits [b k].

    Tokens are projected to `width` channels (None: not projected), and get positions in time: a `sincos` or `learned`
    table of `num_frames` steps. Clips with fewer steps use the first of them; for more steps it is interpolated.
    `drop_path` grows linearly over depth from 0 to the given value; `dropout` is before the last layer. With one token
    for each frame, this is the temporal encoder of ViViT's model 2 (arXiv:2103.15691) with the mean instead of a class
    token. Raises UserError for heads that do not divide the width, and for an unknown kind of positions.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_frames: int,
        depth: int = 2,
        num_heads: int = 8,
        width: int | None = None,
        mlp_ratio: float = 4.0,
        positions: str = "sincos",
        drop_path: float = 0.0,
        dropout: float = 0.0,
        norm_eps: float = 1e-6,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_choice("model.head.positions", positions, POSITIONS)
        check_positive("model.head.depth", depth)
        check_positive("model.head.num_heads", num_heads)
        check_drop_path("model.head.drop_path", drop_path)
        dim = embed_dim if width is None else width
        check_multiple("model.head.width", dim, num_heads, f"model.head.num_heads={num_heads}")
        self.num_heads, self.positions = num_heads, positions

        self.proj = nn.Identity() if width is None else nn.Linear(embed_dim, width)
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(num_frames, 1, 1, dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:  # not stored, so that a checkpoint loads at any number of frames
            self.register_buffer("pos_embed", sincos_1d((num_frames, 1, 1), dim), persistent=False)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                num_heads,
                mlp_width(dim, mlp_ratio, "gelu"),
                "gelu",
                qkv_bias=True,
                drop_path=drop_path * index / max(depth - 1, 1),
                norm_eps=norm_eps,
            )
            for index in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)

        self.apply(init_weights)
        rescale_residual_branches(self.blocks)
        if activation_checkpointing:
            recompute_activations(self.blocks)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        t, h, w = grid
        x = rearrange(self.proj(tokens), "b (t n) d -> (b n) t d", t=t)
        x = x + fit_table(self.pos_embed, (t, 1, 1))
        for block in self.blocks:
            x = block(x, None)
        x = rearrange(self.norm(x), "(b n) t d -> b (t n) d", n=h * w)
        return self.linear(self.dropout(x.mean(dim=1)))
