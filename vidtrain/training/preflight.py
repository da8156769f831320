"""Before the first step: does every trainable parameter receive a finite gradient?"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from vidtrain.errors import UserError


def check_gradients(
    model: nn.Module,
    clips: Tensor,
    labels: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    autocast: AbstractContextManager,
) -> float:
    """One forward and backward of `clips` float [b n c t h w]; returns the loss and leaves no trace.

    `loss_of` maps what the model gives, clip logits [b n k], and labels to the loss.

    Raises `UserError` naming the parameters whose gradient is absent or not finite, and where logits and
    labels do not fit together.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}  # batch statistics move
    with autocast:
        loss = loss_of(model(clips), labels)
    loss.backward()
    silent, broken = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if parameter.grad is None:
                silent.append(name)
            elif not torch.isfinite(parameter.grad).all():
                broken.append(name)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    if silent:
        raise UserError(f"trainable parameters that the loss does not reach: {_some(silent)}")
    if broken:
        raise UserError(f"gradients that are not finite before the first step: {_some(broken)}")
    return loss.item()


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
