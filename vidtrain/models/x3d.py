"""X3D: a residual network of depthwise 3D convolutions, narrow and light.

Source: Feichtenhofer 2020, "X3D: Expanding Architectures for Efficient Video Recognition" (arXiv:2004.04730), table 1
and section 4. Its last linear layers are `hidden` and `linear` of heads.FullyConvolutionalClassifier.
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vidtrain.errors import UserError, check_positive
from vidtrain.models.slowfast import Bottleneck, ResidualBlock, Shortcut, StagedEncoder, convolution

BOTTLENECK = 2.25  # channels inside a block, relative to its outputs
SQUEEZE = 1 / 16


class X3DStem(nn.Module):
    """A 3 x 3 convolution of each frame, a depthwise convolution over 5 frames, batch norm and ReLU; halves h and w."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv_xy = convolution(in_channels, out_channels, (1, 3), (1, 2))
        self.conv_t = convolution(out_channels, out_channels, (5, 1), groups=out_channels)
        self.norm = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv_t(self.conv_xy(x))).relu_()


class SqueezeExcitation(nn.Module):
    """Multiplies each channel of [b c t h w] by a factor in [0, 1], computed from the means of all channels (Hu et al.
    2018, arXiv:1709.01507)."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = squeezed_width(channels)
        self.fc1 = nn.Conv3d(channels, squeezed, 1)
        self.fc2 = nn.Conv3d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc2(self.fc1(x.mean(dim=(2, 3, 4), keepdim=True)).relu_()).sigmoid()


class X3DBranch(Bottleneck):
    """An inverted bottleneck: 1 x 1 x 1, depthwise 3 x 3 x 3, squeeze and excitation, swish, 1 x 1 x 1 convolution."""

    def __init__(self, dim_in: int, inner: int, dim_out: int, spatial_stride: int, squeeze: bool):
        super().__init__(dim_in, inner, dim_out, (1, 3), (1, spatial_stride), groups=inner)
        self.squeeze = SqueezeExcitation(inner) if squeeze else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.conv_a(x)).relu_()
        x = F.silu(self.squeeze(self.norm_b(self.conv_b(x))))
        return self.norm_c(self.conv_c(x))


class X3D(StagedEncoder):
    """Encoder: video [b c t h w] of normalized floats -> tokens [b n d], n = t (h/32)(w/32).

    `width` is the number of channels of the stem and of the first stage; each next stage has twice as many.
    `num_blocks` are the blocks of each stage. A block has 2.25 times as many channels inside; every second block has
    squeeze and excitation, and the first of a stage halves h and w. d is the inner width of the last stage. h and w may
    have any size; numbers of tokens are rounded up.

    `norm_first_shortcut` says whether the shortcut of the first stage ends with a batch norm, as in PySlowFast but not
    in PyTorchVideo. Raises UserError unless there are four stages, and for numbers below one.
    """

    def __init__(
        self,
        num_blocks: Sequence[int] = (3, 5, 11, 7),
        width: int = 24,
        norm_first_shortcut: bool = False,
        in_channels: int = 3,
        zero_init_residual: bool = True,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_positive("model.encoder.width", width)
        if len(num_blocks) != 4:
            raise UserError(f"model.encoder.num_blocks={list(num_blocks)} must be four numbers, one for each stage")
        for count in num_blocks:
            check_positive("model.encoder.num_blocks", count)
        self.num_blocks, self.width, self.norm_first_shortcut = list(num_blocks), width, norm_first_shortcut
        self.stem = X3DStem(in_channels, width)
        self.stages = nn.ModuleList()
        dim_in = width
        for stage, count in enumerate(num_blocks):
            blocks, dim_out = nn.ModuleList(), width * 2**stage
            for index in range(count):
                first = index == 0
                norm = stage > 0 or norm_first_shortcut
                shortcut = Shortcut(dim_in, dim_out, (1, 2), norm) if first else None
                inner, squeeze = int(BOTTLENECK * dim_out), index % 2 == 0
                blocks.append(ResidualBlock(X3DBranch(dim_in, inner, dim_out, 2 if first else 1, squeeze), shortcut))
                dim_in = dim_out
            self.stages.append(blocks)
        self.embed_dim = int(BOTTLENECK * dim_out)
        last = {
            "conv": convolution(dim_out, self.embed_dim, (1, 1)),
            "norm": nn.BatchNorm3d(self.embed_dim),
            "act": nn.ReLU(inplace=True),
        }
        self.conv5 = nn.Sequential(OrderedDict(last))
        self.initialize(zero_init_residual, activation_checkpointing)

    @property
    def end(self) -> nn.Module:
        return self.conv5


def squeezed_width(channels: int) -> int:
    """A sixteenth of the channels, rounded to the nearest multiple of 8, or up if rounding down loses more than a
    tenth."""
    wanted = SQUEEZE * channels
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8
