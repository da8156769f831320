"""Reads videos of any length for prediction: whole, or in sliding windows.

A sample is a chunk: successive windows of one video, which are read in one pass over its frames. So memory does not
depend on the video's length, and a frame is not decoded again for every window that shows it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.video import DecodeError, VideoInfo
from vidtrain.data.loading.dataset import Fault, Sample, VideoDataset
from vidtrain.data.loading.quarantine import Quarantine
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.data.sampling.temporal import ROUNDING, cut
from vidtrain.errors import UserError


class Chunk(NamedTuple):
    """Windows of a video: each starts at one of `starts` and has `length`, in seconds; None is the whole video."""

    path: str
    starts: tuple[float, ...] = (0.0,)
    length: float | None = None


class Length(NamedTuple):
    """The length of a video in seconds, the usual duration of a frame, and whether it can only be read from its
    start."""

    seconds: float
    frame: float
    from_beginning: bool


class Views(NamedTuple):
    """The views of a chunk: frame indices int64 [m n t] of the m windows' clips, and the crops of each frame, in pixels
    of the displayed frame."""

    video: VideoInfo
    frames: np.ndarray
    crops: list[Crop]


@dataclass(frozen=True)
class WindowDataset(Dataset):
    """Reads chunks by number, with the evaluation settings of `videos`: uint8 [m n c t h w] of m windows with n views
    each. An unreadable file, or one that the protocol refuses, gives a sample with one fault."""

    videos: VideoDataset
    chunks: Sequence[Chunk]

    @property
    def quarantine(self) -> Quarantine:
        return self.videos.quarantine

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, key: SampleKey) -> Sample:
        chunk = self.chunks[key.record]
        try:
            clips = self.quarantine.attempt(chunk.path, partial(self._read, chunk))
        except (DecodeError, UserError) as error:
            return _without(key, error.cause if isinstance(error, DecodeError) else str(error), chunk.path)
        seeds = torch.zeros(clips.shape[:2], dtype=torch.int64)
        return Sample(clips, torch.tensor(0), key.record, seeds, [])

    def views(self, chunk: Chunk) -> Views:
        """The frames and crops of a chunk. Raises `DecodeError`, and `UserError` if the protocol refuses the video."""
        video = self.videos.open_video(chunk.path)
        times = video.timestamps - video.timestamps[0]
        windows = []
        index = partial(clip_indices, video.num_frames, video.timestamps, self.videos.protocol, None)
        for start in chunk.starts:
            begin = end = None
            if chunk.length is not None:
                # starts exactly at a frame, so that a window has room for a clip of the same number of frames
                begin = float(times[max(0, np.searchsorted(times, start + ROUNDING, side="right") - 1)])
                end = begin + chunk.length
            windows.append(index(begin, end))
        crops = [crop.in_frame(video.width, video.height) for crop in self.videos.eval_crops(video)]
        return Views(video, np.stack(windows), crops)

    def _read(self, chunk: Chunk) -> Tensor:
        video, frames, _ = self.views(chunk)
        pixels = self.videos.eval_clips(video, rearrange(frames, "m n t -> (m n) t"))
        return rearrange(pixels, "(m n) c t h w -> m n c t h w", m=len(frames))


@dataclass(frozen=True)
class LengthDataset(Dataset):
    """Reads the lengths of the files `paths`: a sample's `clips` are float64 [1 3], a `Length`."""

    paths: Sequence[str]
    index: VideoIndex
    frame_rate: float | None
    quarantine: Quarantine

    def __getitem__(self, key: SampleKey) -> Sample:
        path = self.paths[key.record]
        info = partial(self.index.info, path, self.frame_rate)
        try:
            video = self.quarantine.attempt(path, lambda: self.quarantine.opened(path, info))
        except DecodeError as error:
            return _without(key, error.cause, path)
        whole = cut(video.timestamps, None, None, alone=1.0)
        from_beginning = video.packets is None and not video.images
        length = torch.tensor([[whole.length, whole.usual, from_beginning]], dtype=torch.float64)
        return Sample(length, torch.tensor(0), key.record, torch.zeros(1, 1, dtype=torch.int64), [])


def _without(key: SampleKey, cause: str, path: str) -> Sample:
    return Sample(None, torch.tensor(0), key.record, torch.empty(0, dtype=torch.int64), [Fault(path, cause)])


def tasks_of(sizes: Sequence[int], at_once: int) -> list[list[SampleKey]]:
    """Groups chunks with `sizes` windows, in order, into batches of at most `at_once` windows."""
    tasks: list[list[SampleKey]] = []
    room = 0
    for index, size in enumerate(sizes):
        if size > room:
            tasks.append([])
            room = at_once
        tasks[-1].append(SampleKey(0, index))
        room -= size
    return tasks


def clip_seconds(protocol: ClipProtocol, frame: float) -> float | None:
    """The seconds that a clip spans if frames last `frame` seconds; None for "uniform", which spans the whole video."""
    if protocol.sampling == "uniform":
        return None
    seconds = protocol.stride * protocol.frames * (frame if protocol.frame_step is not None else 1.0)
    # V-JEPA 2 needs one frame more than a clip spans
    return seconds + frame if protocol.sampling.startswith("vjepa2") else seconds


def window_starts(seconds: float, length: float, stride: float, frame: float) -> list[float]:
    """The starts of windows of `length` in a video, all in seconds: every `stride`, as long as they fit.

    If more than a `frame` is left over, there is one more window, which ends with the video. A video shorter than
    `length` has one window."""
    last = seconds - length
    if last <= frame / 2:
        return [0.0]
    starts = [number * stride for number in range(math.floor((last + frame / 2) / stride) + 1)]
    return [*starts, last] if last - starts[-1] > frame else starts


def chunks_of(path: str, starts: Sequence[float], length: float, at_once: int) -> Iterator[Chunk]:
    """Divides a video's windows into chunks of `at_once` windows."""
    for first in range(0, len(starts), at_once):
        yield Chunk(path, tuple(starts[first : first + at_once]), length)
