"""From a view table to a report: metrics at clip and at video level, and the tables behind them."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.fusion import fuse
from vidtrain.evaluation.metrics import confusion_matrix, from_logits, from_predictions, per_class, ranking
from vidtrain.evaluation.views import ViewTable


@dataclass
class Report:
    """What one evaluation found. `metrics` are of videos, those that start with `clip_` of single views."""

    metrics: dict[str, float]
    confusion: Tensor  # int64 [k k], rows are labels
    probabilities: Tensor  # [v k] of the fused prediction
    ranked: Tensor  # int64 [v k], classes by falling probability
    table: ViewTable
    coverage: str
    protocol: str


def report(table: ViewTable, fusion: str, protocol: str) -> Report:
    """Metrics of a view table under a fusion. Raises `UserError` when no video could be read."""
    if not len(table.labels):
        path, cause = table.missing[0]
        raise UserError(f"none of the {table.total} videos could be read; the first: {path} ({cause})")
    num_classes = table.logits.shape[-1]
    video_logits = fuse(table.logits, fusion)
    ranked = ranking(video_logits)
    predictions = ranked[:, 0]
    by_clip = from_logits(table.logits.flatten(0, 1), table.labels.repeat_interleave(table.logits.shape[1]))
    metrics = (
        from_logits(video_logits, table.labels)
        | from_predictions(predictions, table.labels, num_classes)
        | {f"clip_{name}": value for name, value in by_clip.items()}
    )
    return Report(
        metrics=metrics,
        confusion=confusion_matrix(predictions, table.labels, num_classes),
        probabilities=video_logits.softmax(dim=-1),
        ranked=ranked,
        table=table,
        coverage=table.coverage,
        protocol=protocol,
    )


def write_report(found: Report, folder: Path, paths: Sequence[str], classes: Sequence[str]) -> None:
    """Writes metrics.json, predictions.csv, confusion.csv and per_class.csv into `folder`.

    `paths` are those of the whole manifest; predictions.csv has a row per video that was read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    summary = {
        "metrics": found.metrics,
        "coverage": found.coverage,
        "protocol": found.protocol,
        "missing": [{"path": path, "cause": cause} for path, cause in found.table.missing],
    }
    (folder / "metrics.json").write_text(json.dumps(summary, indent=2) + "\n")

    top = found.ranked[:, :5]
    chances = found.probabilities.gather(1, top)
    with open(folder / "predictions.csv", "w", newline="") as file:
        rows = csv.writer(file)
        header = [f"{what}{rank + 1}" for rank in range(top.shape[1]) for what in ("top", "p")]
        rows.writerow(["path", "label", "prediction", "correct", *header])
        for row, (index, label) in enumerate(
            zip(found.table.indices.tolist(), found.table.labels.tolist(), strict=True)
        ):
            names = [classes[k] for k in top[row].tolist()]
            shares = [f"{p:.6f}" for p in chances[row].tolist()]
            pairs = [cell for pair in zip(names, shares, strict=True) for cell in pair]
            rows.writerow([paths[index], classes[label], names[0], int(names[0] == classes[label]), *pairs])

    with open(folder / "confusion.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["label \\ prediction", *classes])
        rows.writerows(
            [name, *counts] for name, counts in zip(classes, found.confusion.tolist(), strict=True)
        )

    with open(folder / "per_class.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, ["class", "support", "precision", "recall", "f1"])
        rows.writeheader()
        rows.writerows(
            {"class": name} | found_for
            for name, found_for in zip(classes, per_class(found.confusion), strict=True)
        )
