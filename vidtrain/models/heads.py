"""Heads map the tokens [b n d] of a clip, which lie on a grid (t, h, w), to logits [b k]; and heat maps of their
inputs.

They are a linear layer over the mean of the tokens, a linear layer at every place of a convolutional network, and
V-JEPA 2's attentive probe: blocks of self-attention over the tokens, then a learned query that attends to them, with
the parameter names and initialization of the published probes. Heads along time are in temporal_heads.py.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from vidtrain.errors import UserError, check_choice, check_positive
from vidtrain.models.classifier import VideoClassifier, classify, encode, recompute_activations
from vidtrain.models.positions import Grid
from vidtrain.models.vit3d import (
    Block,
    Mlp,
    ViT3D,
    check_heads,
    init_weights,
    mlp_width,
    rescale_residual_branches,
)

POOLS = ("mean", "first")
WINDOW_FUSIONS = ("mean_logits", "mean_probs")
KINDS = ("attention", "grad_cam")


class MeanPoolClassifier(nn.Module):
    """Pooled tokens, norm, dropout, a linear layer: [b n d] -> logits [b k].

    `pool` is the mean of the tokens, or the first token for an encoder with a class token. The norm is VideoMAE's; with
    `norm=False` this is the head of most convolutional networks.
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
    """A linear layer at every place of the grid, then the mean of its logits: [b n d] -> [b k].

    `pool_size` (t, h, w) is the window over which tokens are averaged before the layer, with a stride of 1: a clip
    larger than in training has more windows of the same size. None averages the whole grid, which is the same as the
    mean of the logits. `hidden` is the width of another layer before the last, with a ReLU and without bias, as in X3D.

    With `window_fusion="mean_probs"`, a clip's logits in evaluation are the logarithms of the mean probabilities over
    windows, as in facebookresearch/SlowFast, slowfast/models/head_helper.py. Raises UserError if the grid is smaller
    than the window.
    """

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        pool_size: Sequence[int] | None = None,
        dropout: float = 0.0,
        hidden: int | None = None,
        window_fusion: str = "mean_logits",
    ):
        super().__init__()
        check_choice("model.head.window_fusion", window_fusion, WINDOW_FUSIONS)
        self.window_fusion = window_fusion
        self.pool_size = None if pool_size is None else tuple(pool_size)
        if self.pool_size is not None and (len(self.pool_size) != 3 or min(self.pool_size) < 1):
            raise UserError(f"model.head.pool_size={list(self.pool_size)} must be three numbers above 0: t, h, w")
        self.hidden: nn.Module = nn.Identity()
        if hidden is not None:
            check_positive("model.head.hidden", hidden)
            self.hidden = nn.Sequential(nn.Linear(embed_dim, hidden, bias=False), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(hidden or embed_dim, num_classes)
        self.apply(init_weights)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        if self.pool_size is None:
            return self.linear(self.dropout(self.hidden(tokens.mean(dim=1))))
        if any(window > length for window, length in zip(self.pool_size, grid, strict=True)):
            raise UserError(
                f"model.head.pool_size={list(self.pool_size)} is larger than the features of a clip, "
                f"{list(grid)} (t, h, w); make clip.size or clip.frames larger, or model.head.pool_size smaller"
            )
        t, h, w = grid
        features = rearrange(tokens, "b (t h w) d -> b d t h w", t=t, h=h, w=w)
        windows = rearrange(F.avg_pool3d(features, self.pool_size, stride=1), "b d t h w -> b (t h w) d")
        logits = self.linear(self.dropout(self.hidden(windows)))
        if self.training or self.window_fusion == "mean_logits":
            return logits.mean(dim=1)
        return logits.log_softmax(dim=-1).logsumexp(dim=1) - math.log(logits.shape[1])


# --- V-JEPA 2's attentive probe ---


class CrossAttention(nn.Module):
    """Queries [b m d] attend to tokens [b n d] -> [b m d]. V-JEPA 2 has no output projection here."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        q = rearrange(self.q(queries), "b m (h d) -> b h m d", h=self.num_heads)
        k, v = rearrange(self.kv(tokens), "b n (two h d) -> two b h n d", two=2, h=self.num_heads)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h m d -> b m (h d)")


class CrossAttentionBlock(nn.Module):
    """x = queries + attention(queries, norm(tokens)), then x + mlp(norm(x)). The queries are not normed."""

    def __init__(self, dim: int, num_heads: int, mlp_hidden: int, norm_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.xattn = CrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, mlp_hidden)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        queries = queries + self.xattn(queries, self.norm1(tokens))
        return queries + self.mlp(self.norm2(queries))


class AttentivePooler(nn.Module):
    """Tokens [b n d] -> one vector for each clip, [b d].

    `depth` counts attention layers: depth - 1 blocks of self-attention, then the cross-attention.
    `complete_block=False` leaves the bare cross-attention: no norm, no residual, no MLP. Raises UserError when the
    heads do not divide embed_dim, or depth is below one.
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        complete_block: bool = True,
        norm_eps: float = 1e-5,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_heads("model.head.num_heads", num_heads, embed_dim)
        check_positive("model.head.depth", depth)
        self.num_heads, self.norm_eps = num_heads, norm_eps
        mlp_hidden = mlp_width(embed_dim, mlp_ratio, "gelu")

        self.query_tokens = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, mlp_hidden, "gelu", qkv_bias=True, drop_path=0.0, norm_eps=norm_eps)
            for _ in range(depth - 1)
        )
        self.cross_attention_block: CrossAttentionBlock | CrossAttention = (
            CrossAttentionBlock(embed_dim, num_heads, mlp_hidden, norm_eps)
            if complete_block
            else CrossAttention(embed_dim, num_heads)
        )

        self.apply(init_weights)
        nn.init.trunc_normal_(self.query_tokens, std=0.02)
        rescale_residual_branches(self.blocks)
        if isinstance(self.cross_attention_block, CrossAttentionBlock):
            with torch.no_grad():
                self.cross_attention_block.mlp.fc2.weight.div_(math.sqrt(2 * max(1, depth - 1)))
        if activation_checkpointing:
            recompute_activations(self.blocks)

    def attended(self, tokens: Tensor) -> Tensor:
        """The tokens after self-attention, which the cross-attention sees."""
        for block in self.blocks:
            tokens = block(tokens, None)
        return tokens

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.attended(tokens)
        # not len(), which would become a constant in an exported graph
        queries = repeat(self.query_tokens, "1 m d -> b m d", b=tokens.shape[0])
        return rearrange(self.cross_attention_block(queries, tokens), "b 1 d -> b d")


