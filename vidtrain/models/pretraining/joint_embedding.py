"""V-JEPA (Bardes et al. 2024; Assran et al. 2025): a predictor predicts a teacher's features of hidden tokens. The
teacher is the encoder's moving average, or, as in SALT (Li et al. 2025), an encoder that stays as it is.
"""

import copy
import math
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtrain.errors import UserError, check_multiple, check_positive
from vidtrain.models.positions import (
    ROTARY,
    STRETCHED,
    TABLES,
    Grid,
    fit_table,
    rotary_dim,
    rotary_table,
    take_tokens,
)
from vidtrain.models.pretraining.masked_model import MaskedModel, check_encoder
from vidtrain.models.pretraining.masks import Masks, MaskSampler
from vidtrain.models.vit3d import Block, ViT3D, init_weights, rescale_residual_branches


class Predictor(nn.Module):
    """Tokens that were visible [b n d] -> features of each hidden token [b m outputs].

    Positions are of the encoder's kind: rotary, or a table that is added (sincos where the encoder's are learned).

    Raises UserError for widths that do not fit together.
    """

    table: Tensor | None

    def __init__(self, encoder: ViT3D, outputs: int, kinds: int, dim: int, depth: int, num_heads: int):
        super().__init__()
        for key, value in (("depth", depth), ("heads", num_heads)):
            check_positive(f"objective.predictor_{key}", value)
        check_multiple("objective.predictor_dim", dim, num_heads, f"objective.predictor_heads={num_heads}")
        positions = "sincos" if encoder.positions == "learned" else encoder.positions
        if positions in ROTARY and rotary_dim(dim // num_heads) == 0:
            raise UserError(
                f"objective.predictor_dim={dim} over objective.predictor_heads={num_heads} leaves {dim // num_heads} "
                "channels for each, and rotary positions need 6; lower the heads, or raise the width"
            )
        if positions in TABLES:
            check_multiple("objective.predictor_dim", dim, 8, "8, which tables of positions need")
        self.positions = positions
        self.rope_base_grid = encoder.rope_base_grid
        self.head_dim = dim // num_heads
        self.embed = nn.Linear(encoder.embed_dim, dim)
        # vectors, of one dimension, so that they are not decayed
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(dim)) for _ in range(kinds))
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, 4 * dim, "gelu", qkv_bias=True, drop_path=0.0, norm_eps=encoder.norm_eps)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim, eps=encoder.norm_eps)
        self.proj = nn.Linear(dim, outputs)
        table = TABLES[positions](encoder.native_grid, dim) if positions in TABLES else None
        self.register_buffer("table", table, persistent=False)
        self.apply(init_weights)
        rescale_residual_branches(self.blocks)

    def forward(self, tokens: Tensor, masks: Masks, kind: int, grid: Grid) -> Tensor:
        visible = self.embed(tokens)
        hidden = self.mask_tokens[kind].expand(len(tokens), math.prod(grid), -1)
        x = masks.put_visible(visible, hidden.to(visible.dtype))
        rotary = None
        if self.table is None:
            rotary = rotary_table(grid, self.head_dim, self.positions, self.rope_base_grid, x.device)
        else:
            x = x + fit_table(self.table, grid, cut=self.positions not in STRETCHED)
        for block in self.blocks:
            x = block(x, rotary)
        return self.proj(self.norm(take_tokens(x, masks.hidden)))


