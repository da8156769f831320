"""The report of an evaluation: metrics at clip and video level, and tables; reads the predictions of several runs again
and aligns the videos that they share."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidtrain.errors import UserError
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
from vidtrain.evaluation.views import ViewTable, fuse
from vidtrain.files.atomic import replacing, write_json_atomic
from vidtrain.files.escaping import csv_lines, read_csv

MOST_CLASSES = 1000
"""With more classes, confusion_pairs.csv with the pairs that occur takes the place of the matrix confusion.csv."""


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
    """Writes metrics.json, predictions.csv, per_class.csv and, if videos have one label, confusion.csv into `folder`;
    with more than 1000 classes confusion_pairs.csv instead of the last.

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
        label, prediction = (";".join(classes[k] for k in column[row]) for column in (labels, predictions))
        names = [classes[k] for k in top[row].tolist()]
        shares = [f"{p:.6f}" for p in probabilities[row].tolist()]
        pairs = [cell for pair in zip(names, shares, strict=True) for cell in pair]
        group = [] if groups is None else [groups[index]]
        rows.append([paths[index], label, prediction, int(labels[row] == predictions[row]), *pairs, *group])
    _write(path, rows)


def _write(path: Path, rows: Iterable[Sequence[object]]) -> None:
    with replacing(path) as file:
        file.writelines(csv_lines(rows, end="\r\n"))


# --- predictions.csv of several runs ----------------------------------------------------------------------

NEEDED = ("path", "label", "prediction")
SEPARATOR = ";"  # between several labels of a video
TOP5 = ("top1", "top2", "top3", "top4", "top5")

Key = tuple[str, int]  # a path, and the number of its row from 0: clips of one file share its path


@dataclass(frozen=True)
class Predictions:
    """One evaluation: a row per video that was read, in the order of the manifest.

    With `several` labels a video, a text holds all labels of a video, separated by `SEPARATOR`. `top5` [v] says whether
    the label is among the five most probable classes. `groups` is None if the file has no groups.
    """

    paths: list[str]
    labels: list[str]
    predictions: list[str]
    top5: np.ndarray
    groups: list[str] | None
    several: bool


@dataclass(frozen=True)
class Aligned:
    """The v videos that r runs share.

    `labels` and the `predictions` of each run are codes: sorted numbers video * k + class, one for every label of a
    video, with k `classes`. `correct` and `top5` are [r v]; with several labels, a video is correct if all of them are.
    `texts` are the labels and `answers` the predictions as written in the files. Groups are numbered from 0.

    `relabeled` counts shared videos that were left out because the runs label them differently. `unshared` counts for
    each run the videos that another run lacks. `below_folders` is True if the paths agree only relative to each run's
    folder of videos, for example because that was moved.
    """

    paths: list[str]
    classes: list[str]
    texts: list[str]
    answers: list[list[str]]
    labels: np.ndarray
    predictions: list[np.ndarray]
    correct: np.ndarray
    top5: np.ndarray
    groups: np.ndarray | None
    relabeled: int
    unshared: list[int]
    below_folders: bool

    @property
    def units(self) -> int:
        """How many units a bootstrap draw has: groups, or videos."""
        return len(self.paths) if self.groups is None else int(self.groups.max()) + 1


def read_predictions(path: Path, several: bool = False) -> Predictions:
    """Reads the predictions.csv of an evaluation, whose videos have one label or `several`. Raises `UserError` naming
    the file and the row if it is damaged."""
    header, *rows = read_csv(path, "evaluate the run's checkpoint again") or [[]]
    lacking = [name for name in NEEDED if name not in header]
    if lacking:
        raise UserError(f"{path} has no column {', '.join(lacking)}: it was not written by an evaluation")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number} has {len(row)} fields and not {len(header)}: it is damaged")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=False))
    if not columns:
        raise UserError(f"{path} names no video")
    for name in columns.keys() & {"label", "prediction", *TOP5}:  # earlier versions wrote other Unicode forms
        columns[name] = [unicodedata.normalize("NFC", text) for text in columns[name]]
    likeliest = [columns[name] for name in TOP5 if name in columns]
    return Predictions(
        paths=list(map(sys.intern, columns["path"])),  # hundreds of runs read the same videos
        labels=list(map(sys.intern, columns["label"])),
        predictions=list(map(sys.intern, columns["prediction"])),
        top5=np.array(
            [any(column[row] == label for column in likeliest) for row, label in enumerate(columns["label"])]
        ),
        groups=columns["group"] if "group" in columns else None,
        several=several,
    )


