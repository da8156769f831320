"""Reads text files with one record a line: comma, tab, space, semicolon or `::` between fields, quoted as in CSV."""

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from vidtrain.data.stores.files import open_binary
from vidtrain.errors import UserError
from vidtrain.files.escaping import plain_cell

DELIMITERS = {",": "comma", "\t": "tab", " ": "space", ";": "semicolon", "::": "::"}
LAST_SPACE = "last_space"  # fields are split at spaces from the right: the first field may contain spaces
# A byte-order mark tells the encoding of a file. Without one, UTF-16 is recognized by its zero bytes.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
UNIT = "\x1f"  # replaces a delimiter of two characters, which the csv module does not support
SNIFFED = 4096  # bytes that are read to detect the encoding
ROWS = 1 << 16  # read at a time
NAMED = 10  # faulty lines named in a message


class Faults:
    """Collects the faults of a file's lines, to raise them in one error."""

    def __init__(self, path: Path | str):
        self._path = path
        self._lines: list[str] = []
        self._count = 0

    def add(self, line: int, why: str) -> None:
        self._count += 1
        if len(self._lines) < NAMED:
            self._lines.append(f"{self._path}:{line}: {why}")

    def raise_if_any(self) -> None:
        if self._count:
            lines = self._lines + ([f"and {self._count - NAMED} more"] if self._count > NAMED else [])
            count = "one line cannot" if self._count == 1 else f"{self._count} lines cannot"
            raise UserError(f"{count} be read:\n  " + "\n  ".join(lines))


@dataclass(frozen=True)
class Rows:
    """Some lines of a table: their numbers, from 1, and their fields."""

    lines: list[int]
    fields: list[list[str]]

    def column(self, place: int) -> list[str]:
        return [fields[place] for fields in self.fields]


def open_text(path: Path | str) -> TextIO:
    """A text file of UTF-8, or of UTF-16 or UTF-32 as spreadsheets save them.

    Bytes that are not UTF-8 are kept, since file names may contain them. Raises `UserError` for a file that cannot be
    read, or is damaged UTF-16.
    """
    try:
        file = open_binary(str(path))  # read only once, as it may be a pipe
        encoding = _encoding(file.peek(SNIFFED)[:SNIFFED])
        if encoding == "utf-8-sig":
            return io.TextIOWrapper(file, encoding, "surrogateescape")
        with file:
            return io.StringIO(file.read().decode(encoding), newline=None)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} looks like {encoding.upper()}, but is not valid: {error}; save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _encoding(start: bytes) -> str:
    for mark, encoding in MARKS:
        if start.startswith(mark):
            return encoding
    # any text has a space, a line break or a comma, whose UTF-16 code has a zero byte
    odd, even = start[1::2].count(0), start[::2].count(0)
    if max(odd, even) > len(start) // 8 and min(odd, even) == 0:
        return "utf-16-le" if odd > even else "utf-16-be"
    return "utf-8-sig"


def read_json(path: Path | str) -> Any:
    with open_text(path) as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise UserError(f"{path} is not valid JSON: {error}") from error


def numbered_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def split_line(line: str, delimiter: str, width: int = 2) -> list[str]:
    """The fields of one line, without spaces around those without quotes, and without the ' that guards a field from
    spreadsheets (`vidtrain.files.escaping.csv_lines`). Raises `csv.Error`.

    If split at the last spaces, the line has at most `width` fields, and the first may contain spaces.
    """
    fields = _cut(line, delimiter, width)
    return [plain_cell(field) for field in fields] if "'" in line else fields


def _cut(line: str, delimiter: str, width: int) -> list[str]:
    line = line.rstrip("\r\n")
    if delimiter == LAST_SPACE:
        return _from_right(line, width)
    if '"' not in line:
        fields = line.split(delimiter)
        if " " not in line:
            return fields
        if delimiter == " ":
            return [field for field in fields if field]
        return [field.strip(" ") for field in fields]
    if delimiter == "::":
        fields = _cut(line.replace("::", UNIT), UNIT, width)
        return [field.replace(UNIT, "::") for field in fields]
    if delimiter == " ":
        line = line.strip(" ")  # otherwise an empty field would follow
    return next(csv.reader([line], delimiter=delimiter, strict=True, skipinitialspace=True))


def _from_right(line: str, width: int) -> list[str]:
    quoted, bare = fields_of(line, " ") if '"' in line else [], line.split(" ")
    if len(quoted) == width:
        return quoted
    if len(bare) == width and all(bare):
        return bare
    fields: list[str] = []
    rest = line.strip(" ")
    while rest and len(fields) < width - 1:
        rest, _, field = rest.rpartition(" ")
        rest = rest.rstrip(" ")
        fields.append(field)
    return [rest, *reversed(fields)] if rest else fields[::-1]


def fields_of(line: str, delimiter: str, width: int = 2) -> list[str]:
    """As `split_line`; [] for a line that cannot be split."""
    try:
        return split_line(line, delimiter, width)
    except csv.Error:
        return []


def read_rows(
    path: Path | str,
    delimiter: str,
    width: int,
    faults: Faults,
    header: bool,
    whole: Callable[[Sequence[str]], bool] | None = None,
) -> Iterator[Rows]:
    """All rows, some thousands at a time, without empty lines and the `header`. Lines with a number of fields other
    than `width`, with an open quote, or that are not `whole` are added to `faults`."""
    rows = Rows([], [])
    numbered = numbered_lines(path)
    if header:
        next(numbered, None)
    for number, line in numbered:
        try:
            fields = split_line(line, delimiter, width)
        except csv.Error as error:
            faults.add(number, f"{error}: {line.rstrip()!r}")
            continue
        if len(fields) != width:
            faults.add(number, _wrong_width(fields, width, delimiter, line))
        elif whole is not None and not whole(fields):
            parts = f"the path {fields[0]!r} and {fields[-1]!r}; quote fields that hold spaces"
            what = f"{line.rstrip()!r} is not like other lines"
            faults.add(number, f"{what}: cut at its last space, it is {parts}")
        else:
            rows.lines.append(number)
            rows.fields.append(fields)
            if len(rows.lines) == ROWS:
                yield rows
                rows = Rows([], [])
    if rows.lines:
        yield rows


def _wrong_width(fields: Sequence[str], width: int, delimiter: str, line: str) -> str:
    name = DELIMITERS[delimiter] if delimiter in DELIMITERS else repr(delimiter)
    advice = f'; a {name} inside a field needs quotes around it: "..."' if len(fields) > width else ""
    return f"{len(fields)} fields, not {width}: {line.rstrip()!r}{advice}"


def read_table(path: Path | str, delimiter: str, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """The lines of a table with a header, as (number, fields by column). Raises `UserError` if a column of `needed` is
    missing and, at the end, for lines that cannot be read."""
    _, header = next(numbered_lines(path), (0, ""))
    if not header:
        raise UserError(f"{path} holds no lines")
    columns = [name.strip() for name in fields_of(header, delimiter)]
    missing = [name for name in needed if name not in columns]
    if missing:
        raise UserError(f"{path}: line 1 lacks the columns {', '.join(missing)}; it has {', '.join(columns)}")
    faults = Faults(path)
    for rows in read_rows(path, delimiter, len(columns), faults, header=True):
        for line, fields in zip(rows.lines, rows.fields, strict=True):
            yield line, dict(zip(columns, fields, strict=True))
    faults.raise_if_any()
