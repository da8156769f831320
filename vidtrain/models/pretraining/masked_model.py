"""What networks for pretraining share: a ViT-3D encoder, masks, and a loss over the tokens that it was not shown."""

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import EncoderWithHead
from vidtrain.models.pretraining.masks import MaskedClips, Masks, MaskSampler
from vidtrain.models.vit3d import ViT3D


class MaskedModel(EncoderWithHead, ABC):
    """Normalized clips with masks -> the loss of each of their samples, float32 [(b n)].

    `encoder` is what pretraining is for, `head` what predicts hidden tokens from its output.

    Raises UserError for an encoder that cannot leave tokens out.
    """

    encoder: ViT3D
    head: nn.Module

    def __init__(self, encoder: nn.Module, masks: MaskSampler):
        super().__init__()
        self.encoder = check_encoder(encoder)
        self.masks = masks

    def sample_masks(self, clips: Tensor, seeds: Tensor) -> list[Masks]:
        """One for each kind, on the clips' device; `seeds` int64 [b] on the CPU."""
        grid = self.encoder.tubelets(*clips.shape[2:])
        return [kind.to(clips.device) for kind in self.masks(grid, seeds.tolist())]

    def forward(self, inputs: MaskedClips) -> Tensor:
        """The mean over a sample's hidden tokens, then over the kinds of masks."""
        return self.losses(inputs.clips.flatten(0, 1), inputs.masks)

    def losses(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """The same for samples [b c t h w]: [b]."""
        errors = self.errors(clips, masks)
        losses = [kind.mean_of_hidden(values) for kind, values in zip(masks, errors, strict=True)]
        return torch.stack(losses).mean(dim=0)

    def encode(self, clips: Tensor, masks: Masks) -> Tensor:
        """What the encoder makes of the visible tokens of samples [b c t h w]: [b n d]."""
        if masks.visible_valid is None or masks.groups is None:
            return self.encoder(clips, masks.visible, masks.visible_valid)
        parts = []
        for rows, longest in masks.groups:
            visible, valid = masks.visible[rows, :longest], masks.visible_valid[rows, :longest]
            tokens = self.encoder(clips[rows], visible, valid)
            parts.append(F.pad(tokens, (0, 0, 0, masks.visible.shape[1] - longest)))
        order = torch.cat([rows for rows, _ in masks.groups])
        return torch.cat(parts).index_select(0, order.argsort())

    def features(self, clips: Tensor) -> Tensor:
        """The mean token of each whole clip [b c t h w]: float32 [b d]."""
        return self.feature_encoder()(clips).float().mean(dim=1)

    def begin(self, loaded: Collection[str]) -> None:
        """Before the first step of a run, whose start weights gave the tensors `loaded` of the state dict."""

    @abstractmethod
    def errors(self, clips: Tensor, masks: list[Masks]) -> list[Tensor]:
        """Of each kind the error of every hidden token, float32 [b m]; that of padding has no meaning."""

    @abstractmethod
    def predictions(self, clips: Tensor, masks: list[Masks]) -> Tensor:
        """What pictures show of samples [b c t h w]; see each network."""

    def after_step(self) -> None:
        """What follows an optimizer step: nothing, unless a network says otherwise."""

    def feature_encoder(self) -> ViT3D:
        """Whose features are of use after pretraining."""
        return self.encoder

    def check(self, grid: tuple[int, int, int]) -> None:
        """Raises UserError for masks that do not fit the encoder's grid (t, h, w)."""
        self.masks.check(grid)


def check_encoder(encoder: nn.Module, key: str = "model.encoder") -> ViT3D:
    """Raises UserError for another class of encoder, and for tokens of several layers."""
    if not isinstance(encoder, ViT3D):
        raise UserError(
            f"{key} is a {type(encoder).__name__}, which cannot leave out hidden tokens; models that can be pretrained "
            "have a ViT3D: vit3d_*, videomae_*, vjepa1_*, vjepa2_*"
        )
    if len(encoder.out_layers) > 1:
        raise UserError(
            f"{key}.out_layers={list(encoder.out_layers)} gives several tokens for each place, and pretraining "
            f"predicts one; set {key}.out_layers=null"
        )
    return encoder