def align(runs: Sequence[Predictions]) -> Aligned:
    """The videos that all `runs` read, in the order of the first run. Videos are identified by their paths. If no path
    is shared, paths relative to the folder that holds all videos of a run are tried, and used if the labels agree. A
    path is not shared if it has another number of rows in another run."""
    rows, relabeled = _share([_keys(run.paths) for run in runs], runs)
    below_folders = False
    if not rows[0] and not relabeled:
        moved, relabeled_moved = _share([_keys(_below_folder(run.paths)) for run in runs], runs)
        if moved[0] and not relabeled_moved:
            rows, below_folders = moved, True
    texts = [runs[0].labels[row] for row in rows[0]]
    answers = [[run.predictions[row] for row in run_rows] for run, run_rows in zip(runs, rows, strict=True)]
    several = runs[0].several
    classes = sorted({name for text in (*texts, *chain(*answers)) for name in _names(text, several)})
    code_of = {name: code for code, name in enumerate(classes)}

    def label_codes(column: Sequence[str]) -> np.ndarray:
        codes = [
            video * len(classes) + code_of[name] for video, text in enumerate(column) for name in _names(text, several)
        ]
        return np.array(sorted(codes), dtype=np.int64)

    groups, names = None, runs[0].groups
    if names is not None and all(run.groups is not None for run in runs):
        groups = np.unique(np.array([names[row] for row in rows[0]]), return_inverse=True)[1]
    return Aligned(
        paths=[runs[0].paths[row] for row in rows[0]],
        classes=classes,
        texts=texts,
        answers=answers,
        labels=label_codes(texts),
        predictions=[label_codes(column) for column in answers],
        correct=np.array([[a == b for a, b in zip(column, texts, strict=True)] for column in answers], dtype=bool),
        top5=np.array([run.top5[run_rows] for run, run_rows in zip(runs, rows, strict=True)], dtype=bool),
        groups=groups,
        relabeled=relabeled,
        unshared=[len(run.paths) - len(rows[0]) - relabeled for run in runs],
        below_folders=below_folders,
    )


def _names(text: str, several: bool) -> list[str]:
    return [name for name in text.split(SEPARATOR) if name] if several else [text]


def _share(keys: Sequence[Sequence[Key]], runs: Sequence[Predictions]) -> tuple[list[list[int]], int]:
    """For each run the rows of the shared videos; and the number of videos left out because the labels differ."""
    path_counts = [Counter(path for path, _ in run_keys) for run_keys in keys]
    row_of = [{key: row for row, key in enumerate(run_keys)} for run_keys in keys]
    rows: list[list[int]] = [[] for _ in runs]
    relabeled = 0
    for key in keys[0]:
        path = key[0]
        if any(path not in count or count[path] != path_counts[0][path] for count in path_counts[1:]):
            continue
        key_rows = [rows_by_key[key] for rows_by_key in row_of]
        if len({run.labels[row] for run, row in zip(runs, key_rows, strict=True)}) > 1:
            relabeled += 1
            continue
        for run_rows, row in zip(rows, key_rows, strict=True):
            run_rows.append(row)
    return rows, relabeled


def _keys(paths: Sequence[str]) -> list[Key]:
    seen: Counter[str] = Counter()
    keys = []
    for path in map(os.path.normpath, paths):
        keys.append((path, seen[path]))
        seen[path] += 1
    return keys


def _below_folder(paths: Sequence[str]) -> list[str]:
    folders = {os.path.dirname(os.path.normpath(path)) for path in paths}
    if len({os.path.isabs(folder) for folder in folders}) > 1 or "" in folders:
        return list(paths)  # some are absolute and some are not, or there is no folder
    return [os.path.relpath(path, os.path.commonpath(folders)) for path in paths]