class AttentiveClassifier(nn.Module):
    """`AttentivePooler`, dropout, a linear layer: [b n d] -> logits [b k]. See the pooler for the arguments."""

    def __init__(
        self,
        embed_dim: int,
        num_classes: int,
        num_heads: int,
        depth: int = 1,
        mlp_ratio: float = 4.0,
        complete_block: bool = True,
        norm_eps: float = 1e-5,
        activation_checkpointing: bool = False,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.pooler = AttentivePooler(
            embed_dim, num_heads, depth, mlp_ratio, complete_block, norm_eps, activation_checkpointing
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(embed_dim, num_classes)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        return self.linear(self.dropout(self.pooler(tokens)))


# --- heat maps: which tokens an answer depends on ---


def kinds_of(model: nn.Module, frames: int, height: int, width: int) -> tuple[str, ...]:
    """The kinds of heat maps, of `KINDS`, that a model supports for clips of this size, the preferred one first.
    Attention needs an attentive pooler. Grad-CAM needs several tokens with places, so not a single class token. An
    exported graph has no heat maps, as it returns only logits."""
    if not isinstance(model, VideoClassifier) or math.prod(model.encoder.grid(frames, height, width)) == 1:
        return ()
    return KINDS if isinstance(model.head, AttentiveClassifier) else KINDS[1:]


def tokens_and_logits(model: VideoClassifier, clips: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens [b n m d] of clips [b n c t h w], and the clip logits, equal to the bit to those of `model(clips)`."""
    tokens = encode(model.encoder, clips)
    return tokens, classify(model.head, tokens, model.encoder.grid(*clips.shape[3:]), model.fusion)


@torch.no_grad()
def pooler_attention(pooler: AttentivePooler, tokens: Tensor) -> Tensor:
    """The attention weights of the pooler's query, softmax(q k^T / sqrt(d)), averaged over heads: tokens [b n d] -> [b
    n], each row with sum 1. With `depth` above 1, blocks of self-attention come first, so a token at a place then
    contains information from other places too."""
    tokens, last = pooler.attended(tokens), pooler.cross_attention_block
    if isinstance(last, CrossAttentionBlock):
        tokens, last = last.norm1(tokens), last.xattn
    q = rearrange(last.q(pooler.query_tokens), "1 m (h d) -> h m d", h=last.num_heads)
    k, _ = rearrange(last.kv(tokens), "b n (two h d) -> two b h n d", two=2, h=last.num_heads)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return reduce(weights, "b h m n -> b n", "mean")


def attention_map(model: VideoClassifier, tokens: Tensor, grid: Grid) -> Tensor:
    """The pooler's attention weights for tokens [b n m d], at their places: float32 [b n t h w]. They sum to 1 over
    each clip, or over all clips of a video if fusion is joint."""
    assert isinstance(model.head, AttentiveClassifier)
    n, tokens = tokens.shape[1], tokens.float()
    together = "b n m d -> b (n m) d" if model.fusion == "joint" else "b n m d -> (b n) m d"
    weights = pooler_attention(model.head.pooler, rearrange(tokens, together))
    return _at_places(model, weights.reshape(-1, n, tokens.shape[2]), grid)


def grad_cam(model: VideoClassifier, tokens: Tensor, grid: Grid, classes: Tensor) -> Tensor:
    """The evidence for `classes` [b] in the tokens [b n m d], at their places: float32 [b n t h w], >= 0.

    At each place it is the gradient of the class's logit times the activation, summed over channels, with negative
    values set to 0. For a head that treats all places equally (mean pooling) this is Grad-CAM (Selvaraju et al. 2017,
    arXiv:1610.02391) on the last features; for others it is HiResCAM (Draelos and Carin 2020, arXiv:2011.08891), which
    uses each place's own gradient.
    """
    with torch.enable_grad():
        tokens = tokens.detach().float().requires_grad_()
        logits = classify(model.head, tokens, grid, model.fusion)
        chosen = logits.gather(2, classes[:, None, None].expand(-1, logits.shape[1], 1))
        (gradient,) = torch.autograd.grad(chosen.sum(), tokens)
    return _at_places(model, (gradient * tokens.detach()).sum(dim=-1).relu(), grid)


def _at_places(model: VideoClassifier, values: Tensor, grid: Grid) -> Tensor:
    t, h, w = grid
    # a ViT-3D may return the tokens of several layers in sequence: the values of a place are summed over layers
    layers = len(model.encoder.out_layers) if isinstance(model.encoder, ViT3D) else 1
    return reduce(values, "b n (l t h w) -> b n t h w", "sum", l=layers, t=t // layers, h=h, w=w).float()
