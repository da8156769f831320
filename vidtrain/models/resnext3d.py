"""ResNeXt3D: residual networks of 3D convolutions, basic or bottleneck, before or after their activations.

Sources: He et al. 2015 (arXiv:1512.03385), Xie et al. 2016 (ResNeXt, arXiv:1611.05431), He et al. 2016
(pre-activation, arXiv:1603.05027), Tran et al. 2017 (over video, arXiv:1711.11248). Settings, their names and their
defaults are those of Classy Vision's model `resnext3d`, so that its weights fit.
"""

import math
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError, check_choice, check_multiple, check_odd, check_positive
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid
from vidtrain.models.slowfast import (
    Bottleneck,
    Branch,
    ResidualBlock,
    Shortcut,
    StagedEncoder,
    Stem,
    convolution,
    init_residual_network,
)

BASIC = "basic_transformation"
POSTACTIVATED = "postactivated_bottleneck_transformation"
PREACTIVATED = "preactivated_bottleneck_transformation"
RESIDUALS = (BASIC, POSTACTIVATED, PREACTIVATED)
SHORTCUTS = ("postactivated_shortcut", "preactivated_shortcut")


class BasicBranch(Branch):
    """Branch of two 3 x 3 x 3 convolutions in groups, each with a batch norm; the first has the strides."""

    def __init__(self, dim_in: int, dim_out: int, temporal_stride: int, spatial_stride: int, groups: int):
        super().__init__()
        self.conv_a = convolution(dim_in, dim_out, 3, 3, temporal_stride, spatial_stride, groups)
        self.norm_a = nn.BatchNorm3d(dim_out)
        self.conv_b = convolution(dim_out, dim_out, 3, 3, groups=groups)
        self.norm_b = nn.BatchNorm3d(dim_out)

    @property
    def last(self) -> nn.BatchNorm3d:
        return self.norm_b

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.conv_a(x)).relu_()
        return self.norm_b(self.conv_b(x))


class PreactivatedBottleneck(Branch):
    """Branch of three convolutions as in Bottleneck, each after its batch norm and ReLU.

    With `norm_first=False` the first convolution has neither: it follows the stem, which ends with both.
    """

    def __init__(
        self,
        dim_in: int,
        dim_inner: int,
        dim_out: int,
        temporal_kernels: tuple[int, int],
        temporal_stride: int,
        spatial_stride: int,
        groups: int,
        norm_first: bool,
    ):
        super().__init__()
        kernel_a, kernel_b = temporal_kernels
        self.norm_a = nn.BatchNorm3d(dim_in) if norm_first else None
        self.conv_a = convolution(dim_in, dim_inner, kernel_a, 1)
        self.norm_b = nn.BatchNorm3d(dim_inner)
        self.conv_b = convolution(dim_inner, dim_inner, kernel_b, 3, temporal_stride, spatial_stride, groups)
        self.norm_c = nn.BatchNorm3d(dim_inner)
        self.conv_c = convolution(dim_inner, dim_out, 1, 1)

    @property
    def last(self) -> nn.Conv3d:
        return self.conv_c

    def forward(self, x: Tensor) -> Tensor:
        if self.norm_a is not None:
            x = self.norm_a(x).relu_()
        x = self.conv_b(self.norm_b(self.conv_a(x)).relu_())
        return self.conv_c(self.norm_c(x).relu_())


class PreactivatedShortcut(nn.Module):
    """1 x 1 x 1 convolution after batch norm and ReLU, or with `norm_first=False` alone."""

    def __init__(
        self, dim_in: int, dim_out: int, temporal_stride: int, spatial_stride: int, norm_first: bool
    ):
        super().__init__()
        self.norm = nn.BatchNorm3d(dim_in) if norm_first else None
        self.conv = convolution(dim_in, dim_out, 1, 1, temporal_stride, spatial_stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.norm is None else self.norm(x).relu_())


