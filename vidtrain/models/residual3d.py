"""Residual networks of 3D convolutions with one pathway: X3D, narrow and light with depthwise convolutions; and
ResNeXt3D, with basic or bottleneck blocks, pre- or post-activated.

Sources: X3D is Feichtenhofer 2020, "X3D: Expanding Architectures for Efficient Video Recognition" (arXiv:2004.04730),
table 1 and section 4; its last linear layers are `hidden` and `linear` of heads.FullyConvolutionalClassifier. ResNeXt3D
is He et al. 2015 (arXiv:1512.03385), Xie et al. 2016 (arXiv:1611.05431), He et al. 2016 (pre-activation,
arXiv:1603.05027) and Tran et al. 2017 (over video, arXiv:1711.11248); its settings, their names and defaults are those
of Classy Vision's model `resnext3d`, so that its weights fit."""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from vidtrain.errors import UserError, check_choice, check_multiple, check_odd, check_positive
from vidtrain.models.positions import Grid
from vidtrain.models.slowfast import Bottleneck, Branch, Pair, ResidualBlock, Shortcut, StagedEncoder, Stem, convolution

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


BASIC = "basic_transformation"
POSTACTIVATED = "postactivated_bottleneck_transformation"
PREACTIVATED = "preactivated_bottleneck_transformation"
RESIDUALS = (BASIC, POSTACTIVATED, PREACTIVATED)
SHORTCUTS = ("postactivated_shortcut", "preactivated_shortcut")


class BasicBranch(Branch):
    """A branch of two grouped 3 x 3 x 3 convolutions, each with a batch norm; the first has the stride."""

    def __init__(self, dim_in: int, dim_out: int, stride: Pair, groups: int):
        super().__init__()
        self.conv_a = convolution(dim_in, dim_out, (3, 3), stride, groups)
        self.norm_a = nn.BatchNorm3d(dim_out)
        self.conv_b = convolution(dim_out, dim_out, (3, 3), groups=groups)
        self.norm_b = nn.BatchNorm3d(dim_out)

    @property
    def last(self) -> nn.BatchNorm3d:
        return self.norm_b

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.conv_a(x)).relu_()
        return self.norm_b(self.conv_b(x))


class PreactivatedBottleneck(Branch):
    """A branch of three convolutions as in `Bottleneck`, each preceded by batch norm and ReLU. With `norm_first=False`
    the first convolution has neither, as it follows the stem, which ends with both."""

    def __init__(
        self,
        dim_in: int,
        inner: int,
        dim_out: int,
        kernels: Pair,
        stride: Pair,
        groups: int,
        norm_first: bool,
    ):
        super().__init__()
        self.norm_a = nn.BatchNorm3d(dim_in) if norm_first else None
        self.conv_a = convolution(dim_in, inner, (kernels[0], 1))
        self.norm_b = nn.BatchNorm3d(inner)
        self.conv_b = convolution(inner, inner, (kernels[1], 3), stride, groups)
        self.norm_c = nn.BatchNorm3d(inner)
        self.conv_c = convolution(inner, dim_out, (1, 1))

    @property
    def last(self) -> nn.Conv3d:
        return self.conv_c

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_a is not None:
            x = self.norm_a(x).relu_()
        x = self.conv_b(self.norm_b(self.conv_a(x)).relu_())
        return self.conv_c(self.norm_c(x).relu_())


class PreactivatedShortcut(nn.Module):
    """A 1 x 1 x 1 convolution, preceded by batch norm and ReLU unless `norm_first=False`."""

    def __init__(self, dim_in: int, dim_out: int, stride: Pair, norm_first: bool):
        super().__init__()
        self.norm = nn.BatchNorm3d(dim_in) if norm_first else None
        self.conv = convolution(dim_in, dim_out, (1, 1), stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.norm is None else self.norm(x).relu_())


