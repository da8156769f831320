"""What happens to a batch of uint8 clips on the device: color, scale and normalization."""

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

# ITU-R BT.601 luma, rounded as in torchvision's grayscale
LUMA = (0.2989, 0.587, 0.114)


class ColorJitter(nn.Module):
    """Brightness, contrast and saturation, each scaled by a factor uniform in [1 - x, 1 + x].

    One draw serves all frames of a clip, and clips are independent. The draw is made from the view's own
    seed, so it depends on neither the batch it came in nor the global generator.
    """

    def __init__(self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0):
        super().__init__()
        self.strengths = (brightness, contrast, saturation)

    def forward(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """`clips` float [v c t h w] in [0, 1] and `seeds` int64 [v] -> the same shape, clamped to [0, 1]."""
        draws = np.stack([np.random.default_rng(int(seed)).uniform(-1, 1, 3) for seed in seeds.tolist()])
        factors = torch.from_numpy(1 + draws * np.array(self.strengths)).to(clips)
        brightness, contrast, saturation = rearrange(factors, "v f -> f v 1 1 1 1")
        clips = (clips * brightness).clamp_(0, 1)
        gray = torch.tensordot(clips, clips.new_tensor(LUMA), dims=([1], [0])).unsqueeze(1)  # [v 1 t h w]
        mean = gray.mean(dim=(2, 3, 4), keepdim=True)
        clips = torch.lerp(mean, clips, contrast).clamp_(0, 1)
        gray = torch.tensordot(clips, clips.new_tensor(LUMA), dims=([1], [0])).unsqueeze(1)
        return torch.lerp(gray, clips, saturation).clamp_(0, 1)


class DeviceTransform(nn.Module):
    """uint8 clips [b n c t h w] to normalized float32 of the same shape, batched, on their own device.

    `mean` and `std` are per channel for values in [0, 1]. `color` acts only when seeds are given, that is
    in training.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], color: ColorJitter | None = None):
        super().__init__()
        self.color = color
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, clips: Tensor, seeds: Tensor | None = None) -> Tensor:
        views = rearrange(clips, "b n c t h w -> (b n) c t h w").float().div_(255)
        if self.color is not None and seeds is not None:
            views = self.color(views, seeds.flatten())
        views = views.sub_(self.mean).div_(self.std)
        return rearrange(views, "(b n) c t h w -> b n c t h w", b=clips.shape[0])
