"""Requests, bytes and clips per second of videos behind HTTP, against files on disk and against other readers.

python experiments/benchmarks/stores/bench.py --clips FOLDER [--samples N] [--latency SECONDS]

A sample is 16 frames at stride 4 from a random place, random resized crop, 16x3x224x224 uint8, read by one worker
process in batches of 8. The server is a process of its own and waits before each answer. Prints the table of README.md.
"""

import argparse
import io
import multiprocessing
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tests"))
from store_server import serving

from vidtrain.data.augment.geometry import RandomResizedCrop
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.loading.dataset import VideoDataset
from vidtrain.data.loading.loaders import train_loader
from vidtrain.data.loading.samplers import TrainStream
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sampling.clips import ClipProtocol
from vidtrain.data.stores import objects

FRAMES, STRIDE, SIZE, BATCH = 16, 4, (224, 224), 8
CLIP = "imageio-binaries/images/cockatoo_yuv420.mp4"


def make_videos(source: Path, folder: Path, count: int, frames: int) -> list[str]:
    """Files of 640x360 H.264, GOP 250, crf 23, of the pictures of `source` forward and back."""
    with av.open(str(source)) as container:
        pictures = [frame.reformat(640, 360, "yuv420p") for frame in container.decode(video=0)]
    around = pictures + pictures[::-1]
    names = [f"{number}.mp4" for number in range(count)]
    for number, name in enumerate(names):
        with av.open(str(folder / name), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream(
                "libx264", rate=25, options={"preset": "veryfast", "crf": "23", "g": "250"}
            )
            stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
            for index in range(frames):
                frame = around[(index + 17 * number) % len(around)]
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return names


def serve(folder: Path, latency: float, pipe) -> None:
    """Serves until told to end; "reset" forgets the requests, "count" gives their number and bytes."""
    with serving(folder, latency) as store:
        pipe.send(store.url)
        while (word := pipe.recv()) != "end":
            if word == "count":
                pipe.send((len(store.requests), store.bytes_sent))
            store.requests.clear()
            store.bytes_sent = 0


def ours(paths: list[str], index: Path, samples: int, seed: int) -> float:
    """Samples a second."""
    manifest = Manifest([Record(path, 0, path) for path in paths], ["one"])
    protocol, crops = ClipProtocol(frames=FRAMES, frame_step=STRIDE), RandomResizedCrop()
    dataset = VideoDataset(manifest, protocol, crops, SIZE, seed, training=True, index=VideoIndex(index))
    for path in paths:
        dataset.index.info(path)
    objects._statuses.clear()  # the worker asks for them, as in an epoch of many videos
    objects._asked.clear()
    stream = TrainStream(len(paths), BATCH, seed, start_step=0, stop_step=samples // BATCH)
    batches = iter(train_loader(dataset, stream, 1, False))
    next(batches)  # the worker is up
    began = time.perf_counter()
    read = sum(len(batch.clips) for batch in batches)
    return read / (time.perf_counter() - began)


def clip_of(file, rng: np.random.Generator, frames: int) -> None:
    """A clip as PyAV is used on a file: seek, and decode up to its last frame; no crop."""
    with av.open(file) as container:
        stream = container.streams.video[0]
        start = int(rng.integers(frames - FRAMES * STRIDE))
        last = (start + FRAMES * STRIDE - 1) / 25
        container.seek(int(start / 25 / stream.time_base), stream=stream)
        next(frame for frame in container.decode(stream) if frame.time >= last - 0.02)


def fsspec_at(urls: list[str], block: int, frames: int, samples: int, seed: int) -> float:
    """PyAV on fsspec's file of a URL, with its default cache and blocks of so many bytes."""
    import fsspec

    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    for _ in range(samples):
        with fsspec.open(urls[int(rng.integers(len(urls)))], "rb", block_size=block) as file:
            clip_of(file, rng, frames)
    return samples / (time.perf_counter() - began)


def webdataset_at(url: str, frames: int, samples: int, seed: int) -> float:
    """WebDataset streams the tar file, a video a sample; PyAV reads a clip of the bytes."""
    import webdataset

    rng, read = np.random.default_rng(seed), 0
    began = time.perf_counter()
    while read < samples:
        for sample in webdataset.WebDataset(f"pipe:curl -s {url}", shardshuffle=False):
            clip_of(io.BytesIO(sample["mp4"]), rng, frames)
            read += 1
    return read / (time.perf_counter() - began)


def rows(
    root: Path, url: str, ask, frames: int, samples: int, turns: int
) -> Iterator[tuple[str, float, float, float, float]]:
    """(reader, samples a second, its ratio to files on disk in the same turn, requests and MB a sample)."""
    names = sorted(path.name for path in root.glob("*.mp4"))
    with tarfile.open(root / "all.tar", "w") as archive:
        for name in names:
            archive.add(root / name, name)
    with tarfile.open(root / "all.tar") as archive:
        members = [f"::{member.name}@{member.offset_data}+{member.size}" for member in archive]
    on_disk, at_url = ([f"{place}/all.tar{one}" for one in members] for place in (root, url))
    local, urls = [str(root / name) for name in names], [f"{url}/{name}" for name in names]
    readers = {
        "files on disk": lambda seed: ours(local, root / "a.sqlite", samples, seed),
        "tar file on disk": lambda seed: ours(on_disk, root / "b.sqlite", samples, seed),
        "HTTP": lambda seed: ours(urls, root / "c.sqlite", samples, seed),
        "tar file, HTTP": lambda seed: ours(at_url, root / "d.sqlite", samples, seed),
        "PyAV on fsspec, 1 MiB": lambda seed: fsspec_at(urls, 1 << 20, frames, samples // 2, seed),
        "PyAV on fsspec, 5 MiB": lambda seed: fsspec_at(urls, 5 << 20, frames, samples // 2, seed),
        "WebDataset, PyAV": lambda seed: webdataset_at(f"{url}/all.tar", frames, samples // 2, seed),
    }  # fmt: skip
    for paths, label in zip((local, on_disk, urls, at_url), "abcd", strict=True):
        ours(paths, root / f"{label}.sqlite", 2 * BATCH, 0)  # which makes the index
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in readers}
    for turn in range(turns):
        for name, read in readers.items():
            ask("reset")
            rate = read(turn)
            requests, sent = ask("count")
            count = samples if "PyAV" not in name else samples // 2
            found[name].append((rate, requests / count, sent / count / 1e6))
    baseline = [rate for rate, _, _ in found["files on disk"]]
    for name, measured in found.items():
        rates, requests, sent = zip(*measured, strict=True)
        ratio = statistics.median(rate / base for rate, base in zip(rates, baseline, strict=True))
        yield name, statistics.median(rates), ratio, statistics.median(requests), statistics.median(sent)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=80)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_videos(args.clips / CLIP, root, args.videos, args.frames)
        size = sum(path.stat().st_size for path in root.glob("*.mp4")) / args.videos / 1e6
        here, there = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        server = spawn.Process(target=serve, args=(root, args.latency, there), daemon=True)
        server.start()
        url = here.recv()

        def ask(word: str):
            here.send(word)
            return here.recv() if word == "count" else None

        print(f"{args.videos} videos of {size:.1f} MB; {1000 * args.latency:.0f} ms before each answer\n")
        print("| reader | clips/s | of files on disk | requests a clip | MB a clip |\n|---|---|---|---|---|")
        for name, rate, ratio, requests, sent in rows(root, url, ask, args.frames, args.samples, args.turns):
            print(f"| {name} | {rate:.1f} | {ratio:.2f} | {requests:.1f} | {sent:.2f} |", flush=True)
        here.send("end")


if __name__ == "__main__":
    main()
