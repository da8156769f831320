"""The accuracy of simple models on a dataset, and the comparison of a run with them.

Classifiers learn from vectors of clips: small pictures, and features of a frozen image network, which is untrained or
trained on ImageNet. The predictions are stored in the dataset's index folder:

    INDEX/baselines/KEY/
      baselines.json              their settings, and the metrics of each on each split
      SPLIT/NAME/                 predictions.csv, metrics.json, per_class.csv, as an evaluation writes them

KEY is a hash of the videos, their labels and the settings.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vidtrain.data.audit.duplicates import LUMA
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import bootstrap_interval, resampled_means
from vidtrain.evaluation.predictions import Predictions, align, logits_and_labels, read_predictions
from vidtrain.evaluation.report import MOST_CLASSES, Report, report
from vidtrain.evaluation.resampling import PRECISION_DRAWS, PRECISIONS, sampled_logits
from vidtrain.evaluation.views import ViewTable
from vidtrain.files.atomic import read_json, strict_json, write_json_atomic

FOLDER, FILE = "baselines", "baselines.json"
FORMAT = 2  # increase it when baselines of the same name are computed in another way
KEYS = ("format", "metric", "splits", "results", "seconds")
ADVICE = "delete its folder, and run vidtrain.baselines again"
MOTION = "motion_map logistic"  # the baseline of motion: a model that uses motion should be better
CONFIDENCE = 0.95
DRAWS = 10_000
SIDE = 32  # pixels of the small pictures
BINS = 8  # of each color: 512 colors in all
SHADES = 256
BACKBONE, WEIGHTS = "tf_efficientnet_lite0", "package:efficientnet_lite0"


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
    """The average of all frames [3 * SIDE * SIDE]: the place, the light and everything that does not move."""
    return video.small.mean(dim=(0, 1)).flatten()


def motion_map(video: Video) -> Tensor:
    """The mean change of each pixel from frame to frame [SIDE * SIDE]: where and how much moves, without appearance. It
    is zero for clips of a single frame."""
    gray = (video.small * torch.tensor(LUMA, dtype=torch.float32).view(3, 1, 1)).sum(dim=2)
    if gray.shape[1] < 2:
        return torch.zeros(SIDE * SIDE)
    return gray.diff(dim=1).abs().mean(dim=(0, 1)).flatten()


def color_histogram(video: Video) -> Tensor:
    """Square roots of the shares of 512 colors [BINS ** 3], whose distance is Hellinger's; without shape, place or
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
    from vidtrain.models.classifier import VideoClassifier
    from vidtrain.models.heads import MeanPoolClassifier
    from vidtrain.models.timm_frames import TimmFrames
    from vidtrain.models.weights.files import locate
    from vidtrain.models.weights.image_models import MEAN, STD
    from vidtrain.models.weights.loading import load_pretrained

    path = locate(WEIGHTS) if name == "imagenet" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # always the same untrained network
        encoder = TimmFrames(BACKBONE, size)
    if path is not None:
        load_pretrained(VideoClassifier(encoder, MeanPoolClassifier, 2), WEIGHTS, path, 1.0)
    return FrameFeatures(encoder, [MEAN] * 3, [STD] * 3)


# --- splits, and the predictions for their videos --------------------------------------------------------------


@dataclass(frozen=True)
class Described:
    """The v readable videos of a split: `vectors` float32 [v d] by descriptor, `targets` float64 [v k]."""

    vectors: Mapping[str, np.ndarray]
    targets: np.ndarray
    table: ViewTable  # without logits

    def answered(self, probabilities: np.ndarray, several: bool) -> ViewTable:
        """The table with these probabilities [v k] as the predictions of one view."""
        from vidtrain.evaluator.classifiers import logits

        answers = torch.from_numpy(logits(probabilities, several))[:, None]
        return ViewTable(self.table.indices, self.table.labels, answers, self.table.missing, self.table.total)


