"""Random erasing for clips (Zhong et al. 2017): a box of the picture gives way to noise, in all frames of a clip."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vidtrain.data.augment.device import stream
from vidtrain.errors import UserError

MODES = ("pixel", "constant")
TRIES = 10


class RandomErasing(nn.Module):
    """With `probability` erases one box of a normalized clip, the same in all its frames.

    `area` bounds the box's share of the picture, `aspect` its height / width (drawn uniformly in the logarithm).
    `mode` says what is put there: `pixel` is fresh standard normal noise for every pixel, channel and frame,
    `constant` is 0, the mean color. The box and the noise depend on the view's seed alone; the noise is made on
    the clips' device, so its numbers are those of that kind of device.
    """

    def __init__(
        self,
        probability: float = 0.25,
        area: Sequence[float] = (0.02, 1 / 3),
        aspect: Sequence[float] = (0.3, 1 / 0.3),
        mode: str = "pixel",
    ):
        super().__init__()
        if not 0 <= probability <= 1:
            raise UserError(f"probability={probability}: must lie between 0 and 1")
        if len(area) != 2 or not 0 < area[0] <= area[1] <= 1:
            raise UserError(
                f"area={list(area)}: must be two shares, the smaller first, above 0 and at most 1"
            )
        if len(aspect) != 2 or not 0 < aspect[0] <= aspect[1] < math.inf:
            raise UserError(f"aspect={list(aspect)}: must be two numbers above 0, the smaller first")
        if mode not in MODES:
            raise UserError(f"mode={mode}: must be one of {', '.join(MODES)}")
        self.probability = probability
        self.area = tuple(area)
        self.aspect = tuple(aspect)
        self.mode = mode

    def box(self, seed: int, height: int, width: int) -> tuple[slice, slice] | None:
        """The rows and columns that the view with this seed loses, or None where it keeps all."""
        return self._box(stream(seed, "erasing"), height, width)

    def _box(self, rng: np.random.Generator, height: int, width: int) -> tuple[slice, slice] | None:
        if rng.random() >= self.probability:
            return None
        for _ in range(TRIES):
            area = height * width * rng.uniform(self.area[0], self.area[1])
            aspect = math.exp(rng.uniform(*np.log(self.aspect)))
            rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < rows < height and 0 < columns < width:
                top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
                return slice(top, top + rows), slice(left, left + columns)
        return None

    def forward(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """`clips` float [v c t h w], normalized, changed in place and returned; `seeds` int64 [v]."""
        for clip, seed in zip(clips, seeds.tolist(), strict=True):
            rng = stream(seed, "erasing")
            box = self._box(rng, *clip.shape[-2:])
            if box is None:
                continue
            erased = clip[:, :, *box]
            if self.mode == "constant":
                erased.zero_()
            else:
                generator = torch.Generator(clips.device).manual_seed(int(rng.integers(2**63 - 1)))
                noise = torch.randn(erased.shape, generator=generator, device=clips.device, dtype=clips.dtype)
                erased.copy_(noise)
        return clips
