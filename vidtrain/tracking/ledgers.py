"""Files that grow by one row at a time and can be rewound: JSON lines and a CSV table.

Both survive a kill at any instant. What it can leave is a torn last line, and rows of steps that the
resumed run will take again. The first is dropped when the file is next opened or read, the second by `keep`
and `rewind`.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.tracking.atomic import strict_json, write_text_atomic


class JsonLines:
    """One strict JSON object per line, in the kernel's hands as soon as `append` returns."""

    def __init__(self, path: Path):
        self.path = path
        self._end: FileEnd | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        if self._end is None:
            self._end = FileEnd(self.path)
        self._end.write(strict_json(row) + "\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop every row that is not wanted, in one atomic rewrite."""
        self.close()
        if self.path.exists():
            rows = [row for row in read_json_lines(self.path) if wanted(row)]
            write_text_atomic(self.path, "".join(strict_json(row) + "\n" for row in rows))

    def flush(self) -> None:
        """Make every row so far survive even a power cut."""
        if self._end is not None:
            self._end.sync()

    def close(self) -> None:
        if self._end is not None:
            self._end.close()
            self._end = None


class StepTable:
    """A CSV table with the column "step" first. Its columns are the keys of the first row.

    Rows are buffered, as there is one for every step: `flush_every` of them are handed over at once.
    """

    def __init__(self, path: Path, flush_every: int = 50):
        self.path = path
        self.flush_every = flush_every
        self._columns: list[str] = []
        self._pending: list[list[Any]] = []
        self._end: FileEnd | None = None

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row. Raises ValueError where its keys are not those of the first row, or lack "step"."""
        if self._end is None:
            self._open(row)
        if row.keys() != set(self._columns):
            raise ValueError(f"{self.path.name} has the columns {self._columns}, a row came with {list(row)}")
        self._pending.append([row[column] for column in self._columns])
        if len(self._pending) >= self.flush_every:
            self._write_pending()

    def rewind(self, step: int) -> None:
        """Drop the rows of steps later than `step`, in one atomic rewrite."""
        self.close()
        if self.path.exists():
            rows = list(csv.reader(io.StringIO(whole_lines(self.path), newline="")))
            header, steps = rows[:1], rows[1:]
            write_text_atomic(self.path, _as_csv(header + [row for row in steps if int(row[0]) <= step]))

    def flush(self) -> None:
        """Make every row so far survive even a power cut."""
        if self._end is not None:
            self._write_pending()
            self._end.sync()

    def close(self) -> None:
        if self._end is not None:
            self._write_pending()
            self._end.close()
            self._end = None

    def _open(self, first_row: Mapping[str, Any]) -> None:
        if "step" not in first_row:
            raise ValueError(f'a row of {self.path.name} needs a "step", got {list(first_row)}')
        columns = ["step", *(key for key in first_row if key != "step")]
        self._end = FileEnd(self.path)
        present = next(csv.reader(io.StringIO(whole_lines(self.path), newline="")), None)
        if present is None:
            self._end.write(_as_csv([columns]))
        elif present != columns:
            raise UserError(
                f"{self.path} has the columns {present}, but this run writes {columns}: "
                "it was made by other code. Start in a new run folder, or move this file away."
            )
        self._columns = columns

    def _write_pending(self) -> None:
        rows, self._pending = self._pending, []  # first, so that a full disk is reported once
        if rows:
            self._end.write(_as_csv(rows))


class FileEnd:
    """The end of a file, where whole lines are added. Opening it drops what a killed run left half-written.

    Unbuffered: what `write` was given is in the kernel's hands, or UserError says that the disk is full.
    """

    def __init__(self, path: Path):
        if path.exists():
            os.truncate(path, len(whole_lines(path).encode()))
        self._path = path
        self._file = path.open("ab", buffering=0)

    def write(self, text: str) -> None:
        data = text.encode()
        try:
            written = self._file.write(data)
        except OSError as error:
            raise UserError(f"cannot write {self._path} ({error.strerror}): free some space.") from error
        if written != len(data):
            raise UserError(f"cannot write all of a row to {self._path}: free some space.")

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of the file. A damaged one raises UserError with its number."""
    rows = []
    for number, line in enumerate(whole_lines(path).split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {number} is damaged ({error}): repair or delete that line."
            ) from error
    return rows


def whole_lines(path: Path) -> str:
    """The text up to its last line end: what lies behind that was being written when the run was killed."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode()


def _as_csv(rows: list[list[Any]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
