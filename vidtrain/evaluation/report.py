"""The report of an evaluation: metrics at clip and video level, and tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidtrain.evaluation.calibrated import Calibration
from vidtrain.evaluation.calibration import errors_by_class, outcomes, reliability
from vidtrain.evaluation.metrics import (
    Confusion,
    confusion_matrix,
    count_labels,
    exact_match,
    first_classes,
    from_class_counts,
    from_label_counts,
    from_label_logits,
    from_logits,
    parts,
    per_class,
    per_label,
)
from vidtrain.evaluation.predictions import LOGITS, SEPARATOR, write_logits
from vidtrain.evaluation.views import ViewTable, fuse
from vidtrain.files.atomic import replacing, write_json_atomic
from vidtrain.files.escaping import csv_lines

MOST_CLASSES = 1000
"""With more classes, there is no logits.npz, and confusion_pairs.csv with the pairs that occur takes the place of the
matrix confusion.csv."""


@dataclass
class Report:
    """The result of one evaluation. `metrics` are those of videos; names with `clip_` are those of single views."""

    metrics: dict[str, float]
    confusion: Confusion | None  # None if videos may have several labels
    logits: Tensor  # [v k], fused
    ranked: Tensor  # int64 [v 5]: the five most probable classes, or all if there are fewer
    table: ViewTable
    coverage: str
    protocol: str
    independent: bool  # whether classes are judged independently
    uncalibrated: Tensor | None = None  # [v k], if `logits` are calibrated
    # set by `write_report`: `calibration.reliability` of the probabilities, then of the uncalibrated ones
    reliability: Sequence[Mapping[str, Any]] = ()

    @property
    def missing(self) -> list[tuple[str, str]]:
        return self.table.missing

    @property
    def has_nan(self) -> bool:
        return bool(self.logits.isnan().any())

    @property
    def probabilities(self) -> Tensor:
        """The probabilities [v k]. With many classes they are large; prefer `ranked_probabilities` if five classes
        suffice."""
        return self._probabilities(self.logits)

    @property
    def ranked_probabilities(self) -> Tensor:
        """The probabilities [v 5] of `ranked`."""
        rows_at_once = parts(*self.logits.shape)
        return torch.cat([self._probabilities(self.logits[rows]).gather(1, self.ranked[rows]) for rows in rows_at_once])

    def probabilities_of(self, row: int) -> Tensor:
        """The probabilities [k] of one video."""
        return self._probabilities(self.logits[row])

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.independent else logits.softmax(dim=-1)


def report(
    table: ViewTable,
    fusion: str,
    protocol: str,
    independent: bool = False,
    calibration: Calibration | None = None,
) -> Report:
    """Computes the metrics of a view table with a fusion; a `calibration` scales the video logits. With `independent`,
    probabilities are sigmoids, not a softmax; `table.labels` [v k], several labels a video, need that. Raises
    `UserError` if no video could be read."""
    table.check_read()
    num_classes = table.logits.shape[-1]
    fused = fuse(table.logits, fusion, independent)
    logits = fused if calibration is None else calibration.scaling(fused)
    ranked = first_classes(logits, 5)
    clips, clip_labels = (
        table.logits.flatten(0, 1),
        table.labels.repeat_interleave(table.logits.shape[1], dim=0),
    )
    if table.labels.ndim == 2:
        by_clip, confusion = from_label_logits(clips, clip_labels), None
        counts = count_labels(logits, table.labels)
        metrics = from_label_logits(logits, table.labels) | from_label_counts(counts)
        metrics["exact_match"] = exact_match(logits, table.labels)
    else:
        by_clip = from_logits(clips, clip_labels, independent)
        confusion = confusion_matrix(ranked[:, 0], table.labels, num_classes)
        metrics = from_logits(logits, table.labels, independent)
        metrics |= from_class_counts(confusion.by_class())
    return Report(
        metrics=metrics | {f"clip_{name}": value for name, value in by_clip.items()},
        confusion=confusion,
        logits=logits,
        ranked=ranked,
        table=table,
        coverage=table.coverage,
        protocol=protocol if calibration is None else f"{protocol}, {calibration}",
        independent=independent,
        uncalibrated=None if calibration is None else fused,
    )


def write_report(
    result: Report,
    folder: Path,
    paths: Sequence[str] | Mapping[int, str],
    classes: Sequence[str],
    groups: Sequence[str] | Mapping[int, str] | None = None,
) -> None:
    """Writes metrics.json, predictions.csv, logits.npz, per_class.csv and, if videos have one label, confusion.csv into
    `folder`; with more than 1000 classes confusion_pairs.csv instead of the last, and no logits.npz.

    `paths` and `groups` are those of the whole manifest, or map the indices of the videos read. predictions.csv has a
    row per video that was read; several labels of a video stand in one field, separated by ";". Sets
    `result.reliability` and adds its metrics.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not result.has_nan:
        both = (result.logits, *([] if result.uncalibrated is None else [result.uncalibrated]))
        costs = [outcomes(logits, result.table.labels, result.independent) for logits in both]
        result.reliability = reliability(costs, group_numbers(result.table.indices.tolist(), groups))
        result.metrics |= {name: result.reliability[0][name]["value"] for name in ("brier", "ece", "ece_mass")}
    summary = {
        "metrics": result.metrics,
        "coverage": result.coverage,
        "protocol": result.protocol,
        "calibrated": result.uncalibrated is not None,
        "reliability": result.reliability,
        "missing": [{"path": path, "cause": cause} for path, cause in result.table.missing],
    }
    write_json_atomic(folder / "metrics.json", summary)
    _write_predictions(result, folder / "predictions.csv", paths, classes, groups)
    (folder / LOGITS).unlink(missing_ok=True)  # of an earlier evaluation
    if len(classes) <= MOST_CLASSES and not result.has_nan:
        write_logits(folder / LOGITS, result.logits, classes, result.independent)
    if result.confusion is not None:
        _write_confusion(result.confusion, folder, classes)
        by_class = per_class(result.confusion)
    else:
        errors = errors_by_class(result.logits, result.table.labels)
        label_rows = per_label(result.logits, result.table.labels)
        by_class = [row | {"ece": error} for row, error in zip(label_rows, errors, strict=True)]
    rows = [[name, *metrics.values()] for name, metrics in zip(classes, by_class, strict=True)]
    _write(folder / "per_class.csv", [["class", *by_class[0]], *rows])


