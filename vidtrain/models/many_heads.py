"""Many heads on one encoder: each clip is encoded once, and every head judges its tokens."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vidtrain.models.classifier import VideoClassifier, classify, encode
from vidtrain.models.positions import Grid


class ManyHeads(nn.Module):
    """Clips [b n c t h w] -> clip logits [b n (h k)] of h heads side by side, those of a head together.

    The encoder is that of `model`, which must be frozen: it runs without gradients. With a `grid` it does not run
    at all: the input is then its tokens [b n m d], of clips whose tokens lie on that grid. Each head sees what the head
    of `model` would see, fusion included.
    """

    def __init__(self, model: VideoClassifier, heads: Sequence[nn.Module], grid: Grid | None = None):
        super().__init__()
        self.encoder = model.encoder
        self.head = nn.ModuleList(heads)
        self.fusion = model.fusion
        self.num_classes = model.num_classes
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        tokens, grid = x, self.grid
        if grid is None:
            grid = self.encoder.grid(*x.shape[3:])
            with torch.no_grad():
                tokens = encode(self.encoder, x)
        return torch.cat([classify(head, tokens, grid, self.fusion) for head in self.head], dim=-1)
