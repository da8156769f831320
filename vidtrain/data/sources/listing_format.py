"""The format of a listing's lines: as set, or as detected from its first lines."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from vidtrain.data.decoding.metadata import check_frame_rate
from vidtrain.data.manifest.splitting import groups_by
from vidtrain.data.sources.folders import SUFFIXES
from vidtrain.data.sources.labels import LabelReader, is_integer
from vidtrain.data.sources.tables import DELIMITERS, LAST_SPACE, fields_of, numbered_lines
from vidtrain.errors import UserError

PATH_WORDS = ("path", "video", "video_path", "file", "filename", "file_name")
LABEL_WORDS = ("label", "labels", "class", "class_name", "class_id", "label_id", "category", "target")
FOLDER_WORDS = ("folder", "folder_name", "clip", "clip_path", "video_name", "video_id", "name", "id")
# Usual names of a column in a header, and its position without a header
COLUMNS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "path": (PATH_WORDS, 0),
    "label": (LABEL_WORDS, 1),
    "group": (("group",), None),
    "start": (("start",), None),
    "end": (("end",), None),
}
# A semicolon often separates labels in a field, so it is tried only if none of these fits
FIRST_TRIED = (",", "\t", "::")
SAMPLE = 200  # lines that are examined
ENDINGS = tuple(SUFFIXES)
# The end of a video's path, and more after it
VIDEO_INSIDE = re.compile(rf"(?:{'|'.join(map(re.escape, SUFFIXES))})[^\w.]+\S", re.IGNORECASE)

Column = str | int | None


@dataclass(frozen=True, kw_only=True)
class ListingFormat:
    """The format of a listing's lines. Settings that are null are detected, and checked with every line.

    `delimiter` is comma, tab, space, semicolon or "::", or the character itself; fields that hold it must be quoted.
    With last_space, the path is first and may contain spaces without quotes. `header` is whether line 1 names the
    columns. Columns are given by name or by number, from 0. Null means the column with a usual name (path, label,
    group, start, end) if there is a header, else the first for paths, the second for labels and none for others.

    Paths are relative to `root`, else to the listing's folder. Labels are read by `LabelReader`. Groups come from a
    column or from `group_pattern` (`group_in`, on the path as listed); without, each video is a group. `start` and
    `end` are seconds; empty fields mean the whole video. With `frame_rate` (images a second), paths are folders of
    images.
    """

    root: str | None = None
    delimiter: str | None = None
    header: bool | None = None
    path_column: Column = None
    label_column: Column = None
    group_column: Column = None
    start_column: Column = None
    end_column: Column = None
    label_separator: str | None = None
    label_kind: str | None = None
    classes: str | Sequence[str] | None = None
    group_pattern: str | None = None
    frame_rate: float | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None:
            _named_delimiter(self.delimiter)
        if self.frame_rate is not None:
            check_frame_rate(self.frame_rate)
        if self.group_column is not None and self.group_pattern is not None:
            raise UserError("dataset.source.group_column and group_pattern are both given; set one to null")
        groups_by(self.group_pattern, [])
        LabelReader(self.label_kind, None, self.label_separator)  # raises UserError for an invalid kind or separator

    def label_reader(self) -> LabelReader:
        return LabelReader(self.label_kind, self.classes, self.label_separator, splits=True)

    @property
    def columns(self) -> dict[str, Column]:
        """The columns as set, path's first."""
        return {name: getattr(self, f"{name}_column") for name in COLUMNS}


@dataclass(frozen=True)
class Cut:
    """How lines are split into `width` fields; if split at the last spaces, also the test of a complete line."""

    delimiter: str
    width: int
    whole: Callable[[Sequence[str]], bool] | None = None


@dataclass(frozen=True)
class Table:
    """A listing's format without unknowns: `places` are the indices of the fields path, label, ..."""

    cut: Cut
    header: bool
    places: dict[str, int]


