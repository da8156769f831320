"""Pieces of residual networks over video [b c t h w], shared by SlowFast and ResNeXt3D."""

from abc import abstractmethod

from torch import Tensor, nn

from vidtrain.errors import UserError


class Stem(nn.Module):
    """Convolution, batch norm, ReLU and, where asked, a spatial max pool; halves h and w, with the pool twice."""

    def __init__(
        self, in_channels: int, out_channels: int, temporal_kernel: int, spatial_kernel: int, max_pool: bool
    ):
        super().__init__()
        self.conv = convolution(in_channels, out_channels, temporal_kernel, spatial_kernel, spatial_stride=2)
        self.norm = nn.BatchNorm3d(out_channels)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if max_pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(self.conv(x)).relu_())


class Branch(nn.Module):
    """A residual branch."""

    @property
    @abstractmethod
    def last(self) -> nn.BatchNorm3d | nn.Conv3d:
        """The module that it ends with."""


class Bottleneck(Branch):
    """Branch of three convolutions, each with a batch norm: a x 1 x 1, b x 3 x 3 in groups, 1 x 1 x 1.

    `temporal_kernels` are a and b. The strides are those of the middle one.
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
    ):
        super().__init__()
        kernel_a, kernel_b = temporal_kernels
        self.conv_a = convolution(dim_in, dim_inner, kernel_a, 1)
        self.norm_a = nn.BatchNorm3d(dim_inner)
        self.conv_b = convolution(dim_inner, dim_inner, kernel_b, 3, temporal_stride, spatial_stride, groups)
        self.norm_b = nn.BatchNorm3d(dim_inner)
        self.conv_c = convolution(dim_inner, dim_out, 1, 1)
        self.norm_c = nn.BatchNorm3d(dim_out)

    @property
    def last(self) -> nn.BatchNorm3d:
        return self.norm_c

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.conv_a(x)).relu_()
        x = self.norm_b(self.conv_b(x)).relu_()
        return self.norm_c(self.conv_c(x))


class Shortcut(nn.Module):
    """1 x 1 x 1 convolution and batch norm, for a block that changes the number of channels or the size."""

    def __init__(self, dim_in: int, dim_out: int, temporal_stride: int, spatial_stride: int):
        super().__init__()
        self.conv = convolution(dim_in, dim_out, 1, 1, temporal_stride, spatial_stride)
        self.norm = nn.BatchNorm3d(dim_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class ResidualBlock(nn.Module):
    """relu(shortcut(x) + branch(x))."""

    def __init__(self, branch: Branch, shortcut: nn.Module | None):
        super().__init__()
        self.branch = branch
        self.shortcut = nn.Identity() if shortcut is None else shortcut

    def forward(self, x: Tensor) -> Tensor:
        return (self.shortcut(x) + self.branch(x)).relu_()


class StagedEncoder(nn.Module):
    """An encoder that has a `stem`, and `stages` of residual blocks."""

    stem: nn.Module
    stages: nn.ModuleList

    @property
    def blocks(self) -> list[nn.Module]:
        """Residual blocks in order of depth."""
        return [block for stage in self.stages for block in stage.children()]

    @property
    def layers(self) -> list[nn.Module]:
        """Stem and blocks in order of depth; together they hold every parameter."""
        return [self.stem, *self.blocks]


def convolution(
    dim_in: int,
    dim_out: int,
    temporal_kernel: int,
    spatial_kernel: int,
    temporal_stride: int = 1,
    spatial_stride: int = 1,
    groups: int = 1,
) -> nn.Conv3d:
    """Without bias, padded so that n frames or pixels become n / stride, rounded up. Kernels are odd."""
    return nn.Conv3d(
        dim_in,
        dim_out,
        kernel_size=(temporal_kernel, spatial_kernel, spatial_kernel),
        stride=(temporal_stride, spatial_stride, spatial_stride),
        padding=(temporal_kernel // 2, spatial_kernel // 2, spatial_kernel // 2),
        groups=groups,
        bias=False,
    )


def init_residual_network(encoder: nn.Module, zero_init: bool) -> None:
    """Convolutions after He et al. 2015 (arXiv:1502.01852), by fan out. Norms already start at one and zero.

    With `zero_init` every branch starts as zero, so that a block passes on its shortcut (Goyal et al. 2017,
    arXiv:1706.02677).
    """
    for module in encoder.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for module in encoder.modules():
        if zero_init and isinstance(module, ResidualBlock):
            nn.init.zeros_(module.branch.last.weight)


def check_odd(key: str, value: int) -> None:
    """A kernel of even size has no middle: it would shift frames and change their number."""
    if value < 1 or value % 2 == 0:
        near = [str(each) for each in (value - 1, value + 1) if each > 0 and each % 2 == 1] or ["1"]
        raise UserError(f"{key}={value} must be odd; nearest that fit: {', '.join(near)}.")
