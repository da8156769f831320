"""The view table as a folder of plain files: complete or being made, and never of two evaluations.

    views.json   what the axes are, names of orders, clips, crops and classes, coverage, missing videos, identity
    logits.npy   float32 [videos, orders, clips, crops, classes]
    labels.npy   class numbers int64 [videos], or float32 [videos, classes] of 0 and 1
    frames.npy   int32 [videos, clips, frames]: the frame indices that each clip shows, in forward order
    videos.csv   a row per video: its index in the split, path, label, first and last frame of each clip

`identity.json` says what the table is made of, from the beginning on. While it is made, every rank appends units of
work to a file below units/; at the end they are put together in the order of the split and removed.
"""

import csv
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.view_shards import Place, find_units
from vidtrain.evaluation.views import ViewTable
from vidtrain.files.atomic import replacing
from vidtrain.files.escaping import csv_text, read_records

FORMAT = "vidtrain-views/1"
FOLDER = "views"
IDENTITY, VIEWS, UNITS = "identity.json", "views.json", "units"
LOGITS, LABELS, FRAMES, VIDEOS = "logits.npy", "labels.npy", "frames.npy", "videos.csv"
MOST_SHOWN = 8  # differences that are listed
AXES = {
    LOGITS: ["video", "order", "clip", "crop", "class"],
    FRAMES: ["video", "clip", "frame"],
}
READ_WITH = (
    "np.load('logits.npy', mmap_mode='r')[i, j] are the logits [clips, crops, classes] of row i of videos.csv, shown "
    "in order j of orders"
)


@dataclass(frozen=True)
class StoredViews:
    """A complete table. `about` is views.json; `logits` [v o n s k] stay in the file until they are used."""

    folder: Path
    about: Mapping[str, Any]
    logits: np.ndarray
    labels: Tensor
    indices: Tensor
    paths: Mapping[int, str]  # by index

    @property
    def missing(self) -> list[tuple[str, str]]:
        return [(each["path"], each["cause"]) for each in self.about["missing"]]

    def table(self, order: str, clips: Sequence[int], crops: Sequence[int]) -> ViewTable:
        """The views of the given clips and crops, by their numbers from 0."""
        views = np.array(self.logits[:, self.about["orders"].index(order)])[:, list(clips)][:, :, list(crops)]
        return ViewTable(
            self.indices,
            self.labels,
            torch.from_numpy(views).flatten(1, 2),
            self.missing,
            self.about["total"],
        )


def begin(
    folder: Path,
    identity: Mapping[str, Any],
    asked: int | None,
    usual: int,
    overwrite: bool,
    renamed: Callable[[Mapping[str, Any]], dict[str, Any]] = dict,
) -> int:
    """Makes `folder` the home of a table, or finds it again; returns how many threads are to compute it.

    Those are as `asked`, else as the table was begun with, else `usual`: with another number sums differ in the last
    bit. `renamed` gives a stored identity the names of now. Raises `UserError` naming what differs where the folder
    holds another table, unless `overwrite`.
    """
    path = folder / IDENTITY
    if overwrite:
        _clear(folder)
    if path.is_file():
        stored = _read_json(path)
        before, now = renamed(stored["identity"]), json.loads(json.dumps(identity))
        if asked is not None:
            before, now = before | {"cpu_threads": stored["cpu_threads"]}, now | {"cpu_threads": asked}
        changed = [
            f"{key}: {_short(before, key)} -> {_short(now, key)}"
            for key in sorted(before.keys() | now.keys())
            if key not in before or key not in now or before[key] != now[key]
        ]
        if changed:
            more = [f"and {len(changed) - MOST_SHOWN} more"] if len(changed) > MOST_SHOWN else []
            raise UserError(
                f"{folder} holds the views of another evaluation, and no table is made of two:\n  "
                + "\n  ".join(changed[:MOST_SHOWN] + more)
                + "\nGive this one another folder with out=, or replace that one with overwrite=true"
            )
        return stored["cpu_threads"]
    folder.mkdir(parents=True, exist_ok=True)
    cpu_threads = asked or usual
    _write_json(path, {"format": FORMAT, "identity": dict(identity), "cpu_threads": cpu_threads})
    return cpu_threads


def is_complete(folder: Path) -> bool:
    return (folder / VIEWS).is_file()


def units_done(folder: Path) -> dict[int, Place]:
    return find_units(folder / UNITS)


