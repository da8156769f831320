"""V-JEPA 2.1 (Mur-Labadia et al. 2026): as V-JEPA 2, but several blocks of the encoder are input and target of the
predictor, and the visible tokens are predicted too.

Every level, a block of the encoder, has its own norm. The predictor gets the levels of a visible token as one vector,
and predicts those of the teacher for hidden tokens and, by a second output layer, for visible ones (the context). The
loss of the context is weighted by 1 / sqrt(d) for a token at distance d from the nearest hidden one, so that it counts
most at the edges of what is hidden; its weight in the whole grows from 0 during a part of training.

Source: facebookresearch/vjepa2, app/vjepa_2_1 (train.py, models/predictor.py, models/utils). Its images, with patches
and vectors of their own, are not supported.
"""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtrain.errors import UserError, check_positive
from vidtrain.models.masked_models import JointEmbedding, MaskedModel, Predictor
from vidtrain.models.masks import Masks, MaskSampler
from vidtrain.models.positions import Grid, take_tokens
from vidtrain.models.vit3d import ViT3D, init_weights

# In the state dict: the prefix of the norms of levels but the last, for each encoder; and the counter of steps
LEVEL_NORMS = {"encoder": "head.norms.", "teacher": "teacher_norms."}
STEPS = "steps"
UNEVEN = {(48, 4): (11, 23, 37, 47)}  # published levels that are not evenly spaced, by depth and number


