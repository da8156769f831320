"""Files that grow by one row at a time and can be rewound: JSON lines and a CSV table.

Both survive a kill at any instant. It can leave a torn last line, and rows of steps that the resumed run will take
again. The first is dropped when the file is next opened or read, the second by `keep` and `rewind`.
"""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.atomic import strict_json, write_text_atomic
from vidtrain.files.escaping import csv_text, masked


class Ledger:
    """The end of a file, where whole lines are added: the kernel has them when `write` returns, or `trouble` says why
    not.

    On a full disk at most `most_held` lines wait in memory, whole and in order, until there is room again. After
    `close`, the next line opens the file again.
    """

    def __init__(self, path: Path, most_held: int = 0):
        self.path = path
        self.trouble: str | None = None  # why lines wait in memory; None where none do
        self._most_held = most_held
        self._held = b""
        self._file: io.FileIO | None = None  # opened with the first line, for which there may be no room

    def write(self, lines: str) -> None:
        """Raises UserError where more than `most_held` lines would wait."""
        self._held += lines.encode(errors="surrogateescape")  # a path may be no UTF-8
        self._drain()
        held = self._held.count(b"\n")
        if held > self._most_held:
            self._held = b""  # reported once
            raise UserError(f"cannot write {self.path} ({self.trouble}), {held} rows: free some space.")

    def flush(self) -> None:
        """Makes every line so far survive even a power cut, or says in `trouble` why not."""
        self._drain()
        if self._file is not None and not self._held:
            try:
                os.fsync(self._file.fileno())
                self.trouble = None
            except OSError as error:  # some file systems look for room only now
                self.trouble = error.strerror

    def close(self) -> None:
        """Raises UserError where lines still wait in memory: they are lost."""
        self._drain()
        if self._file is not None:
            self._file.close()
        lost, trouble = self._held.count(b"\n"), self.trouble
        self._held, self._file, self.trouble = b"", None, None
        if lost:
            raise UserError(f"cannot write {self.path} ({trouble}): {lost} rows are lost; free some space.")

    def _drain(self) -> None:
        if not self._held:
            return
        try:
            if self._file is None:
                if self.path.exists():  # perhaps with a line that a killed run left half-written
                    os.truncate(self.path, len(whole_lines(self.path).encode(errors="surrogateescape")))
                self._file = io.FileIO(self.path, "a")
            written = self._file.write(self._held)
            if written < len(self._held):  # room for a part
                whole = self._held.rfind(b"\n", 0, written) + 1
                self._file.truncate(os.fstat(self._file.fileno()).st_size - (written - whole))
                self._held, self.trouble = self._held[whole:], "there is no room for all of a row"
            else:
                self._held, self.trouble = b"", None
        except OSError as error:
            self.trouble = error.strerror


class JsonLines(Ledger):
    """One strict JSON object per line."""

    def append(self, row: Mapping[str, Any]) -> None:
        self.write(masked(strict_json(row)) + "\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drops every row that is not wanted, in one atomic rewrite."""
        self.close()
        if self.path.exists():
            rows = [row for row in read_json_lines(self.path) if wanted(row)]
            write_text_atomic(self.path, "".join(strict_json(row) + "\n" for row in rows))


class StepTable(Ledger):
    """A CSV table with the column "step" first. Its columns are the keys of the first row.

    Rows are buffered, as there is one for every step: `flush_every` of them are written at once.
    """

    def __init__(self, path: Path, flush_every: int = 50, most_held: int = 0):
        super().__init__(path, most_held)
        self._flush_every = flush_every
        self._columns: list[str] = []  # none before the first row
        self._pending: list[list[Any]] = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row. Raises ValueError where its keys are not those of the first row, or lack "step"."""
        if not self._columns:
            self._begin(row)
        if row.keys() != set(self._columns):
            raise ValueError(f"{self.path.name} has the columns {self._columns}, a row came with {list(row)}")
        self._pending.append([row[column] for column in self._columns])
        if len(self._pending) >= self._flush_every:
            self._write_pending()

    def rewind(self, step: int) -> None:
        """Drops the rows of steps later than `step`, in one atomic rewrite."""
        self.close()
        if self.path.exists():
            rows = _read_rows(self.path)
            kept = rows[:1] + [row for row in rows[1:] if int(row[0]) <= step]
            write_text_atomic(self.path, csv_text(kept))

    def flush(self) -> None:
        self._write_pending()
        super().flush()

    def close(self) -> None:
        self._write_pending()
        self._columns = []
        super().close()

    def _begin(self, first_row: Mapping[str, Any]) -> None:
        if "step" not in first_row:
            raise ValueError(f'a row of {self.path.name} needs a "step", got {list(first_row)}')
        columns = ["step", *(key for key in first_row if key != "step")]
        present = _read_rows(self.path)[:1] if self.path.exists() else []
        if present and present != [columns]:
            raise UserError(
                f"{self.path} has the columns {present[0]}, but this run writes {columns}: "
                "it was made by other code. Start in a new run folder, or move this file away."
            )
        self._columns = columns
        if not present:
            self.write(csv_text([columns]))

    def _write_pending(self) -> None:
        rows, self._pending = self._pending, []  # first, so that a full disk is reported once
        if rows:
            self.write(csv_text(rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of the file. A damaged one raises UserError with its number."""
    return list(each_json_line(path))


def each_json_line(path: Path) -> Iterator[dict[str, Any]]:
    """`read_json_lines`, a row at a time."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # it was being written when the run was killed
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                message = f"{path}, line {number} is damaged ({error}): repair or delete that line."
                raise UserError(message) from error
            yield row


def whole_lines(path: Path) -> str:
    """The text up to its last line end: what lies behind that was being written when the run was killed."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode(errors="surrogateescape")


def _read_rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(whole_lines(path), newline="")))
