"""Heads of one linear layer: over the mean of the tokens, or at every place of a convolutional network."""

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.checks import check_choice
from vidtrain.models.positions import Grid
from vidtrain.models.vit3d import init_weights

POOLS = ("mean", "first")


class MeanPoolClassifier(nn.Module):
    """One vector for all tokens, norm, dropout, one linear layer; [b n d] -> logits [b k].

    `pool` is the mean of the tokens, or the first of them, where the encoder gives a class token. The norm is
    VideoMAE's; with `norm=False` this is the head of most convolutional networks.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        pool: str = "mean",
        norm: bool = True,
        norm_eps: float = 1e-6,
        dropout: float = 0.0,
    ):
        super().__init__()
        check_choice("model.head.pool", pool, POOLS)
        self.pool, self.norm, self.norm_eps = pool, norm, norm_eps
        self.fc_norm = nn.LayerNorm(embed_dim, eps=norm_eps) if norm else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embed_dim, num_classes)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        pooled = tokens.mean(dim=1) if self.pool == "mean" else tokens[:, 0]
        return self.linear(self.dropout(self.fc_norm(pooled)))


class FullyConvolutionalClassifier(nn.Module):
    """Linear layer at every place of the grid, then the mean of its logits; [b n d] -> [b k].

    `pool_size` (t, h, w) is the window that is averaged, a step of one at a time, before the layer: a larger
    clip than in training gives more windows, each as the layer knows it. None averages the whole grid, which a
    linear layer cannot tell from the mean of its logits.

    Raises UserError for a grid smaller than the window.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        pool_size: Sequence[int] | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pool_size = None if pool_size is None else tuple(pool_size)
        if self.pool_size is not None and (len(self.pool_size) != 3 or min(self.pool_size) < 1):
            raise UserError(
                f"model.head.pool_size={list(self.pool_size)} must be three numbers above 0: t, h, w"
            )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embed_dim, num_classes)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        if self.pool_size is None:
            return self.linear(self.dropout(tokens.mean(dim=1)))
        if any(window > length for window, length in zip(self.pool_size, grid, strict=True)):
            raise UserError(
                f"model.head.pool_size={list(self.pool_size)} is larger than the features of a clip, "
                f"{list(grid)} (t, h, w); make clip.size or clip.frames larger, or model.head.pool_size smaller"
            )
        t, h, w = grid
        features = rearrange(tokens, "b (t h w) d -> b d t h w", t=t, h=h, w=w)
        windows = rearrange(F.avg_pool3d(features, self.pool_size, stride=1), "b d t h w -> b (t h w) d")
        return self.linear(self.dropout(windows)).mean(dim=1)
