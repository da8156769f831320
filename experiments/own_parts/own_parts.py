"""One part of each kind, as a user would write it outside of the repo, beside a folder of YAML files."""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.data.manifest.manifest import Manifest, Record


@dataclass(frozen=True)
class ListedVideos:
    """A dataset: a CSV file of split, path and class, with a header."""

    table: str

    def manifests(self) -> dict[str, Manifest]:
        with open(self.table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        classes = sorted({row["class"] for row in rows})
        folder = Path(self.table).parent
        return {
            split: Manifest(
                [
                    Record(str(folder / row["path"]), classes.index(row["class"]), group=row["path"])
                    for row in rows
                    if row["split"] == split
                ],
                classes,
            )
            for split in dict.fromkeys(row["split"] for row in rows)
        }


class Posterize(nn.Module):
    """An augmentation in place of color: fewer levels, with a probability; the seed of each view decides."""

    def __init__(self, levels: int, chance: float):
        super().__init__()
        self.levels, self.chance = levels, chance

    def forward(self, clips: Tensor, seeds: Tensor) -> Tensor:
        """`clips` float [v c t h w] in [0, 1], `seeds` int64 [v]."""
        for clip, seed in zip(clips, seeds.tolist(), strict=True):
            if torch.rand((), generator=torch.Generator().manual_seed(seed)) < self.chance:
                clip.mul_(self.levels - 1).round_().div_(self.levels - 1)
        return clips


class ConvFrames(nn.Module):
    """An encoder: two convolutions, and every place of every frame is a token."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.embed_dim = embed_dim
        self.blocks = nn.ModuleList(
            [nn.Conv3d(3, embed_dim, (1, 8, 8), (1, 8, 8)), nn.Conv3d(embed_dim, embed_dim, 3, padding=1)]
        )

    @property
    def layers(self) -> list[nn.Module]:
        """In the order of depth; together they hold every parameter."""
        return list(self.blocks)

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The number of tokens along t, h and w."""
        return frames, height // 8, width // 8

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x).relu()
        return rearrange(x, "b d t h w -> b (t h w) d")


class ClipNet(nn.Sequential):
    """A whole model: clips [b 3 t h w] to logits [b k]. It has no separate encoder and head."""

    def __init__(self, num_classes: int, width: int):
        super().__init__(
            nn.Conv3d(3, width, (3, 8, 8), (1, 8, 8), (1, 0, 0)),
            nn.BatchNorm3d(width),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(width, num_classes),
        )


class MaxPoolClassifier(nn.Module):
    """A head: the largest value of each channel over all tokens, then a linear layer."""

    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, num_classes)

    def forward(self, tokens: Tensor, grid: tuple[int, int, int] | None = None) -> Tensor:
        return self.linear(tokens.amax(dim=1))


@dataclass(frozen=True)
class CrossEntropyWithPenalty:
    """A loss: cross-entropy with a penalty on large logits."""

    penalty: float
    independent: ClassVar[bool] = False  # classes exclude each other

    def weights(self, class_shares: Tensor) -> Tensor | None:
        return None

    def __call__(self, logits: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        return F.cross_entropy(logits, targets) + self.penalty * logits.square().mean()


class SignSGD(torch.optim.Optimizer):
    """An optimizer: every weight moves by the learning rate, against the sign of its gradient."""

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(weight.grad.sign(), alpha=-group["lr"])


@dataclass(frozen=True)
class InverseRoot:
    """A schedule: warmup, then proportional to 1 / sqrt(step)."""

    warmup_steps: int = 10

    def __call__(self, step: int, total_steps: int) -> float:
        return min(step / self.warmup_steps, (self.warmup_steps / step) ** 0.5)
