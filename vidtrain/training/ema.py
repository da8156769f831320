"""An average of the weights over the steps of training, which often judges better than the last of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def decay_at(step: int, decay: float, warmup: bool) -> float:
    """How much of the average stays at optimizer step `step` of 1, 2, ...

    With `warmup` min(decay, (1 + step) / (10 + step)), as in TensorFlow's ExponentialMovingAverage: else the average
    would remember the initial weights for thousands of steps.
    """
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


class WeightAverage:
    """Exponential moving average of a model's parameters and float buffers; other buffers are copied.

    It starts as the model's weights. `tensors` holds it under the names of the model's state dict, on the same
    device; it is all the state there is. The model must keep its tensors in place, as training does.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool):
        self.decay = decay
        self.warmup = warmup
        live = model.state_dict(keep_vars=True)
        by_id: dict[int, Tensor] = {}
        for tensor in live.values():
            if id(tensor) not in by_id:
                by_id[id(tensor)] = tensor.detach().clone()
        self.tensors = {name: by_id[id(tensor)] for name, tensor in live.items()}
        # a tensor that two names share is here once
        pairs = {id(tensor): (by_id[id(tensor)], tensor.detach()) for tensor in live.values()}
        self._pairs = list(pairs.values())
        self._floats = [pair for pair in self._pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in self._pairs if not pair[0].is_floating_point()]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up the average of an earlier attempt."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step` of the run."""
        averages, weights = ([pair[i] for pair in self._floats] for i in (0, 1))
        torch._foreach_lerp_(averages, weights, 1 - decay_at(step, self.decay, self.warmup))
        for average, current in self._others:
            average.copy_(current)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average's weights for as long as the context lasts, then its own again, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for average, current in self._pairs:
            own = current.clone()
            current.copy_(average)
            average.copy_(own)
