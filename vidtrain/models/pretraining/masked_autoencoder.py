"""VideoMAE (Tong et al. 2022): the encoder sees a tenth of a video, and a light decoder paints the rest.

With 0.9 of the tokens hidden, forward and backward of a ViT-S take 0.11 of what all tokens take, and 0.24 with a
decoder of half its width (16 frames at 112 pixels; at 224 pixels a ViT-Ti takes 0.06 and 0.24; CPU time of one core).
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import check_multiple, check_positive
from vidtrain.models.positions import Grid, fit_table, sincos_1d, take_tokens
from vidtrain.models.pretraining.masked_model import MaskedModel
from vidtrain.models.pretraining.masks import Masks, MaskSampler
from vidtrain.models.vit3d import Block, ViT3D

EPSILON = 1e-6  # added to a cube's deviation


class Decoder(nn.Module):
    """Tokens that were visible [b n d] -> the pixels of each hidden token [b m u*p*q*c].

    The fixed table of positions is made for the encoder's size, and fitted to others. Raises UserError for widths that
    do not fit together.
    """

    positions: Tensor

    def __init__(self, encoder: ViT3D, dim: int, depth: int, num_heads: int):
        super().__init__()
        for key, value in (("depth", depth), ("heads", num_heads)):
            check_positive(f"objective.decoder_{key}", value)
        check_multiple("objective.decoder_dim", dim, num_heads, f"objective.decoder_heads={num_heads}")
        check_multiple("objective.decoder_dim", dim, 2, "2, which sines and cosines take turns in")
        self.encoder_to_decoder = nn.Linear(encoder.embed_dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.empty(dim))  # of one dimension, so that it is not decayed
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, 4 * dim, "gelu", qkv_bias=True, drop_path=0.0, norm_eps=encoder.norm_eps)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=encoder.norm_eps)
        self.linear = nn.Linear(dim, math.prod(encoder.patch_embed.proj.weight.shape[1:]))
        self.register_buffer("positions", sincos_1d(encoder.native_grid, dim), persistent=False)
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, tokens: Tensor, masks: Masks, grid: Grid) -> Tensor:
        visible = self.encoder_to_decoder(tokens)
        hidden = self.mask_token.expand(len(tokens), math.prod(grid), -1).to(visible.dtype)
        x = masks.put_visible(visible, hidden) + fit_table(self.positions, grid)
        for block in self.blocks:
            x = block(x, None)
        return self.linear(self.norm(take_tokens(x, masks.hidden)))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class MaskedAutoencoder(MaskedModel):
    """The error of a hidden token is the mean squared difference of its pixels.

    `mean` and `std` are the colors that clips are normalized with; pixels are predicted in [0, 1]. With `norm_pix_loss`
    each color of a cube is predicted less its own mean, in units of its own deviation.
    """

    mean: Tensor
    std: Tensor
    head: Decoder

    def __init__(
        self,
        encoder: nn.Module,
        masks: MaskSampler,
        mean: Sequence[float],
        std: Sequence[float],
        decoder_dim: int = 384,
        decoder_depth: int = 4,
        decoder_heads: int = 6,
        norm_pix_loss: bool = True,
    ):
        super().__init__(encoder, masks)
        self.head = Decoder(self.encoder, decoder_dim, decoder_depth, decoder_heads)
        self.norm_pix_loss = norm_pix_loss
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)

    def errors(self, clips: Tensor, masks: list[Masks]) -> list[Tensor]:
        target, _, _ = self._targets(clips)
        return [
            (self._predict(clips, kind) - take_tokens(target, kind.hidden)).square().mean(dim=-1)
            for kind in masks
        ]

    @torch.no_grad()
    def predictions(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """The video in [0, 1], float32 [b c t h w], where what the first kind of masks hides is as it is predicted.

        With `norm_pix_loss` the predicted cubes get the true mean and deviation of their colors.
        """
        target, mean, deviation = self._targets(clips)
        predicted = masks[0].put_hidden(self._predict(clips, masks[0]), target)
        t, h, w = self.encoder.tubelets(*clips.shape[2:])
        colors = rearrange(predicted, "b n (k c) -> b n c k", c=clips.shape[1])
        return rearrange(
            colors * deviation + mean,
            "b (t h w) c (u p q) -> b c (t u) (h p) (w q)",
            **{"t": t, "h": h, "w": w, "u": self.encoder.tubelet_size, "p": self.encoder.patch_size},
        ).clamp(0, 1)

    def _predict(self, clips: Tensor, masks: Masks) -> Tensor:
        """Of each hidden token its pixels as targets are, float32 [b m k*c]."""
        tokens = self.encode(clips, masks)
        return self.head(tokens, masks, self.encoder.tubelets(*clips.shape[2:])).float()

    @torch.no_grad()
    def _targets(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every token's pixels [b N k*c], in the order of tubelet, row, column, color; and what takes them back to
        [0, 1]: their mean and their deviation, [b N c 1]."""
        tubelet, patch = self.encoder.tubelet_size, self.encoder.patch_size
        pixels = clips.float() * self.std + self.mean
        sizes = {"u": tubelet, "p": patch, "q": patch}
        cubes = rearrange(pixels, "b c (t u) (h p) (w q) -> b (t h w) c (u p q)", **sizes)
        mean = torch.zeros_like(cubes[..., :1])
        deviation = torch.ones_like(mean)
        if self.norm_pix_loss:
            mean = cubes.mean(dim=-1, keepdim=True)
            cubes = cubes - mean
            # torch.std takes several times as long on a CPU
            variance = cubes.square().sum(dim=-1, keepdim=True) / (cubes.shape[-1] - 1)
            deviation = variance.sqrt() + EPSILON
        return rearrange(cubes / deviation, "b n c k -> b n (k c)"), mean, deviation
