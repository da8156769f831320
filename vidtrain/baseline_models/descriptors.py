"""From the clips of a video to one vector: what can be seen without learning anything from videos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.data.audit.duplicates import LUMA

SIDE = 32  # pixels of the small pictures
BINS = 8  # of each color: 512 colors in all
SHADES = 256


@dataclass(frozen=True)
class Video:
    """The clips of a video, uint8 [n 3 t h w], and what several descriptors make of them, once."""

    clips: Tensor

    @cached_property
    def small(self) -> Tensor:
        return small_frames(self.clips)


Descriptor = Callable[[Video], Tensor]
"""Maps a video to float32 [d]."""


def small_frames(clips: Tensor) -> Tensor:
    """The frames of `clips` uint8 [n 3 t h w] as averages over areas, float32 [n t 3 SIDE SIDE] in [0, 1]."""
    frames = rearrange(clips, "n c t h w -> (n t) c h w").float() / (SHADES - 1)
    small = F.interpolate(frames, (SIDE, SIDE), mode="area")
    return rearrange(small, "(n t) c h w -> n t c h w", n=len(clips))


def mean_frame(video: Video) -> Tensor:
    """The average of all frames [3 * SIDE * SIDE]: the place, the light, what stays."""
    return video.small.mean(dim=(0, 1)).flatten()


def motion_map(video: Video) -> Tensor:
    """How much each place changes from one frame of a clip to the next, on average [SIDE * SIDE]: where and how much
    moves, and nothing of how it looks. Zeros for clips of a single frame."""
    gray = (video.small * torch.tensor(LUMA, dtype=torch.float32).view(3, 1, 1)).sum(dim=2)
    if gray.shape[1] < 2:
        return torch.zeros(SIDE * SIDE)
    return gray.diff(dim=1).abs().mean(dim=(0, 1)).flatten()


def color_histogram(video: Video) -> Tensor:
    """Square roots of the shares of 512 colors [BINS ** 3], which makes their distance Hellinger's: no shapes, no
    places, no time."""
    red, green, blue = (video.clips.long() * BINS // SHADES).unbind(dim=1)
    counts = torch.bincount(((red * BINS + green) * BINS + blue).flatten(), minlength=BINS**3)
    return (counts / counts.sum()).sqrt()


PICTURES: dict[str, Descriptor] = {
    "mean_frame": mean_frame,
    "motion_map": motion_map,
    "color_histogram": color_histogram,
}


class FrameFeatures:
    """A descriptor: the mean over the middle frames of all clips of what a frozen image network says of them [d].

    `encoder` maps clips of normalized floats [b 3 t h w] to tokens [b t d]; `mean` and `std` are its colors.
    """

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]):
        self._encoder = encoder.eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1, 1) for values in (mean, std))

    @torch.inference_mode()
    def __call__(self, video: Video) -> Tensor:
        clips = video.clips
        middle = rearrange(clips[:, :, clips.shape[2] // 2], "n c h w -> c n h w").float() / (SHADES - 1)
        tokens: Tensor = self._encoder(((middle - self._mean) / self._std)[None])
        return tokens[0].mean(dim=0)


def describe(clips: Tensor, descriptors: Sequence[Descriptor]) -> list[np.ndarray]:
    """What each of `descriptors` says of one video's clips, uint8 [n 3 t h w]."""
    video = Video(clips)
    return [descriptor(video).numpy().astype(np.float32) for descriptor in descriptors]
