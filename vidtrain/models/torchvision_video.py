"""torchvision's video models as encoders: their modules without the head.

The modules and their names are torchvision's, so that its published weights fit. The argument `name` chooses the model.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torchvision.models import get_model
from torchvision.models.video import MViT
from torchvision.models.video.mvit import MSBlockConfig, PositionalEncoding
from torchvision.ops import StochasticDepth

from vidtrain.errors import UserError, check_choice, check_drop_path
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.positions import Grid, fit_table

RESNETS = {"r3d_18": 8, "r2plus1d_18": 8, "mc3_18": 1}  # frames of a token
SWINS = ("swin3d_t", "swin3d_s", "swin3d_b")
MVITS = ("mvit_v1_b", "mvit_v2_s")
TOKENS = ("class", "patches")


class TorchvisionResNet(nn.Module):
    """Encoder: a video ResNet-18, [b 3 t h w] -> tokens [b n 512], one for every 16x16 pixels.

    `name` is r3d_18 (3D convolutions), r2plus1d_18 (separate convolutions in space and time) or mc3_18 (3D in the first
    stage, 2D after it). A token covers 8 frames, or one in mc3_18. Clips of any size fit; the last token along an axis
    may reach over the edge. Source: Tran et al. 2018, arXiv:1711.11248. Raises UserError for an unknown name.
    """

    def __init__(self, name: str, activation_checkpointing: bool = False):
        super().__init__()
        check_choice("model.encoder.name", name, RESNETS)
        network = get_model(name, weights=None)
        self.name = name
        self.embed_dim = network.fc.in_features
        self.stem = network.stem
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        if activation_checkpointing:
            recompute_activations(self.blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks."""
        return [*self.layer1, *self.layer2, *self.layer3, *self.layer4]

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth; together they hold every parameter."""
        return [self.stem, *self.blocks]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip."""
        return _windows((frames, height, width), (RESNETS[self.name], 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return rearrange(x, "b d t h w -> b (t h w) d")


class TorchvisionS3D(nn.Module):
    """Encoder: separable inception, [b 3 t h w] -> tokens [b n 1024], one for 8 frames of 32x32 pixels.

    The last pooling uses complete windows only, so the remainder at an edge has no token. Source: Xie et al. 2018 (S3D
    without gating), arXiv:1712.04851.
    """

    def __init__(self, activation_checkpointing: bool = False):
        super().__init__()
        self.embed_dim = 1024
        self.features = get_model("s3d", weights=None).features
        if activation_checkpointing:
            recompute_activations(self.blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The inception blocks, which follow the three convolutions of the stem."""
        return self.layers[3:]

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth; together they hold every parameter. Poolings hold none."""
        return [module for module in self.features if not isinstance(module, nn.MaxPool3d)]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip. Raises UserError for a clip that is too small."""
        for key, size, least in (("clip.frames", frames, 5), ("clip.size", min(height, width), 17)):
            if size < least:
                raise UserError(f"{key}={size} is too small for s3d; the smallest that fits is {least}.")
        t, h, w = _windows((frames, height, width), (4, 16, 16))
        return t // 2, h // 2, w // 2

    def forward(self, x: Tensor) -> Tensor:
        self.grid(*x.shape[2:])
        return rearrange(self.features(x), "b d t h w -> b (t h w) d")


class TorchvisionMViT(nn.Module):
    """Encoder: MViT, [b 3 t h w] -> tokens [b n 768], one for 2 frames of 32x32 pixels.

    `name` is mvit_v1_b (positions are added to the patches) or mvit_v2_s (positions are relative, in the attention).
    With `tokens="class"` the output is only the class token, which the published head uses, and the grid is 1x1x1; with
    `tokens="patches"` it is the patches without the class token.

    `num_frames` and `image_size` (side, or height and width) set the sizes of the position tables; for other clips they
    are interpolated, so any size fits. `drop_path` grows linearly over depth from 0 to the given value; `dropout` is
    that of the outputs of attention and MLP. Sources: Fan et al. 2021, arXiv:2104.11227, table 3; Li et al. 2022,
    arXiv:2112.01526, table 1. Raises UserError for an unknown `name` or `tokens`.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        num_frames: int,
        tokens: str = "class",
        drop_path: float = 0.2,
        dropout: float = 0.0,
        activation_checkpointing: bool = False,
        name: str = "mvit_v2_s",  # the default of configurations from before there were two
    ):
        super().__init__()
        check_choice("model.encoder.name", name, MVITS)
        check_choice("model.encoder.tokens", tokens, TOKENS)
        check_drop_path("model.encoder.drop_path", drop_path)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        is_v2 = name == "mvit_v2_s"
        network = MViT(
            # a multiple of the stem's stride, and large enough for one token in the last stage
            spatial_size=tuple(max(32, 4 * length) for length in _windows((1, height, width), (1, 4, 4))[1:]),
            temporal_size=2 * math.ceil(num_frames / 2),
            block_setting=mvit_v2_s_blocks() if is_v2 else mvit_v1_b_blocks(),
            residual_pool=is_v2,
            residual_with_cls_embed=False,
            rel_pos_embed=is_v2,
            proj_after_attn=is_v2,
            attention_dropout=dropout,
            stochastic_depth_prob=drop_path,
        )
        self.name = name
        self.tokens = tokens
        self.embed_dim = network.norm.normalized_shape[0]
        self.stem = MViTStem(network.conv_proj, network.pos_encoding)
        self.blocks = network.blocks
        self.norm = network.norm
        if activation_checkpointing:
            recompute_activations(self.blocks)

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth; together they hold every parameter."""
        return [self.stem, *self.blocks, self.norm]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip; the class token alone has the grid 1x1x1."""
        return (1, 1, 1) if self.tokens == "class" else _windows((frames, height, width), (2, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        x, grid = self.stem(x)
        for block in self.blocks:
            x, grid = block(x, grid)
        x = self.norm(x)
        return x[:, :1] if self.tokens == "class" else x[:, 1:]


class MViTStem(nn.Module):
    """Video [b 3 t h w] -> class token and patches [b 1+n d], and the grid of the patches. Position tables (MViTv1) are
    interpolated trilinearly for another grid, as in PySlowFast."""

    def __init__(self, conv_proj: nn.Module, pos_encoding: PositionalEncoding):
        super().__init__()
        self.conv_proj = conv_proj
        self.pos_encoding = pos_encoding  # in MViTv2 it holds only the class token

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.conv_proj(x)
        t, h, w = x.shape[2:]
        tables = self.pos_encoding
        token = tables.class_token.expand(x.shape[0], 1, -1)
        x = torch.cat((token, rearrange(x, "b d t h w -> b (t h w) d")), dim=1)
        if tables.spatial_pos is not None:
            added = tables.temporal_pos[:, None] + tables.spatial_pos
            added = fit_table(added.unflatten(1, tables.spatial_size), (t, h, w), cut=False)
            x = x + torch.cat((tables.class_pos[None], added))
        return x, (t, h, w)


def mvit_v1_b_blocks() -> list[MSBlockConfig]:
    """The blocks of MViTv2-S with two differences: the last block of a stage widens tokens for the next stage, and only
    the first block of a stage pools queries."""
    blocks = mvit_v2_s_blocks()
    for block, following in zip(blocks, blocks[1:], strict=False):
        block.input_channels, block.output_channels = 96 * block.num_heads, 96 * following.num_heads
    blocks[-1].input_channels = blocks[-1].output_channels
    for block in blocks:
        if block.stride_q == [1, 1, 1]:
            block.kernel_q, block.stride_q = [], []
    return blocks


def mvit_v2_s_blocks() -> list[MSBlockConfig]:
    """Stages of 1, 2, 11 and 2 blocks. Each next stage has twice the width and heads, and tokens of twice the side.
    Keys and values are pooled to the same grid in all stages, with a stride of 8 tokens of the first stage."""
    blocks = []
    for stage, depth in enumerate((1, 2, 11, 2)):
        for index in range(depth):
            first = stage > 0 and index == 0
            blocks.append(
                MSBlockConfig(
                    num_heads=2**stage,
                    input_channels=96 * 2**stage // (2 if first else 1),
                    output_channels=96 * 2**stage,
                    kernel_q=[3, 3, 3],
                    kernel_kv=[3, 3, 3],
                    stride_q=[1, 2, 2] if first else [1, 1, 1],
                    stride_kv=[1, 8 >> stage, 8 >> stage],
                )
            )
    return blocks


class TorchvisionSwin(nn.Module):
    """Encoder: Video Swin, [b 3 t h w] -> tokens [b n d], one for 2 frames of 32x32 pixels.

    `name` is swin3d_t, swin3d_s (d = 768) or swin3d_b (d = 1024). Clips of any size fit: incomplete patches and windows
    are padded with zeros. `drop_path` grows linearly over depth from 0 to the given value; `dropout` is that of patches
    and of the outputs of attention and MLP, `attention_dropout` that of attention weights. Source: Liu et al. 2022,
    arXiv:2106.13230. Raises UserError for an unknown name.
    """

    def __init__(
        self,
        name: str,
        drop_path: float = 0.1,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        check_choice("model.encoder.name", name, SWINS)
        check_drop_path("model.encoder.drop_path", drop_path)
        network = get_model(name, weights=None, dropout=dropout, attention_dropout=attention_dropout)
        self.name = name
        self.embed_dim = network.num_features
        self.patch_embed = network.patch_embed
        self.pos_drop = network.pos_drop
        self.features = network.features
        self.norm = network.norm
        for index, block in enumerate(self.blocks):  # torchvision's rule, for which `get_model` takes no rate
            stochastic_depth = block.get_submodule("stochastic_depth")
            assert isinstance(stochastic_depth, StochasticDepth)
            stochastic_depth.p = drop_path * index / (len(self.blocks) - 1)
        if activation_checkpointing:
            recompute_activations(self.blocks)

    @property
    def blocks(self) -> list[nn.Module]:
        """The attention blocks; patch mergings lie between them."""
        return [block for stage in self.features[::2] for block in stage]

    @property
    def layers(self) -> list[nn.Module]:
        """Modules in order of depth; together they hold every parameter."""
        parts = [list(part) if isinstance(part, nn.Sequential) else [part] for part in self.features]
        return [self.patch_embed, *(layer for part in parts for layer in part), self.norm]

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Tokens along t, h and w of a clip."""
        return _windows((frames, height, width), (2, 32, 32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(self.pos_drop(self.patch_embed(x)))
        return rearrange(self.norm(x), "b t h w d -> b (t h w) d")


def _windows(sizes: Grid, strides: Grid) -> Grid:
    """The number of windows along each axis, rounded up: every layer with a stride pads at the edges."""
    t, h, w = (math.ceil(size / stride) for size, stride in zip(sizes, strides, strict=True))
    return t, h, w
