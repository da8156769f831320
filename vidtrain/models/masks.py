"""Draws masks for pretraining: which tokens of a clip are visible to the encoder, and which are hidden and predicted.

A sample's masks depend on (settings, grid, its seed) alone, not on its batch, worker or rank. V-JEPA draws the size of
blocks once for a batch, and cuts all samples to the fewest tokens in the batch. Here sizes are drawn for each sample
and nothing is cut: shorter lists of tokens are padded, and attention ignores padding. As padding costs as much time as
tokens, samples of similar length are encoded together.

Sources: VideoMAE (Tong et al. 2022), tubes; V-JEPA (Bardes et al. 2024), blocks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.positions import Grid, take_tokens

if TYPE_CHECKING:
    from vidtrain.models.masked_models import MaskedModel

# A view's seed has a stream of random numbers for each purpose; the tags 1 and 2 are for augmentations
TAG = 3
TRIES = 1000
GROUPS = 4  # a batch is divided into this many groups of similar length


class Masks(NamedTuple):
    """One mask for each sample of a batch: each place is visible or hidden. Places are flat: over t, then h, then w (w
    fastest)."""

    visible: Tensor  # int64 [b n], rising, padded at the end with 0
    hidden: Tensor  # int64 [b m], likewise
    visible_valid: Tensor | None = None  # bool [b n], False for padding; None without padding
    hidden_valid: Tensor | None = None  # bool [b m], likewise
    # groups of rows (int64) with similar numbers of visible tokens, and the largest number in each; they hold all rows
    groups: tuple[tuple[Tensor, int], ...] | None = None

    def to(self, device: torch.device | str) -> "Masks":
        """Copies the masks to a device. A copy to a GPU is asynchronous."""
        pin = torch.device(device).type == "cuda"

        def move(part: Tensor) -> Tensor:
            return (part.pin_memory() if pin and part.is_cpu else part).to(device, non_blocking=pin)

        tensors = {name: move(part) for name, part in self._asdict().items() if isinstance(part, Tensor)}
        groups = self.groups and tuple((move(rows), longest) for rows, longest in self.groups)
        return self._replace(**tensors, groups=groups)

    def mean_of_hidden(self, values: Tensor) -> Tensor:
        """The mean of values [b m] over each sample's hidden tokens: [b]."""
        return _mean(values, self.hidden_valid)

    def mean_of_visible(self, values: Tensor) -> Tensor:
        """The mean of values [b n] over each sample's visible tokens: [b]."""
        return _mean(values, self.visible_valid)

    def distances(self, grid: Grid) -> Tensor:
        """The Euclidean distance, in tokens of `grid`, of each visible token to the nearest hidden one: float32 [b n],
        at least 1. Those of padding are meaningless. Squares of distances are minimized along one axis after the other,
        which is exact and needs no table of all pairs."""
        batch, size = len(self.hidden), math.prod(grid)
        squares = torch.full((batch, size, 1), math.inf, device=self.hidden.device)
        squares = self.put_hidden(torch.zeros(*self.hidden.shape, 1, device=self.hidden.device), squares)
        squares = squares.view(batch, *grid)
        for axis, length in enumerate(grid, start=1):
            places = torch.arange(length, dtype=torch.float32, device=self.hidden.device)
            steps = (places[:, None] - places).square()
            squares = (squares.movedim(axis, -1)[..., None, :] + steps).amin(dim=-1).movedim(-1, axis)
        return take_tokens(squares.reshape(batch, size, 1), self.visible)[..., 0].sqrt().clamp_min(1)

    def put_hidden(self, values: Tensor, tokens: Tensor) -> Tensor:
        """Tokens [b N d], with the hidden ones replaced by values [b m d]."""
        return _put(values, tokens, self.hidden, self.hidden_valid)

    def put_visible(self, values: Tensor, tokens: Tensor) -> Tensor:
        """Tokens [b N d], with the visible ones replaced by values [b n d]."""
        return _put(values, tokens, self.visible, self.visible_valid)


