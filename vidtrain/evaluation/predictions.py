"""Reads predictions.csv of several runs, aligns the videos that they share, and draws bootstrap samples of videos."""

import os
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from vidtrain.errors import UserError
from vidtrain.files.escaping import read_csv

NEEDED = ("path", "label", "prediction")
SEPARATOR = ";"  # between several labels of a video
TOP5 = ("top1", "top2", "top3", "top4", "top5")

CELLS = 1 << 22  # number of bootstrap weights that are in memory at a time

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


# --- the bootstrap ----------------------------------------------------------------------------------------
#
# The bootstrap estimates how much a number would vary on other videos (Efron, 1979). Each draw takes as many videos as
# there are, with replacement. All runs are scored on the same draws, so differences between runs vary less than their
# scores. Videos of one group (one person, one long recording) are not independent, so whole groups are drawn.


def resampled_means(values: np.ndarray, groups: np.ndarray | None, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means [draws r] of `values` [r v] over videos drawn with replacement, the same for all r rows.

    Videos with equal columns are exchangeable, so only the number of times that each distinct column is drawn is
    sampled: the distribution is the same, and far fewer numbers are needed. `groups` [v] are numbers of groups, which
    are drawn whole. Float32 values are computed in float32, in half the time; all others in float64.
    """
    kind = np.float32 if values.dtype == np.float32 else np.float64
    sums, sizes = values.astype(kind), np.ones(values.shape[1])
    if groups is not None:
        sums = np.stack([np.bincount(groups, row) for row in sums])
        sizes = np.bincount(groups).astype(np.float64)
    columns, counts = np.unique(np.vstack([sums, sizes]).astype(kind), axis=1, return_counts=True)
    products = [weights.astype(kind) @ columns.T for weights in draw_weights(counts, draws, len(counts), rng)]
    return np.concatenate([rows[:, :-1] / rows[:, -1:] for rows in products])


def draw_weights(counts: np.ndarray, draws: int, width: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields how often each of m kinds of units is drawn, [b m]; `counts` [m] are the numbers of units of each kind. A
    chunk has b draws, with at most `CELLS` cells in rows of `width`."""
    total, step, m = int(counts.sum()), max(1, CELLS // width), len(counts)
    single_units = total == m  # each kind has one unit: drawing units one by one then takes a third of the time
    for start in range(0, draws, step):
        size = min(step, draws - start)
        if single_units:
            yield np.stack([np.bincount(rng.integers(m, size=m), minlength=m) for _ in range(size)])
        else:
            yield rng.multinomial(total, counts / total, size=size)


def percentile_interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The interval that holds the middle share `confidence` of `samples`, rounded so that a 0 is exactly 0."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return round(float(low), 12) + 0.0, round(float(high), 12) + 0.0
