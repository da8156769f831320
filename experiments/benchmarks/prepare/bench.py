"""Training clips per second before and after preparing, on large videos.

python experiments/benchmarks/prepare/bench.py [--clips FOLDER] [--jobs N]

A job is 16 frames at stride 4 from a random place, random resized crop, 16x3x224x224 uint8, on one thread and with
the file's index at hand. Jobs of a source and of its copy take turns, with the same random numbers. Prints
the table of README.md: medians, the median of the paired ratios with quartiles, bytes, and how alike a view looks.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import torch

from vidtrain.data.augment.geometry import Crop, RandomResizedCrop
from vidtrain.data.decoding.decoder import decode_views
from vidtrain.data.decoding.metadata import read_metadata
from vidtrain.data.prepared.reencode import EncodeSettings, Job, prepare_file

SETTINGS = EncodeSettings(short_side=256, gop=12, b_frames=3, crf=20, preset="medium")  # the program's defaults
FRAMES, STRIDE, SIZE, SOURCE_FRAMES = 16, 4, (224, 224), 300
# name: codec, width, height, GOP and the clip in --clips that its pictures are from
ROWS = {
    "720p H.264 GOP 60": ("libx264", 1280, 720, 60, "imageio-binaries/images/cockatoo_yuv420.mp4"),
    "720p H.264 GOP 250": ("libx264", 1280, 720, 250, "imageio-binaries/images/cockatoo_yuv420.mp4"),
    "1080p H.264 GOP 60": ("libx264", 1920, 1080, 60, "mmaction2/tools/data/skeleton/S001C001P001R001A001_rgb.avi"),
    "1080p H.264 GOP 250": ("libx264", 1920, 1080, 250, "mmaction2/tools/data/skeleton/S001C001P001R001A001_rgb.avi"),
    "1080p HEVC GOP 250": ("libx265", 1920, 1080, 250, "mmaction2/tools/data/skeleton/S001C001P001R001A001_rgb.avi"),
    "340x256 H.264 GOP 250": ("libx264", 340, 256, 250, "mmaction2/tests/data/test.mp4"),
}  # fmt: skip


def pictures(clip: Path | None, width: int, height: int) -> Iterator[av.VideoFrame]:
    """300 frames of the clip, forward and back again as often as that takes, or of a moving texture."""
    if clip is None:
        rng = np.random.default_rng(0)
        texture = rng.integers(0, 256, (height // 8 + 200, width // 8 + 200, 3), dtype=np.uint8)
        large = av.VideoFrame.from_ndarray(texture, format="rgb24")
        large = large.reformat(8 * texture.shape[1], 8 * texture.shape[0], interpolation="BICUBIC").to_ndarray()
        for i in range(SOURCE_FRAMES):
            window = np.ascontiguousarray(large[2 * i :, 3 * i :][:height, :width])
            yield av.VideoFrame.from_ndarray(window, format="rgb24").reformat(format="yuv420p")
        return
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)][:SOURCE_FRAMES]
    round_trip = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    for i in range(SOURCE_FRAMES):
        yield av.VideoFrame.from_ndarray(frames[round_trip[i % len(round_trip)]], format="yuv420p")


def make_source(path: Path, codec: str, width: int, height: int, gop: int, clip: Path | None) -> None:
    if path.exists():
        return
    options = {"preset": "medium" if codec == "libx264" else "fast", "crf": "23"}
    if codec == "libx265":
        options["x265-params"] = f"keyint={gop}:log-level=error"
    unfinished = path.with_suffix(".tmp")
    with av.open(str(unfinished), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = gop
        for i, frame in enumerate(pictures(clip, width, height)):
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    unfinished.rename(path)


def training_clip(info, seed: int) -> float:
    """Seconds of one job."""
    rng = np.random.default_rng(seed)
    started = time.perf_counter()
    first = int(rng.integers(info.num_frames - STRIDE * (FRAMES - 1)))
    crop = RandomResizedCrop()(info.width, info.height, SIZE, FRAMES, rng)
    decode_views(info, [(first + STRIDE * np.arange(FRAMES), crop)], SIZE)
    return time.perf_counter() - started


def likeness(source, copy) -> tuple[float, float]:
    """PSNR (dB) and shift of the mean of a 224x224 view: half the width, which both have in whole pixels."""
    indices = np.linspace(0, source.num_frames - 1, FRAMES).astype(np.int64)
    views = []
    for info in (source, copy):
        crop = Crop(info.width // 4, 0, info.width // 2, info.height)
        views.append(decode_views(info, [(indices, crop)], SIZE).numpy().astype(np.float64))
    error = views[1] - views[0]
    return 10 * np.log10(255**2 / (error**2).mean()), float(error.mean())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=Path, help="real clips; without, sources are made of a moving texture")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "vidtrain_prepare_bench")
    parser.add_argument("--jobs", type=int, default=30)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    pairs, seconds = {}, {}
    for name, (codec, width, height, gop, clip) in ROWS.items():
        kind = "texture" if arguments.clips is None else "clip"
        source = arguments.work / f"{kind}_{name.replace(' ', '_')}.mp4"
        make_source(source, codec, width, height, gop, arguments.clips and arguments.clips / clip)
        started = time.perf_counter()
        copy = source.with_name(f"prepared_{source.name}")
        made = prepare_file(Job(str(source), copy, SETTINGS, None))
        assert not made.cause and not made.refusal, made
        seconds[name] = time.perf_counter() - started
        pairs[name] = read_metadata(str(source)), read_metadata(str(copy))

    times = {name: ([], []) for name in ROWS}
    order = np.random.default_rng(0)
    for seed in range(-2, arguments.jobs):  # the first two warm up
        for name in order.permutation(list(ROWS)):
            for which in order.permutation(2):
                taken = training_clip(pairs[name][which], seed + 2)
                if seed >= 0:
                    times[name][which].append(taken)

    print(
        "| source | clips/s before | after | ratio (quartiles) | MB before | after | s to prepare | PSNR, mean shift |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, (before, after) in times.items():
        ratios = np.array(before) / np.array(after)
        low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        sizes = [os.path.getsize(info.path) / 1e6 for info in pairs[name]]
        decibels, shift = likeness(*pairs[name])
        print(
            f"| {name} | {1 / np.median(before):.1f} | {1 / np.median(after):.1f} "
            f"| {middle:.1f} ({low:.1f} to {high:.1f}) | {sizes[0]:.2f} | {sizes[1]:.2f} "
            f"| {seconds[name]:.1f} | {decibels:.1f} dB, {shift:+.2f} |"
        )


if __name__ == "__main__":
    main()