def group_numbers(indices: Sequence[int], groups: Sequence[str] | Mapping[int, str] | None) -> np.ndarray | None:
    """The number of the group, from 0, for each of the `indices`; None without groups."""
    if groups is None:
        return None
    return np.unique(np.array([groups[index] for index in indices]), return_inverse=True)[1]


def _write_confusion(confusion: Confusion, folder: Path, classes: Sequence[str]) -> None:
    matrix, pairs = folder / "confusion.csv", folder / "confusion_pairs.csv"
    (pairs if len(classes) <= MOST_CLASSES else matrix).unlink(missing_ok=True)  # left by an earlier evaluation
    if len(classes) <= MOST_CLASSES:
        rows = ([name, *confusion.row(k).tolist()] for k, name in enumerate(classes))
        _write(matrix, chain([["label \\ prediction", *classes]], rows))
        return
    columns = (confusion.labels.tolist(), confusion.predictions.tolist(), confusion.counts.tolist())
    counted = zip(*columns, strict=True)
    rows = ([classes[label], classes[prediction], count] for label, prediction, count in counted)
    _write(pairs, chain([["label", "prediction", "videos"]], rows))


def _write_predictions(
    result: Report,
    path: Path,
    paths: Sequence[str] | Mapping[int, str],
    classes: Sequence[str],
    groups: Sequence[str] | Mapping[int, str] | None,
) -> None:
    top, probabilities = result.ranked, result.ranked_probabilities
    if result.confusion is None:
        labels = [row.nonzero().flatten().tolist() for row in result.table.labels]
        predictions = [row.nonzero().flatten().tolist() for row in result.logits > 0]
    else:
        labels, predictions = ([[k] for k in row.tolist()] for row in (result.table.labels, top[:, 0]))
    header = [f"{what}{rank + 1}" for rank in range(top.shape[1]) for what in ("top", "p")]
    group_column = [] if groups is None else ["group"]
    rows: list[list[object]] = [["path", "label", "prediction", "correct", *header, *group_column]]
    for row, index in enumerate(result.table.indices.tolist()):
        label, prediction = (SEPARATOR.join(classes[k] for k in column[row]) for column in (labels, predictions))
        names = [classes[k] for k in top[row].tolist()]
        shares = [f"{p:.6f}" for p in probabilities[row].tolist()]
        pairs = [cell for pair in zip(names, shares, strict=True) for cell in pair]
        group = [] if groups is None else [groups[index]]
        rows.append([paths[index], label, prediction, int(labels[row] == predictions[row]), *pairs, *group])
    _write(path, rows)


def _write(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as file:
        file.writelines(csv_lines(rows, end="\r\n"))
