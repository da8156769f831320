"""Heads: from tokens [b n d] to logits [b k].

The attentive pooler is V-JEPA 2's: blocks of self-attention over the tokens, then one learned query that
attends to them. Parameter names and initialization are those of its published probes.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from vidtrain.models.checks import check_heads, check_positive
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid
from vidtrain.models.vit3d import Block, Mlp, init_weights, mlp_width, rescale_residual_branches


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
    """queries + attention(queries, norm(tokens)), then + mlp(norm(.)); attention takes queries unnormed."""

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
    """Tokens [b n d] -> one vector each, [b d].

    `depth` counts attention layers: depth - 1 blocks of self-attention, then the cross-attention.
    `complete_block=False` leaves the bare cross-attention: no norm, no residual, no MLP.

    Raises UserError when the heads do not divide embed_dim, or depth is below one.
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

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens, None)
        queries = repeat(
            self.query_tokens, "1 m d -> b m d", b=tokens.shape[0]
        )  # not len(), which an exported graph takes for a constant
        return rearrange(self.cross_attention_block(queries, tokens), "b 1 d -> b d")


class AttentiveClassifier(nn.Module):
    """Attentive pooler (see there for the arguments), dropout, one linear layer: [b n d] -> logits [b k]."""

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
