"""Our ViT-3D against transformers' VideoMAE and V-JEPA 2 of the same size, on the same weights and clips.

python experiments/benchmarks/models/bench.py [--size base] [--rounds 7] [--compile]

Each round times every contender once, in turn, one after the other; the table shows medians, the median of the
rounds' ratios (above 1: transformers takes longer) with its quartiles, and peak memory, of a process of its own for
each contender and work.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from contenders import WIDTHS, Contender, contenders

FAMILIES = ("VideoMAE", "V-JEPA 2")
WORKS = ("forward", "forward+backward")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=FAMILIES, help="(all)")
    parser.add_argument("--size", choices=WIDTHS, default="base", help="of the ViT (base)")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--image", type=int, default=224, help="pixels (224)")
    parser.add_argument("--batch", type=int, default=1, help="clips (1)")
    parser.add_argument("--threads", type=int, default=2, help="that compute (2)")
    parser.add_argument("--rounds", type=int, default=7, help="after one to warm up (7)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile as well")
    parser.add_argument("--memory-of", nargs=3, metavar=("FAMILY", "NAME", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(json.dumps(_peak_memory(options)))
        return
    batch = [options.batch, 3, options.frames, options.image, options.image]
    print(f"ViT-{options.size}, clips {batch}, float32, {options.threads} threads, {options.rounds} rounds\n")
    print("| family | work | vidtrain, s | transformers, s | ratio (quartiles) | peak MiB | theirs | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for family in options.family:
        pair = contenders(family, options.size, options.frames, options.image)
        clip = torch.randn(batch, generator=torch.Generator().manual_seed(0))
        difference = _difference(pair, clip)
        for compiled in (False, True) if options.compile else (False,):
            for work in WORKS:
                times = _times(pair, clip, work, options.rounds, compiled)
                memory = ["", ""] if compiled else [_measured(options, family, each.name, work) for each in pair]
                _row(f"{family}{', compiled' if compiled else ''}", work, times, memory, difference)


def _row(family: str, work: str, times: list[list[float]], memory: list[str], difference: str) -> None:
    mine, peer = (statistics.median(each) for each in times)
    ratios = sorted(their / our for our, their in zip(*times, strict=True))
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    ratio = f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})"
    print(
        f"| {family} | {work} | {mine:.3f} | {peer:.3f} | {ratio} | {memory[0]} | {memory[1]} | {difference} |",
        flush=True,
    )


@torch.no_grad()
def _difference(pair: list[Contender], clip: torch.Tensor) -> str:
    """The largest difference of their tokens, relative to the largest token."""
    mine, peer = (each.tokens(each.module.eval(), clip) for each in pair)
    return f"{((mine - peer).abs().max() / peer.abs().max()).item():.1e}"


def run(contender: Contender, clip: torch.Tensor, work: str) -> float:
    """Seconds of one pass; parameters keep no gradients afterwards."""
    contender.module.train(work != "forward")
    started = time.perf_counter()
    with torch.set_grad_enabled(work != "forward"):
        tokens = contender.tokens(contender.module, clip)
        if work != "forward":
            tokens.square().mean().backward()
    seconds = time.perf_counter() - started
    contender.module.zero_grad(set_to_none=True)
    return seconds


def _times(pair: list[Contender], clip: torch.Tensor, work: str, rounds: int, compiled: bool) -> list[list[float]]:
    for each in pair:
        torch.compiler.reset()
        each.module._compiled_call_impl = None
        if compiled:
            each.module.compile()
    times: list[list[float]] = [[], []]
    for each in pair:
        run(each, clip, work)
    for number in range(rounds):
        order = (0, 1) if number % 2 == 0 else (1, 0)  # neither is always the second
        for index in order:
            times[index].append(run(pair[index], clip, work))
    return times


def _measured(options: argparse.Namespace, family: str, name: str, work: str) -> str:
    plain = [f"--{key}={getattr(options, key)}" for key in ("size", "frames", "image", "batch", "threads")]
    command = [sys.executable, __file__, *plain, "--memory-of", family, name, work]
    # memory that is freed goes back at once, so that what is resident is what is used
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True, env=environment)
    return f"{json.loads(done.stdout.splitlines()[-1]):.0f}"


def _peak_memory(options: argparse.Namespace) -> float:
    """MiB above what lies in memory before, at the peak of two passes."""
    family, name, work = options.memory_of
    pair = contenders(family, options.size, options.frames, options.image)
    mine = next(each for each in pair if each.name == name)
    clip = torch.randn(options.batch, 3, options.frames, options.image, options.image)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # from here on the kernel notes a new peak
    run(mine, clip, work)
    run(mine, clip, work)
    return _resident("VmHWM") - before


def _resident(key: str) -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:")) / 1024


if __name__ == "__main__":
    main()
