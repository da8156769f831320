"""Models without memory in less time: PyTorch derives shapes on the meta device in Python, a layer norm's in a
millisecond. What most layers need is derived here in a few lines. PyTorch is asked for all else, and for
arguments that do not fit.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_LIBRARY = torch.library.Library("aten", "IMPL", "Meta")
_PLAIN = (Tensor, nn.Parameter)  # tensors of torch.export are of other types, and their shapes symbols


def _itself(tensor: Tensor, *_: Any, **__: Any) -> Tensor:
    return tensor


def _like(tensor: Tensor, **_: Any) -> Tensor:
    return torch.empty_like(tensor)


def _like_both(first: Tensor, second: Tensor, **_: Any) -> Any:
    alike = type(second) in _PLAIN and (first.shape, first.dtype) == (second.shape, second.dtype)
    return torch.empty_like(first) if alike and first.stride() == second.stride() else NotImplemented


def _matrix_product(added: Tensor, first: Tensor, second: Tensor, **_: Any) -> Any:
    fits = first.ndim == second.ndim == 2 and first.shape[1] == second.shape[0]
    if not fits or added.shape != second.shape[1:] or not added.dtype == first.dtype == second.dtype:
        return NotImplemented
    return first.new_empty(first.shape[0], second.shape[1])


def _layer_norm(tensor: Tensor, sizes: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    kept = tensor.ndim - len(sizes)
    if tensor.shape[kept:] != tuple(sizes) or tensor.dtype != torch.float32 or kept < 1:
        return NotImplemented
    if any(each is not None and (each.shape, each.dtype) != (tuple(sizes), tensor.dtype) for each in (weight, bias)):
        return NotImplemented
    statistics = (*tensor.shape[:kept], *(1 for _ in sizes))
    normed = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    return normed, tensor.new_empty(statistics), tensor.new_empty(statistics)


def _batch_norm(
    tensor: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Any, variance: Any, training: bool, *_: Any
) -> Any:
    size = tensor.shape[1:2]
    if tensor.ndim < 3 or tensor.dtype != torch.float32:
        return NotImplemented
    if any(each is not None and each.shape != size for each in (weight, bias, mean, variance)):
        return NotImplemented
    statistics = size if training else (0,)
    return torch.empty_like(tensor), tensor.new_empty(statistics), tensor.new_empty(statistics)


RULES: dict[str, Callable[..., Any]] = {
    "uniform_": _itself,
    "normal_": _itself,
    "clamp_": _itself,
    "relu": _like,
    "gelu": _like,
    "add.Tensor": _like_both,
    "mul.Tensor": _like_both,
    "addmm": _matrix_product,
    "native_layer_norm": _layer_norm,
    "native_batch_norm": _batch_norm,
}


def _register(name: str, rule: Callable[..., Any]) -> None:
    packet, _, overload = name.partition(".")
    kernels = getattr(getattr(torch.ops.aten, packet), overload or "default").py_kernels
    if torch._C.DispatchKey.Meta not in kernels:
        return  # this version of PyTorch derives it in C++
    original = kernels[torch._C.DispatchKey.Meta]

    def kernel(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
        if type(tensor) in _PLAIN:
            result = rule(tensor, *arguments, **options)
            if result is not NotImplemented:
                return result
        return original(tensor, *arguments, **options)

    _LIBRARY.impl(name, kernel)


def derive_quickly() -> None:
    """From now on they are."""
    for name, rule in RULES.items():
        _register(name, rule)
