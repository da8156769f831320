"""The parts of the benchmark, each run in a child process: times, the DataLoader, memory, pixels."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checks import Reference, pixel_quality, reference, wrong_frames
from guard import Pipe
from peers import FLOOR, Reader, readers
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from works import Job, Shape, center, draw

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.index import VideoIndex


@dataclass(frozen=True)
class Settings:
    """`seconds` is the budget of one work on one video, between `least` and `most` rounds.

    `checks` says for each work how many jobs have their frames identified first.
    """

    seconds: float
    least: int
    most: int
    checks: dict[str, int]


def measure(pipe: Pipe, path: str, names: list[str], settings: Settings) -> None:
    """Checks each reader's frames, then times all of them on the same jobs, shuffled anew in each round."""
    torch.set_num_threads(1)
    pipe.at("reference")
    known = reference(path)
    facts = {"frames": known.shape.frames, "width": known.shape.width, "height": known.shape.height}
    pipe.send("video", {**facts, "codec": known.codec, "keyframes": known.keyframes, "b_share": known.b_share})
    every = {name: reader for name, reader in readers().items() if name in names}
    usable: dict[str, list[str]] = {work: [] for work in settings.checks}
    for name, reader in every.items():
        pipe.at(name)
        for work in settings.checks:
            found = _check(reader, work, settings.checks[work], path, known)
            pipe.send("check", name, work, found)
            if not isinstance(found, str):
                usable[work].append(name)
    for work in settings.checks:
        _time(pipe, work, path, known.shape, {name: every[name] for name in usable[work]}, settings)


def _check(reader: Reader, work: str, count: int, path: str, known: Reference) -> tuple[int, int] | str:
    """The numbers of wrong frames and of all frames, or why there are none. This also warms the reader up."""
    rng = np.random.default_rng(1)
    try:
        reader.prepare(path)
        counts = [wrong_frames(reader, draw(work, path, known.shape, rng, centered=True), known) for _ in range(count)]
    except Exception as error:  # whatever a peer raises is its result
        return _words(error)
    return sum(wrong for wrong, _ in counts), sum(total for _, total in counts)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''}"


def _time(pipe: Pipe, work: str, path: str, shape: Shape, every: dict[str, Reader], settings: Settings) -> None:
    rng = np.random.default_rng(2)
    names = list(every)
    for name in names:  # once more, as the clips before were centered and another work's
        pipe.at(name)
        _timed(every[name], draw(work, path, shape, np.random.default_rng(3)))
    started = time.monotonic()
    for number in range(settings.most):
        if number >= settings.least and time.monotonic() - started > settings.seconds:
            return
        job = draw(work, path, shape, rng)
        rng.shuffle(names)
        for name in names:
            pipe.at(name)
            pipe.send("time", work, number, name, *_timed(every[name], job))


def _timed(reader: Reader, job: Job) -> tuple[float, float] | tuple[str]:
    """Wall and processor seconds, all threads counted in the latter; or why it failed."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        pixels = reader.read(job)
    except Exception as error:
        return (_words(error),)
    seconds = time.perf_counter() - wall, time.process_time() - cpu
    del pixels
    return seconds


class Clips(Dataset):
    """Clip number i of the train work on one video, for a DataLoader."""

    def __init__(self, reader: Reader, path: str, shape: Shape, count: int):
        self.reader, self.path, self.shape, self.count = reader, path, shape, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return self.reader.read(draw("train", self.path, self.shape, np.random.default_rng(index)))[0]


def load(pipe: Pipe, path: str, names: list[str], batches: int, rounds: int) -> None:
    """Clips a second of a DataLoader with 2 workers, batches of 8, and the default collate."""
    torch.set_num_threads(1)
    pipe.at("reference")
    shape = reference(path).shape
    every = {name: reader for name, reader in readers().items() if name in names}
    rng = np.random.default_rng(4)
    for number in range(rounds):
        rng.shuffle(names)
        for name in names:
            pipe.at(name)
            try:
                every[name].prepare(path)
                pipe.send("load", number, name, _rate(every[name], path, shape, batches))
            except Exception as error:
                pipe.send("load", number, name, _words(error))


def _rate(reader: Reader, path: str, shape: Shape, batches: int) -> float:
    # the clock starts when each worker has made its first batch, and so has started
    clips = Clips(reader, path, shape, 8 * (batches + 2))
    loader = DataLoader(clips, batch_size=8, num_workers=2, multiprocessing_context="fork")
    for number, _ in enumerate(loader):
        if number == 1:
            started = time.perf_counter()
    return 8 * batches / (time.perf_counter() - started)


def remember(pipe: Pipe, name: str, warm: str, path: str, count: int) -> None:
    """By how many MiB the peak of resident memory grows over `count` train clips of a file.

    The process has read a clip of the small file `warm` before, so libraries are loaded.
    """
    torch.set_num_threads(1)
    pipe.at("reference")
    shapes = {each: _shape(each) for each in (warm, path)}
    reader = readers()[name]
    pipe.at(name)
    try:
        for each in (warm, path):
            reader.prepare(each)
        reader.read(draw("train", warm, shapes[warm], np.random.default_rng(5)))
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts from here
        before = _status("VmRSS")
        for number in range(count):
            reader.read(draw("train", path, shapes[path], np.random.default_rng(number)))
        pipe.send("memory", name, (_status("VmHWM") - before) / 1024)
    except Exception as error:
        pipe.send("memory", name, _words(error))


def _shape(path: str) -> Shape:
    """From the index, so that no frame of the file is decoded at full size before memory is counted."""
    video = VideoIndex(None).info(path)
    return Shape(video.num_frames, video.width, video.height)


def _status(field: str) -> int:
    """A figure of this process in KiB."""
    lines = Path(f"/proc/{os.getpid()}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def look(pipe: Pipe, path: str, names: list[str]) -> None:
    """The pixels of four frames, the whole height and a smaller box, both on even pixels."""
    torch.set_num_threads(1)
    pipe.at("reference")
    shape = reference(path).shape
    every = {name: reader for name, reader in readers().items() if name in names and name != FLOOR}
    for reader in every.values():
        reader.prepare(path)
    whole = center(shape)
    box = Crop(40, 20, shape.width * 3 // 10 * 2, shape.height * 7 // 20 * 2)
    for kind, crop in {"center crop": whole, "smaller box": box}.items():
        job = Job(path, (np.arange(40, 104, 16),), crop)
        pixel_quality(every, job, lambda name, scores, kind=kind: pipe.send("pixels", kind, name, scores))
