"""Reads the uint8 clips of a sample: chooses frames, decodes them, and records files that cannot be read."""

from collections import OrderedDict, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple, cast

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from vidtrain.data.augment.geometry import (
    ANTIALIASED,
    CenterCrops,
    Crop,
    EvalGeometry,
    FixedCrop,
    TrainGeometry,
    published_crops,
)
from vidtrain.data.decoding.decoder import View, decode_views, expect_views
from vidtrain.data.decoding.index import VideoIndex
from vidtrain.data.decoding.video import DecodeError, VideoInfo
from vidtrain.data.loading.quarantine import Quarantine
from vidtrain.data.loading.samplers import SampleKey
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.sampling.clips import ClipProtocol, clip_indices, eval_generator
from vidtrain.data.sampling.temporal import EmptyCut, TemporalJitter
from vidtrain.data.stores.files import RemoteFile, ask_status, in_store
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown

# Requested from stores by a worker and not yet decoded
MOST_CLIPS = 32
MOST_BYTES = 64 << 20


class Fault(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    cause: str


class Sample(NamedTuple):
    """One video in m differently augmented copies: `clips` uint8 [m n c t h w], None if unreadable, and the views'
    `seeds` [m n] for augmentation on the device. `target` is the label, int64 [], or several labels, float32 [k] of 0
    and 1.

    `refusal` is the message of an error that must end the run; it is returned as data, as an exception in a worker
    process would arrive as a traceback.
    """

    clips: Tensor | None
    target: Tensor
    record: int
    seeds: Tensor
    faults: list[Fault]
    refusal: str | None = None


class StoreUse(NamedTuple):
    """A batch's use of stores: seconds of reading, those of them spent waiting for a store, requests, bytes,
    and videos that were fetched whole for their metadata."""

    seconds: float = 0.0
    waited: float = 0.0
    requests: int = 0
    bytes: int = 0
    whole: int = 0

    @property
    def share(self) -> float:
        return self.waited / self.seconds if self.seconds else 0.0


class Batch(NamedTuple):
    """A batch of samples; the copies of a video are adjacent. `indices` are the records that were actually read."""

    clips: Tensor  # uint8 [b n c t h w]
    labels: Tensor  # int64 [b], or float32 [b k] if videos may have several labels
    indices: Tensor  # int64 [b]
    seeds: Tensor  # int64 [b n], for augmentation on the device
    faults: list[Fault]
    refusal: str | None = None
    store: StoreUse = StoreUse()


def draw(*key: int) -> np.random.Generator:
    """A generator that depends on `key` alone, not on workers, ranks or earlier draws."""
    return np.random.default_rng(np.random.SeedSequence(key))


class Plan(NamedTuple):
    """How a sample is read: the `views` of its video, their `size`, and the seeds of later augmentation."""

    video: VideoInfo
    views: list[View]
    size: tuple[int, int]
    seeds: list[int]


@dataclass(frozen=True)
class VideoDataset(Dataset):
    """Reads the clips of a manifest's records.

    In training `protocol.num_clips` random clips are read for each `SampleKey`, in `copies` differently augmented
    copies, in one pass over the file; `jitter` varies speed and direction. A source of the manifest may have its own
    number of frames. In evaluation (`training=False`) the views are deterministic: clips x crops, clip-major. `size` is
    (height, width); an evaluation geometry may change it for a video.

    `size_changes`, "scale" or "refuse", is for frames with another size than the video's first frame. With a
    publisher's `resize`, center crops are taken from scaled frames, as in the publisher's code; random crops are not.

    An unreadable file is tried twice. In training the video is then replaced by another one, drawn with the key (seed,
    epoch, index, attempt), at most `max_retries` times; then the sample has a refusal. In evaluation its sample has no
    clips.
    """

    manifest: Manifest
    protocol: ClipProtocol
    geometry: TrainGeometry | EvalGeometry
    size: tuple[int, int]
    seed: int
    training: bool
    max_retries: int = 3
    copies: int = 1
    jitter: TemporalJitter | None = None
    interpolation: str = "bicubic"
    size_changes: str = "scale"
    resize: str = ANTIALIASED
    index: VideoIndex = field(default_factory=lambda: VideoIndex(None))
    quarantine: Quarantine = field(default_factory=Quarantine)
    ahead: "ReadAhead" = field(default_factory=lambda: ReadAhead())

    def __len__(self) -> int:
        return len(self.manifest)

    @cached_property
    def _protocols(self) -> tuple[ClipProtocol, ...]:
        """The protocol of each source."""
        frames = [source.frames or self.protocol.frames for source in self.manifest.sources]
        return tuple(replace(self.protocol, frames=count) for count in frames) if self.training else ()

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        faults: list[Fault] = []
        while True:
            record = self.manifest[index]
            unread = Sample(None, self.target(record), index, torch.empty(0, dtype=torch.int64), faults)
            try:
                read = partial(self._read, record, (self.seed, epoch, index))
                clips, seeds = self.quarantine.attempt(record.path, read)
                return unread._replace(clips=clips, seeds=seeds)
            except DecodeError as error:
                faults.append(Fault(error.path, error.cause))
            except EmptyCut as error:
                faults.append(Fault(record.path, str(error)))
            except UserError as error:  # the protocol does not allow this video
                return unread._replace(refusal=f"{shown(record.path)}: {error}")
            if not self.training:
                return unread
            if len(faults) > self.max_retries:
                files = "\n  ".join(f"{shown(fault.path)}: {shown(fault.cause)}" for fault in faults)
                refusal = f"{len(faults)} videos in a row could not be read:\n  {files}"
                return unread._replace(refusal=refusal)
            rng = draw(self.seed, epoch, key.record, len(faults), 1)
            sources = self.manifest.columns.sources
            # a record of the same source, whose clips have the same number of frames
            index = int(
                rng.integers(len(self.manifest))
                if sources is None
                else rng.choice(np.flatnonzero(sources == record.source))
            )

    def target(self, record: Record) -> Tensor:
        """A record's class, int64 [], or its classes, float32 [k] of 0 and 1."""
        if not self.manifest.multi_label:
            return torch.tensor(record.label)
        target = torch.zeros(len(self.manifest.classes))
        target[list(record.labels)] = 1
        return target

    def open_video(self, path: str) -> VideoInfo:
        """The metadata of a file of the dataset. Raises `DecodeError`."""
        return self.quarantine.opened(path, partial(self.index.info, path, self.manifest.frame_rate))

    def eval_crops(self, video: VideoInfo) -> list[Crop]:
        """The crops of evaluation for every frame of a video."""
        geometry = cast(EvalGeometry, self.geometry)  # true if `training` is False
        if self.resize != ANTIALIASED and isinstance(geometry, CenterCrops):
            return published_crops(geometry, video.width, video.height, self.size, self.resize)
        return geometry(video.width, video.height, self.size)

    def eval_clips(self, video: VideoInfo, clips: np.ndarray) -> Tensor:
        """The views of evaluation for `clips`, frame indices int64 [n t]: uint8 [(n crops) c t h w]."""
        views, size = self._eval_views(video, clips)
        return decode_views(video, views, size, self.interpolation, self.size_changes, resize=self.resize)

    def _train_crops(self, video: VideoInfo, frames: int, rng: np.random.Generator) -> Crop | Sequence[Crop]:
        geometry = cast(TrainGeometry, self.geometry)
        if self.resize != ANTIALIASED and isinstance(geometry, FixedCrop):
            return published_crops(geometry, video.width, video.height, self.size, self.resize)[0]
        return geometry(video.width, video.height, self.size, frames, rng)

    def _eval_views(self, video: VideoInfo, clips: np.ndarray) -> tuple[list[View], tuple[int, int]]:
        geometry = cast(EvalGeometry, self.geometry)
        views: list[View] = [(frames, crop) for frames in clips for crop in self.eval_crops(video)]
        return views, geometry.output_size(video.width, video.height, self.size)

    def plan(self, record: Record, key: tuple[int, int, int], video: VideoInfo) -> Plan:
        """The views to read of `video` for a sample. Raises `EmptyCut`, and `UserError` for a video that the protocol
        does not allow."""
        cut = partial(clip_indices, video.num_frames, video.timestamps, start=record.start, end=record.end)
        if not self.training:
            clips = cut(self.protocol, eval_generator(self.protocol, self.seed, record.path))
            views, size = self._eval_views(video, clips)
            return Plan(video, views, size, [0] * len(views))
        views, seeds = [], []
        for copy in range(self.copies):
            # key 0 is for the clips' times, keys 1..n for their crops, so that draws do not affect each other
            more = (copy, 2) if copy else ()
            clips = cut(self._protocols[record.source], draw(*key, 0, *more), jitter=self.jitter)
            for number, frames in enumerate(clips, start=1):
                rng = draw(*key, number, *more)
                views.append((frames, self._train_crops(video, len(frames), rng)))
                seeds.append(int(rng.integers(2**63 - 1)))
        return Plan(video, views, self.size, seeds)

    def _read(self, record: Record, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        plan, file = self.ahead.take(SampleKey(*key[1:])) or (None, None)
        if plan is None:
            plan = self.plan(record, key, self.open_video(record.path))
        how = (self.interpolation, self.size_changes, file, self.resize)
        pixels = decode_views(plan.video, plan.views, plan.size, *how)
        copies = rearrange(pixels, "(m n) c t h w -> m n c t h w", m=self.copies)
        return copies, torch.tensor(plan.seeds).view(self.copies, -1)


def collate(samples: Sequence[Sample]) -> Batch:
    """Makes a batch of the samples that could be read (perhaps none), and collects all faults."""
    read = [(sample, sample.clips) for sample in samples if sample.clips is not None]
    faults = [fault for sample in samples for fault in sample.faults]
    refusal = next((sample.refusal for sample in samples if sample.refusal), None)
    if not read:
        nothing = torch.empty(0, dtype=torch.int64)
        return Batch(nothing.to(torch.uint8), nothing, nothing, nothing, faults, refusal)
    counts = torch.tensor([len(clips) for _, clips in read], dtype=torch.int64)
    return Batch(
        clips=torch.cat([clips for _, clips in read]),
        labels=torch.stack([sample.target for sample, _ in read]).repeat_interleave(counts, 0),
        indices=torch.tensor([sample.record for sample, _ in read]).repeat_interleave(counts),
        seeds=torch.cat([sample.seeds for sample, _ in read]),
        faults=faults,
        refusal=refusal,
    )


# --- requesting the bytes of later samples from stores, while others are decoded ---


class ReadAhead:
    """The samples in stores that a process will read, in order; the bytes of the next ones are requested already.

    The bytes of a video without metadata in the index cannot be requested; its metadata is read in its turn. Files on
    disk are ignored.
    """

    def __init__(self) -> None:
        self._expected: deque[SampleKey] = deque()
        self._asked: OrderedDict[SampleKey, tuple[Plan, RemoteFile]] = OrderedDict()

    def expect(self, dataset: VideoDataset, keys: Sequence[SampleKey]) -> None:
        """Appends samples to those that are expected."""
        for key in keys:
            path = dataset.manifest.paths[key.record]
            if in_store(path):
                with suppress(UserError):  # a protocol that is not installed: reading the sample raises it again
                    ask_status(path)
                    self._expected.append(key)

    def ask(self, dataset: VideoDataset) -> None:
        """Requests as many of the next samples as there is room for, without waiting."""
        while self._expected and len(self._asked) < MOST_CLIPS and self._bytes() < MOST_BYTES:
            key = self._expected[0]
            record = dataset.manifest[key.record]
            if not ask_status(record.path).done():
                return
            self._expected.popleft()
            video = dataset.index.known(record.path)
            if video is None or video.packets is None:
                continue
            try:
                plan = dataset.plan(record, (dataset.seed, *key), video)
            except (EmptyCut, UserError):  # reading the sample raises it again
                continue
            file = RemoteFile(record.path)
            expect_views(file, video, plan.views)
            self._asked[key] = plan, file

    def take(self, key: SampleKey) -> tuple[Plan, RemoteFile] | None:
        """The plan and the requested file of a sample, or None. Forgets the samples before it."""
        if key in self._expected:
            while self._expected.popleft() != key:
                pass
            self._drop(len(self._asked))
        if key not in self._asked:
            return None
        self._drop(list(self._asked).index(key))
        return self._asked.popitem(last=False)[1]

    def _drop(self, count: int) -> None:
        for _ in range(count):
            self._asked.popitem(last=False)[1][1].close()

    def _bytes(self) -> int:
        return sum(file.size for _, file in self._asked.values())
