"""Source: listing files, one line a video."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidtrain.data.manifest.checks import check_splits
from vidtrain.data.manifest.columns import Columns, ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import GroupPattern, complete
from vidtrain.data.sources.labels import LabelReader
from vidtrain.data.sources.listing_format import ListingFormat, recognize
from vidtrain.data.sources.tables import Faults, Rows, listed_file, read_rows
from vidtrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Listing(ListingFormat):
    """Videos named by files: one for each split, of which `test` may be absent.

    Where `val` is, `val_share` of train's videos is held out for it, stratified, groups kept whole, drawn from
    `seed`; 0 does without (for a part of a mixture).

    `manifests` raises `UserError` that names the file and the lines at fault.
    """

    train: str
    val: str | None = None
    test: str | None = None
    val_share: float | None = None
    seed: int = 0

    def inputs(self) -> list[Path]:
        return [*self._files().values(), *([Path(self.classes)] if isinstance(self.classes, str) else [])]

    def manifests(self) -> dict[str, Manifest]:
        labels, found = self.label_reader(), {}
        for split, path in self._files().items():
            columns = read_listing(path, self, labels)
            if split == "train":
                classes, order = labels.settle()
                columns = columns if order is None else columns.relabeled(order)
            found[split] = Manifest.from_columns(columns, classes, self.frame_rate)
        found = complete(found, self.val_share, self.seed)
        check_splits(found)
        return found

    def _files(self) -> dict[str, Path]:
        named = {"train": self.train, "val": self.val, "test": self.test}
        return {split: listed_file(split, path) for split, path in named.items() if path is not None}


def read_listing(path: Path, layout: ListingFormat, labels: LabelReader) -> Columns:
    """The records of one listing; `labels` gives their numbers. Raises `UserError` naming the lines at fault."""
    table = recognize(path, layout)
    faults = Faults(path)
    builder = ColumnsBuilder(labels.multi_label)
    folder = os.path.join(path.parent if layout.root is None else layout.root, "")
    pattern = None if layout.group_pattern is None else GroupPattern(layout.group_pattern)
    for rows in read_rows(path, table.delimiter, table.width, faults, table.header, table.whole):
        listed = [fields[table.path] for fields in rows.fields]
        numbers = labels.read([fields[table.label] for fields in rows.fields], _complain(faults, rows))
        groups = None
        if pattern is not None:
            groups = pattern.groups(listed)
        elif table.group is not None:
            groups = _filled(rows, table.group, "no group", faults)
        starts, ends = _times(rows, table.start, table.end, faults)
        paths = _resolved(listed, folder, faults, rows)
        if groups is not None:  # one that is named by its own path, however that is written, is no group
            groups = [p if g == name else g for p, g, name in zip(paths, groups, listed, strict=True)]
        builder.extend(paths, numbers, groups, starts, ends)
    faults.raise_if_any()
    if not len(builder):
        raise UserError(f"{path} lists no videos")
    return builder.build()


def _complain(faults: Faults, rows: Rows) -> Callable[[int, str], None]:
    return lambda place, why: faults.add(rows.lines[place], why)


def _filled(rows: Rows, column: int, why: str, faults: Faults) -> list[str]:
    values = [fields[column] for fields in rows.fields]
    for place, value in enumerate(values) if not all(values) else ():
        if not value:
            faults.add(rows.lines[place], why)
    return values


def _resolved(listed: Sequence[str], folder: str, faults: Faults, rows: Rows) -> list[str]:
    """Paths as they are to be opened."""
    if not all(listed) or "\0" in "".join(listed):
        for place, name in enumerate(listed):
            if not name or "\0" in name:
                faults.add(rows.lines[place], "a path with a zero byte" if name else "no path")
    paths = [name if name.startswith("/") else folder + name for name in listed]
    # two ways to write one path would pass for two videos
    odd = ("/.", "//")
    return [
        os.path.normpath(path) if path.endswith("/") or any(each in path for each in odd) else path
        for path in paths
    ]


def _times(
    rows: Rows, start: int | None, end: int | None, faults: Faults
) -> tuple[list[float] | None, list[float] | None]:
    """Seconds, NaN where a field is empty."""
    columns = []
    for column in (start, end):
        if column is None:
            columns.append(None)
            continue
        values = []
        for line, fields in zip(rows.lines, rows.fields, strict=True):
            try:
                values.append(float(fields[column]) if fields[column] else np.nan)
            except ValueError:
                faults.add(line, f"{fields[column]!r} is no time in seconds")
                values.append(np.nan)
        columns.append(values)
    starts, ends = (np.array(np.nan if each is None else each) for each in columns)
    wrong = (starts < 0) | (ends <= np.nan_to_num(starts)) | np.isinf(starts) | np.isinf(ends)
    for place in np.flatnonzero(wrong).tolist():
        faults.add(rows.lines[place], "a video must start at 0 s or later, and end later than it starts")
    return columns[0], columns[1]