def _mean(values: Tensor, valid: Tensor | None) -> Tensor:
    return values.mean(dim=1) if valid is None else (values * valid).sum(dim=1) / valid.sum(dim=1)


def _put(values: Tensor, tokens: Tensor, places: Tensor, valid: Tensor | None) -> Tensor:
    if valid is not None:  # padding is written to an extra token at the end, which is dropped
        places = places.masked_fill(~valid, tokens.shape[1])
        tokens = torch.cat((tokens, tokens[:, :1]), dim=1)
    result = tokens.scatter(1, places[..., None].expand_as(values), values)
    return result if valid is None else result[:, :-1]


class MaskedClips(NamedTuple):
    """The input of a masked model: clips float [b n c t h w], and for each kind the masks of their (b n) samples."""

    clips: Tensor
    masks: list[Masks]


class MaskSampler(Protocol):
    """Draws masks. `kinds` is the number of masks of each sample."""

    @property
    def kinds(self) -> int: ...

    def __call__(self, grid: Grid, seeds: Sequence[int]) -> list[Masks]:
        """One `Masks` for each kind; row i depends on (settings, grid, seeds[i]) alone."""

    def check(self, grid: Grid) -> None:
        """Raises UserError for a grid on which no token would be hidden, or none visible."""


def masks_of(hidden: np.ndarray) -> Masks:
    """The masks for `hidden` bool [b n]; each row must have hidden and visible tokens."""
    visible, visible_valid = _places(~hidden)
    places, hidden_valid = _places(hidden)
    groups = None
    if visible_valid is not None:
        counts = (~hidden).sum(axis=1)
        rows = np.array_split(counts.argsort(kind="stable"), min(GROUPS, len(counts)))
        groups = tuple((torch.from_numpy(part), int(counts[part].max())) for part in rows)
    return Masks(visible, places, visible_valid, hidden_valid, groups)


def _places(chosen: np.ndarray) -> tuple[Tensor, Tensor | None]:
    """The indices at which each row of bool [b n] is true, rising and padded; and which of them are not padding, or
    None."""
    counts = chosen.sum(axis=1)
    valid = np.arange(counts.max()) < counts[:, None]
    places = np.zeros(valid.shape, dtype=np.int64)
    places[valid] = np.nonzero(chosen)[1]  # both run over rows, then along them
    return torch.from_numpy(places), None if valid.all() else torch.from_numpy(valid)


@dataclass(frozen=True)
class TubeMasks:
    """VideoMAE's masks: hide a share `ratio` of the places (h, w), rounded down, the same ones at all times. Raises
    UserError if the ratio is not between 0 and 1."""

    ratio: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise UserError(
                f"objective.masks.ratio={self.ratio} must lie between 0 and 1, as the share of tokens that is hidden"
            )

    @property
    def kinds(self) -> int:
        return 1

    def __call__(self, grid: Grid, seeds: Sequence[int]) -> list[Masks]:
        t, h, w = grid
        places = h * w
        hidden = np.zeros((len(seeds), places), dtype=bool)
        for row, seed in zip(hidden, seeds, strict=True):
            row[_generator(seed).permutation(places)[: int(self.ratio * places)]] = True
        return [masks_of(np.tile(hidden, (1, t)))]

    def check(self, grid: Grid) -> None:
        _, h, w = grid
        if int(self.ratio * h * w) == 0:
            raise UserError(
                f"objective.masks.ratio={self.ratio} hides none of the {h}x{w} places of a frame, for shares are "
                "rounded down; raise it, raise clip.size, or lower model.encoder.patch_size"
            )


