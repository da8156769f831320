"""Masked objectives on a batch whose masks are padded, and on each of its samples alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from vidtrain.models.masked_models import MaskedModel

Gradients = dict[str, Tensor]


class BothWays(NamedTuple):
    """Losses [b] and gradients by parameter: `together` of the padded batch, `alone` of its samples one by one."""

    together: tuple[Tensor, Gradients]
    alone: tuple[Tensor, Gradients]


def trained_both_ways(model: MaskedModel, clips: Tensor) -> BothWays:
    """The seeds of the masks are 1, 2, ...; those of the batch must need padding, and those of a sample must not."""
    seeds = torch.arange(1, len(clips) + 1)

    def losses(rows: slice, padded: bool) -> Tensor:
        masks = model.sample_masks(clips[rows], seeds[rows])
        assert all((kind.visible_valid is not None) == padded for kind in masks)
        return model.losses(clips[rows], masks)

    def with_gradients(values: Tensor) -> tuple[Tensor, Gradients]:
        model.zero_grad()
        values.sum().backward()
        return values, {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}

    single = [slice(row, row + 1) for row in range(len(clips))]
    return BothWays(
        with_gradients(losses(slice(None), padded=True)),
        with_gradients(torch.cat([losses(row, padded=False) for row in single])),
    )
