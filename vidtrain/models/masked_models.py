"""Networks that learn from videos without labels: a ViT-3D encodes the visible tokens of a clip, and a head predicts
the hidden ones: their pixels (MaskedAutoencoder) or a teacher's features (JointEmbedding)."""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError, check_multiple, check_positive
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.masks import MaskedClips, Masks, MaskSampler
from vidtrain.models.positions import ROTARY, STRETCHED, TABLES, Grid, fit_table, rotary_dim, rotary_table, take_tokens
from vidtrain.models.vit3d import Block, ViT3D, init_weights, rescale_residual_branches


class MaskedModel(EncoderWithHead, ABC):
    """Normalized clips with masks -> the loss of each sample, float32 [(b n)]. `head` predicts hidden tokens from the
    encoder's output. Raises UserError for an encoder that cannot leave out tokens."""

    encoder: ViT3D
    head: nn.Module

    def __init__(self, encoder: nn.Module, masks: MaskSampler):
        super().__init__()
        self.encoder = check_encoder(encoder)
        self.masks = masks

    def sample_masks(self, clips: Tensor, seeds: Tensor) -> list[Masks]:
        """The masks of samples [b c t h w], one `Masks` for each kind, on the clips' device; `seeds` int64 [b], on the
        CPU."""
        grid = self.encoder.tubelets(*clips.shape[2:])
        return [kind.to(clips.device) for kind in self.masks(grid, seeds.tolist())]

    def forward(self, inputs: MaskedClips) -> Tensor:
        """The mean over a sample's hidden tokens, then over the kinds of masks."""
        return self.losses(inputs.clips.flatten(0, 1), inputs.masks)

    def losses(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """The loss of each of the samples [b c t h w]: [b]."""
        errors = self.errors(clips, masks)
        losses = [kind.mean_of_hidden(values) for kind, values in zip(masks, errors, strict=True)]
        return torch.stack(losses).mean(dim=0)

    def encode(self, clips: Tensor, masks: Masks) -> Tensor:
        """Encodes the visible tokens of samples [b c t h w]: [b n d]."""
        if masks.visible_valid is None or masks.groups is None:
            return self.tokens(clips, masks.visible, masks.visible_valid)
        parts = []
        for rows, longest in masks.groups:
            visible, valid = masks.visible[rows, :longest], masks.visible_valid[rows, :longest]
            tokens = self.tokens(clips[rows], visible, valid)
            parts.append(F.pad(tokens, (0, 0, 0, masks.visible.shape[1] - longest)))
        order = torch.cat([rows for rows, _ in masks.groups])
        return torch.cat(parts).index_select(0, order.argsort())

    def tokens(self, clips: Tensor, visible: Tensor, visible_valid: Tensor | None) -> Tensor:
        """What the head gets of the encoder for the tokens at `visible`; see `ViT3D.forward`."""
        return self.encoder(clips, visible, visible_valid)

    def features(self, clips: Tensor) -> Tensor:
        """The mean token of each whole clip [b c t h w]: float32 [b d]."""
        return self.feature_encoder()(clips).float().mean(dim=1)

    def begin(self, loaded: Collection[str]) -> None:
        """Is called before the first step of a run; `loaded` names the tensors of the state dict that were loaded."""

    @abstractmethod
    def errors(self, clips: Tensor, masks: list[Masks]) -> list[Tensor]:
        """For each kind of masks the error of every hidden token, float32 [b m]; errors of padding are meaningless."""

    @abstractmethod
    def predictions(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """Predictions for samples [b c t h w] that pictures show; see the subclasses."""

    def after_step(self) -> None:
        """Is called after each optimizer step; does nothing by default."""

    def feature_encoder(self) -> ViT3D:
        """The encoder to use after pretraining."""
        return self.encoder


def check_encoder(encoder: nn.Module, key: str = "model.encoder") -> ViT3D:
    """Returns the encoder. Raises UserError if it is not a ViT3D, or returns tokens of several layers."""
    if not isinstance(encoder, ViT3D):
        raise UserError(
            f"{key} is a {type(encoder).__name__}, which cannot leave out hidden tokens; models that can be pretrained "
            "have a ViT3D: vit3d_*, videomae_*, vjepa1_*, vjepa2_*"
        )
    if len(encoder.out_layers) > 1:
        raise UserError(
            f"{key}.out_layers={list(encoder.out_layers)} returns several tokens for each place, but pretraining "
            f"predicts one; set {key}.out_layers=null"
        )
    return encoder


def check_sizes(head: str, dim: int, depth: int, num_heads: int) -> None:
    for key, value in (("depth", depth), ("heads", num_heads)):
        check_positive(f"objective.{head}_{key}", value)
    check_multiple(f"objective.{head}_dim", dim, num_heads, f"objective.{head}_heads={num_heads}")


def blocks_like(encoder: ViT3D, dim: int, depth: int, num_heads: int) -> nn.ModuleList:
    """Transformer blocks of width `dim` for a head, with the encoder's norm epsilon."""
    return nn.ModuleList(
        Block(dim, num_heads, 4 * dim, "gelu", qkv_bias=True, drop_path=0.0, norm_eps=encoder.norm_eps)
        for _ in range(depth)
    )


# --- VideoMAE (Tong et al. 2022): the encoder sees a tenth of a video, a small decoder reconstructs the rest ---
#
# With 0.9 of the tokens hidden, forward and backward of a ViT-S take 0.11 of the time with all tokens, or 0.24 with a
# decoder of half its width (16 frames at 112 pixels; 0.06 and 0.24 for a ViT-Ti at 224 pixels; one CPU core).

EPSILON = 1e-6  # added to a cube's deviation


class Decoder(nn.Module):
    """Encoded visible tokens [b n d] -> the pixels of each hidden token [b m u*p*q*c]. The fixed position table has the
    encoder's size and is fitted to other clips. Raises UserError for invalid widths."""

    positions: Tensor

    def __init__(self, encoder: ViT3D, dim: int, depth: int, num_heads: int):
        super().__init__()
        check_sizes("decoder", dim, depth, num_heads)
        check_multiple("objective.decoder_dim", dim, 2, "2, which sines and cosines take turns in")
        self.encoder_to_decoder = nn.Linear(encoder.embed_dim, dim, bias=False)
        self.mask_token = nn.Parameter(torch.empty(dim))  # a vector, so that weight decay does not apply
        self.blocks = blocks_like(encoder, dim, depth, num_heads)
        self.norm = nn.LayerNorm(dim, eps=encoder.norm_eps)
        self.linear = nn.Linear(dim, math.prod(encoder.patch_embed.proj.weight.shape[1:]))
        self.register_buffer("positions", TABLES["sincos_1d"](encoder.native_grid, dim), persistent=False)
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

    `mean` and `std` are those with which clips were normalized; targets are pixels in [0, 1]. With `norm_pix_loss` the
    targets of each cube and color are normalized by their own mean and deviation.
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
        return [(self._predict(clips, kind) - take_tokens(target, kind.hidden)).square().mean(dim=-1) for kind in masks]

    @torch.no_grad()
    def predictions(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """The video in [0, 1], float32 [b c t h w], with the tokens hidden by the first kind of masks as predicted.
        With `norm_pix_loss` the predicted cubes get the true mean and deviation of their colors."""
        target, mean, deviation = self._targets(clips)
        predicted = masks[0].put_hidden(self._predict(clips, masks[0]), target)
        t, h, w = self.encoder.tubelets(*clips.shape[2:])
        colors = rearrange(predicted, "b n (k c) -> b n c k", c=clips.shape[1])
        return rearrange(
            colors * deviation + mean,
            "b (t h w) c (u p q) -> b c (t u) (h p) (w q)",
            t=t,
            h=h,
            w=w,
            u=self.encoder.tubelet_size,
            p=self.encoder.patch_size,
        ).clamp(0, 1)

    def _predict(self, clips: Tensor, masks: Masks) -> Tensor:
        """The predicted pixels of each hidden token, normalized as the targets, float32 [b m k*c]."""
        tokens = self.encode(clips, masks)
        return self.head(tokens, masks, self.encoder.tubelets(*clips.shape[2:])).float()

    @torch.no_grad()
    def _targets(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The target pixels of every token [b N k*c], in the order of tubelet, row, column, color; and their mean and
        deviation [b N c 1], which convert them back to [0, 1]."""
        pixels = clips.float() * self.std + self.mean
        sizes = {"u": self.encoder.tubelet_size, "p": self.encoder.patch_size, "q": self.encoder.patch_size}
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


# --- V-JEPA (Bardes et al. 2024; Assran et al. 2025) and SALT (Li et al. 2025) ---
#
# The teacher is the encoder's moving average or, in SALT, a frozen encoder.


class Predictor(nn.Module):
    """Encoded visible tokens [b n d] -> predicted features of each hidden token [b m outputs]. Positions are of the
    encoder's kind: rotary, or an added table (sincos if the encoder's are learned). Raises UserError for invalid
    widths."""

    table: Tensor | None

    def __init__(self, encoder: ViT3D, outputs: int, kinds: int, dim: int, depth: int, num_heads: int):
        super().__init__()
        check_sizes("predictor", dim, depth, num_heads)
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
        self.embed: nn.Module = nn.Linear(encoder.embed_dim, dim)
        # vectors, so that weight decay does not apply
        self.mask_tokens = nn.ParameterList(nn.Parameter(torch.zeros(dim)) for _ in range(kinds))
        self.blocks = blocks_like(encoder, dim, depth, num_heads)
        self.norm = nn.LayerNorm(dim, eps=encoder.norm_eps)
        self.proj = nn.Linear(dim, outputs)
        table = TABLES[positions](encoder.native_grid, dim) if positions in TABLES else None
        self.register_buffer("table", table, persistent=False)
        self.apply(init_weights)
        rescale_residual_branches(self.blocks)

    def forward(self, tokens: Tensor, masks: Masks, kind: int, grid: Grid) -> Tensor:
        x = self.transform(self.embed(tokens), self.mask_tokens[kind], masks, grid)
        return self.proj(self.norm(take_tokens(x, masks.hidden)))

    def transform(self, visible: Tensor, mask_token: Tensor, masks: Masks, grid: Grid) -> Tensor:
        """Embedded visible tokens [b n d], and a vector [d] at every hidden place -> the blocks' output [b N d]."""
        hidden = mask_token.expand(len(visible), math.prod(grid), -1)
        x = masks.put_visible(visible, hidden.to(visible.dtype))
        rotary = None
        if self.table is None:
            rotary = rotary_table(grid, self.head_dim, self.positions, self.rope_base_grid, x.device)
        else:
            x = x + fit_table(self.table, grid, cut=self.positions not in STRETCHED)
        for block in self.blocks:
            x = block(x, rotary)
        return x


class JointEmbedding(MaskedModel):
    """The error of a hidden token is the mean absolute difference, over channels, between its predicted feature and the
    teacher's output after a LayerNorm without parameters.

    The teacher sees the whole clip, without gradients, dropout or drop path. If `teacher` is None, it starts as a copy
    of `encoder`. After each step, teacher = momentum * teacher + (1 - momentum) * encoder; with `momentum` 1 it is
    frozen. Raises UserError if the teacher's tokens differ from the encoder's, or if it must follow the encoder but has
    other weights.
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
        self.set_teacher(momentum, teacher)
        self.head = Predictor(
            self.encoder, self.teacher.embed_dim, masks.kinds, predictor_dim, predictor_depth, predictor_heads
        )

    def set_teacher(self, momentum: float, teacher: nn.Module | str | None) -> None:
        """Sets the teacher; see the class."""
        if not 0 <= momentum <= 1:
            raise UserError(f"objective.momentum={momentum} must lie between 0 and 1")
        if momentum == 1 and teacher is None:
            raise UserError(
                "objective.momentum=1 freezes the teacher, so it needs trained weights: name them with "
                "objective.teacher, such as the folder of a run with objective=videomae"
            )
        assert not isinstance(teacher, str)  # a name in the configuration was replaced by the loaded encoder
        self.momentum = momentum
        self.teacher = copy.deepcopy(self.encoder) if teacher is None else check_encoder(teacher, "objective.teacher")
        self.teacher.requires_grad_(False).eval()
        self._check_teacher()

    def followed(self) -> dict[str, tuple[nn.Module, nn.Module]]:
        """By name, each module of the teacher and the trained module that it follows."""
        return {"teacher": (self.teacher, self.encoder)}

    @torch.no_grad()
    def begin(self, loaded: Collection[str]) -> None:
        """Copies the trained weights into a teacher that follows them, unless the teacher's own were loaded."""
        for name, (teacher, trained) in self.followed().items():
            if self.momentum < 1 and not any(other.startswith(f"{name}.") for other in loaded):
                teacher.load_state_dict(trained.state_dict())

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
        """The target features of every token, float32 [b N d]."""
        features = self.teacher(clips).float()
        return F.layer_norm(features, features.shape[-1:])

    @torch.no_grad()
    def predictions(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """The error of each hidden token by kind, time, height and width, float32 [b k t h w]; NaN for visible
        tokens."""
        grid = self.encoder.tubelets(*clips.shape[2:])
        tokens = clips.new_full((len(clips), grid[0] * grid[1] * grid[2], 1), torch.nan, dtype=torch.float32)
        maps = [
            kind.put_hidden(values[..., None], tokens)
            for kind, values in zip(masks, self.errors(clips, masks), strict=True)
        ]
        return torch.cat(maps, dim=-1).transpose(1, 2).unflatten(-1, grid)

    @torch.no_grad()
    def after_step(self) -> None:
        """Updates the teacher's moving average."""
        if self.momentum == 1:
            return
        sides = zip(*self.followed().values(), strict=True)
        teacher, trained = (list[Tensor](nn.ModuleList(modules).parameters()) for modules in sides)
        torch._foreach_mul_(teacher, self.momentum)
        torch._foreach_add_(teacher, trained, alpha=1 - self.momentum)

    def feature_encoder(self) -> ViT3D:
        """The teacher, as the average is better than the encoder; the encoder if the teacher is frozen."""
        return self.teacher if self.momentum < 1 else self.encoder

    def _check_teacher(self) -> None:
        for name in ("tubelet_size", "patch_size"):
            own, of_teacher = getattr(self.encoder, name), getattr(self.teacher, name)
            if own != of_teacher:
                raise UserError(
                    f"objective.teacher has {name}={of_teacher}, but model.encoder.{name}={own}: tokens of both must "
                    f"cover the same pixels; set model.encoder.{name}={of_teacher}, or choose another teacher"
                )
        encoder, teacher = (
            {name: parameter.shape for name, parameter in model.named_parameters()}
            for model in (self.encoder, self.teacher)
        )
        if self.momentum < 1 and encoder != teacher:
            raise UserError(
                f"objective.momentum={self.momentum}: objective.teacher cannot follow the encoder, as its weights have "
                "other names or shapes; set objective.momentum=1 to freeze it"
            )
