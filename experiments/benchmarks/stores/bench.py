"""Requests, bytes and clips per second of videos behind HTTP and S3, against files on disk and against other readers.

python experiments/benchmarks/stores/bench.py --clips FOLDER [--samples N] [--latency SECONDS]

A sample is 16 frames at stride 4 from a random place, random resized crop, 16x3x224x224 uint8, read by one worker
process in batches of 8. The server is a process of its own and waits before each answer; it answers S3's requests for
objects too, which are those of HTTP. Prints the table of README.md.
"""

import argparse
import io
import multiprocessing
import os
import resource
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
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peer_ffmpeg import share_ffmpeg
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
            stream = container.add_stream("libx264", rate=25, options={"preset": "veryfast", "crf": "23", "g": "250"})
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


def ours(paths: list[str], index: Path, samples: int, seed: int) -> tuple[float, float]:
    """Samples a second, and the share of its time that the worker waits for the store."""
    manifest = Manifest([Record(path, 0, path) for path in paths], ["one"])
    protocol, crops = ClipProtocol(frames=FRAMES, frame_step=STRIDE), RandomResizedCrop()
    dataset = VideoDataset(manifest, protocol, crops, SIZE, seed, training=True, index=VideoIndex(index))
    for path in paths:
        dataset.index.info(path)
    objects._looks.clear()  # the worker asks for them, as in an epoch of many videos
    stream = TrainStream(len(paths), BATCH, seed, start_step=0, stop_step=samples // BATCH)
    batches = iter(train_loader(dataset, stream, 1, False))
    next(batches)  # the worker is up
    began = time.perf_counter()
    shares = [batch.store.share for batch in batches]
    return BATCH * len(shares) / (time.perf_counter() - began), statistics.mean(shares)


def clip_of(file, rng: np.random.Generator, frames: int) -> None:
    """A clip as PyAV is used on a file: seek, and decode up to its last frame; no crop."""
    with av.open(file) as container:
        stream = container.streams.video[0]
        start = int(rng.integers(frames - FRAMES * STRIDE))
        last = (start + FRAMES * STRIDE - 1) / 25
        container.seek(int(start / 25 / stream.time_base), stream=stream)
        next(frame for frame in container.decode(stream) if frame.time >= last - 0.02)


def torchcodec_clip(file, rng: np.random.Generator, frames: int) -> None:
    """A clip as torchcodec reads it where it does not scan the file first."""
    from torchcodec.decoders import VideoDecoder

    start = int(rng.integers(frames - FRAMES * STRIDE))
    decoder = VideoDecoder(file, seek_mode="approximate", num_ffmpeg_threads=1)
    decoder.get_frames_at(list(range(start, start + FRAMES * STRIDE, STRIDE)))


def fsspec_at(read, urls: list[str], block: int, frames: int, samples: int, seed: int) -> tuple[float, float]:
    """`read` on fsspec's file of a URL, with its default cache and blocks of so many bytes."""
    import fsspec

    rng = np.random.default_rng(seed)
    began = time.perf_counter()
    for _ in range(samples):
        with fsspec.open(urls[int(rng.integers(len(urls)))], "rb", block_size=block) as file:
            read(file, rng, frames)
    return samples / (time.perf_counter() - began), float("nan")


def webdataset_at(url: str, frames: int, samples: int, seed: int) -> tuple[float, float]:
    """WebDataset streams the tar file, a video a sample; PyAV reads a clip of the bytes."""
    import webdataset

    rng, read = np.random.default_rng(seed), 0
    began = time.perf_counter()
    while read < samples:
        for sample in webdataset.WebDataset(f"pipe:curl -s {url}", shardshuffle=False):
            clip_of(io.BytesIO(sample["mp4"]), rng, frames)
            read += 1
    return read / (time.perf_counter() - began), float("nan")


def cpu_seconds() -> float:
    """Of this process, and of those that it has started and that have ended; the server's are not among them."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def rows(
    root: Path, url: str, ask, frames: int, samples: int, turns: int
) -> Iterator[tuple[str, float, float, float, float, float, float]]:
    """(reader, samples a second, its ratio to files on disk in the same turn, the share of time waiting for the store,
    requests, MB and seconds of CPU a sample)."""
    data = root / "bucket"
    names = sorted(path.name for path in data.glob("*.mp4"))
    with tarfile.open(data / "all.tar", "w") as archive:
        for name in names:
            archive.add(data / name, name)
    with tarfile.open(data / "all.tar") as archive:
        members = [f"::{member.name}@{member.offset_data}+{member.size}" for member in archive]
    on_disk, at_url = ([f"{place}/all.tar{one}" for one in members] for place in (data, url))
    local, urls = [str(data / name) for name in names], [f"{url}/{name}" for name in names]
    s3 = [f"s3://bucket/{name}" for name in names]
    s3_tar = [f"s3://bucket/all.tar{one}" for one in members]
    few = samples // 2
    readers = {
        "files on disk": lambda seed: ours(local, root / "a.sqlite", samples, seed),
        "tar file on disk": lambda seed: ours(on_disk, root / "b.sqlite", samples, seed),
        "HTTP": lambda seed: ours(urls, root / "c.sqlite", samples, seed),
        "tar file, HTTP": lambda seed: ours(at_url, root / "d.sqlite", samples, seed),
        "S3": lambda seed: ours(s3, root / "e.sqlite", samples, seed),
        "tar file, S3": lambda seed: ours(s3_tar, root / "f.sqlite", samples, seed),
        "PyAV on fsspec, 1 MiB": lambda seed: fsspec_at(clip_of, urls, 1 << 20, frames, few, seed),
        "PyAV on fsspec, 5 MiB": lambda seed: fsspec_at(clip_of, urls, 5 << 20, frames, few, seed),
        "torchcodec on fsspec, 1 MiB": lambda seed: fsspec_at(torchcodec_clip, urls, 1 << 20, frames, few, seed),
        "torchcodec on fsspec, 5 MiB": lambda seed: fsspec_at(torchcodec_clip, urls, 5 << 20, frames, few, seed),
        "WebDataset, PyAV": lambda seed: webdataset_at(f"{url}/all.tar", frames, few, seed),
    }  # fmt: skip
    for paths, label in zip((local, on_disk, urls, at_url, s3, s3_tar), "abcdef", strict=True):
        ours(paths, root / f"{label}.sqlite", 2 * BATCH, 0)  # which makes the index
    found: dict[str, list[tuple[float, float, float, float, float]]] = {name: [] for name in readers}
    for turn in range(turns):
        for name, read in list(readers.items())[:: 1 if turn % 2 else -1]:
            ask("reset")
            before = cpu_seconds()
            rate, waits = read(turn)
            used = cpu_seconds() - before
            requests, sent = ask("count")
            count = few if "," in name and "tar" not in name else samples
            found[name].append((rate, waits, requests / count, sent / count / 1e6, used / count))
        load = os.getloadavg()[0]
        rates = ", ".join(f"{name} {measured[-1][0]:.1f}" for name, measured in found.items())
        print(f"turn {turn}, load {load:.1f}: {rates}", flush=True)
    baseline = [rate for rate, *_ in found["files on disk"]]
    for name, measured in found.items():
        rates, *others = zip(*measured, strict=True)
        ratio = statistics.median(rate / base for rate, base in zip(rates, baseline, strict=True))
        yield name, statistics.median(rates), ratio, *map(statistics.median, others)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=80)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--frames", type=int, default=1500)
    args = parser.parse_args()
    share_ffmpeg(Path(tempfile.gettempdir()) / "peer_ffmpeg")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "bucket").mkdir()
        make_videos(args.clips / CLIP, root / "bucket", args.videos, args.frames)
        size = sum(path.stat().st_size for path in root.glob("bucket/*.mp4")) / args.videos / 1e6
        here, there = multiprocessing.Pipe()
        spawn = multiprocessing.get_context("spawn")
        server = spawn.Process(target=serve, args=(root, args.latency, there), daemon=True)
        server.start()
        url = here.recv()
        os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}

        def ask(word: str):
            here.send(word)
            return here.recv() if word == "count" else None

        print(f"{args.videos} videos of {size:.1f} MB; {1000 * args.latency:.0f} ms before each answer\n")
        table = list(rows(root, f"{url}/bucket", ask, args.frames, args.samples, args.turns))
        print("| reader | clips/s | of files on disk | waits for the store | CPU ms a clip | requests | MB |")
        print("|---|---|---|---|---|---|---|")
        for name, rate, ratio, waits, requests, sent, used in table:
            share = "" if waits != waits else f"{waits:.0%}"
            costs = f"{1000 * used:.0f} | {requests:.1f} | {sent:.2f}"
            print(f"| {name} | {rate:.1f} | {ratio:.2f} | {share} | {costs} |")
        here.send("end")


if __name__ == "__main__":
    main()
