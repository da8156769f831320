"""How much arithmetic a model is, and how much a device could do."""

import math
import re
import time

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

# Dense peak TFLOP/s of tensor cores in 16 bits, and of float32 without TensorFloat-32, from NVIDIA's data sheets.
# The first pattern that a device's name matches counts.
PEAKS = (
    (r"\bH200\b", 989.0, 67.0),
    (r"\bH100 PCIe\b", 756.0, 51.0),
    (r"\bH100\b", 989.0, 67.0),
    (r"\bA100\b", 312.0, 19.5),
    (r"\bL40S\b", 362.0, 91.6),
    (r"\bL4\b", 121.0, 30.3),
    (r"\bA40\b", 149.7, 37.4),
    (r"\bA10\b", 125.0, 31.2),
    (r"\bV100\b", 125.0, 15.7),
    (r"\bT4\b", 65.0, 8.1),
)
MATMUL = {"cuda": 8192, "cpu": 1024}  # rows and columns of the matrices whose product is timed


def _convolution_backward(
    grad_shape, input_shape, weight_shape, _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups,
    output_mask, out_shape=None, **_,
) -> int:  # fmt: skip
    """FLOPs of a convolution's gradients: as many for the input's and for the weight's as the forward pass has.

    PyTorch's own formula takes grouped convolutions for dense ones.
    """
    positions = math.prod(input_shape if transposed else grad_shape)
    return 2 * positions * math.prod(weight_shape[1:]) * sum(output_mask[:2])


FORMULAS = {torch.ops.aten.convolution_backward: _convolution_backward}


def count_flops(model: nn.Module, clip: torch.Tensor) -> tuple[int, int]:
    """FLOPs of one forward pass of `clip` float [1 n c t h w], and of a forward and backward pass of what trains.

    Counts matrix products and convolutions, two FLOPs for a multiplication with its addition; what is recomputed in
    the backward pass counts as often as it runs. A model and a clip on the meta device take neither time nor memory.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)  # the counter does not stand no_grad
    # fused attention is not counted on every device, the products that it stands for are
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as forward:
        model(clip)
    for parameter in trained:
        parameter.requires_grad_(True)
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    with sdpa_kernel(SDPBackend.MATH), counter as both:
        model(clip).float().sum().backward()
    model.zero_grad(set_to_none=True)
    return forward.get_total_flops(), both.get_total_flops()


def known_peak(name: str, precision: str) -> float | None:
    """Peak FLOP/s of a GPU by its `name`, in `precision` (fp32, bf16, fp16); None where it is not known."""
    for pattern, half, single in PEAKS:
        if re.search(pattern, name):
            return (single if precision == "fp32" else half) * 1e12
    return None


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s that the product of two large matrices reaches here and now: the best of `repeats`."""
    size = MATMUL[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(repeats + 1):  # the first one warms up
        started = time.perf_counter()
        _ = left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best