def level_blocks(encoder: ViT3D, levels: int, key: str = "model.encoder") -> tuple[int, ...]:
    """The blocks of the levels: evenly spaced up to the last, or as published. Raises UserError if the encoder has
    fewer blocks."""
    depth = len(encoder.blocks)
    if levels > depth:
        raise UserError(
            f"objective.levels={levels}, but {key} has {depth} blocks: set objective.levels={depth} or "
            f"less, or choose an encoder of {levels} blocks or more"
        )
    return UNEVEN.get((depth, levels), tuple(depth * (level + 1) // levels - 1 for level in range(levels)))


def norms_like(encoder: ViT3D, blocks: Sequence[int]) -> nn.ModuleDict:
    """A norm for each of `blocks` but the last, whose norm is the encoder's own; named by the number of the block."""
    return nn.ModuleDict({str(block): nn.LayerNorm(encoder.embed_dim, eps=encoder.norm_eps) for block in blocks[:-1]})


def encode_levels(
    encoder: ViT3D,
    norms: nn.ModuleDict,
    blocks: Sequence[int],
    clips: Tensor,
    visible: Tensor | None = None,
    visible_valid: Tensor | None = None,
) -> list[Tensor]:
    """The tokens [b n d] of each level, normed."""
    outputs = encoder.outputs_of(blocks, clips, visible, visible_valid)
    every = [*norms.values(), encoder.norm_of(blocks[-1])]
    return [norm(output) for norm, output in zip(every, outputs, strict=True)]


class DensePredictor(Predictor):
    """Encoded visible tokens [b n levels*d] -> predicted features of each hidden token [b m outputs] and of each
    visible one [b n outputs]. Several levels are embedded by an MLP, one by a linear layer. With the encoder's
    `modality_embed`, a learned vector is added to every token.

    `norms` are those of the encoder's levels (see `norms_like`): the model applies them. Raises UserError as
    `Predictor` does.
    """

    def __init__(
        self, encoder: ViT3D, blocks: Sequence[int], outputs: int, kinds: int, dim: int, depth: int, num_heads: int
    ):
        super().__init__(encoder, outputs, kinds, dim, depth, num_heads)
        width = encoder.embed_dim
        if len(blocks) > 1:
            self.embed = nn.Sequential(nn.Linear(len(blocks) * width, width), nn.GELU(), nn.Linear(width, dim))
            self.embed.apply(init_weights)
        self.proj_context = nn.Linear(dim, outputs)
        init_weights(self.proj_context)
        # a vector, so that weight decay does not apply
        self.video_mod_embed = nn.Parameter(1e-6 * torch.randn(dim)) if encoder.modality_embed else None
        self.norms = norms_like(encoder, blocks)

    def both(self, tokens: Tensor, masks: Masks, kind: int, grid: Grid) -> tuple[Tensor, Tensor]:
        """The predictions for hidden and for visible tokens."""
        visible, mask_token = self.embed(tokens), self.mask_tokens[kind]
        if self.video_mod_embed is not None:
            visible, mask_token = visible + self.video_mod_embed, mask_token + self.video_mod_embed
        x = self.transform(visible, mask_token, masks, grid)
        hidden, context = (self.norm(take_tokens(x, places)) for places in (masks.hidden, masks.visible))
        return self.proj(hidden), self.proj_context(context)

    def forward(self, tokens: Tensor, masks: Masks, kind: int, grid: Grid) -> Tensor:
        return self.both(tokens, masks, kind, grid)[0]


class DenseJointEmbedding(JointEmbedding):
    """The loss of V-JEPA 2.1: that of the hidden tokens plus `context_weight` times that of the visible ones.

    The error of a token is the mean absolute difference, over the channels of all levels, between its prediction and
    the teacher's output, each level after its norm and a LayerNorm without parameters. With `distance_weighting`, that
    of a visible token is divided by the square root of its distance to the nearest hidden token (`Masks.distances`).

    `levels` is the number of levels (see `level_blocks`). `context_warmup` are two durations of training: the weight
    of the context is 0 before the first, and grows linearly until the second; None means that it is constant. Whoever
    trains the model sets `ramp`, the same in steps. `steps` counts the steps of the run. The teacher is as in
    `JointEmbedding`; one that is frozen has norms of levels, but the last, without learned weights. Raises UserError
    for values out of bounds and an encoder with fewer blocks than levels.
    """

    head: DensePredictor
    steps: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        masks: MaskSampler,
        predictor_dim: int = 384,
        predictor_depth: int = 12,
        predictor_heads: int = 12,
        momentum: float = 0.99925,
        teacher: nn.Module | str | None = None,
        levels: int = 4,
        context_weight: float = 0.5,
        context_warmup: Sequence[str] | None = ("5%", "10%"),
        distance_weighting: bool = True,
    ):
        MaskedModel.__init__(self, encoder, masks)  # JointEmbedding's would build a predictor of one level
        check_positive("objective.levels", levels)
        if not context_weight >= 0:
            raise UserError(f"objective.context_weight={context_weight} must be 0 or more")
        self.set_teacher(momentum, teacher)
        self.context_weight = context_weight
        self.context_warmup = None if context_warmup is None else tuple(context_warmup)
        self.ramp = (0, 0)
        self.distance_weighting = distance_weighting
        self.blocks = level_blocks(self.encoder, levels)
        self.teacher_blocks = level_blocks(self.teacher, levels, "objective.teacher")
        self.head = DensePredictor(
            self.encoder,
            self.blocks,
            levels * self.teacher.embed_dim,
            masks.kinds,
            predictor_dim,
            predictor_depth,
            predictor_heads,
        )
        self.teacher_norms = norms_like(self.teacher, self.teacher_blocks).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def followed(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        return super().followed() | {"teacher_norms": (self.teacher_norms, self.head.norms)}

    @torch.no_grad()
    def begin(self, loaded: Collection[str]) -> None:
        super().begin(loaded)
        self.steps.zero_()  # those of a run whose weights were loaded do not count

    def tokens(self, clips: Tensor, visible: Tensor, visible_valid: Tensor | None) -> Tensor:
        return torch.cat(encode_levels(self.encoder, self.head.norms, self.blocks, clips, visible, visible_valid), -1)

    @torch.no_grad()
    def targets(self, clips: Tensor) -> Tensor:
        """The target features of every token, float32 [b N levels*d]."""
        levels = encode_levels(self.teacher, self.teacher_norms, self.teacher_blocks, clips)
        return torch.cat([F.layer_norm(level.float(), level.shape[-1:]) for level in levels], dim=-1)

    def losses(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        grid = self.encoder.tubelets(*clips.shape[2:])
        share, losses = self.context_weight * self.progress(), []
        for mask, (hidden, context) in zip(masks, self._errors(clips, masks), strict=True):
            if self.distance_weighting:
                context = context / mask.distances(grid).sqrt()
            losses.append(mask.mean_of_hidden(hidden) + share * mask.mean_of_visible(context))
        return torch.stack(losses).mean(dim=0)

    def errors(self, clips: Tensor, masks: list[Masks]) -> list[Tensor]:
        return [hidden for hidden, _ in self._errors(clips, masks)]

    def progress(self) -> Tensor:
        """The factor of the context's weight at this step, 0 to 1."""
        first, last = self.ramp
        rising = ((self.steps - first) / max(1, last - first)).clamp(0, 1)
        return torch.where(self.steps >= last, 1.0, rising)

    @torch.no_grad()
    def after_step(self) -> None:
        """Updates the teacher's moving average, and counts the step."""
        super().after_step()
        self.steps += 1

    def _errors(self, clips: Tensor, masks: list[Masks]) -> list[tuple[Tensor, Tensor]]:
        """For each kind of masks the errors of hidden tokens [b m] and of visible ones [b n], float32."""
        grid = self.encoder.tubelets(*clips.shape[2:])
        target, errors = self.targets(clips), []
        for kind, mask in enumerate(masks):
            hidden, context = self.head.both(self.encode(clips, mask), mask, kind, grid)
            errors.append((_error(hidden, target, mask.hidden), _error(context, target, mask.visible)))
        return errors


def _error(predicted: Tensor, target: Tensor, places: Tensor) -> Tensor:
    return (predicted.float() - take_tokens(target, places)).abs().mean(dim=-1)
