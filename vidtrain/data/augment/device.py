"""What happens to a batch of uint8 clips on the device: RandAugment, scale, color, normalization, erasing."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from einops import rearrange
from torch import Tensor, nn

if TYPE_CHECKING:  # RandAugment imports torchvision, which takes seconds
    from vidtrain.data.augment.color import ColorJitter
    from vidtrain.data.augment.erasing import RandomErasing
    from vidtrain.data.augment.rand_augment import RandAugment

DTYPES = (torch.float32, torch.float16)


class DeviceTransform(nn.Module):
    """uint8 clips [b n c t h w] to normalized floats of the same shape, batched, on their own device.

    In this order: `rand_augment` on uint8, values in [0, 1], `color`, `mean` and `std` (per channel, for values
    in [0, 1]), `erasing`. The three that augment act only when seeds are given, that is in training; each view's
    draws depend on its seed alone.

    `dtype` is that of the output and of the work from [0, 1] on: float32, or float16 for half the memory.
    bfloat16 is refused, for its 8 bits do not hold 256 colors once they are shifted and scaled.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        color: "ColorJitter | None" = None,
        rand_augment: "RandAugment | None" = None,
        erasing: "RandomErasing | None" = None,
        dtype: torch.dtype = torch.float32,
    ):
        super().__init__()
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype}: must be one of {DTYPES}")
        self.color = color
        self.rand_augment = rand_augment
        self.erasing = erasing
        self.register_buffer("mean", torch.tensor(mean, dtype=dtype).view(-1, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=dtype).view(-1, 1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, clips: Tensor, seeds: Tensor | None = None) -> Tensor:
        views = rearrange(clips, "b n c t h w -> (b n) c t h w")
        if self.rand_augment is not None and seeds is not None:
            views = self.rand_augment(views, seeds.flatten())
        views = views.to(self.mean.dtype).div_(255)
        if self.color is not None and seeds is not None:
            views = self.color(views, seeds.flatten())
        views = views.sub_(self.mean).div_(self.std)
        if self.erasing is not None and seeds is not None:
            views = self.erasing(views, seeds.flatten())
        return rearrange(views, "(b n) c t h w -> b n c t h w", b=clips.shape[0])