class ResNeXt3D(StagedEncoder):
    """Encoder: video [b c t h w] of normalized floats -> tokens [b n d], the places of the last stage.

    The stem halves h and w, with `stem_maxpool` twice. Stage s (from 0) has `num_blocks[s]` blocks of
    `stage_planes` * 2**s channels, the first of them with the stage's strides; a size that a stride does not
    divide is rounded up. d is the width of the last stage.

    `residual_transformation_type` is the branch of every block, `skip_transformation_type` the shortcut of those
    that change size or channels. Settings of bottlenecks only: their middle convolution has `num_groups` *
    `width_per_group` * 2**s channels (in the basic ones `num_groups` counts too). The temporal kernels of a stage
    are those of its `stage_temporal_kernel_basis`, in turn over its blocks; they lie in the middle convolution, or
    with `temporal_conv_1x1` in the first.

    Raises UserError for settings that do not fit together.
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
        check_stages(
            num_blocks,
            stage_temporal_kernel_basis=stage_temporal_kernel_basis,
            temporal_conv_1x1=temporal_conv_1x1,
            stage_temporal_stride=stage_temporal_stride,
            stage_spatial_stride=stage_spatial_stride,
        )
        self.num_blocks = list(num_blocks)
        self.residual_transformation_type = residual_transformation_type
        self.skip_transformation_type = skip_transformation_type
        self.stem_planes = stem_planes
        self.stem_maxpool = stem_maxpool
        self.stage_planes = stage_planes
        self.stage_temporal_stride = list(stage_temporal_stride)
        self.stage_spatial_stride = list(stage_spatial_stride)
        self.num_groups = num_groups
        self.width_per_group = width_per_group
        widths = [stem_planes, *(stage_planes * 2**stage for stage in range(len(num_blocks)))]
        self.embed_dim = widths[-1]

        self.stem = Stem(in_channels, stem_planes, stem_temporal_kernel, stem_spatial_kernel, stem_maxpool)
        self.stages = nn.ModuleList()
        for stage, count in enumerate(num_blocks):
            dim_in, dim_out = widths[stage : stage + 2]
            blocks = nn.ModuleList()
            for index in range(count):
                kernel = stage_temporal_kernel_basis[stage][index % len(stage_temporal_kernel_basis[stage])]
                block = residual_block(
                    residual_transformation_type,
                    skip_transformation_type,
                    dim_in if index == 0 else dim_out,
                    num_groups * width_per_group * 2**stage,
                    dim_out,
                    (kernel, 1) if temporal_conv_1x1[stage] else (1, kernel),
                    stage_temporal_stride[stage] if index == 0 else 1,
                    stage_spatial_stride[stage] if index == 0 else 1,
                    num_groups,
                    follows_stem=stage == index == 0,
                )
                blocks.append(block)
            self.stages.append(blocks)
        # Branches that begin with norm and activation leave their sum without; the head gets it with both
        ends_bare = residual_transformation_type == PREACTIVATED
        self.norm = nn.Sequential(nn.BatchNorm3d(self.embed_dim), nn.ReLU()) if ends_bare else nn.Identity()

        init_residual_network(self, zero_init_residual_transform)
        if activation_checkpointing:
            recompute_activations(self.blocks)

    @property
    def layers(self) -> list[nn.Module]:
        """Stem, blocks and last norm in order of depth; together they hold every parameter."""
        return [*super().layers, self.norm]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip."""
        temporal = math.prod(self.stage_temporal_stride)
        spatial = math.prod(self.stage_spatial_stride) * (4 if self.stem_maxpool else 2)
        return -(-frames // temporal), -(-height // spatial), -(-width // spatial)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return rearrange(self.norm(x), "b d t h w -> b (t h w) d")


def residual_block(
    residual: str,
    skip: str,
    dim_in: int,
    dim_inner: int,
    dim_out: int,
    temporal_kernels: tuple[int, int],
    temporal_stride: int,
    spatial_stride: int,
    groups: int,
    follows_stem: bool,
) -> ResidualBlock:
    """A block of the kinds named; it has a shortcut of its own where channels or size change."""
    strides = (temporal_stride, spatial_stride)
    branch: Branch
    if residual == BASIC:
        branch = BasicBranch(dim_in, dim_out, *strides, groups)
    elif residual == POSTACTIVATED:
        branch = Bottleneck(dim_in, dim_inner, dim_out, temporal_kernels, *strides, groups)
    else:
        branch = PreactivatedBottleneck(
            dim_in, dim_inner, dim_out, temporal_kernels, *strides, groups, norm_first=not follows_stem
        )
    if dim_in == dim_out and strides == (1, 1):
        return ResidualBlock(branch, None)
    if skip == "postactivated_shortcut":
        return ResidualBlock(branch, Shortcut(dim_in, dim_out, *strides))
    return ResidualBlock(branch, PreactivatedShortcut(dim_in, dim_out, *strides, norm_first=not follows_stem))


def check_widths(
    residual: str, stem_planes: int, stage_planes: int, num_groups: int, width_per_group: int
) -> None:
    """Raises UserError for widths below 1, and for basic branches whose channels the groups do not divide."""
    check_positive("model.encoder.stem_planes", stem_planes)
    check_positive("model.encoder.stage_planes", stage_planes)
    check_positive("model.encoder.num_groups", num_groups)
    check_positive("model.encoder.width_per_group", width_per_group)
    if residual == BASIC:
        reason = f"model.encoder.num_groups={num_groups}"
        check_multiple("model.encoder.stem_planes", stem_planes, num_groups, reason)
        check_multiple("model.encoder.stage_planes", stage_planes, num_groups, reason)


def check_stages(
    num_blocks: Sequence[int],
    stage_temporal_kernel_basis: Sequence[Sequence[int]],
    temporal_conv_1x1: Sequence[bool],
    stage_temporal_stride: Sequence[int],
    stage_spatial_stride: Sequence[int],
) -> None:
    """Raises UserError for a list without a value for each stage, and for values below 1 or even kernels."""
    if not num_blocks:
        raise UserError("model.encoder.num_blocks=[] must have a number of blocks for each stage")
    lists = {
        "stage_temporal_kernel_basis": stage_temporal_kernel_basis,
        "temporal_conv_1x1": temporal_conv_1x1,
        "stage_temporal_stride": stage_temporal_stride,
        "stage_spatial_stride": stage_spatial_stride,
    }
    for name, values in lists.items():
        if len(values) != len(num_blocks):
            raise UserError(
                f"model.encoder.{name} has {len(values)} values, but model.encoder.num_blocks="
                f"{list(num_blocks)} has {len(num_blocks)} stages; give one for each."
            )
    for count, temporal, spatial in zip(num_blocks, stage_temporal_stride, stage_spatial_stride, strict=True):
        check_positive("model.encoder.num_blocks", count)
        check_positive("model.encoder.stage_temporal_stride", temporal)
        check_positive("model.encoder.stage_spatial_stride", spatial)
    for basis in stage_temporal_kernel_basis:
        if not basis:
            raise UserError(
                "model.encoder.stage_temporal_kernel_basis must name a kernel for each stage, such as [3]"
            )
        for kernel in basis:
            check_odd("model.encoder.stage_temporal_kernel_basis", kernel)
