"""What predict does: reads videos by worker processes, judges their clips in batches, and gives each an answer."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from vidtrain.build import data as build_data
from vidtrain.build import parts as build
from vidtrain.data.augment.geometry import WholeFrame
from vidtrain.data.decoding.index import VideoIndex
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
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.errors import UserError
from vidtrain.evaluation.fusion import fuse
from vidtrain.files.escaping import shown
from vidtrain.models.heat_maps import attention_map, grad_cam, tokens_and_logits
from vidtrain.training.ranks.distributed import Ranks

MEASURED_AT_ONCE = 4  # files in a batch whose lengths are found out


class Failure(NamedTuple):
    """What could not be read, and why; a part of a video, in seconds, or all of it."""

    path: str
    cause: str
    start: float | None = None
    end: float | None = None


@dataclass(frozen=True)
class Predictor:
    """From clips to clip logits and, with `heat`, to where they come from.

    `heat` is a kind of vidtrain.models.heat_maps, or None; `heat_class` the class that Grad-CAM is of, or None for the
    most probable one. `independent` tells whether classes are judged each by itself.
    """

    model: nn.Module
    transform: nn.Module
    device: torch.device
    context: AbstractContextManager
    crops: int
    independent: bool
    heat: str | None
    heat_class: int | None

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        """uint8 clips [b (n crops) c t h w] -> clip logits float32 [b v k], heat [b (n crops) t h w]; on the CPU."""
        count = len(clips)
        clips = self.transform(clips.to(self.device, non_blocking=True))
        joint = self.model.fusion == "joint"
        if joint:
            clips = rearrange(clips, "b (n v) ... -> (b v) n ...", v=self.crops)
        heat = None
        with self.context:
            if self.heat is None:
                logits = self.model(clips)
            else:
                tokens, logits = tokens_and_logits(self.model, clips)
        if self.heat is not None:
            heat = self._heat(tokens, logits, self.model.encoder.grid(*clips.shape[3:]), count)
        return rearrange(logits, "(b v) n k -> b (n v) k", b=count).float().cpu(), heat

    def _heat(self, tokens: Tensor, logits: Tensor, grid: tuple[int, int, int], count: int) -> Tensor:
        if self.heat == "attention":
            found = attention_map(self.model, tokens, grid)
        else:
            fused = self.fused(rearrange(logits, "(b v) n k -> b (n v) k", b=count))
            classes = (
                fused.argmax(dim=-1) if self.heat_class is None else fused.new_full((count,), self.heat_class)
            )
            classes = classes.long().repeat_interleave(len(tokens) // count)
            found = grad_cam(self.model, tokens, grid, classes)
        return rearrange(found, "(b v) n t h w -> b (n v) t h w", b=count).cpu()

    def fused(self, clip_logits: Tensor) -> Tensor:
        """Clip logits [b v k] -> logits [b k] of the videos."""
        return fuse(clip_logits, self.model.fusion, self.independent)

    def chances(self, logits: Tensor) -> Tensor:
        """Probabilities of a video's logits."""
        return logits.sigmoid() if self.independent else logits.softmax(dim=-1)


@dataclass
class Prediction:
    """What was found of one video, in w windows, or one that is all of it.

    `clip_logits` float32 [w v k], `logits` and `chances` [w k]; rows of windows that could not be read are NaN.
    `starts` and `ends` are in seconds (ends NaN for a whole video). `heat` float16 [w views t h w], and `pixels`
    uint8 [w views c t h w] of a whole video, where pictures are wanted.
    """

    path: str
    chunks: Sequence[Chunk]
    starts: np.ndarray
    ends: np.ndarray
    seconds: float
    clip_logits: np.ndarray
    logits: np.ndarray
    chances: np.ndarray
    heat: np.ndarray | None
    pixels: Tensor | None


@dataclass
class Clock:
    """How long was waited for videos (`waited`), and for how long all went on since the first batch came (`total`),
    in seconds. A device that waits is one that decoding does not keep busy."""

    waited: float = 0.0
    total: float = 0.0
    starting: float = 0.0

    @property
    def data_share(self) -> float:
        return self.waited / self.total if self.total else 0.0


@dataclass(frozen=True)
class Plan:
    """A video and the chunks that it is read in; `seconds` is its length, NaN where nobody asked."""

    path: str
    chunks: tuple[Chunk, ...]
    seconds: float = float("nan")


