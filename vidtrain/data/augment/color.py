"""Color jitter: one draw for all frames of a clip, batched on the device."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError

# ITU-R BT.601 luma, rounded as in torchvision's grayscale
LUMA = (0.2989, 0.587, 0.114)


class ColorJitter(nn.Module):
    """Brightness, contrast and saturation, each scaled by a factor uniform in [1 - x, 1 + x], then the hue turned
    by a share of the color circle uniform in [-hue, hue]; in this order.

    One draw serves all frames of a clip, and clips are independent. The draw is made from the view's own
    seed, so it depends on neither the batch it came in nor the global generator.
    """

    def __init__(
        self, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0
    ):
        super().__init__()
        self.strengths = (brightness, contrast, saturation)
        self.hue = hue
        if min(self.strengths) < 0 or not 0 <= hue <= 0.5:
            raise UserError(
                f"brightness={brightness}, contrast={contrast}, saturation={saturation}, hue={hue}: "
                "none may be below 0, and hue may be 0.5 at most"
            )

    def forward(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """`clips` float [v c t h w] in [0, 1] and `seeds` int64 [v] -> the same shape, clamped to [0, 1]."""
        draws = np.stack([np.random.default_rng(int(seed)).uniform(-1, 1, 4) for seed in seeds.tolist()])
        factors = torch.from_numpy(1 + draws[:, :3] * np.array(self.strengths)).to(clips)
        brightness, contrast, saturation = rearrange(factors, "v f -> f v 1 1 1 1")
        clips = (clips * brightness).clamp_(0, 1)
        mean = _gray(clips).mean(dim=(2, 3, 4), keepdim=True)
        clips = torch.lerp(mean, clips, contrast).clamp_(0, 1)
        clips = torch.lerp(_gray(clips), clips, saturation).clamp_(0, 1)
        return _turn_hue(clips, draws[:, 3] * self.hue) if self.hue else clips


def _gray(clips: Tensor) -> Tensor:
    """[v c t h w] -> [v 1 t h w]"""
    return torch.tensordot(clips, clips.new_tensor(LUMA), dims=([1], [0])).unsqueeze(1)


def _turn_hue(clips: Tensor, turns: np.ndarray) -> Tensor:
    """Each clip of [v c t h w] by its own share of the color circle, `turns` [v]."""
    from torchvision.transforms.v2 import functional as tv  # which takes a second

    frames = rearrange(clips, "v c t h w -> v t c h w")
    turned = [tv.adjust_hue(each, float(turn)) for each, turn in zip(frames, turns, strict=True)]
    return rearrange(turned, "v t c h w -> v c t h w")
