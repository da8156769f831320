"""Head: a small transformer along time, over what an image model sees in each frame."""

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.models.checks import check_choice, check_drop_path, check_multiple, check_positive
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid, fit_table, sincos_1d
from vidtrain.models.vit3d import Block, init_weights, mlp_width, rescale_residual_branches

POSITIONS = ("sincos", "learned")


class TemporalTransformerClassifier(nn.Module):
    """Every place attends to itself at other times; then the mean of all tokens; [b n d] -> logits [b k].

    Tokens are brought to `width` channels first (None: they keep their own), and given positions in time: a
    `sincos` table, or a `learned` one, made for `num_frames` steps. Fewer steps take the first of them, more
    steps interpolate. `drop_path` grows linearly over depth from 0 to the value given; `dropout` is that before
    the last layer. One token a frame makes this the temporal encoder of ViViT's model 2 (arXiv:2103.15691), with
    the mean in place of a class token.

    Raises UserError for heads that do not divide the width, and for an unknown kind of positions.
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
        check_drop_path(drop_path, "head")
        dim = embed_dim if width is None else width
        check_multiple("model.head.width", dim, num_heads, f"model.head.num_heads={num_heads}")
        self.num_heads, self.positions = num_heads, positions

        self.proj = nn.Identity() if width is None else nn.Linear(embed_dim, width)
        if positions == "learned":
            self.pos_embed = nn.Parameter(torch.empty(num_frames, 1, 1, dim))
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        else:  # it follows from the config, so a checkpoint loads at any number of frames
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
