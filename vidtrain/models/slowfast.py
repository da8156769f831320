"""SlowFast: a wide pathway on few frames and a narrow pathway on all frames; and the slow pathway alone.

Source: Feichtenhofer et al. 2019, "SlowFast Networks for Video Recognition" (arXiv:1812.03982), table 1. Initialization
and sizes are those of PyTorchVideo, so that its published weights fit.
"""

from abc import abstractmethod

import torch
from einops import rearrange, reduce
from torch import Tensor, nn

from vidtrain.errors import UserError, check_multiple, check_odd, check_positive
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid

NUM_BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}  # per stage, by depth of the ResNet
# Temporal kernels of the blocks' first convolutions, by stage: the slow pathway has them only in the last stages
SLOW_KERNELS, FAST_KERNELS = (1, 1, 3, 3), (3, 3, 3, 3)
SLOW_STEM_KERNEL, FAST_STEM_KERNEL = 1, 5
STRIDE = 32  # the side of a token in pixels: stem, pool and the last three stages each halve the size

Pair = tuple[int, int]  # kernels or strides: along time, and along height and width


# --- parts of residual networks over video [b c t h w], which X3D and ResNeXt3D use too ---


def convolution(dim_in: int, dim_out: int, kernel: Pair, stride: Pair = (1, 1), groups: int = 1) -> nn.Conv3d:
    """A convolution without bias, padded so that n frames or pixels become n / stride, rounded up. Kernels are odd."""
    (temporal, spatial), (temporal_stride, spatial_stride) = kernel, stride
    return nn.Conv3d(
        dim_in,
        dim_out,
        kernel_size=(temporal, spatial, spatial),
        stride=(temporal_stride, spatial_stride, spatial_stride),
        padding=(temporal // 2, spatial // 2, spatial // 2),
        groups=groups,
        bias=False,
    )


class Stem(nn.Module):
    """Convolution, batch norm, ReLU and, with `max_pool`, a spatial max pool. It halves h and w; the pool halves
    them again."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Pair, max_pool: bool):
        super().__init__()
        self.conv = convolution(in_channels, out_channels, kernel, (1, 2))
        self.norm = nn.BatchNorm3d(out_channels)
        self.pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if max_pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.norm(self.conv(x)).relu_())


class Branch(nn.Module):
    """A residual branch."""

    @property
    @abstractmethod
    def last(self) -> nn.BatchNorm3d | nn.Conv3d:
        """The last module of the branch."""


class Bottleneck(Branch):
    """A branch of three convolutions, each with a batch norm: a x 1 x 1, b x 3 x 3 in groups, 1 x 1 x 1. `kernels` are
    the temporal sizes a and b. The middle convolution has the stride."""

    def __init__(self, dim_in: int, inner: int, dim_out: int, kernels: Pair, stride: Pair, groups: int = 1):
        super().__init__()
        self.conv_a = convolution(dim_in, inner, (kernels[0], 1))
        self.norm_a = nn.BatchNorm3d(inner)
        self.conv_b = convolution(inner, inner, (kernels[1], 3), stride, groups)
        self.norm_b = nn.BatchNorm3d(inner)
        self.conv_c = convolution(inner, dim_out, (1, 1))
        self.norm_c = nn.BatchNorm3d(dim_out)

    @property
    def last(self) -> nn.BatchNorm3d:
        return self.norm_c

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_a(self.conv_a(x)).relu_()
        x = self.norm_b(self.conv_b(x)).relu_()
        return self.norm_c(self.conv_c(x))


class Shortcut(nn.Module):
    """A 1 x 1 x 1 convolution and, unless `norm` is False, a batch norm, for a block that changes channels or size."""

    def __init__(self, dim_in: int, dim_out: int, stride: Pair, norm: bool = True):
        super().__init__()
        self.conv = convolution(dim_in, dim_out, (1, 1), stride)
        self.norm: nn.Module = nn.BatchNorm3d(dim_out) if norm else nn.Identity()

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
    """An encoder of a `stem`, `stages` of residual blocks, and `end`, an optional module after the last block."""

    stem: nn.Module
    stages: nn.ModuleList

    @property
    def end(self) -> nn.Module | None:
        return None

    @property
    def blocks(self) -> list[nn.Module]:
        """Residual blocks in order of depth."""
        return [block for stage in self.stages for block in stage.children()]

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth; together they hold every parameter."""
        return [self.stem, *self.blocks, *([] if self.end is None else [self.end])]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip."""
        return frames, -(-height // STRIDE), -(-width // STRIDE)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return rearrange(x, "b d t h w -> b (t h w) d")

    def initialize(self, zero_init: bool, activation_checkpointing: bool) -> None:
        """Initializes convolutions after He et al. 2015 (arXiv:1502.01852), by fan out. Batch norms keep the
        scale 1 and the shift 0. With `zero_init` every branch starts as zero, so that a block is its shortcut (Goyal et
        al. 2017, arXiv:1706.02677)."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        for module in self.modules():
            if zero_init and isinstance(module, ResidualBlock):
                nn.init.zeros_(module.branch.last.weight)
        if activation_checkpointing:
            recompute_activations(self.blocks)


# --- SlowFast ---


class TwoPathStem(nn.Module):
    """The stems of both pathways."""

    def __init__(self, slow: Stem, fast: Stem):
        super().__init__()
        self.slow = slow
        self.fast = fast

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        return self.slow(slow), self.fast(fast)


class FastToSlow(nn.Module):
    """Lateral connection: fast features [b c t h w] -> [b c*ratio t/alpha h w], by a convolution along time."""

    def __init__(self, channels: int, alpha: int, ratio: int, kernel: int):
        super().__init__()
        self.conv = convolution(channels, channels * ratio, (kernel, 1), (alpha, 1))
        self.norm = nn.BatchNorm3d(channels * ratio)

    def forward(self, fast: Tensor) -> Tensor:
        return self.norm(self.conv(fast)).relu_()


class TwoPathBlock(nn.Module):
    """A residual block of each pathway, preceded by a lateral connection (`fusion`) at the start of a stage."""

    def __init__(self, slow: ResidualBlock, fast: ResidualBlock, fusion: FastToSlow | None):
        super().__init__()
        self.slow = slow
        self.fast = fast
        self.fusion = fusion

    def forward(self, slow: Tensor, fast: Tensor) -> tuple[Tensor, Tensor]:
        if self.fusion is not None:
            slow = torch.cat([slow, self.fusion(fast)], dim=1)
        return self.slow(slow), self.fast(fast)


class SlowFast(StagedEncoder):
    """Encoder: video [b c t h w] of normalized floats -> tokens [b n d], n = (t/alpha)(h/32)(w/32).

    The fast pathway sees all frames, with 1/`beta_inv` of the channels; the slow pathway sees every `alpha`-th frame.
    `width` is the number of channels of the slow stem, `depth` that of the ResNet (50, 101 or 152). A lateral
    connection has `fusion_ratio` times the fast channels and a temporal kernel of `fusion_kernel` frames. d is 32 *
    width * (1 + 1/beta_inv). h and w may have any size; numbers of tokens are rounded up. Raises UserError for settings
    that do not fit together, and for a clip whose frames `alpha` does not divide.
    """

    def __init__(
        self,
        depth: int = 50,
        alpha: int = 4,
        beta_inv: int = 8,
        width: int = 64,
        in_channels: int = 3,
        fusion_ratio: int = 2,
        fusion_kernel: int = 7,
        zero_init_residual: bool = True,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_depth(depth)
        check_positive("model.encoder.alpha", alpha)
        check_positive("model.encoder.beta_inv", beta_inv)
        check_positive("model.encoder.fusion_ratio", fusion_ratio)
        check_odd("model.encoder.fusion_kernel", fusion_kernel)
        check_multiple("model.encoder.width", width, beta_inv, f"model.encoder.beta_inv={beta_inv}")
        self.depth, self.alpha, self.beta_inv, self.width = depth, alpha, beta_inv, width
        self.fusion_ratio, self.fusion_kernel = fusion_ratio, fusion_kernel
        narrow = width // beta_inv
        self.embed_dim = 32 * width + 32 * narrow
        self.stem = TwoPathStem(
            Stem(in_channels, width, (SLOW_STEM_KERNEL, 7), max_pool=True),
            Stem(in_channels, narrow, (FAST_STEM_KERNEL, 7), max_pool=True),
        )
        self.stages = nn.ModuleList()
        for stage, count in enumerate(NUM_BLOCKS[depth]):
            slow_in, fast_in = channels_into(stage, width), channels_into(stage, narrow)
            slow = residual_stage(stage, count, slow_in + fast_in * fusion_ratio, width, SLOW_KERNELS[stage])
            fast = residual_stage(stage, count, fast_in, narrow, FAST_KERNELS[stage])
            fusions = [FastToSlow(fast_in, alpha, fusion_ratio, fusion_kernel), *[None] * (count - 1)]
            self.stages.append(nn.ModuleList(map(TwoPathBlock, slow, fast, fusions)))
        self.initialize(zero_init_residual, activation_checkpointing)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip. Raises UserError when `alpha` does not divide its frames."""
        check_multiple("clip.frames", frames, self.alpha, f"model.encoder.alpha={self.alpha}")
        return super().grid(frames // self.alpha, height, width)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[2]
        self.grid(*x.shape[2:])
        # Computed on the CPU, so that all devices choose the same frames: rounding may differ just below whole numbers
        chosen = torch.linspace(0, frames - 1, frames // self.alpha, dtype=torch.float32, device="cpu").long()
        slow, fast = self.stem(x.index_select(2, chosen.to(x.device)), x)
        for block in self.blocks:
            slow, fast = block(slow, fast)
        # The published head averages each pathway over its frames and concatenates the channels. Averaging the fast
        # pathway over groups of alpha frames first gives the same mean, as all groups have the same size.
        fast = reduce(fast, "b c (t alpha) h w -> b c t h w", "mean", alpha=self.alpha)
        return rearrange(torch.cat([slow, fast], dim=1), "b d t h w -> b (t h w) d")


class SlowOnly(StagedEncoder):
    """Encoder: the slow pathway alone; [b c t h w] of normalized floats -> [b n d], n = t (h/32)(w/32).

    `width` is the number of channels of the stem, d is 32 * width, and `depth` is that of the ResNet (50, 101 or 152).
    h and w may have any size; numbers of tokens are rounded up. Raises UserError for an unknown depth.
    """

    def __init__(
        self,
        depth: int = 50,
        width: int = 64,
        in_channels: int = 3,
        zero_init_residual: bool = True,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_depth(depth)
        check_positive("model.encoder.width", width)
        self.depth, self.width = depth, width
        self.embed_dim = 32 * width
        self.stem = Stem(in_channels, width, (SLOW_STEM_KERNEL, 7), max_pool=True)
        stages = (
            residual_stage(stage, count, channels_into(stage, width), width, SLOW_KERNELS[stage])
            for stage, count in enumerate(NUM_BLOCKS[depth])
        )
        self.stages = nn.ModuleList(map(nn.ModuleList, stages))
        self.initialize(zero_init_residual, activation_checkpointing)


def channels_into(stage: int, width: int) -> int:
    """The number of input channels of a stage (from 0) in a pathway whose stem has `width` channels."""
    return width if stage == 0 else 2 * width * 2**stage


def residual_stage(stage: int, count: int, dim_in: int, width: int, temporal_kernel: int) -> list[ResidualBlock]:
    """The blocks of a stage; the first has a convolution as its shortcut and, from the second stage on, halves h and
    w."""
    inner = width * 2**stage
    dim_out = 4 * inner
    stride = (1, 1 if stage == 0 else 2)
    first = Bottleneck(dim_in, inner, dim_out, (temporal_kernel, 1), stride)
    blocks = [ResidualBlock(first, Shortcut(dim_in, dim_out, stride))]
    for _ in range(count - 1):
        blocks.append(ResidualBlock(Bottleneck(dim_out, inner, dim_out, (temporal_kernel, 1), (1, 1)), None))
    return blocks


def check_depth(depth: int) -> None:
    if depth not in NUM_BLOCKS:
        known = ", ".join(map(str, NUM_BLOCKS))
        raise UserError(f"model.encoder.depth={depth} is not the depth of a known ResNet; choose one of {known}.")