class ResNeXt3D(StagedEncoder):
    """Encoder: video [b c t h w] of normalized floats -> tokens [b n d], one for each place of the last stage.

    The stem halves h and w, with `stem_maxpool` twice. Stage s (from 0) has `num_blocks[s]` blocks with `stage_planes`
    * 2**s channels; the first has the stage's strides, and sizes are rounded up. d is the width of the last stage.

    `residual_transformation_type` is the branch of every block, `skip_transformation_type` the shortcut of blocks that
    change size or channels. All convolutions of basic blocks, and the middle one of bottlenecks, have `num_groups`
    groups; the latter has `num_groups` * `width_per_group` * 2**s channels. The blocks of a stage use the temporal
    kernels in its `stage_temporal_kernel_basis` in turn, in the middle convolution of bottlenecks or, with
    `temporal_conv_1x1`, in the first. Raises UserError for settings that do not fit together.
    """

    def __init__(
        self,
        num_blocks: Sequence[int],
        residual_transformation_type: str,
        skip_transformation_type: str,
        in_channels: int = 3,
        stem_planes: int = 64,
        stem_temporal_kernel: int = 3,
        stem_spatial_kernel: int = 7,
        stem_maxpool: bool = False,
        stage_planes: int = 256,
        stage_temporal_kernel_basis: Sequence[Sequence[int]] = ((3,), (3,), (3,), (3,)),
        temporal_conv_1x1: Sequence[bool] = (False, False, False, False),
        stage_temporal_stride: Sequence[int] = (1, 2, 2, 2),
        stage_spatial_stride: Sequence[int] = (1, 2, 2, 2),
        num_groups: int = 1,
        width_per_group: int = 64,
        zero_init_residual_transform: bool = False,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_choice("model.encoder.residual_transformation_type", residual_transformation_type, RESIDUALS)
        check_choice("model.encoder.skip_transformation_type", skip_transformation_type, SHORTCUTS)
        check_odd("model.encoder.stem_temporal_kernel", stem_temporal_kernel)
        check_odd("model.encoder.stem_spatial_kernel", stem_spatial_kernel)
        check_widths(residual_transformation_type, stem_planes, stage_planes, num_groups, width_per_group)
        strides = {
            "stage_temporal_stride": stage_temporal_stride, "stage_spatial_stride": stage_spatial_stride
        }  # fmt: skip
        check_stages(num_blocks, strides, stage_temporal_kernel_basis, temporal_conv_1x1)
        self.num_blocks = list(num_blocks)
        self.residual_transformation_type = residual_transformation_type
        self.skip_transformation_type = skip_transformation_type
        self.stem_planes, self.stem_maxpool, self.stage_planes = stem_planes, stem_maxpool, stage_planes
        self.stage_temporal_stride = list(stage_temporal_stride)
        self.stage_spatial_stride = list(stage_spatial_stride)
        self.num_groups, self.width_per_group = num_groups, width_per_group

        self.stem = Stem(in_channels, stem_planes, (stem_temporal_kernel, stem_spatial_kernel), stem_maxpool)
        self.stages = nn.ModuleList()
        dim_in = stem_planes
        for stage, count in enumerate(num_blocks):
            blocks, dim_out = nn.ModuleList(), stage_planes * 2**stage
            for index in range(count):
                kernel = stage_temporal_kernel_basis[stage][index % len(stage_temporal_kernel_basis[stage])]
                block = residual_block(
                    residual_transformation_type,
                    skip_transformation_type,
                    dim_in,
                    num_groups * width_per_group * 2**stage,
                    dim_out,
                    (kernel, 1) if temporal_conv_1x1[stage] else (1, kernel),
                    (stage_temporal_stride[stage], stage_spatial_stride[stage]) if index == 0 else (1, 1),
                    num_groups,
                    follows_stem=stage == index == 0,
                )
                blocks.append(block)
                dim_in = dim_out
            self.stages.append(blocks)
        self.embed_dim = dim_in
        # Pre-activated branches do not norm their output, so a norm and a ReLU follow the last block
        ends_bare = residual_transformation_type == PREACTIVATED
        self.norm = nn.Sequential(nn.BatchNorm3d(self.embed_dim), nn.ReLU()) if ends_bare else nn.Identity()
        self.initialize(zero_init_residual_transform, activation_checkpointing)

    @property
    def end(self) -> nn.Module:
        return self.norm

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip."""
        temporal = math.prod(self.stage_temporal_stride)
        spatial = math.prod(self.stage_spatial_stride) * (4 if self.stem_maxpool else 2)
        return -(-frames // temporal), -(-height // spatial), -(-width // spatial)


def residual_block(
    residual: str,
    skip: str,
    dim_in: int,
    inner: int,
    dim_out: int,
    kernels: Pair,
    stride: Pair,
    groups: int,
    follows_stem: bool,
) -> ResidualBlock:
    """A block with the given kinds of branch and shortcut; the shortcut is the identity unless channels or size
    change."""
    branch: Branch
    if residual == BASIC:
        branch = BasicBranch(dim_in, dim_out, stride, groups)
    elif residual == POSTACTIVATED:
        branch = Bottleneck(dim_in, inner, dim_out, kernels, stride, groups)
    else:
        branch = PreactivatedBottleneck(dim_in, inner, dim_out, kernels, stride, groups, not follows_stem)
    if dim_in == dim_out and stride == (1, 1):
        return ResidualBlock(branch, None)
    if skip == "postactivated_shortcut":
        return ResidualBlock(branch, Shortcut(dim_in, dim_out, stride))
    return ResidualBlock(branch, PreactivatedShortcut(dim_in, dim_out, stride, not follows_stem))


def check_widths(residual: str, stem_planes: int, stage_planes: int, num_groups: int, width_per_group: int) -> None:
    """Raises UserError for widths below 1, and for basic branches whose channels the groups do not divide."""
    planes = {"stem_planes": stem_planes, "stage_planes": stage_planes}
    for key, width in (planes | {"num_groups": num_groups, "width_per_group": width_per_group}).items():
        check_positive(f"model.encoder.{key}", width)
    if residual == BASIC:
        for key, width in planes.items():
            check_multiple(f"model.encoder.{key}", width, num_groups, f"model.encoder.num_groups={num_groups}")


def check_stages(
    num_blocks: Sequence[int],
    strides: Mapping[str, Sequence[int]],
    kernels: Sequence[Sequence[int]],
    temporal_conv_1x1: Sequence[bool],
) -> None:
    """Raises UserError for a list without a value for each stage, and for values below 1 or even kernels."""
    if not num_blocks:
        raise UserError("model.encoder.num_blocks=[] must have a number of blocks for each stage")
    lists: dict[str, Sequence] = {
        "stage_temporal_kernel_basis": kernels, "temporal_conv_1x1": temporal_conv_1x1, **strides
    }  # fmt: skip
    for name, values in lists.items():
        if len(values) != len(num_blocks):
            raise UserError(
                f"model.encoder.{name} has {len(values)} values, but model.encoder.num_blocks="
                f"{list(num_blocks)} has {len(num_blocks)} stages; give one for each."
            )
    for name, values in {"num_blocks": num_blocks, **strides}.items():
        for value in values:
            check_positive(f"model.encoder.{name}", value)
    for basis in kernels:
        if not basis:
            raise UserError("model.encoder.stage_temporal_kernel_basis must name a kernel for each stage, such as [3]")
        for kernel in basis:
            check_odd("model.encoder.stage_temporal_kernel_basis", kernel)