@dataclass
class Reader:
    """Reads videos as the configuration `cfg` evaluates them, and plans their windows.

    `failures` gathers what could not be read.
    """

    cfg: Any
    ranks: Ranks
    index: VideoIndex
    paths: Sequence[str]
    classes: Sequence[str]
    frame_rate: float | None
    console: Any
    failures: list[Failure] = field(default_factory=list)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        manifest = Manifest([Record(path, 0, path) for path in self.paths], self.classes, self.frame_rate)
        reading = build_data.Reading(self.index, None)
        self.videos = build_data.eval_dataset(self.cfg, "predict", manifest, reading)
        self.workers = build.num_workers(self.cfg.trainer.num_workers, self.ranks)
        self.at_once = self.cfg.trainer.eval_batch_size

    def whole(self) -> list[Plan]:
        """Every video as one."""
        return [Plan(path, (Chunk(path),)) for path in self.paths]

    def windows(self, stride: float, length: float | None) -> list[Plan]:
        """Every video in windows, as far as its length can be found out; `length` None is that of the clips of a
        window side by side."""
        plans, protocol = [], self.videos.protocol
        for path, video in self._lengths():
            window = length
            if window is None:
                clip = clip_seconds(protocol, video.frame)
                if clip is None:
                    raise UserError(
                        "windows.length must be given: clips of clip.sampling=uniform have no length"
                    )
                window = clip * protocol.num_clips
            starts = window_starts(video.seconds, window, stride, video.frame)
            chunks = tuple(chunks_of(path, starts, window, self.at_once))
            plans.append(Plan(path, chunks, video.seconds))
            if video.from_beginning and len(chunks) > 1:
                self.console.warn(
                    f"{shown(path)} has no index of its frames: every {self.at_once} windows are found by reading it "
                    "from its beginning; vidtrain.prepare makes copies that are read faster"
                )
        return plans

    def _lengths(self) -> Iterator[tuple[str, Length]]:
        dataset = LengthDataset(self.paths, self.index, self.frame_rate, Quarantine(None, "predict"))
        tasks = tasks_of([1] * len(self.paths), MEASURED_AT_ONCE)
        loader = eval_loader(dataset, tasks, self.workers, False, self.cfg.data.decode_timeout_s)
        with self.console.phase("looking at lengths", len(tasks)):
            for number, batch in enumerate(loader, start=1):
                self._note(batch.faults)
                for place, index in enumerate(batch.indices.tolist()):
                    seconds, frame, from_beginning = batch.clips[place].tolist()
                    yield self.paths[index], Length(seconds, frame, bool(from_beginning))
                self.console.advance(number, {})

    def predictions(
        self, plans: Sequence[Plan], predictor: Predictor, pictures: bool
    ) -> Iterator[Prediction]:
        """The prediction of every video of which anything can be read, in order, as soon as it is there."""
        chunks = [chunk for plan in plans for chunk in plan.chunks]
        judged = self._judged(WindowDataset(self.videos, chunks), predictor, keep_pixels=pictures)
        for plan in plans:
            parts = [next(judged) for _ in plan.chunks]
            if any(logits is not None for logits, _, _ in parts):
                yield _joined(plan, parts, predictor)

    def _judged(
        self, dataset: WindowDataset, predictor: Predictor, keep_pixels: bool
    ) -> Iterator[tuple[Tensor | None, Tensor | None, Tensor | None]]:
        """(clip logits [m v k], heat, pixels) of every chunk, in order; logits None where it could not be read."""
        sizes = [len(chunk.starts) for chunk in dataset.chunks]
        tasks = tasks_of(sizes, self.at_once)
        if isinstance(self.videos.geometry, WholeFrame):  # frames of any shape do not stack
            tasks = [[SampleKey(0, index)] for index in range(len(sizes))]
        pin = self.ranks.device.type == "cuda"
        batches = iter(eval_loader(dataset, tasks, self.workers, pin, self.cfg.data.decode_timeout_s))
        begun = time.perf_counter()
        with self.console.phase("videos" if max(sizes) == 1 else "windows", sum(sizes)):
            done = 0
            for number, keys in enumerate(tasks):
                asked = time.perf_counter()
                batch = next(batches)
                now = time.perf_counter()
                if number == 0:  # workers start, and read the first one
                    self.clock.starting, begun = now - asked, now
                else:
                    self.clock.waited += now - asked
                read = batch.indices.tolist()
                failed = [key.record for key in keys if key.record not in set(read)]
                for index, fault in zip(failed, batch.faults, strict=True):
                    self._note([fault], dataset.chunks[index])
                logits, heat = predictor(batch.clips) if read else (None, None)
                self.clock.total = time.perf_counter() - begun
                row = 0
                for key in keys:
                    if key.record in failed:
                        yield None, None, None
                    else:
                        rows = slice(row, row + sizes[key.record])
                        row = rows.stop
                        kept = (
                            batch.clips[rows]
                            if keep_pixels and dataset.chunks[key.record].length is None
                            else None
                        )
                        yield (
                            None if logits is None else logits[rows],
                            None if heat is None else heat[rows].half(),
                            kept,
                        )
                done += sum(sizes[key.record] for key in keys)
                self.console.advance(done, {"waiting for videos": f"{self.clock.data_share:.0%}"})

    def _note(self, faults: Sequence[Any], chunk: Chunk | None = None) -> None:
        for fault in faults:
            start = end = None
            if chunk is not None and chunk.length is not None:
                start, end = chunk.starts[0], chunk.starts[-1] + chunk.length
            self.failures.append(Failure(fault.path, fault.cause, start, end))
            part = "" if start is None else f" from {start:.1f} to {end:.1f} s"
            self.console.warn(f"{shown(fault.path)}{part}: {shown(fault.cause)}")


def _joined(plan: Plan, parts: Sequence[tuple], predictor: Predictor) -> Prediction:
    """The chunks of one video side by side, in tensors that have rows for what could not be read too."""
    known = next(index for index, (logits, _, _) in enumerate(parts) if logits is not None)

    def side_by_side(place: int) -> Tensor:
        example = parts[known][place]
        rows = []
        for part, chunk in zip(parts, plan.chunks, strict=True):
            unread = example.new_full((len(chunk.starts), *example.shape[1:]), float("nan"))
            rows.append(unread if part[place] is None else part[place])
        return torch.cat(rows)

    clip_logits = side_by_side(0)
    heat = None if parts[known][1] is None else side_by_side(1)
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
        chances=predictor.chances(logits).numpy(),
        heat=None if heat is None else heat.numpy(),
        pixels=parts[known][2],
    )
