"""Prediction: worker processes read videos, the model classifies their clips, and each video gets a prediction."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.data.augment.geometry import WholeFrame
from vidtrain.data.loading.dataset import Batch, Fault, VideoDataset
from vidtrain.data.loading.loaders import eval_loader
from vidtrain.data.loading.quarantine import Quarantine
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.loading.windows import (
    Chunk,
    Length,
    LengthDataset,
    WindowDataset,
    chunks_of,
    clip_seconds,
    tasks_of,
    window_starts,
)
from vidtrain.errors import UserError
from vidtrain.evaluation.calibrated import Calibration
from vidtrain.evaluation.views import fuse
from vidtrain.files.escaping import shown
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.exporting import OnnxClassifier
from vidtrain.models.heads import attention_map, grad_cam, tokens_and_logits
from vidtrain.training.run import Console

LENGTH_BATCH_SIZE = 4  # files whose lengths are read in one batch


class Failure(NamedTuple):
    """A video that could not be read, or its part from `start` to `end` in seconds, and why."""

    path: str
    cause: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Predictor:
    """Maps clips to clip logits and, with `heat`, to heat maps.

    `heat` is a kind of vidtrain.models.heads, or None. `heat_class` is the class that Grad-CAM explains; None means the
    most probable one. `independent` says whether a sigmoid scores each class by itself.
    """

    model: VideoClassifier | OnnxClassifier
    transform: nn.Module
    device: torch.device
    context: AbstractContextManager
    crops: int
    independent: bool
    heat: str | None
    heat_class: int | None
    calibration: Calibration | None = None

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 clips [b (n crops) c t h w] -> clip logits float32 [b v k], heat [b (n crops) t h w]; on the CPU."""
        count, model = len(clips), self.model
        clips = self.transform(clips.to(self.device, non_blocking=True))
        if model.fusion == "joint":
            clips = rearrange(clips, "b (n v) ... -> (b v) n ...", v=self.crops)
        heat = None
        if self.heat is None or not isinstance(model, VideoClassifier):
            with self.context:
                logits = model(clips)
        else:
            with self.context:
                tokens, logits = tokens_and_logits(model, clips)
            heat = self._heat(model, tokens, logits, model.encoder.grid(*clips.shape[3:]), count)
        return rearrange(logits, "(b v) n k -> b (n v) k", b=count).float().cpu(), heat

    def _heat(
        self, model: VideoClassifier, tokens: Tensor, logits: Tensor, grid: tuple[int, int, int], count: int
    ) -> Tensor:
        if self.heat == "attention":
            heat = attention_map(model, tokens, grid)
        else:
            classes = torch.full((count,), self.heat_class or 0, device=logits.device)
            if self.heat_class is None:
                classes = self.probabilities(self.fused(rearrange(logits, "(b v) n k -> b (n v) k", b=count))).argmax(
                    dim=-1
                )
            heat = grad_cam(model, tokens, grid, classes.repeat_interleave(len(tokens) // count))
        return rearrange(heat, "(b v) n t h w -> b (n v) t h w", b=count).cpu()

    def fused(self, clip_logits: Tensor) -> Tensor:
        """Clip logits [b v k] -> logits [b k] of the videos."""
        return fuse(clip_logits, self.model.fusion, self.independent)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities of a video's logits, calibrated if there is a calibration."""
        if self.calibration is not None:
            logits = self.calibration.scaling(logits)
        return logits.sigmoid() if self.independent else logits.softmax(dim=-1)


@dataclass
class Prediction:
    """The prediction for one video, in w windows; a video that is classified as a whole is one window.

    `clip_logits` are float32 [w v k], `logits` and `probabilities` [w k]; rows of windows that could not be read are
    NaN. `starts` and `ends` are in seconds; for a whole video `ends` is NaN. If pictures are drawn, `heat` is float16
    [w views t h w], and `pixels` of a whole video uint8 [w views c t h w].
    """

    path: str
    chunks: Sequence[Chunk]
    starts: np.ndarray
    ends: np.ndarray
    seconds: float
    clip_logits: np.ndarray
    logits: np.ndarray
    probabilities: np.ndarray
    heat: np.ndarray | None
    pixels: Tensor | None


@dataclass
class Clock:
    """Measures the seconds since the first batch (`total`), and how many of them the model waited for videos
    (`waited`)."""

    waited: float = 0.0
    total: float = 0.0

    @property
    def data_share(self) -> float:
        return self.waited / self.total if self.total else 0.0

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches, timed."""
        batches = iter(loader)
        if (batch := next(batches, None)) is None:  # workers start, and read the first one
            return
        begun = time.perf_counter()
        while batch is not None:
            yield batch
            called = time.perf_counter()
            batch = next(batches, None)
            now = time.perf_counter()
            self.waited, self.total = self.waited + now - called, now - begun


@dataclass(frozen=True)
class Plan:
    """A video and the chunks in which it is read. `seconds` is its length; NaN if it is classified as a whole."""

    path: str
    chunks: tuple[Chunk, ...]
    seconds: float = float("nan")


class ChunkOutput(NamedTuple):
    """The model's output for a chunk of m windows: clip logits [m v k], heat, and the pixels of a whole video."""

    logits: Tensor
    heat: Tensor | None
    pixels: Tensor | None


@dataclass
class Reader:
    """Reads the clips of `videos`, `batch_size` videos or windows at once, and plans their windows. `failures` lists
    what could not be read."""

    videos: VideoDataset
    device: torch.device
    workers: int
    batch_size: int
    decode_timeout_s: float
    console: Console
    failures: list[Failure] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    @property
    def paths(self) -> Sequence[str]:
        return self.videos.manifest.paths

    @property
    def classes(self) -> Sequence[str]:
        return self.videos.manifest.classes

    def whole(self) -> list[Plan]:
        """Every video as one."""
        return [Plan(path, (Chunk(path),)) for path in self.paths]

    def windows(self, stride: float, length: float | None) -> list[Plan]:
        """Every video whose length can be read, in windows. If `length` is None, a window is as long as its clips side
        by side."""
        plans, protocol = [], self.videos.protocol
        for path, video in self._lengths():
            window = length
            if window is None:
                clip = clip_seconds(protocol, video.frame)
                if clip is None:
                    raise UserError("windows.length must be given: clips of clip.sampling=uniform have no length")
                window = clip * protocol.num_clips
            starts = window_starts(video.seconds, window, stride, video.frame)
            chunks = tuple(chunks_of(path, starts, window, self.batch_size))
            plans.append(Plan(path, chunks, video.seconds))
            if video.from_beginning and len(chunks) > 1:
                self.console.warn(
                    f"{shown(path)} has no index of its frames: every {self.batch_size} windows are found by reading "
                    "it from its beginning; vidtrain.prepare makes copies that are read faster"
                )
        return plans

    def _lengths(self) -> Iterator[tuple[str, Length]]:
        videos = self.videos
        quarantine = Quarantine(None, "predict")
        dataset = LengthDataset(self.paths, videos.index, videos.manifest.frame_rate, quarantine)
        tasks = tasks_of([1] * len(self.paths), LENGTH_BATCH_SIZE)
        loader = eval_loader(dataset, tasks, self.workers, False, self.decode_timeout_s)
        with self.console.phase("reading lengths of videos", len(tasks)):
            for number, batch in enumerate(loader, start=1):
                self._note(batch.faults)
                for place, index in enumerate(batch.indices.tolist()):
                    seconds, frame, from_beginning = batch.clips[place].tolist()
                    yield self.paths[index], Length(seconds, frame, bool(from_beginning))
                self.console.advance(number, {})

    def predictions(self, plans: Sequence[Plan], predictor: Predictor, pictures: bool) -> Iterator[Prediction]:
        """Yields the prediction of every video of which any part can be read, in order, as soon as it is known."""
        chunks = [chunk for plan in plans for chunk in plan.chunks]
        outputs = self._chunk_outputs(WindowDataset(self.videos, chunks), predictor, keep_pixels=pictures)
        for plan in plans:
            parts = [next(outputs) for _ in plan.chunks]
            if any(parts):
                yield _joined(plan, parts, predictor)
        next(outputs, None)  # ends the progress bar and stops the clock

    def _chunk_outputs(
        self, dataset: WindowDataset, predictor: Predictor, keep_pixels: bool
    ) -> Iterator[ChunkOutput | None]:
        """Yields the output for every chunk in order; None if it could not be read."""
        sizes = [len(chunk.starts) for chunk in dataset.chunks]
        tasks = tasks_of(sizes, self.batch_size)
        if isinstance(self.videos.geometry, WholeFrame):  # frames of any shape do not stack
            tasks = [[SampleKey(0, index)] for index in range(len(sizes))]
        loader = eval_loader(dataset, tasks, self.workers, self.device.type == "cuda", self.decode_timeout_s)
        with self.console.phase("videos" if max(sizes) == 1 else "windows", sum(sizes)):
            done = 0
            for keys, batch in zip(tasks, self.clock.watch(loader), strict=True):
                indices = [key.record for key in keys]
                read = set(batch.indices.tolist())
                failed = [index for index in indices if index not in read]
                for index, fault in zip(failed, batch.faults, strict=True):
                    self._note([fault], dataset.chunks[index])
                logits, heat = predictor(batch.clips) if read else (torch.empty(0), None)
                row = 0
                for index in indices:
                    if index not in read:
                        yield None
                        continue
                    rows = slice(row, row + sizes[index])
                    row = rows.stop
                    keep = keep_pixels and dataset.chunks[index].length is None
                    pixels = batch.clips[rows] if keep else None
                    yield ChunkOutput(logits[rows], None if heat is None else heat[rows].half(), pixels)
                done += sum(sizes[index] for index in indices)
                self.console.advance(done, {"waiting for videos": f"{self.clock.data_share:.0%}"})

    def _note(self, faults: Sequence[Fault], chunk: Chunk | None = None) -> None:
        for fault in faults:
            start = end = None
            if chunk is not None and chunk.length is not None:
                start, end = chunk.starts[0], chunk.starts[-1] + chunk.length
            self.failures.append(Failure(fault.path, fault.cause, start, end))
            part = "" if start is None else f" from {start:.1f} to {end:.1f} s"
            self.console.warn(f"{shown(fault.path)}{part}: {shown(fault.cause)}")


def _joined(plan: Plan, parts: Sequence[ChunkOutput | None], predictor: Predictor) -> Prediction:
    """The chunks of one video side by side; windows that could not be read have rows of NaN."""
    example = next(part for part in parts if part is not None)

    def side_by_side(name: str) -> Tensor:
        like = getattr(example, name)
        rows = [
            like.new_full((len(chunk.starts), *like.shape[1:]), float("nan")) if part is None else getattr(part, name)
            for part, chunk in zip(parts, plan.chunks, strict=True)
        ]
        return torch.cat(rows)

    clip_logits = side_by_side("logits")
    logits = predictor.fused(clip_logits)
    starts = np.array([start for chunk in plan.chunks for start in chunk.starts])
    length = plan.chunks[0].length
    return Prediction(
        path=plan.path,
        chunks=plan.chunks,
        starts=starts,
        ends=np.full(len(starts), np.nan) if length is None else np.minimum(starts + length, plan.seconds),
        seconds=plan.seconds,
        clip_logits=clip_logits.numpy(),
        logits=logits.numpy(),
        probabilities=predictor.probabilities(logits).numpy(),
        heat=None if example.heat is None else side_by_side("heat").numpy(),
        pixels=example.pixels,
    )


# --- segments: what happens when ------------------------------------------------------------------------------


class Segment(NamedTuple):
    """A class from `start` to `end`, in seconds, with the mean `probability` of its windows."""

    start: float
    end: float
    class_index: int
    probability: float


def smoothed(probabilities: np.ndarray, width: int) -> np.ndarray:
    """The mean of each row of `probabilities` [w k] with up to `width` // 2 rows on either side. NaN rows stay NaN, and
    no mean includes them."""
    if width == 1:
        return probabilities
    known = ~np.isnan(probabilities[:, :1])
    filled = np.where(known, probabilities, 0.0)
    reach = min(width // 2, len(probabilities) - 1)
    sums, counts = np.zeros_like(filled), np.zeros_like(filled[:, :1])
    for shift in range(-reach, reach + 1):
        target = slice(max(0, -shift), len(filled) - max(0, shift))
        source = slice(max(0, shift), len(filled) - max(0, -shift))
        sums[target] += filled[source]
        counts[target] += known[source]
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def window_edges(starts: np.ndarray, ends: np.ndarray, seconds: float) -> np.ndarray:
    """Edges float64 [w + 1] between windows, from 0 to the video's end. Windows may overlap or leave gaps, so an edge
    lies halfway between the centers of two neighbors."""
    centers = (starts + ends) / 2
    return np.concatenate([[0.0], (centers[1:] + centers[:-1]) / 2, [seconds]])


def segments(
    probabilities: np.ndarray, edges: np.ndarray, threshold: float | np.ndarray, independent: bool
) -> list[Segment]:
    """Joins adjacent windows of the same class into segments, in order of time. The class of a window is the most
    probable one, if its probability reaches `threshold`, a number or [k]. If classes are independent, every class that
    reaches its threshold counts. Windows of NaN have no class."""
    present = np.nan_to_num(probabilities, nan=-1.0) >= threshold
    if not independent:
        best = np.nan_to_num(probabilities, nan=-1.0).argmax(axis=1)
        present &= best[:, None] == np.arange(probabilities.shape[1])
    present &= ~np.isnan(probabilities)
    joined = []
    for index in np.flatnonzero(present.any(axis=0)).tolist():
        steps = np.diff(np.concatenate([[0], present[:, index].astype(np.int8), [0]]))
        runs = zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True)
        for first, stop in runs:
            mean = float(probabilities[first:stop, index].mean())
            joined.append(Segment(float(edges[first]), float(edges[stop]), index, mean))
    return sorted(joined, key=lambda segment: (segment.start, segment.class_index))
