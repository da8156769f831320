"""From the videos of all splits to the answers of every baseline."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vidtrain.baseline_models.classifiers import (
    Classifier,
    logistic_regression,
    logits,
    majority,
    nearest_neighbors,
)
from vidtrain.baseline_models.descriptors import Descriptor, describe
from vidtrain.data.loading.dataset import Batch
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError
from vidtrain.evaluation.report import Report, report
from vidtrain.evaluation.views import ViewTable

MAJORITY = "majority"
CLASSIFIERS: dict[str, Classifier] = {"neighbors": nearest_neighbors, "logistic": logistic_regression}


@dataclass(frozen=True)
class Described:
    """The v videos of a split that could be read: `vectors` float32 [v d] by descriptor, `targets` float64 [v k]."""

    vectors: Mapping[str, np.ndarray]
    targets: np.ndarray
    table: ViewTable  # without logits

    def answered(self, chances: np.ndarray, several: bool) -> ViewTable:
        """The table with these probabilities [v k] as the answers of one view."""
        table = self.table
        answers = torch.from_numpy(logits(chances, several))[:, None]
        return ViewTable(table.indices, table.labels, answers, table.missing, table.total)


def describe_split(
    manifest: Manifest, batches: Iterable[Batch], descriptors: Mapping[str, Descriptor], total: int
) -> Described:
    """Describes the videos of `batches`, one video in each, of `total` that are asked for.

    Raises `UserError` where none can be read, and for a batch that carries a refusal.
    """
    rows: list[list[np.ndarray]] = []
    indices, labels, missing = [], [], []
    for batch in batches:
        if batch.refusal:
            raise UserError(batch.refusal)
        missing += [(path, cause) for path, cause in batch.faults]
        if len(batch.labels):
            rows.append(describe(batch.clips[0], list(descriptors.values())))
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
    """Each baseline's name and its report on every split but train, which it learns from.

    `plan` lists (descriptor, classifier); the majority class comes first. `groups` [v] number those of the training
    videos, which stay together where a setting is chosen.
    """
    train = splits["train"]
    for name in (MAJORITY, *(" ".join(pair) for pair in plan)):
        descriptor, _, classifier = name.partition(" ")
        fit = CLASSIFIERS[classifier] if classifier else majority
        vectors = {split: own.vectors.get(descriptor, own.targets) for split, own in splits.items()}
        predict = fit(vectors["train"], train.targets, groups, several)
        yield (
            name,
            {
                split: report(
                    own.answered(predict(vectors[split]), several), "mean_logits", protocol, several
                )
                for split, own in splits.items()
                if split != "train"
            },
        )
