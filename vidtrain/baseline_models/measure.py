"""From the videos of all splits to the answers of every baseline: clips become vectors, which classifiers learn.

The vectors are what can be seen without learning from videos: small pictures, and features of a frozen image network,
one architecture untrained and trained on ImageNet.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.baseline_models.classifiers import (
    Classifier,
    logistic_regression,
    logits,
    majority,
    nearest_neighbors,
)
from vidtrain.data.audit.duplicates import LUMA
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError
from vidtrain.evaluation.report import Report, report
from vidtrain.evaluation.views import ViewTable
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.weights.files import locate
from vidtrain.models.weights.image_networks import MEAN, STD
from vidtrain.models.weights.loading import load_pretrained

SIDE = 32  # pixels of the small pictures
BINS = 8  # of each color: 512 colors in all
SHADES = 256
BACKBONE, WEIGHTS = "tf_efficientnet_lite0", "package:efficientnet_lite0"
CLASSIFIERS: dict[str, Classifier] = {"neighbors": nearest_neighbors, "logistic": logistic_regression}


# --- a video as vectors -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """The clips of a video, uint8 [n 3 t h w], and their small frames, made once for all descriptors."""

    clips: Tensor

    @cached_property
    def small(self) -> Tensor:
        return small_frames(self.clips)


Descriptor = Callable[[Video], Tensor]
"""Maps a video to float32 [d]."""


def small_frames(clips: Tensor) -> Tensor:
    """The frames of `clips` uint8 [n 3 t h w] as averages over areas, float32 [n t 3 SIDE SIDE] in [0, 1]."""
    frames = rearrange(clips, "n c t h w -> (n t) c h w").float() / (SHADES - 1)
    small = F.interpolate(frames, (SIDE, SIDE), mode="area")
    return rearrange(small, "(n t) c h w -> n t c h w", n=len(clips))


def mean_frame(video: Video) -> Tensor:
    """The average of all frames [3 * SIDE * SIDE]: the place, the light, what stays."""
    return video.small.mean(dim=(0, 1)).flatten()


def motion_map(video: Video) -> Tensor:
    """How much each place changes from frame to frame, on average [SIDE * SIDE]: where and how much moves, and nothing
    of how it looks. Zeros for clips of a single frame."""
    gray = (video.small * torch.tensor(LUMA, dtype=torch.float32).view(3, 1, 1)).sum(dim=2)
    if gray.shape[1] < 2:
        return torch.zeros(SIDE * SIDE)
    return gray.diff(dim=1).abs().mean(dim=(0, 1)).flatten()


def color_histogram(video: Video) -> Tensor:
    """Square roots of the shares of 512 colors [BINS ** 3], whose distance is Hellinger's: no shapes, no places, no
    time."""
    red, green, blue = (video.clips.long() * BINS // SHADES).unbind(dim=1)
    counts = torch.bincount(((red * BINS + green) * BINS + blue).flatten(), minlength=BINS**3)
    return (counts / counts.sum()).sqrt()


PICTURES: dict[str, Descriptor] = {
    "mean_frame": mean_frame, "motion_map": motion_map, "color_histogram": color_histogram
}  # fmt: skip


class FrameFeatures:
    """A descriptor: the mean features [d] of the middle frames of all clips, by a frozen image network. `encoder` maps
    clips of normalized floats [b 3 t h w] to tokens [b t d]; `mean` and `std` are its colors."""

    def __init__(self, encoder: nn.Module, mean: Sequence[float], std: Sequence[float]):
        self._encoder = encoder.eval().requires_grad_(False)
        self._mean, self._std = (torch.tensor(values).view(3, 1, 1, 1) for values in (mean, std))

    @torch.inference_mode()
    def __call__(self, video: Video) -> Tensor:
        middle = video.clips[:, :, video.clips.shape[2] // 2]
        colors = rearrange(middle, "n c h w -> c n h w").float() / (SHADES - 1)
        tokens: Tensor = self._encoder(((colors - self._mean) / self._std)[None])
        return tokens[0].mean(dim=0)


def image_network(name: str, size: int) -> FrameFeatures:
    """The features of the network `random` or `imagenet` for frames of `size` pixels a side. Raises `UserError` for
    imagenet where the package of its weights is not installed."""
    path = locate(WEIGHTS) if name == "imagenet" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same untrained one every time
        encoder = TimmFrames(BACKBONE, size)
    if path is not None:
        load_pretrained(VideoClassifier(encoder, MeanPoolClassifier, 2), WEIGHTS, path, 1.0)
    return FrameFeatures(encoder, [MEAN] * 3, [STD] * 3)


# --- splits, and what is answered -------------------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """The v readable videos of a split: `vectors` float32 [v d] by descriptor, `targets` float64 [v k]."""

    vectors: Mapping[str, np.ndarray]
    targets: np.ndarray
    table: ViewTable  # without logits

    def answered(self, chances: np.ndarray, several: bool) -> ViewTable:
        """The table with these probabilities [v k] as the answers of one view."""
        answers = torch.from_numpy(logits(chances, several))[:, None]
        return ViewTable(self.table.indices, self.table.labels, answers, self.table.missing, self.table.total)


def describe_split(
    manifest: Manifest, batches: Iterable[Batch], descriptors: Mapping[str, Descriptor], total: int
) -> Described:
    """Describes the videos of `batches`, one video in each, of `total` that are asked for. Raises `UserError` where
    none can be read, and for a batch that carries a refusal."""
    rows: list[list[np.ndarray]] = []
    indices, labels, missing = [], [], []
    for batch in batches:
        if batch.refusal:
            raise UserError(batch.refusal)
        missing += [(path, cause) for path, cause in batch.faults]
        if len(batch.labels):
            video = Video(batch.clips[0])
            rows.append([describe(video).numpy().astype(np.float32) for describe in descriptors.values()])
            indices.append(batch.indices)
            labels.append(batch.labels)
    if not rows:
        raise UserError(f"none of the {total} videos could be read; the first: {': '.join(missing[0])}")
    marks = torch.cat(labels)
    targets = np.eye(len(manifest.classes))[marks.numpy()] if marks.ndim == 1 else marks.double().numpy()
    vectors = dict(zip(descriptors, map(np.stack, zip(*rows, strict=True)), strict=True))
    nothing = torch.empty(len(marks), 1, 0)
    return Described(vectors, targets, ViewTable(torch.cat(indices), marks, nothing, missing, total))


def answers(
    splits: Mapping[str, Described],
    groups: np.ndarray,
    plan: Sequence[tuple[str, str]],
    protocol: str,
    several: bool,
) -> Iterator[tuple[str, dict[str, Report]]]:
    """Each baseline's name and its report on every split but train, which it learns from. `plan` lists (descriptor,
    classifier); the majority class comes first. `groups` [v] number those of the training videos, which stay together
    where a setting is chosen."""
    train = splits["train"]
    for name in ("majority", *(" ".join(pair) for pair in plan)):
        descriptor, _, classifier = name.partition(" ")
        fit = CLASSIFIERS[classifier] if classifier else majority
        vectors = {split: own.vectors.get(descriptor, own.targets) for split, own in splits.items()}
        predict = fit(vectors["train"], train.targets, groups, several)
        yield (
            name,
            {
                split: report(own.answered(predict(vectors[split]), several), "mean_logits", protocol, several)
                for split, own in splits.items()
                if split != "train"
            },
        )
