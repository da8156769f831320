"""How the lines of a listing are laid out: as said, or as its first lines show."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtrain.data.decoding.metadata import check_frame_rate
from vidtrain.data.manifest.splitting import GroupPattern
from vidtrain.data.sources.delimiters import LABEL_WORDS, PATH_WORDS, find_cut, named_delimiter
from vidtrain.data.sources.labels import LabelReader, class_list, is_integer
from vidtrain.data.sources.tables import DELIMITERS, LAST_SPACE, first_rows, open_text
from vidtrain.errors import UserError

FOLDER_WORDS = ("folder", "folder_name", "clip", "clip_path", "video_name", "video_id", "name", "id")


@dataclass(frozen=True, kw_only=True)
class ListingFormat:
    """How the lines of a listing are to be read. What is null is recognized, and held against every line.

    `delimiter` is comma, tab, space, semicolon or "::", or the character itself; fields that hold it must be quoted.
    With last_space, the path is the first field and may hold spaces without quotes.
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
        if self.frame_rate is not None:
            check_frame_rate(self.frame_rate)
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


@dataclass(frozen=True)
class Table:
    """A listing's layout, with nothing left to recognize: where the columns are."""

    delimiter: str
    width: int
    whole: Callable[[Sequence[str]], bool] | None  # what a line must be, as in `Cut`
    header: bool
    path: int
    label: int
    group: int | None
    start: int | None
    end: int | None


def recognize(path: Path, layout: ListingFormat) -> Table:
    """The layout of the listing at `path`. Raises `UserError` where it is ambiguous, or not as `layout` says."""
    asked = (
        layout.path_column,
        layout.label_column,
        layout.group_column,
        layout.start_column,
        layout.end_column,
    )
    given = None if layout.delimiter is None else named_delimiter(layout.delimiter)
    cut = find_cut(path, given, layout.label_separator, asked, layout.header)
    delimiter, width = cut.delimiter, cut.width
    if width < 2:
        raise UserError(
            f"{path}: with dataset.source.delimiter={DELIMITERS[delimiter]} its lines have one field, and two are "
            f"needed, a path and a label. Line 1 is {_first_line(path)!r}"
        )
    rows = first_rows(path, delimiter, 2, width)
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
            "dataset.source.header=true; or quote fields that hold the delimiter"
            + (
                f", or say dataset.source.delimiter={LAST_SPACE} where paths hold spaces. "
                if delimiter == " "
                else ". "
            )
            + f"Line 1 is {_first_line(path)!r}"
        )

    def place(key: str, words: Sequence[str], otherwise: int | None) -> int | None:
        return _place(path, key, getattr(layout, key), names, words, otherwise, width)

    return Table(
        delimiter,
        width,
        cut.whole,
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
        named = first.lower() in (*PATH_WORDS, *FOLDER_WORDS) or label.lower() in LABEL_WORDS
        if named or odd_path or (is_integer(next_label) and not label[:1].isdecimal()):
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
