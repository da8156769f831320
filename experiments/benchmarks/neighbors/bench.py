"""Times the exact search for the nearest of a million vectors: wall seconds, and CPU seconds, which others on the
machine disturb less.

python experiments/benchmarks/neighbors/bench.py [VECTORS] [THREADS]

It takes 3 GB for a million vectors of 768 numbers, which are drawn, of length one.
"""

import sys
import time

import numpy as np
import torch

from vidtrain.embeddings.search import nearest, unit

DIMENSION, QUERIES, NEIGHBORS, REPEATS, DRAWN = 768, 100, 10, 5, 50_000


def main(count: int, threads: int) -> None:
    torch.set_num_threads(threads)
    rng = np.random.default_rng(0)
    units = np.empty((count, DIMENSION), np.float32)
    for start in range(0, count, DRAWN):
        units[start : start + DRAWN] = unit(
            rng.standard_normal(units[start : start + DRAWN].shape, np.float32)
        )
    queries = unit(rng.standard_normal((QUERIES, DIMENSION), np.float32))
    left, right = torch.from_numpy(queries), torch.from_numpy(units)
    for name, work in (
        ("search", lambda: nearest(queries, units, NEIGHBORS)),
        ("the products alone", lambda: [left @ part.T for part in right.split(16384)]),
    ):
        wall, cpu = [], []
        for _ in range(REPEATS):
            started, used = time.perf_counter(), time.process_time()
            work()
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - used)
        print(
            f"{name}: {min(wall):.2f} s at best, {np.median(wall):.2f} s median; {min(cpu):.2f} CPU seconds at best"
        )


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["1000000"])[0]), int((sys.argv[2:] or ["2"])[0]))
