"""What runs took each video for, from predictions.csv: the same videos of several runs side by side, and the bootstrap
over them."""

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

CELLS = 1 << 22  # of the weights that are held at a time

Key = tuple[str, int]  # a path, and which of its rows this is: clips of one file share its path


@dataclass(frozen=True)
class Predictions:
    """One evaluation: a row per video that was read, in the order of the manifest.

    With `several` labels a video, those of one stand in one text, as the file holds them. `top5` is [v], whether the
    label is among the five likeliest classes. `groups` is None where none are recorded.
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

    `labels` and the `predictions` of each run are marks: sorted numbers video * k + class, one for every label of a
    video, of k `classes`. `correct` and `top5` are [r v]; with several labels, correct are those that are all alike.
    `texts` are labels and `answers` predictions as they were written. Groups are numbered from 0.

    `relabeled` counts shared videos that were left out, as the runs label them differently, and `unshared` for each
    run the videos that another one lacks. `below_folders` is True where only the paths below each run's folder of
    videos agree, as they do after a move.
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
        """How many units are drawn when videos are resampled: groups, or videos."""
        return len(self.paths) if self.groups is None else int(self.groups.max()) + 1


def read_predictions(path: Path, several: bool = False) -> Predictions:
    """The predictions.csv of an evaluation, of videos with `several` labels or with one. Raises `UserError` naming the
    file and the row."""
    header, *rows = read_csv(path, "evaluate the run's checkpoint again") or [[]]
    lacking = [name for name in NEEDED if name not in header]
    if lacking:
        raise UserError(f"{path} has no column {', '.join(lacking)}: it is not what an evaluation writes")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise UserError(f"{path}, row {number} has {len(row)} fields and not {len(header)}: it is damaged")
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=False))
    if not columns:
        raise UserError(f"{path} names no video")
    for name in columns.keys() & {"label", "prediction", *TOP5}:  # files from before classes had one spelling
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
    """The videos that all `runs` read, in the order of the first one. They are known by their path. Where no path is
    shared at all, the paths below the folder that holds all videos of a run are tried, and taken if then the labels
    agree. A path that comes another number of times in another run is not shared."""
    rows, relabeled = _share([_keys(run.paths) for run in runs], runs)
    below_folders = False
    if not rows[0] and not relabeled:
        moved, relabeled_moved = _share([_keys(_below_folder(run.paths)) for run in runs], runs)
        if moved[0] and not relabeled_moved:
            rows, below_folders = moved, True
    texts = [runs[0].labels[row] for row in rows[0]]
    answers = [[run.predictions[row] for row in own] for run, own in zip(runs, rows, strict=True)]
    several = runs[0].several
    classes = sorted({name for text in (*texts, *chain(*answers)) for name in _names(text, several)})
    number = {name: code for code, name in enumerate(classes)}

    def marks(column: Sequence[str]) -> np.ndarray:
        codes = [
            video * len(classes) + number[name] for video, text in enumerate(column) for name in _names(text, several)
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
        labels=marks(texts),
        predictions=[marks(column) for column in answers],
        correct=np.array([[a == b for a, b in zip(column, texts, strict=True)] for column in answers], dtype=bool),
        top5=np.array([run.top5[own] for run, own in zip(runs, rows, strict=True)], dtype=bool),
        groups=groups,
        relabeled=relabeled,
        unshared=[len(run.paths) - len(rows[0]) - relabeled for run in runs],
        below_folders=below_folders,
    )


def _names(text: str, several: bool) -> list[str]:
    return [name for name in text.split(SEPARATOR) if name] if several else [text]


def _share(keys: Sequence[Sequence[Key]], runs: Sequence[Predictions]) -> tuple[list[list[int]], int]:
    """For each run its rows of the shared videos; and how many are left out, as they are labeled differently."""
    times = [Counter(path for path, _ in own) for own in keys]
    places = [{key: row for row, key in enumerate(own)} for own in keys]
    rows: list[list[int]] = [[] for _ in runs]
    relabeled = 0
    for key in keys[0]:
        path = key[0]
        if any(path not in count or count[path] != times[0][path] for count in times[1:]):
            continue
        at = [place[key] for place in places]
        if len({run.labels[row] for run, row in zip(runs, at, strict=True)}) > 1:
            relabeled += 1
            continue
        for own, row in zip(rows, at, strict=True):
            own.append(row)
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
# How sure a number is (Efron, 1979): as many videos as there are, drawn with replacement again and again, vary as other
# videos of the kind would. All runs are scored on the same draw, so what makes a video hard for all cancels out. Where
# videos come in groups (one person, one long recording) whole groups are drawn, as they are no independent witnesses.


def resampled_means(values: np.ndarray, groups: np.ndarray | None, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Means [draws r] of `values` [r v] over videos drawn with replacement, the same for all r rows.

    Videos on which all rows are the same are exchangeable, so it draws how often each distinct column comes, which is
    the same distribution and far fewer numbers than there are videos. `groups` [v] numbers what is drawn whole. Means
    of float32 are computed in it, which takes half the time; of all else in float64.
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
    """How often each kind of unit is drawn [b m], where `counts` [m] are the numbers of units. b draws come at a time:
    as many as there is memory for in rows of `width`."""
    total, step, m = int(counts.sum()), max(1, CELLS // width), len(counts)
    alone = total == m  # each kind is of one unit: then drawing units one by one takes a third of the time
    for start in range(0, draws, step):
        size = min(step, draws - start)
        if alone:
            yield np.stack([np.bincount(rng.integers(m, size=m), minlength=m) for _ in range(size)])
        else:
            yield rng.multinomial(total, counts / total, size=size)


def percentile_interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of `samples`, without what rounding leaves of a 0."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return round(float(low), 12) + 0.0, round(float(high), 12) + 0.0
