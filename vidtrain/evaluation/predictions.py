"""The predictions of evaluations: their logits as a file, and the videos that several runs share, aligned."""

import os
import sys
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import count_units
from vidtrain.files.atomic import replacing_path
from vidtrain.files.escaping import read_csv

AGAIN = "evaluate the run's checkpoint again"

# --- logits.npz -------------------------------------------------------------------------------------------

LOGITS = "logits.npz"


def write_logits(path: Path, logits: Tensor, classes: Sequence[str], independent: bool) -> None:
    """Writes fused `logits` [v k], a row for each row of predictions.csv, with the names of the k `classes` and whether
    these are judged `independent`ly, by sigmoids. Read it with `np.load`."""
    with replacing_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, logits=logits.numpy(), classes=np.array(classes, dtype=np.str_), independent=independent)
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class StoredLogits:
    """A file of `write_logits`, whose logits stay in the file until they are read."""

    path: Path
    classes: list[str]
    independent: bool

    @classmethod
    def open(cls, path: Path) -> "StoredLogits | None":
        """None if there is no file: earlier versions wrote none, and with many classes none is written."""
        if not path.is_file():
            return None
        with _readable(path) as file:
            return cls(path, file["classes"].tolist(), bool(file["independent"]))

    def read(self, rows: Sequence[int]) -> Tensor:
        """The logits [v k] of `rows`. Raises `UserError` if the file lacks some of them."""
        with _readable(self.path) as file:
            logits = torch.from_numpy(file["logits"])
        if rows and max(rows) >= len(logits):
            raise UserError(f"{self.path} has {len(logits)} rows, and predictions.csv beside it more: {AGAIN}")
        return logits[list(rows)]

    def labels(self, texts: Sequence[str], several: bool) -> Tensor:
        """The labels of videos as the metrics take them, from their texts in predictions.csv: classes int64 [v] or,
        with `several` labels a video, 0 and 1 float32 [v k]. Raises `UserError` for a label that is not a class."""
        number = {name: place for place, name in enumerate(self.classes)}
        unknown = {name for text in texts for name in _names(text, several)} - number.keys()
        if unknown:
            raise UserError(f"{self.path} lacks the class {min(unknown)} of predictions.csv beside it: {AGAIN}")
        if not several:
            return torch.tensor([number[text] for text in texts], dtype=torch.int64)
        labels = torch.zeros(len(texts), len(self.classes))
        for row, text in enumerate(texts):
            labels[row, [number[name] for name in _names(text, several)]] = 1
        return labels


@contextmanager
def _readable(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            yield file
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}): {AGAIN}") from error


# --- predictions.csv --------------------------------------------------------------------------------------

NEEDED = ("path", "label", "prediction")
SEPARATOR = ";"  # between several labels of a video
TOP5 = ("top1", "top2", "top3", "top4", "top5")

Key = tuple[str, int]  # a path, and the number of its row from 0: clips of one file share its path


@dataclass(frozen=True)
class Predictions:
    """One evaluation: a row per video that was read, in the order of the manifest.

    With `several` labels a video, a text holds all labels of a video, separated by `SEPARATOR`. `top5` [v] says whether
    the label is among the five most probable classes. `groups` is None if the file has no groups.
    `logits` is the file beside it, if there is one.
    """

    paths: list[str]
    labels: list[str]
    predictions: list[str]
    top5: np.ndarray
    groups: list[str] | None
    several: bool
    logits: StoredLogits | None = None


@dataclass(frozen=True)
class Aligned:
    """The v videos that r runs share.

    `labels` and the `predictions` of each run are codes: sorted numbers video * k + class, one for every label of a
    video, with k `classes`. `correct` and `top5` are [r v]; with several labels, a video is correct if all of them are.
    `texts` are the labels and `answers` the predictions as written in the files. Groups are numbered from 0.

    `relabeled` counts shared videos that were left out because the runs label them differently. `unshared` counts for
    each run the videos that another run lacks. `below_folders` is True if the paths agree only relative to each run's
    folder of videos, for example because that was moved. `rows` [r v] are the rows of the videos in each run's file.
    """

    paths: list[str]
    rows: list[list[int]]
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
        return count_units(len(self.paths), self.groups)


def read_predictions(path: Path, several: bool = False) -> Predictions:
    """Reads the predictions.csv of an evaluation, whose videos have one label or `several`. Raises `UserError` naming
    the file and the row if it is damaged."""
    header, *rows = read_csv(path, AGAIN) or [[]]
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
        logits=StoredLogits.open(path.with_name(LOGITS)),
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
        rows=rows,
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


def logits_and_labels(runs: Sequence[Predictions], shared: Aligned) -> list[tuple[Tensor, Tensor, bool]]:
    """The logits of each of `runs` on the `shared` videos, their labels, and whether classes are independent, as
    `resampling.sampled_logits` takes them. Raises `UserError` if a file is damaged, or lacks some of the videos."""
    files = [(run.logits, rows) for run, rows in zip(runs, shared.rows, strict=True) if run.logits is not None]
    return [(file.read(rows), file.labels(shared.texts, runs[0].several), file.independent) for file, rows in files]


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
