"""Source: listing files, one line a video."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidtrain.data.columns import Columns, ColumnsBuilder
from vidtrain.data.manifest import Manifest
from vidtrain.data.manifest_checks import check_splits
from vidtrain.data.sources.labels import LabelReader, class_list
from vidtrain.data.sources.tables import (
    DELIMITERS,
    Faults,
    Rows,
    first_rows,
    listed_file,
    named_delimiter,
    open_text,
    read_rows,
    recognize_delimiter,
    usual_width,
)
from vidtrain.data.splitting import GroupPattern, complete
from vidtrain.errors import UserError

PATH_WORDS = ("path", "video", "video_path", "file", "filename", "file_name")
LABEL_WORDS = ("label", "labels", "class", "class_name", "class_id", "label_id", "category", "target")


@dataclass(frozen=True, kw_only=True)
class ListingFormat:
    """How the lines of a listing are to be read. What is null is recognized, and held against every line.

    `delimiter` is comma, tab, space, semicolon or "::", or the character itself; fields that hold it must be quoted.
    `header` says whether line 1 names the columns. Columns are given by name or by number, from 0. Null means the
    column with a usual name (path, label, group, start, end) where there is a header; without one, the first for paths,
    the second for labels and none for the others. Paths are relative to `root`, else to the listing's folder.

    Labels are read as `LabelReader` says. Groups come from a column or from `group_pattern` (`GroupPattern`, on the
    path as listed); without, each video is one. `start` and `end` are seconds, empty where a video is not cut. With
    `frame_rate`, paths are folders of images, that many a second.
    """

    root: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    path_column: str | int | None = None
    label_column: str | int | None = None
    group_column: str | int | None = None
    start_column: str | int | None = None
    end_column: str | int | None = None
    label_separator: str | None = None
    label_kind: str | None = None
    classes: str | Sequence[str] | None = None
    group_pattern: str | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            named_delimiter(self.delimiter)
        if self.frame_rate is not None and not self.frame_rate > 0:
            raise UserError(
                f"dataset.source.frame_rate={self.frame_rate}: must be above 0 images a second; null for video files"
            )
        if self.group_column is not None and self.group_pattern is not None:
            raise UserError(
                "dataset.source.group_column and dataset.source.group_pattern are both given; take one of them back"
            )
        if self.group_pattern is not None:
            GroupPattern(self.group_pattern)
        LabelReader(self.label_kind, None, self.label_separator)  # refuses what is no kind or separator

    def label_reader(self) -> LabelReader:
        known = None if self.classes is None else class_list(self.classes)
        return LabelReader(self.label_kind, known, self.label_separator, splits=True)


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
    table = _recognize(path, layout)
    faults = Faults(path)
    builder = ColumnsBuilder(labels.multi_label)
    folder = os.path.join(path.parent if layout.root is None else layout.root, "")
    pattern = None if layout.group_pattern is None else GroupPattern(layout.group_pattern)
    for rows in read_rows(path, table.delimiter, table.width, faults, table.header):
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


@dataclass(frozen=True)
class _Table:
    """A listing's layout, with nothing left to recognize: where the columns are."""

    delimiter: str
    width: int
    header: bool
    path: int
    label: int
    group: int | None
    start: int | None
    end: int | None


def _recognize(path: Path, layout: ListingFormat) -> _Table:
    if layout.delimiter is None:
        delimiter, width = recognize_delimiter(path, layout.label_separator)
    else:
        delimiter = named_delimiter(layout.delimiter)
        width = usual_width(path, delimiter)
    if width < 2:
        raise UserError(
            f"{path}: with dataset.source.delimiter={DELIMITERS[delimiter]} its lines have one field, and two are "
            f"needed, a path and a label. Line 1 is {_first_line(path)!r}"
        )
    rows = first_rows(path, delimiter, 2)
    asked = (
        layout.path_column,
        layout.label_column,
        layout.group_column,
        layout.start_column,
        layout.end_column,
    )
    header = layout.header
    if header is None:
        whole = all(len(row) == width for row in rows)  # else reading complains
        header = any(isinstance(column, str) for column in asked) or (
            whole and _names_columns(path, rows, layout)
        )
    names = rows[0] if header else None
    if names is None and width > 2 and None in asked[:2]:
        raise UserError(
            f"{path}: line 1 has {width} fields and does not name them: say which ones are the path and the label, by "
            "number from 0, such as dataset.source.path_column=0 and dataset.source.label_column=1; or by name with "
            "dataset.source.header=true; or quote fields that hold the delimiter. "
            f"Line 1 is {_first_line(path)!r}"
        )

    def place(key: str, words: Sequence[str], otherwise: int | None) -> int | None:
        return _place(path, key, getattr(layout, key), names, words, otherwise, width)

    return _Table(
        delimiter,
        width,
        header,
        place("path_column", PATH_WORDS, 0),
        place("label_column", LABEL_WORDS, 1),
        place("group_column", ("group",), None),
        place("start_column", ("start",), None),
        place("end_column", ("end",), None),
    )


def _names_columns(path: Path, rows: Sequence[Sequence[str]], layout: ListingFormat) -> bool:
    """Whether the first row is a header, told by its words; raises `UserError` where it may be either."""
    words = {field.strip().lower() for field in rows[0]}
    if words & set(PATH_WORDS) and words & set(LABEL_WORDS):
        return True
    at = layout.path_column or 0, 1 if layout.label_column is None else layout.label_column
    if len(rows) > 1 and max(at) < len(rows[0]):
        (first, label), (second, next_label) = ([row[place].strip() for place in at] for row in rows)
        odd_path = not os.path.splitext(first)[1] and bool(os.path.splitext(second)[1])
        if odd_path or (next_label.isdecimal() and not label[:1].isdecimal()):
            raise UserError(
                f"{path}: line 1 may be a header (names of columns) or a video: say dataset.source.header=true, and "
                "which column holds what with dataset.source.path_column and dataset.source.label_column, or "
                f"dataset.source.header=false. Line 1 is {_first_line(path)!r}"
            )
    return False


def _place(
    path: Path,
    key: str,
    asked: str | int | None,
    names: Sequence[str] | None,
    words: Sequence[str],
    otherwise: int | None,
    width: int,
) -> int | None:
    if isinstance(asked, int):
        if not 0 <= asked < width:
            raise UserError(f"dataset.source.{key}={asked}: {path} has {width} columns, numbered from 0")
        return asked
    named = [] if names is None else [name.strip() for name in names]
    if asked is not None:
        if named.count(asked) != 1:
            has = ", ".join(named) or "without names"
            raise UserError(f"dataset.source.{key}={asked}: {path} has the columns {has}")
        return named.index(asked)
    found = [name for name in named if name.lower() in words]
    if len(found) > 1:
        raise UserError(
            f"{path} has the columns {' and '.join(found)}: say which one with dataset.source.{key}={found[0]}"
        )
    if not found and names is not None and otherwise is not None:
        # a guess by position could take a path for a label
        raise UserError(
            f"{path}: line 1 is a header with the columns {', '.join(named)}, none of which is called "
            f"{' or '.join(words[:2])}: say which one it is with dataset.source.{key}=NAME. If line 1 is a video, "
            "say dataset.source.header=false"
        )
    return named.index(found[0]) if found else otherwise


def _first_line(path: Path) -> str:
    with open_text(path) as file:
        return next((line.rstrip() for line in file if line.strip()), "")


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
    return [os.path.normpath(path) if "/." in path or "//" in path else path for path in paths]


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