def recognize(path: Path | str, layout: ListingFormat) -> Table:
    """Detects the format of the listing at `path`. Raises `UserError` if it is ambiguous, or contradicts `layout`."""
    lines = [line for _, line in islice(numbered_lines(path), SAMPLE)]
    if not lines:
        raise UserError(f"{path} holds no lines")
    line_1 = f"Line 1 is {lines[0].rstrip()!r}"
    cut = _find_cut(lines, layout, path)
    if cut.width < 2:
        what = f"its lines have one field with dataset.source.delimiter={DELIMITERS[cut.delimiter]}"
        raise UserError(f"{path}: {what}, and need a path and a label. {line_1}")
    rows = [fields_of(line, cut.delimiter, cut.width) for line in lines[:2]]
    header = layout.header
    if header is None:
        named = any(isinstance(column, str) for column in layout.columns.values())
        even = all(len(row) == cut.width for row in rows)  # otherwise reading reports it
        header = named or (even and _names_columns(rows, layout, path, line_1))
    if not header and cut.width > 2 and None in (layout.path_column, layout.label_column):
        way = f", or set dataset.source.delimiter={LAST_SPACE} if paths contain spaces"
        spaces = way if cut.delimiter == " " else ""
        raise UserError(
            f"{path}: line 1 has {cut.width} fields and does not name them: choose those of the path and the label, "
            "by number from 0, such as dataset.source.path_column=0 and dataset.source.label_column=1; or by name with "
            f"dataset.source.header=true; or quote fields that hold the delimiter{spaces}. {line_1}"
        )
    names = [name.strip() for name in rows[0]] if header else None
    columns = layout.columns.items()
    places = {which: _place(path, which, column, names, cut.width) for which, column in columns}
    return Table(cut, header, {name: place for name, place in places.items() if place is not None})


def _names_columns(rows: list[list[str]], layout: ListingFormat, path: Path | str, line_1: str) -> bool:
    """Whether the first row is a header, by its words; raises `UserError` if that is ambiguous."""
    names = {field.strip().lower() for field in rows[0]}
    if names & set(PATH_WORDS) and names & set(LABEL_WORDS):
        return True
    columns = (layout.path_column, 0), (layout.label_column, 1)
    at = [column if isinstance(column, int) else usual for column, usual in columns]
    if len(rows) > 1 and max(at) < len(rows[0]):
        (first, label), (second, next_label) = ([row[place].strip() for place in at] for row in rows)
        odd_path = not os.path.splitext(first)[1] and bool(os.path.splitext(second)[1])
        named = first.lower() in (*PATH_WORDS, *FOLDER_WORDS) or label.lower() in LABEL_WORDS
        if named or odd_path or (is_integer(next_label) and not label[:1].isdecimal()):
            raise UserError(
                f"{path}: line 1 may be a header (names of columns) or a video: set dataset.source.header=true, and "
                "which column holds what with dataset.source.path_column and dataset.source.label_column, or "
                f"dataset.source.header=false. {line_1}"
            )
    return False


def _place(path: Path | str, which: str, column: Column, named: list[str] | None, width: int) -> int | None:
    """The number of the column `which`, or None. `named` are the names in the header."""
    usual_names, usual = COLUMNS[which]
    setting = f"dataset.source.{which}_column"
    if isinstance(column, int):
        if not 0 <= column < width:
            raise UserError(f"{setting}={column}: {path} has {width} columns, numbered from 0")
        return column
    if column is not None:
        if named is None or named.count(column) != 1:
            has = ", ".join(named or ()) or "without names"
            raise UserError(f"{setting}={column}: {path} has the columns {has}")
        return named.index(column)
    if named is None:
        return usual
    fitting = [name for name in named if name.lower() in usual_names]
    if len(fitting) > 1:
        raise UserError(f"{path} has the columns {' and '.join(fitting)}: set {setting}={fitting[0]}")
    if not fitting and usual is not None:
        # a guess by position could confuse paths and labels
        raise UserError(
            f"{path}: line 1 is a header with the columns {', '.join(named)}, none of which is called "
            f"{' or '.join(usual_names[:2])}: set {setting}=NAME, or, for a video, dataset.source.header=false"
        )
    return named.index(fitting[0]) if fitting else None


