"""Whether the memory of a process stays flat while it reads clip after clip, as a worker of a DataLoader does.

python experiments/benchmarks/decoding/memory.py [--count 10000]

Train clips are drawn from the videos of bench.py: mostly from the small ones, one in fifty from all of them. The
index is on disk; for one clip in a hundred the file is probed anew. Prints resident memory every 1,000 clips.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from bench import CLIPS
from videos import videos
from works import SIZE, Shape, draw

from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.workers import keep_freed_memory

SETTLED = 1000  # clips after which caches and the allocator's arenas are taken to be full


def main() -> None:
    folder = Path(tempfile.gettempdir()) / "vidtrain_decoding"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, default=CLIPS, help=f"folder with the real clips ({CLIPS})")
    parser.add_argument("--videos", type=Path, default=folder, help=f"where videos are made once ({folder})")
    parser.add_argument("--count", type=int, default=10_000, help="clips (10,000)")
    options = parser.parse_args()
    every = [video for video in videos(options.clips, options.videos, []) if video.path]
    small = [video.path for video in every if "340x256" in video.name or "320x240" in video.name]
    with tempfile.TemporaryDirectory() as place:
        _read(small, [video.path for video in every], options.count, Path(place) / "index.sqlite")


def _read(small: list[str], every: list[str], count: int, index_path: Path) -> None:
    keep_freed_memory()  # as a worker does
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    index = VideoIndex(index_path)
    started, resident = time.monotonic(), {}
    print(f"{len(every)} files, {len(small)} of them small\n\n| clips | resident, MiB | seconds |\n|---|---|---|")
    for number in range(1, count + 1):
        paths = every if number % 50 == 0 else small
        path = paths[int(rng.integers(len(paths)))]
        video = (VideoIndex(None) if number % 100 == 1 else index).info(path)
        shape = Shape(video.num_frames, video.width, video.height)
        job = draw("train", path, shape, rng)
        decode_views(video, [(clip, job.crop) for clip in job.clips], SIZE, "bilinear")
        if number in (1, 100) or number % 1000 == 0:
            resident[number] = _resident()
            print(f"| {number} | {resident[number]:.1f} | {time.monotonic() - started:.0f} |", flush=True)
    if count > SETTLED:
        growth = resident[max(resident)] - resident[SETTLED]
        print(f"\nGrowth from clip {SETTLED} to clip {max(resident)}: {growth:+.1f} MiB")


def _resident() -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


if __name__ == "__main__":
    main()
