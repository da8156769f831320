"""A training step of a large ViT-3D: milliseconds, clips per second, peak memory and model FLOPs utilization.

python experiments/benchmarks/models/gpu.py [--size large] [--batch 8] [--device cuda]

With and without torch.compile and activation checkpointing. Utilization counts the FLOPs of the forward and backward
pass of the plain model, whatever is computed a second time, over the peak of the device.
"""

import argparse
import itertools
import statistics
import time

import torch
from contenders import WIDTHS, ours
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16, as the makers state them
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L40S": 362, "4090": 165}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=WIDTHS, default="large", help="of the ViT (large)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--image", type=int, default=224, help="pixels (224)")
    parser.add_argument("--batch", type=int, default=8, help="clips (8)")
    parser.add_argument("--steps", type=int, default=20, help="timed, after 5 to warm up (20)")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    peak = next((tflops for model, tflops in PEAK_TFLOPS.items() if model in name), None)
    batch = [options.batch, 3, options.frames, options.image, options.image]
    print(f"ViT-{options.size}, clips {batch}, bfloat16 autocast, AdamW, on {name}\n")
    print("| compile | checkpointing | ms a step | clips/s | peak GiB | TFLOPS | utilization |")
    print("|---|---|---|---|---|---|---|")
    clips = torch.randn(batch, device=device)
    flops = _flops(options, clips)
    for compiled, checkpointing in itertools.product((False, True), (False, True)):
        seconds, memory = _step(options, clips, compiled, checkpointing)
        achieved = flops / seconds / 1e12
        share = "" if peak is None else f"{achieved / peak:.1%}"
        print(
            f"| {_word(compiled)} | {_word(checkpointing)} | {seconds * 1e3:.1f} | {options.batch / seconds:.1f} | "
            f"{memory:.1f} | {achieved:.1f} | {share} |",
            flush=True,
        )


def _word(on: bool) -> str:
    return "yes" if on else "no"


def _flops(options: argparse.Namespace, clips: torch.Tensor) -> float:
    model = ours("V-JEPA 2", options.size, options.frames, options.image).to(clips.device)
    with FlopCounterMode(display=False) as counter:
        model(clips).square().mean().backward()
    return counter.get_total_flops()


def _step(options: argparse.Namespace, clips: torch.Tensor, compiled: bool, checkpointing: bool) -> tuple[float, float]:
    """(median seconds, peak GiB; 0 without a GPU)."""
    torch.compiler.reset()
    torch.manual_seed(0)
    model = ours("V-JEPA 2", options.size, options.frames, options.image, checkpointing).to(clips.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(model) if compiled else model
    on_gpu = clips.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(5 + options.steps):
        started = time.perf_counter()
        with torch.autocast(clips.device.type, torch.bfloat16):
            loss = forward(clips).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
    return statistics.median(times[5:]), memory


if __name__ == "__main__":
    main()
