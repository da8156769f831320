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
        # a partial, which copies and pickles with the block; a closure would not
        block.forward = partial(_recomputed, block)


def _recomputed(block: nn.Module, *inputs, **named):
    forward = type(block).forward
    if not torch.is_grad_enabled():
        return forward(block, *inputs, **named)
    if torch.compiler.is_compiling():  # takes no contexts, and writes statistics once by itself
        return checkpoint(forward, block, *inputs, use_reentrant=False, **named)
    return checkpoint(
        forward, block, *inputs, use_reentrant=False, context_fn=partial(_contexts, block), **named
    )


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    """What the first and the second forward pass run in."""
    return nullcontext(), _statistics_held(block)


@contextmanager
def _statistics_held(block: nn.Module) -> Iterator[None]:
    """Batch norms run as before, but what they move are copies of their statistics, which are then dropped.

    Without any statistics they would save fewer tensors than in the first pass, which checkpointing refuses.
    """
    norms = [each for each in block.modules() if isinstance(each, _BatchNorm) and each.training]
    held = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in held:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in held:
            setattr(norm, name, buffer)
