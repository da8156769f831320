"""Any module that maps clips to logits, as a model: the encoder gives pixels as they are, the module is the head.

So such a module is trained, resumed, evaluated, predicted with and exported like every model. It has no blocks, so it
trains as a whole: as a head, at the head's learning rate. `encoder_blocks`, `encoder_lr_scale` and `layer_decay` have
nothing to act on, and features of a frozen encoder would be the pixels, so they are not kept.
"""

from collections.abc import Callable

from einops import rearrange
from torch import Tensor, nn

from vidtrain.models.positions import Grid


class Pixels(nn.Module):
    """Encoder without parameters: each pixel of a clip [b c t h w] is a token, [b (t h w) c]."""

    def __init__(self, in_channels: int = 3):
        super().__init__()
        self.embed_dim = in_channels
        self.blocks: list[nn.Module] = []
        self.layers: list[nn.Module] = []

    def grid(self, frames: int, height: int, width: int) -> Grid:
        return frames, height, width

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c t h w -> b (t h w) c")


class WholeModule(nn.Module):
    """Head over `Pixels`: puts them together to clips [b c t h w], which `net(num_classes=...)` maps to logits."""

    def __init__(self, embed_dim: int, num_classes: int, net: Callable[..., nn.Module]):
        super().__init__()
        self.net = net(num_classes=num_classes)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        t, h, w = grid
        return self.net(rearrange(tokens, "b (t h w) c -> b c t h w", t=t, h=h, w=w).contiguous())