def describe_split(
    manifest: Manifest, batches: Iterable[Batch], descriptors: Mapping[str, Descriptor], total: int
) -> Described:
    """Describes the videos of `batches`, one video in each, of `total` requested ones. Raises `UserError` if
    none can be read, and for a batch with a refusal."""
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
    all_labels = torch.cat(labels)
    targets = np.eye(len(manifest.classes))[all_labels.numpy()] if all_labels.ndim == 1 else all_labels.double().numpy()
    vectors = dict(zip(descriptors, map(np.stack, zip(*rows, strict=True)), strict=True))
    no_logits = torch.empty(len(all_labels), 1, 0)
    return Described(vectors, targets, ViewTable(torch.cat(indices), all_labels, no_logits, missing, total))


def answers(
    splits: Mapping[str, Described], groups: np.ndarray, plan: Sequence[tuple[str, str]], protocol: str, several: bool
) -> Iterator[tuple[str, dict[str, Report]]]:
    """Each baseline's name and its report on every split except train, from which it learns. `plan` lists (descriptor,
    classifier); the majority class comes first. `groups` [v] are the numbers of the training videos' groups, which
    cross-validation does not divide."""
    from vidtrain.evaluator.classifiers import logistic_regression, majority, nearest_neighbors

    classifiers = {"": majority, "neighbors": nearest_neighbors, "logistic": logistic_regression}
    train = splits["train"]
    for name in ("majority", *(" ".join(pair) for pair in plan)):
        descriptor, _, classifier = name.partition(" ")
        vectors = {split: own.vectors.get(descriptor, own.targets) for split, own in splits.items()}
        predict = classifiers[classifier](vectors["train"], train.targets, groups, several)
        yield (
            name,
            {
                split: report(own.answered(predict(vectors[split]), several), "mean_logits", protocol, several)
                for split, own in splits.items()
                if split != "train"
            },
        )


def compared_by(several: bool, num_classes: int) -> str:
    """The metric by which runs are compared with baselines. Logits are not stored with more classes."""
    if not several:
        return "top1"
    return "map" if num_classes <= MOST_CLASSES else "exact_match"


# --- the predictions in the dataset's index folder ------------------------------------------------------------

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Baselines:
    """The results of baselines: `results` are their metrics by split and name; `metric` is the one to compare by."""

    folder: Path
    metric: str
    results: Mapping[str, Mapping[str, Metrics]]
    seconds: float

    def best(self, split: str) -> str:
        """The name of the best baseline on this split itself, which is the hardest one to exceed."""
        results = self.results[split]
        return max(results, key=lambda name: results[name][self.metric])

    def predictions(self, split: str, name: str) -> Predictions:
        """The predictions of one baseline. Raises `UserError` if its file is damaged."""
        return read_predictions(self.place(split, name) / "predictions.csv", self.metric != "top1")

    def place(self, split: str, name: str) -> Path:
        return self.folder / split / name.replace(" ", "_")

    def save(self, digests: Mapping[str, str], settings: Mapping[str, Any]) -> None:
        """Writes the file that `find_baselines` reads. Call it when all predictions are in the folder."""
        facts = {"format": FORMAT, "metric": self.metric, "splits": dict(digests), "settings": dict(settings)}
        results = {split: {name: dict(own) for name, own in of.items()} for split, of in self.results.items()}
        write_json_atomic(self.folder / FILE, facts | {"seconds": self.seconds, "results": results})


def folder_for(index: Path, digests: Mapping[str, str], settings: Mapping[str, Any]) -> Path:
    """The folder of baselines for splits with these digests (`SplitRecord.digest`) and for these settings."""
    text = strict_json([FORMAT, dict(sorted(digests.items())), dict(sorted(settings.items()))])
    return index / FOLDER / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def open_baselines(folder: Path) -> Baselines | None:
    """The baselines in `folder`; None if there are none, or they are of another format. Raises `UserError` if they are
    damaged."""
    if not (folder / FILE).is_file():
        return None
    facts = read_json(folder / FILE, ADVICE, KEYS)
    if facts["format"] != FORMAT:
        return None
    return Baselines(folder, facts["metric"], facts["results"], facts["seconds"])