# --- delimiters of fields -----------------------------------------------------------------------------------


def _named_delimiter(text: str) -> str:
    """The delimiter for `text`, a name (comma, tab, space, semicolon, last_space) or the delimiter itself; `UserError`
    for others."""
    by_name = {name: delimiter for delimiter, name in DELIMITERS.items()}
    by_name |= {text: text for text in (*DELIMITERS, LAST_SPACE)} | {"\\t": "\t"}
    if text not in by_name:
        choices = ", ".join((*DELIMITERS.values(), LAST_SPACE))
        raise UserError(f"dataset.source.delimiter={text!r}: choose one of {choices}")
    return by_name[text]


def _find_cut(sample: Sequence[str], layout: ListingFormat, path: Path | str) -> Cut:
    """The delimiter that `layout` names, else the one that splits most of the first lines into equally many fields.

    It is never the separator of labels. Paths may contain spaces if they come first and lines are complete when split
    at their last spaces. Reading reports lines that do not fit. Raises `UserError` if no delimiter fits, or several.
    """
    columns, separator = list(layout.columns.values()), layout.label_separator
    delimiter = None if layout.delimiter is None else _named_delimiter(layout.delimiter)
    if delimiter is not None and delimiter not in (" ", LAST_SPACE):
        return Cut(delimiter, _usual_width(sample, delimiter))
    heads = {other: fields_of(sample[0], other) for other in DELIMITERS if other not in (" ", separator)}
    several = {other: names for other, names in heads.items() if len(names) > 1}
    by_header = {other: names for other, names in several.items() if _is_header(names, columns)}
    if delimiter is None and layout.header is not False and len(by_header) == 1:
        [(other, names)] = by_header.items()
        return Cut(other, len(names))
    headed = _is_header(sample[0].split(), columns) if layout.header is None else layout.header
    last = max([1, *(column for column in columns if isinstance(column, int))])
    width = len(sample[0].split()) if headed else 1 + last
    if delimiter == LAST_SPACE:
        return Cut(LAST_SPACE, width)
    first = (None, 0, sample[0].split()[0]) if headed else (None, 0)
    spaced = None
    if columns[0] in first and separator != " ":
        spaced = _cut_at_last_spaces(sample[headed:], width)
    if delimiter == " ":
        return spaced or Cut(delimiter, _usual_width(sample, delimiter))
    fitting = _fitting(sample, separator)
    telling = {cut: width for cut, width in fitting.items() if _names_videos(sample, cut, width, columns[0])}
    others = (telling if spaced is not None and spaced.whole is _names_video else fitting).keys() - {" "}
    if spaced is not None and not others:
        return spaced
    if not telling and _most(VIDEO_INSIDE.search(line) is not None for line in sample):
        fitting = {}  # each of them cuts within paths or leaves them together with labels
    fitting = telling or fitting
    numbered = any(_end_in_integers(sample[headed:], *cut) for cut in fitting.items())
    if spaced is not None and not telling and not numbered:
        fitting = {**fitting, LAST_SPACE: width}  # if this gives integer labels
        fitting.pop(" ", None)
    if len(fitting) != 1:
        raise UserError(f"{path}{_none_or_several(fitting, sample[0])}")
    return Cut(*next(iter(fitting.items())))


def _most(answers: Iterable[bool]) -> bool:
    """Whether at least half of the values are true."""
    listed = list(answers)
    return 2 * sum(listed) >= len(listed)


def _names_video(fields: Sequence[str]) -> bool:
    """Whether the first field ends like a video's path."""
    return fields[0].lower().endswith(ENDINGS)


