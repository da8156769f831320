"""Activation checkpointing: memory for about a third more compute, the same for every encoder.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost" (arXiv:1604.06174).
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute_activations(blocks: Iterable[nn.Module]) -> None:
    """From now on a backward pass keeps only the inputs of each block, and runs its forward pass once more.

    Names and numbers stay: batch norms keep statistics of the first pass alone.
    """
    for block in blocks:
        block.forward = partial(
            _recomputed, block
        )  # a partial, which copies with the block; a closure would not


def _recomputed(block: nn.Module, *inputs):
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs)
    return checkpoint(forward, block, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What the first and the second forward pass run in."""
    return nullcontext(), _statistics_held(block)


@contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """Batch norms still normalize by the batch, but their running statistics do not move a second time."""
    norms = [each for each in block.modules() if isinstance(each, _BatchNorm) and each.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
