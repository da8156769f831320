"""Times the exact search for the nearest of a million vectors: wall seconds, and CPU seconds, which others on the
machine disturb less.

python experiments/benchmarks/neighbors/bench.py [VECTORS] [THREADS]

It takes 6 GB for a million vectors of 768 numbers, which are drawn, of length one.
"""

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from vidtrain.embeddings.ranking import nearest, unit

DIMENSION, QUERIES, NEIGHBORS, REPEATS, DRAWN = 768, 100, 10, 5, 50_000


def drawn(kind: str, count: int, rng: np.random.Generator, centers: np.ndarray) -> np.ndarray:
    """Vectors in all directions alike, around one direction, or of a thousand classes."""
    vectors = rng.standard_normal((count, DIMENSION), np.float32)
    if kind == "cone":
        vectors += 2 * centers[0]
    elif kind == "classes":
        vectors = 0.5 * vectors + centers[rng.integers(len(centers), size=count)]
    return unit(vectors)


def timed(title: str, work: Callable[[], object]) -> None:
    wall, cpu = [], []
    for _ in range(REPEATS):
        started, used = time.perf_counter(), time.process_time()
        work()
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
    times = f"{min(wall):.2f} s at best, {np.median(wall):.2f} s median; {min(cpu):.2f} CPU seconds at best"
    print(f"{title}: {times}", flush=True)


def main(count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((1000, DIMENSION), np.float32)
    units = np.empty((count, DIMENSION), np.float32)
    right = torch.from_numpy(units)
    for kind in ("all directions", "cone", "classes"):
        for start in range(0, count, DRAWN):
            part = units[start : start + DRAWN]
            part[:] = drawn(kind, len(part), rng, centers)
        queries = drawn(kind, QUERIES, rng, centers)
        left = torch.from_numpy(queries)
        timed(f"{kind}, search", partial(nearest, queries, units, NEIGHBORS))
        timed(f"{kind}, products in float32", partial(products, left, right))


def products(left: torch.Tensor, right: torch.Tensor) -> None:
    for part in right.split(8192):
        left @ part.T


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["1000000"])[0]), int((sys.argv[2:] or ["2"])[0]))