class JointEmbedding(MaskedModel):
    """The error of a hidden token is the mean distance, over its channels, from the teacher's output there after a
    LayerNorm without parameters.

    The teacher sees the whole clip, without gradient, dropout or dropped paths. Where `teacher` is None it starts as a
    copy of `encoder` as that is then. After each step teacher = momentum * teacher + (1 - momentum) * encoder; with a
    `momentum` of 1 it stays as it is.

    Raises UserError for a teacher with other tokens, or with other weights where it is to follow the encoder.
    """

    head: Predictor
    teacher: ViT3D

    def __init__(
        self,
        encoder: nn.Module,
        masks: MaskSampler,
        predictor_dim: int = 384,
        predictor_depth: int = 12,
        predictor_heads: int = 12,
        momentum: float = 0.99925,
        teacher: nn.Module | str | None = None,
    ):
        super().__init__(encoder, masks)
        if not 0 <= momentum <= 1:
            raise UserError(f"objective.momentum={momentum} must lie between 0 and 1")
        if momentum == 1 and teacher is None:
            raise UserError(
                "objective.momentum=1 keeps the teacher as it is, and an untrained one has nothing to tell: say which "
                "one with objective.teacher, such as the folder of a run with objective=videomae"
            )
        assert not isinstance(teacher, str)  # the name of weights, which are loaded before
        self.momentum = momentum
        self.teacher = (
            copy.deepcopy(self.encoder) if teacher is None else check_encoder(teacher, "objective.teacher")
        )
        self.teacher.requires_grad_(False).eval()
        self._check_teacher()
        self.head = Predictor(
            self.encoder, self.teacher.embed_dim, masks.kinds, predictor_dim, predictor_depth, predictor_heads
        )

    @torch.no_grad()
    def begin(self, loaded: Collection[str]) -> None:
        """A teacher that follows the encoder starts from its weights, unless it was given its own."""
        if self.momentum < 1 and not any(name.startswith("teacher.") for name in loaded):
            self.teacher.load_state_dict(self.encoder.state_dict())

    def train(self, mode: bool = True) -> "JointEmbedding":
        super().train(mode)
        self.teacher.eval()
        return self

    def errors(self, clips: Tensor, masks: list[Masks]) -> list[Tensor]:
        grid = self.encoder.tubelets(*clips.shape[2:])
        target = self.targets(clips)
        errors = []
        for kind, mask in enumerate(masks):
            predicted = self.head(self.encode(clips, mask), mask, kind, grid).float()
            errors.append((predicted - take_tokens(target, mask.hidden)).abs().mean(dim=-1))
        return errors

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """What is to be predicted at every token, float32 [b N d]."""
        features = self.teacher(clips).float()
        return F.layer_norm(features, features.shape[-1:])

    @torch.no_grad()
    def predictions(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """The error of each token by kind, time, height and width, float32 [b k t h w]; NaN where it was visible."""
        grid = self.encoder.tubelets(*clips.shape[2:])
        tokens = clips.new_full((len(clips), grid[0] * grid[1] * grid[2], 1), torch.nan, dtype=torch.float32)
        maps = [
            kind.put_hidden(values[..., None], tokens)
            for kind, values in zip(masks, self.errors(clips, masks), strict=True)
        ]
        return torch.cat(maps, dim=-1).transpose(1, 2).unflatten(-1, grid)

    @torch.no_grad()
    def after_step(self) -> None:
        """The teacher follows the encoder."""
        if self.momentum == 1:
            return
        teacher: list[Tensor] = list(self.teacher.parameters())
        encoder: list[Tensor] = list(self.encoder.parameters())
        torch._foreach_mul_(teacher, self.momentum)
        torch._foreach_add_(teacher, encoder, alpha=1 - self.momentum)

    def feature_encoder(self) -> ViT3D:
        """The average, which knows more than the encoder; a teacher that stays as it is has learned nothing here."""
        return self.teacher if self.momentum < 1 else self.encoder

    def _check_teacher(self) -> None:
        for name in ("tubelet_size", "patch_size"):
            ours, theirs = getattr(self.encoder, name), getattr(self.teacher, name)
            if ours != theirs:
                raise UserError(
                    f"objective.teacher has {name}={theirs}, and model.encoder.{name}={ours}: tokens of both must be "
                    f"of the same pixels; set model.encoder.{name}={theirs}, or take another teacher"
                )
        if self.momentum < 1 and _shapes(self.encoder) != _shapes(self.teacher):
            raise UserError(
                f"objective.momentum={self.momentum}: objective.teacher cannot follow the encoder, as its weights have "
                "other names or shapes; set objective.momentum=1, and it stays as it is"
            )


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in model.named_parameters()}
