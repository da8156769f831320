"""The objective of masked pretraining: the model maps clips with masks to losses. Labels are ignored."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.models.pretraining.masked_model import MaskedModel
from vidtrain.models.pretraining.masks import MaskedClips
from vidtrain.training.losses import HeadOutputs
from vidtrain.training.state import EpochSums


class WithMasks(nn.Module):
    """uint8 clips [b n c t h w] and the views' seeds int64 [b n] -> the `MaskedClips` that `model` takes.

    Without seeds, as in evaluation, the sum of a clip's pixels seeds its masks. So they are the same in every
    evaluation, whatever batches and ranks the videos are divided into.
    """

    def __init__(self, transform: nn.Module, model: MaskedModel):
        super().__init__()
        self.transform = transform
        self._sample_masks = model.sample_masks  # the method only: the model must not become a submodule here

    def forward(self, clips: Tensor, seeds: Tensor | None = None) -> MaskedClips:
        mask_seeds = clips.sum(dim=(2, 3, 4, 5), dtype=torch.int64).cpu() if seeds is None else seeds
        transformed = self.transform(clips, seeds)
        flat = rearrange(transformed, "b n c t h w -> (b n) c t h w")
        return MaskedClips(transformed, self._sample_masks(flat, mask_seeds.flatten()))


@dataclass(frozen=True)
class MaskedPrediction:
    """The objective of `model`: the mean of its losses [b]."""

    model: MaskedModel

    def __call__(self, output: Tensor, targets: Tensor) -> HeadOutputs:
        return HeadOutputs(output.new_empty(1, len(output), 0), output.mean()[None])

    def no_sums(self, device: torch.device) -> EpochSums:
        return EpochSums.zeros(device)

    def after_step(self) -> None:
        self.model.after_step()


class LossAndFeatures:
    """A `ClipModel` whose output for a clip is its loss and the mean of its tokens: [b n 1+d].

    The features are those of `MaskedModel.feature_encoder` on the whole clip.
    """

    fusion = "mean_logits"

    def __init__(self, model: MaskedModel):
        self.model = model
        self.num_classes = 1 + model.encoder.embed_dim

    def eval(self) -> nn.Module:
        return self.model.eval()

    def __call__(self, inputs: MaskedClips) -> Tensor:
        n = inputs.clips.shape[1]
        losses = self.model(inputs)
        features = self.model.features(rearrange(inputs.clips, "b n c t h w -> (b n) c t h w"))
        return rearrange(torch.cat((losses[:, None].float(), features), dim=1), "(b n) k -> b n k", n=n)


class Features:
    """A `ClipModel` whose output for a clip is its features alone: [b n d]."""

    fusion = "mean_logits"

    def __init__(self, model: MaskedModel):
        self.model = model
        self.num_classes = model.encoder.embed_dim

    def eval(self) -> nn.Module:
        return self.model.eval()

    def __call__(self, clips: Tensor) -> Tensor:
        flat = rearrange(clips, "b n c t h w -> (b n) c t h w")
        return rearrange(self.model.features(flat), "(b n) d -> b n d", n=clips.shape[1])
