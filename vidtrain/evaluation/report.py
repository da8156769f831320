"""From a view table to a report: metrics at clip and at video level, and the tables behind them."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.fusion import fuse
from vidtrain.evaluation.metrics import confusion_matrix, from_logits, from_predictions, per_class, ranking
from vidtrain.evaluation.multi_label import (
    count_labels,
    exact_match,
    from_label_counts,
    from_label_logits,
    per_label,
)
from vidtrain.evaluation.views import ViewTable


@dataclass
class Report:
    """What one evaluation found. `metrics` are of videos, those that start with `clip_` of single views."""

    metrics: dict[str, float]
    confusion: Tensor | None  # int64 [k k], rows are labels; None where videos may have several
    logits: Tensor  # [v k], fused
    probabilities: Tensor  # [v k] of the fused prediction
    ranked: Tensor  # int64 [v k], classes by falling probability
    table: ViewTable
    coverage: str
    protocol: str


def report(table: ViewTable, fusion: str, protocol: str, independent: bool = False) -> Report:
    """Metrics of a view table under a fusion. Raises `UserError` when no video could be read.

    With `independent`, classes are judged each by itself: probabilities are sigmoids, not a softmax. Videos that may
    have several labels, `table.labels` [v k], need that.
    """
    if not len(table.labels):
        path, cause = table.missing[0]
        raise UserError(f"none of the {table.total} videos could be read; the first: {path} ({cause})")
    num_classes = table.logits.shape[-1]
    logits = fuse(table.logits, fusion, independent)
    ranked = ranking(logits)
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
        metrics |= from_predictions(ranked[:, 0], table.labels, num_classes)
    return Report(
        metrics=metrics | {f"clip_{name}": value for name, value in by_clip.items()},
        confusion=confusion,
        logits=logits,
        probabilities=logits.sigmoid() if independent else logits.softmax(dim=-1),
        ranked=ranked,
        table=table,
        coverage=table.coverage,
        protocol=protocol,
    )


def write_report(
    found: Report, folder: Path, paths: Sequence[str] | Mapping[int, str], classes: Sequence[str]
) -> None:
    """Writes metrics.json, predictions.csv, per_class.csv and, where videos have one label, confusion.csv into
    `folder`.

    `paths` are those of the whole manifest, or by its index those of the videos read; predictions.csv has a row
    per video that was read. Several labels of one stand in one field, with ";" between them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "metrics": found.metrics,
        "coverage": found.coverage,
        "protocol": found.protocol,
        "missing": [{"path": path, "cause": cause} for path, cause in found.table.missing],
    }
    (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    _write_predictions(found, folder / "predictions.csv", paths, classes)
    if found.confusion is not None:
        with open(folder / "confusion.csv", "w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["label \\ prediction", *classes])
            rows.writerows(
                [name, *counts] for name, counts in zip(classes, found.confusion.tolist(), strict=True)
            )
        by_class = per_class(found.confusion)
    else:
        by_class = per_label(found.logits, found.table.labels)
    with open(folder / "per_class.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, ["class", *by_class[0]])
        rows.writeheader()
        rows.writerows({"class": name} | each for name, each in zip(classes, by_class, strict=True))


def _write_predictions(
    found: Report, path: Path, paths: Sequence[str] | Mapping[int, str], classes: Sequence[str]
) -> None:
    top = found.ranked[:, :5]
    chances = found.probabilities.gather(1, top)
    if found.confusion is None:
        labels = [row.nonzero().flatten().tolist() for row in found.table.labels]
        predictions = [row.nonzero().flatten().tolist() for row in found.logits > 0]
    else:
        labels, predictions = ([[k] for k in each.tolist()] for each in (found.table.labels, top[:, 0]))
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        header = [f"{what}{rank + 1}" for rank in range(top.shape[1]) for what in ("top", "p")]
        rows.writerow(["path", "label", "prediction", "correct", *header])
        for row, index in enumerate(found.table.indices.tolist()):
            label, prediction = (";".join(classes[k] for k in each[row]) for each in (labels, predictions))
            names = [classes[k] for k in top[row].tolist()]
            shares = [f"{p:.6f}" for p in chances[row].tolist()]
            pairs = [cell for pair in zip(names, shares, strict=True) for cell in pair]
            rows.writerow([paths[index], label, prediction, int(labels[row] == predictions[row]), *pairs])