def _ends_in_integer(fields: Sequence[str]) -> bool:
    return is_integer(fields[-1])


def _is_header(fields: Sequence[str], columns: Sequence[Column]) -> bool:
    """Whether the first line names the columns: those given by name, else the usual ones of paths and labels."""
    names = [field.strip() for field in fields]
    by_name = {column for column in columns if isinstance(column, str)}
    usual = names[0].lower() in PATH_WORDS and any(name.lower() in LABEL_WORDS for name in names[1:])
    return by_name <= set(names) if by_name else usual


def _cut_at_last_spaces(lines: Sequence[str], width: int) -> Cut | None:
    """At the last spaces, if that makes at least half of `lines` whole: the path a video's, else the label a number."""
    cut = (fields_of(line, LAST_SPACE, width) for line in lines)
    rows = [fields for fields in cut if len(fields) == width]
    for whole in (_names_video, _ends_in_integer):
        kept = [fields for fields in rows if whole(fields)]
        if not kept or 2 * len(kept) < len(lines):
            continue
        # what looks like a path with spaces may be columns, such as a folder and its number of images
        widths = {len(fields_of(line, " ")) for line in lines}
        numbered = all(is_integer(fields[0].split()[-1]) for fields in kept)
        if whole is _names_video or not (numbered or (len(widths) == 1 and widths != {width})):
            return Cut(LAST_SPACE, width, whole)
    return None


def _fitting(sample: Sequence[str], separator: str | None) -> dict[str, int]:
    """The possible delimiters, and the number of fields into which each splits most lines."""
    likely, certain = {}, {}
    for delimiter in DELIMITERS:
        widths = Counter(width for line in sample if (width := len(fields_of(line, delimiter))) > 1)
        for width, lines in widths.most_common(1) if delimiter != separator else ():
            if 2 * lines >= len(sample):
                likely[delimiter] = width
            if lines == len(sample):
                certain[delimiter] = width
    if any(delimiter in likely for delimiter in FIRST_TRIED):
        likely.pop(";", None)
        certain.pop(";", None)
    if certain.keys() == {" "}:
        return likely  # equal numbers of spaces mean little if most lines contain another delimiter
    return certain or likely


def _names_videos(sample: Sequence[str], delimiter: str, width: int, column: Column) -> bool:
    """Whether at least half of the lines have a field with a video's suffix; for spaces, in the path's place."""
    rows = [[field.strip().lower() for field in fields_of(line, delimiter)] for line in sample]
    of_width = [fields if len(fields) == width else [] for fields in rows]
    if delimiter == " " and not isinstance(column, str):
        of_width = [fields[column or 0 :][:1] for fields in of_width]
    return _most(any(field.endswith(ENDINGS) for field in fields) for fields in of_width)


def _end_in_integers(lines: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether the last field of at least half of the lines is a class number."""
    rows = [fields_of(line, delimiter) for line in lines]
    return _most(len(fields) == width and _ends_in_integer(fields) for fields in rows)


def _none_or_several(fitting: dict[str, int], line: str) -> str:
    line_1 = f"Line 1 is {line.rstrip()!r}"
    if not fitting:
        return (
            " must hold two or more fields a line, such as a path and a label, and none of "
            f"{', '.join(DELIMITERS.values())} cuts its lines into fields, as many in each. Quote fields that hold "
            f"the delimiter, or set dataset.source.delimiter={LAST_SPACE} if paths contain spaces. {line_1}"
        )
    names = [DELIMITERS[delimiter] if delimiter in DELIMITERS else delimiter for delimiter in fitting]
    settings = " or ".join(f"dataset.source.delimiter={name}" for name in names)
    return f": its delimiter may be {' or '.join(names)}; set {settings}. {line_1}"


def _usual_width(sample: Sequence[str], delimiter: str) -> int:
    """The most common number of fields of the lines."""
    return Counter(len(fields_of(line, delimiter)) for line in sample).most_common(1)[0][0]
