"""Text files of one record a line: comma, tab, space, semicolon or `::` between fields, quoted as in CSV."""

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

from vidtrain.errors import UserError

DELIMITERS = {",": "comma", "\t": "tab", " ": "space", ";": "semicolon", "::": "::"}
# A semicolon often stands between the labels of one field, so it is taken only where none of these fits
FIRST_TRIED = (",", "\t", "::")
WITHOUT = {
    "val": "dataset.source.val=null dataset.source.val_share=0.1",
    "test": "dataset.source.test=null",
}
UNIT = "\x1f"  # stands for a delimiter of two characters, which the csv module does not take
SAMPLE = 200  # lines that are looked at to recognize the delimiter
ROWS = 1 << 16  # read at a time
NAMED = 10  # how many faulty lines a message names


class Faults:
    """What is wrong with the lines of a file, gathered so that all are told at once."""

    def __init__(self, path: Path):
        self._path = path
        self._lines: list[str] = []
        self._count = 0

    def add(self, line: int, why: str) -> None:
        self._count += 1
        if len(self._lines) < NAMED:
            self._lines.append(f"{self._path}:{line}: {why}")

    def raise_if_any(self, hint: str = "") -> None:
        if self._count:
            lines = self._lines + ([f"and {self._count - NAMED} more"] if self._count > NAMED else [])
            count = "one line cannot" if self._count == 1 else f"{self._count} lines cannot"
            raise UserError(f"{count} be read:\n  " + "\n  ".join(lines) + (f"\n{hint}" if hint else ""))


@dataclass(frozen=True)
class Rows:
    """Some lines of a table: their numbers, from 1, and their fields."""

    lines: list[int]
    fields: list[list[str]]


def listed_file(split: str, name: str) -> Path:
    """The file that the setting of a split names. Raises `UserError` where there is none, and says what to do."""
    if not Path(name).exists():
        without = f"; without one, say {WITHOUT[split]}" if split in WITHOUT else ""
        raise UserError(f"dataset.source.{split}={name}: there is no such file{without}")
    return Path(name)


def open_text(path: Path) -> TextIO:
    """Bytes that are no UTF-8 pass through, since file names may hold them."""
    try:
        return open(path, encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def split_line(line: str, delimiter: str) -> list[str]:
    """The fields of one line; spaces around those without quotes do not count. Raises `csv.Error`."""
    line = line.rstrip("\r\n")
    if '"' not in line:
        fields = line.split(delimiter)
        if " " not in line:
            return fields
        if delimiter == " ":
            return [field for field in fields if field]
        return [field.strip(" ") for field in fields]
    if delimiter == "::":
        fields = split_line(line.replace("::", UNIT), UNIT)
        return [field.replace(UNIT, "::") for field in fields]
    if delimiter == " ":
        line = line.strip(" ")  # else a field of nothing would follow
    return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))


def named_delimiter(text: str) -> str:
    """The delimiter that `text` names (comma, tab, space, semicolon) or is. Raises `UserError` for another one."""
    by_name = {name: delimiter for delimiter, name in DELIMITERS.items()} | {"\\t": "\t"}
    if text in by_name:
        return by_name[text]
    if text in DELIMITERS:
        return text
    raise UserError(f"dataset.source.delimiter={text!r}: choose one of {', '.join(DELIMITERS.values())}")


def recognize_delimiter(path: Path, label_separator: str | None = None) -> tuple[str, int]:
    """The delimiter that cuts the file's first lines into the same number of fields, and that number.

    It is not `label_separator`. A few lines that do not fit are left for reading to complain about. Raises `UserError`
    where none fits, or several.
    """
    with open_text(path) as file:
        sample = list(islice((line for line in file if line.strip()), SAMPLE))
    if not sample:
        raise UserError(f"{path} holds no lines")
    likely, certain = {}, {}
    for delimiter in (each for each in DELIMITERS if each != label_separator):
        widths = Counter(width for width in (_width(line, delimiter) for line in sample) if width > 1)
        for width, lines in widths.most_common(1):
            if 2 * lines >= len(sample):
                likely[delimiter] = width
            if lines == len(sample):
                certain[delimiter] = width
    if any(delimiter in likely for delimiter in FIRST_TRIED):
        likely.pop(";", None)
        certain.pop(";", None)
    fitting = certain or likely
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if not fitting:
        raise UserError(
            f"{path} must hold two or more fields a line, such as a path and a label, and none of "
            f"{', '.join(DELIMITERS.values())} cuts its lines into fields, as many in each. Quote fields that hold "
            f"the delimiter. Line 1 is {sample[0].rstrip()!r}"
        )
    names = [DELIMITERS[delimiter] for delimiter in fitting]
    say = " or ".join(f"dataset.source.delimiter={name}" for name in names)
    raise UserError(
        f"{path}: its delimiter may be {' or '.join(names)}; say {say}. Line 1 is {sample[0].rstrip()!r}"
    )


def _width(line: str, delimiter: str) -> int:
    try:
        return len(split_line(line, delimiter))
    except csv.Error:
        return 0


def usual_width(path: Path, delimiter: str) -> int:
    """How many fields most of the first lines have."""
    with open_text(path) as file:
        widths = Counter(_width(line, delimiter) for line in islice((x for x in file if x.strip()), SAMPLE))
    if not widths:
        raise UserError(f"{path} holds no lines")
    return widths.most_common(1)[0][0]


def first_rows(path: Path, delimiter: str, count: int) -> list[list[str]]:
    """The fields of the first lines that hold any; [] for one that cannot be cut."""
    with open_text(path) as file:
        lines = list(islice((line for line in file if line.strip()), count))
    return [split_line(line, delimiter) if _width(line, delimiter) else [] for line in lines]


def read_rows(path: Path, delimiter: str, width: int, faults: Faults, header: bool) -> Iterator[Rows]:
    """All rows, some thousands at a time; empty lines are passed over, and the first one if it is a `header`.

    Lines of another number of fields than `width`, or with a quote that does not end, go to `faults`.
    """
    lines: list[int] = []
    fields: list[list[str]] = []
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            if header:
                header = False
                continue
            try:
                found = split_line(line, delimiter)
            except csv.Error as error:
                faults.add(number, f"{error}: {line.rstrip()!r}")
                continue
            if len(found) != width:
                faults.add(number, _wrong_width(found, width, delimiter, line))
                continue
            lines.append(number)
            fields.append(found)
            if len(fields) == ROWS:
                yield Rows(lines, fields)
                lines, fields = [], []
    if fields:
        yield Rows(lines, fields)


def _wrong_width(found: Sequence[str], width: int, delimiter: str, line: str) -> str:
    name = DELIMITERS[delimiter] if delimiter in DELIMITERS else repr(delimiter)
    advice = f'; a {name} inside a field needs quotes around it: "..."' if len(found) > width else ""
    return f"{len(found)} fields, not {width}: {line.rstrip()!r}{advice}"


def read_table(path: Path, delimiter: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table with a header, as (number, fields by column).

    Raises `UserError` where columns that are `needed` are missing, and, at the end, for the lines that cannot be read.
    """
    header = first_rows(path, delimiter, 1)
    if not header:
        raise UserError(f"{path} holds no lines")
    columns = [name.strip() for name in header[0]]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(f"{path}: line 1 lacks the columns {', '.join(missing)}; it has {', '.join(columns)}")
    faults = Faults(path)
    for rows in read_rows(path, delimiter, len(columns), faults, header=True):
        for line, fields in zip(rows.lines, rows.fields, strict=True):
            yield line, dict(zip(columns, fields, strict=True))
    faults.raise_if_any()