def find_baselines(index: Path, digests: Mapping[str, str], split: str) -> Baselines | None:
    """The newest baselines that were trained on the train split and evaluated on `split`, both with these `digests`.
    None if there are none. Raises `UserError` if any are damaged."""
    for file in sorted((index / FOLDER).glob(f"*/{FILE}"), key=lambda path: -path.stat().st_mtime):
        splits = read_json(file, ADVICE, KEYS)["splits"]
        if split in splits and all(splits[name] == digests.get(name) for name in ("train", split)):
            return open_baselines(file.parent)
    return None


# --- the comparison of a run with baselines ----------------------------------------------------------------


@dataclass(frozen=True)
class BaselineComparison:
    """The `metric` of a run minus that of a baseline, on the number of `videos` that both classified.

    The interval of 95% is over samples of videos, drawn in whole groups (`units`, see
    `evaluation.metrics.resampled_means`). With a single group its bounds are None.
    """

    name: str
    metric: str
    baseline: float
    run: float
    difference: float
    low: float | None
    high: float | None
    videos: int
    units: int

    @property
    def is_better(self) -> bool:
        """Whether the run is significantly better."""
        return self.low is not None and self.low > 0

    @property
    def text(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.difference:+.3f} (one group)"
        return f"{self.difference:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def compare_with(run: Predictions, baseline: Predictions, name: str, metric: str) -> BaselineComparison | None:
    """The comparison of a run with a baseline by `metric`, or by the share of videos that are right if that needs
    logits and one of them has none. The baseline's file has the groups of the videos. None if they share no video."""
    grouped = run if baseline.groups is None else replace(run, groups=run.paths)
    pair = [baseline, grouped]
    shared = align(pair)  # groups are those of the first
    if not shared.paths:
        return None
    if metric in PRECISIONS and all(each.logits is not None for each in pair):
        of_each = logits_and_labels(pair, shared)
        values, draws = sampled_logits(metric, of_each, shared.groups, PRECISION_DRAWS, np.random.default_rng(0))
        changes = draws[:, 1] - draws[:, 0]
    else:
        metric = "exact_match" if run.several else "top1"
        correct = shared.correct.astype(np.float64)
        values, rng = correct.mean(axis=1), np.random.default_rng(0)
        changes = resampled_means(correct[1:] - correct[:1], shared.groups, DRAWS, rng)[:, 0]
    low, high = bootstrap_interval(changes, CONFIDENCE, shared.units) or (None, None)
    (of_baseline, of_run), videos = values.tolist(), len(shared.paths)
    return BaselineComparison(name, metric, of_baseline, of_run, of_run - of_baseline, low, high, videos, shared.units)


def compare_with_all(run: Predictions, baselines: Baselines, split: str) -> list[BaselineComparison]:
    """Comparisons of the run with the best baseline of the split, and with the motion map if that is another one."""
    results = baselines.results[split]
    names = [name for name in dict.fromkeys([baselines.best(split), MOTION]) if name in results]
    comparisons = (compare_with(run, baselines.predictions(split, name), name, baselines.metric) for name in names)
    return [comparison for comparison in comparisons if comparison is not None]


def compare_with_known(
    index: Path, digests: Mapping[str, str], split: str, predictions: Path, several: bool
) -> list[BaselineComparison]:
    """Comparisons of a run, by its file `predictions`, with the baselines of the same videos in a dataset's `index`
    folder; empty if it has none. Raises `UserError` if a file is damaged."""
    known = find_baselines(index, digests, split)
    return [] if known is None else compare_with_all(read_predictions(predictions, several), known, split)