def merge(
    folder: Path,
    about: Mapping[str, Any],
    paths: Sequence[str],
    names: Callable[[np.ndarray], str],
    logits_shape: tuple[int, int, int, int],
) -> None:
    """Puts the units together, in the order of the split, and views.json last: from then on the table is complete.

    `logits_shape` is [orders, clips, crops, classes]; `names` spells a label. The files are the same, byte for byte,
    whichever process made the units.
    """
    places = units_done(folder).values()
    missing, videos, unit_like = [], 0, None
    for place in places:
        unit = place.read()
        missing += unit.missing
        videos += len(unit.indices)
        if len(unit.indices):
            unit_like = unit
    labels = np.zeros(0, np.int64) if unit_like is None else unit_like.labels
    frames_shape = (0, 0) if unit_like is None else unit_like.frames.shape[1:]
    arrays = {
        LOGITS: _new_array(folder / LOGITS, np.dtype(np.float32), (videos, *logits_shape)),
        FRAMES: _new_array(folder / FRAMES, np.dtype(np.int32), (videos, *frames_shape)),
        LABELS: _new_array(folder / LABELS, labels.dtype, (videos, *labels.shape[1:])),
    }
    _fill(arrays, places, folder, paths, names, frames_shape[0])
    for name, array in arrays.items():
        if isinstance(array, np.memmap):
            array.flush()
        else:
            with open(_making(folder / name), "wb") as file:
                np.save(file, array)
    for name in (*arrays, VIDEOS):
        with open(_making(folder / name), "rb") as file:
            os.fsync(file.fileno())
        os.replace(_making(folder / name), folder / name)
    whole = {
        "format": FORMAT,
        "videos": videos,
        "coverage": f"{videos}/{about['total']}",
        **about,
        "missing": [{"path": path, "cause": cause} for path, cause in missing],
        "axes": AXES,
        "how_to_read": READ_WITH,
        "identity": _read_json(folder / IDENTITY)["identity"],
    }
    _write_json(folder / VIEWS, whole)


def _new_array(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a file beside `path`, or in memory where it is empty, which cannot be mapped."""
    if not shape[0]:
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(_making(path), "w+", dtype, shape)


def _fill(
    arrays: Mapping[str, np.ndarray],
    places: Iterable[Place],
    folder: Path,
    paths: Sequence[str],
    names: Callable[[np.ndarray], str],
    clips: int,
) -> None:
    """Copies the units into the arrays, one after another, and writes the row of each video into videos.csv."""
    first = 0
    with open(_making(folder / VIDEOS), "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        spans = [f"clip{clip + 1}_{end}" for clip in range(clips) for end in ("first", "last")]
        file.write(csv_text([["index", "path", "label", *spans]], end="\r\n"))
        for place in places:
            unit = place.read()
            last = first + len(unit.indices)
            if last > first:
                for name, values in ((LOGITS, unit.logits), (FRAMES, unit.frames), (LABELS, unit.labels)):
                    arrays[name][first:last] = values
            for index, label, frames in zip(unit.indices.tolist(), unit.labels, unit.frames, strict=True):
                ends = [int(end) for clip in frames for end in (clip.min(), clip.max())]
                file.write(csv_text([[index, paths[index], names(label), *ends]], end="\r\n"))
            first = last


def clean(folder: Path) -> None:
    """Removes the units of a table that is complete, and what a killed process had not finished writing."""
    shutil.rmtree(folder / UNITS, ignore_errors=True)
    for stray in folder.glob(".*.tmp"):
        stray.unlink(missing_ok=True)


def open_views(named: Path) -> StoredViews:
    """The complete table in a folder, or in the folder views/ in it.

    Raises `UserError` for a folder without one, for one that is not complete yet, and for damaged files.
    """
    folder = named if (named / IDENTITY).is_file() else named / FOLDER
    if not (folder / IDENTITY).is_file():
        raise UserError(
            f"{named} holds no view table; vidtrain.evaluate makes one in its out folder, below {FOLDER}/"
        )
    if not is_complete(folder):
        raise UserError(
            f"the view table in {folder} is not complete: give the command that began it again, and it goes on"
        )
    about = _read_json(folder / VIEWS)
    if about.get("sampling") == "reference":  # as it was called before
        about["sampling"] = "vjepa2"
    if about["format"] != FORMAT:
        raise UserError(
            f"{folder} is of format {about['format']}, and this version of vidtrain reads {FORMAT}"
        )
    try:
        logits = np.load(folder / LOGITS, mmap_mode="r" if about["videos"] else None, allow_pickle=False)
        labels = torch.from_numpy(np.load(folder / LABELS, allow_pickle=False))
        with open(folder / VIDEOS, newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = read_records(file)
    except (OSError, ValueError, TypeError, EOFError, MemoryError, csv.Error) as error:
        raise UserError(
            f"the view table in {folder} is damaged: {error}; make it again with overwrite=true"
        ) from error
    if not len(logits) == len(labels) == len(rows) == about["videos"]:
        raise UserError(f"the files in {folder} are not of one table; make it again with overwrite=true")
    paths = {int(row["index"]): row["path"] for row in rows}
    return StoredViews(folder, about, logits, labels, torch.tensor(list(paths), dtype=torch.int64), paths)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # a byte that is no UTF-8 is spelled as JSON does, so that the file stays UTF-8
    text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
    with replacing(path) as file:
        file.write(text + "\n")


def _making(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _clear(folder: Path) -> None:
    for name in (VIEWS, IDENTITY, LOGITS, LABELS, FRAMES, VIDEOS):
        (folder / name).unlink(missing_ok=True)
    clean(folder)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read: {error}; make the table again with overwrite=true"
        ) from error


def _short(values: Mapping[str, Any], key: str) -> str:
    text = str(values[key]) if key in values else "absent"
    return text if len(text) <= 60 else f"{text[:57]}..."