@dataclass(frozen=True)
class BlockMasks:
    """V-JEPA's masks: each kind hides the union of some blocks, at all times.

    Kind i has blocks[i] blocks, each a share areas[i] of a frame. The blocks of a sample have the same size, whose
    height / width is drawn uniformly within `aspect`; their positions are uniform. A sample without visible tokens is
    drawn again. Raises UserError for invalid counts, shares or bounds.
    """

    blocks: Sequence[int] = (8, 2)
    areas: Sequence[float] = (0.15, 0.7)
    aspect: Sequence[float] = (0.75, 1.5)

    def __post_init__(self) -> None:
        if len(self.blocks) != len(self.areas) or not self.blocks:
            raise UserError(
                f"objective.masks.blocks={list(self.blocks)} and objective.masks.areas={list(self.areas)} must be "
                "equally long: a count and a share of the frame for each kind of mask"
            )
        if min(self.blocks) < 1:
            raise UserError(f"objective.masks.blocks={list(self.blocks)}: every kind needs 1 block at least")
        if not all(0 < area < 1 for area in self.areas):
            raise UserError(f"objective.masks.areas={list(self.areas)}: each must lie between 0 and 1")
        if len(self.aspect) != 2 or not 0 < self.aspect[0] <= self.aspect[1] < math.inf:
            raise UserError(
                f"objective.masks.aspect={list(self.aspect)} must be two numbers above 0, the smaller first"
            )

    @property
    def kinds(self) -> int:
        return len(self.blocks)

    def __call__(self, grid: Grid, seeds: Sequence[int]) -> list[Masks]:
        frames = [self._hidden(grid, _generator(seed)) for seed in seeds]
        return [masks_of(np.tile(np.stack(kind), (1, grid[0]))) for kind in zip(*frames, strict=True)]

    def check(self, grid: Grid) -> None:
        _, height, width = grid
        for area in self.areas:
            smallest = min(min(self.size(area, aspect, height, width)) for aspect in self.aspect)
            if smallest == 0:
                raise UserError(
                    f"objective.masks.areas={list(self.areas)}: a block of {area} of {height}x{width} places is empty; "
                    "raise it, raise clip.size, or lower model.encoder.patch_size"
                )
        for seed in range(100):
            self._hidden(grid, _generator(seed), tries=20)

    def size(self, area: float, aspect: float, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a block on a frame of height x width places."""
        places = int(height * width * area)
        return min(round(math.sqrt(places * aspect)), height), min(round(math.sqrt(places / aspect)), width)

    def _hidden(self, grid: Grid, rng: np.random.Generator, tries: int = TRIES) -> list[np.ndarray]:
        """For each kind of masks which places of a frame are hidden, bool [h*w]."""
        _, height, width = grid
        narrow, wide = self.aspect
        kinds = []
        for count, area in zip(self.blocks, self.areas, strict=True):
            for _ in range(tries):
                frame = np.zeros((height, width), dtype=bool)
                rows, columns = self.size(area, rng.uniform(narrow, wide), height, width)
                tops = rng.integers(height - rows + 1, size=count)
                lefts = rng.integers(width - columns + 1, size=count)
                for top, left in zip(tops, lefts, strict=True):
                    frame[top : top + rows, left : left + columns] = True
                if not frame.all():
                    break
            else:
                raise UserError(
                    f"objective.masks.blocks={list(self.blocks)}, areas={list(self.areas)}: {count} blocks of {area} "
                    f"hide all {height}x{width} places of a frame, and leave no context; lower either, raise "
                    "clip.size, or lower model.encoder.patch_size"
                )
            kinds.append(frame.ravel())
        return kinds


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([seed, TAG]))


class WithMasks(nn.Module):
    """uint8 clips [b n c t h w] and the views' seeds int64 [b n] -> the `MaskedClips` that `model` takes.

    Without seeds, as in evaluation, the sum of a clip's pixels seeds its masks. So they are the same in every
    evaluation, whatever batches and ranks the videos are divided into.
    """

    def __init__(self, transform: nn.Module, model: "MaskedModel"):
        super().__init__()
        self.transform = transform
        self._sample_masks = model.sample_masks  # the method only: the model must not become a submodule here

    def forward(self, clips: Tensor, seeds: Tensor | None = None) -> MaskedClips:
        mask_seeds = clips.sum(dim=(2, 3, 4, 5), dtype=torch.int64).cpu() if seeds is None else seeds
        transformed = self.transform(clips, seeds)
        flat = rearrange(transformed, "b n c t h w -> (b n) c t h w")
        return MaskedClips(transformed, self._sample_masks(flat, mask_seeds.flatten()))
