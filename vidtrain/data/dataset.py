"""From a sample's key to its uint8 clips: sample, decode, and say what could not be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vidtrain.data.decoding import DecodeError, decode_views, probe
from vidtrain.data.geometry import CenterCrops, Crop, RandomResizedCrop, ShortSideCrop
from vidtrain.data.manifest import Manifest
from vidtrain.data.samplers import SampleKey
from vidtrain.data.sampling import ClipProtocol, clip_indices
from vidtrain.errors import UserError

TrainGeometry = RandomResizedCrop | ShortSideCrop


class Fault(NamedTuple):
    """A file that could not be read, and why."""

    path: str
    cause: str


class Sample(NamedTuple):
    """One video: `clips` uint8 [n c t h w] and one device `seeds` entry [n] per view; None where unreadable.

    `refusal` is what must end the run. It travels as data, since an exception raised in a worker process
    arrives as a traceback.
    """

    clips: Tensor | None
    label: int
    index: int
    seeds: Tensor
    faults: list[Fault]
    refusal: str | None = None


class Batch(NamedTuple):
    """Samples side by side; `indices` are the manifest records actually read."""

    clips: Tensor  # uint8 [b n c t h w]
    labels: Tensor  # int64 [b]
    indices: Tensor  # int64 [b]
    seeds: Tensor  # int64 [b n], the randomness that is spent on the device
    faults: list[Fault]
    refusal: str | None = None


def draw(*key: int) -> np.random.Generator:
    """A generator that depends on `key` alone, so never on workers, ranks or what was drawn before."""
    return np.random.default_rng(np.random.SeedSequence(key))


@dataclass(frozen=True)
class VideoDataset(Dataset):
    """Reads the clips of a manifest's records.

    In training each of `protocol.num_clips` clips is cut at random, once per `SampleKey`; in evaluation
    (`training=False`) clips x crops are deterministic views, clip-major. `size` is (height, width).

    An unreadable video in training is replaced by a draw keyed by (seed, epoch, index, attempt), at most
    `max_retries` times, then the sample carries a refusal; in evaluation nothing replaces it: its sample
    carries no clips.
    """

    manifest: Manifest
    protocol: ClipProtocol
    geometry: TrainGeometry | CenterCrops
    size: tuple[int, int]
    seed: int
    training: bool
    max_retries: int = 3

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: SampleKey) -> Sample:
        epoch, index = key
        faults: list[Fault] = []
        nothing = torch.empty(0, dtype=torch.int64)
        while True:
            record = self.manifest[index]
            try:
                clips, seeds = self._read(record.path, epoch, index)
                return Sample(clips, record.label, index, seeds, faults)
            except DecodeError as error:
                faults.append(Fault(error.path, error.cause))
            except UserError as error:  # the protocol does not allow this video
                return Sample(None, record.label, index, nothing, faults, f"{record.path}: {error}")
            if not self.training:
                return Sample(None, record.label, index, nothing, faults)
            if len(faults) > self.max_retries:
                files = "\n  ".join(f"{fault.path}: {fault.cause}" for fault in faults)
                refusal = f"{len(faults)} videos in a row could not be read:\n  {files}"
                return Sample(None, record.label, index, nothing, faults, refusal)
            index = int(draw(self.seed, epoch, key.index, len(faults), 1).integers(len(self.manifest)))

    def _read(self, path: str, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        video = probe(path)
        if self.training:
            # view 0 places the clips in time, views 1..n crop them: none shifts when another draws more
            when = draw(self.seed, epoch, index, 0)
            clips = clip_indices(video.num_frames, video.timestamps, self.protocol, when)
            where = [draw(self.seed, epoch, index, view + 1) for view in range(len(clips))]
            views = [
                (frames, self.geometry(video.width, video.height, self.size, rng))
                for frames, rng in zip(clips, where, strict=True)
            ]
            seeds = [int(rng.integers(2**63 - 1)) for rng in where]
        else:
            clips = clip_indices(video.num_frames, video.timestamps, self.protocol, None)
            crops: list[Crop] = self.geometry(video.width, video.height, self.size)
            views = [(frames, crop) for frames in clips for crop in crops]
            seeds = [0] * len(views)
        return decode_views(video, views, self.size), torch.tensor(seeds, dtype=torch.int64)


def collate(samples: Sequence[Sample]) -> Batch:
    """Stacks what could be read (perhaps nothing) and gathers every fault."""
    read = [sample for sample in samples if sample.clips is not None]
    return Batch(
        clips=torch.stack([sample.clips for sample in read]) if read else torch.empty(0, dtype=torch.uint8),
        labels=torch.tensor([sample.label for sample in read], dtype=torch.int64),
        indices=torch.tensor([sample.index for sample in read], dtype=torch.int64),
        seeds=torch.stack([sample.seeds for sample in read]) if read else torch.empty(0, dtype=torch.int64),
        faults=[fault for sample in samples for fault in sample.faults],
        refusal=next((sample.refusal for sample in samples if sample.refusal), None),
    )
