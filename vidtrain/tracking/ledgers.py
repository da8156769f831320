"""Files that grow by one row at a time and can be cut back to an earlier step: JSON lines and a CSV table.

Both survive a kill at any instant. It can leave an incomplete last line, and rows of steps that the resumed run will
repeat. An incomplete line is dropped when the file is next opened or read, repeated rows by `keep` and `rewind`.
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
    """A file to which complete lines are appended. After `write` the kernel has them, or `trouble` says why not.

    On a full disk, at most `most_held` lines wait in memory, in order, until there is space again. After `close`, the
    next line opens the file again.
    """

    def __init__(self, path: Path, most_held: int = 0):
        self.path = path
        self.trouble: str | None = None  # why lines wait in memory; None if none do
        self._most_held = most_held
        self._held = b""  # the lines that wait in memory
        # Opened by the first `write`, as creating a file may fail on a full disk
        self._file: io.FileIO | None = None

    def write(self, lines: str) -> None:
        """Appends complete lines. Raises UserError if more than `most_held` lines would wait in memory."""
        self._held += lines.encode(errors="surrogateescape")  # a path may not be UTF-8
        self._drain()
        held = self._held.count(b"\n")
        if held > self._most_held:
            self._held = b""  # so that `close` does not report them again
            raise UserError(f"cannot write {self.path} ({self.trouble}), {held} rows: free some space.")

    def flush(self) -> None:
        """Writes every line to the disk, so that it survives a power cut, or sets `trouble` to why it cannot."""
        self._drain()
        if self._file is not None and not self._held:
            try:
                os.fsync(self._file.fileno())
                self.trouble = None
            except OSError as error:  # some file systems allocate space only here
                self.trouble = error.strerror

    def close(self) -> None:
        """Closes the file. Raises UserError if lines still wait in memory: they are lost."""
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
                if self.path.exists():  # a killed run may have left an incomplete last line, which goes first
                    os.truncate(self.path, len(whole_lines(self.path).encode(errors="surrogateescape")))
                self._file = io.FileIO(self.path, "a")
            written = self._file.write(self._held)
            if written < len(self._held):
                # There was space for only a part: the file is cut back, so that it ends with a complete line
                complete = self._held.rfind(b"\n", 0, written) + 1
                self._file.truncate(os.fstat(self._file.fileno()).st_size - (written - complete))
                self._held, self.trouble = self._held[complete:], "there is no room for all of a row"
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

    Rows are buffered, as there is one for every step, and written in groups of `flush_every`.
    """

    def __init__(self, path: Path, flush_every: int = 50, most_held: int = 0):
        super().__init__(path, most_held)
        self._flush_every = flush_every
        self._columns: list[str] = []  # empty before the first row
        self._pending: list[list[Any]] = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row. Raises ValueError if its keys differ from those of the first row, or lack "step"."""
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
        existing_header = _read_rows(self.path)[:1] if self.path.exists() else []
        if existing_header and existing_header != [columns]:
            raise UserError(
                f"{self.path} has the columns {existing_header[0]}, but this run writes {columns}: "
                "it was made by other code. Start in a new run folder, or move this file away."
            )
        self._columns = columns
        if not existing_header:
            self.write(csv_text([columns]))

    def _write_pending(self) -> None:
        # Emptied before the write, so that an error is not raised twice
        rows, self._pending = self._pending, []
        if rows:
            self.write(csv_text(rows))


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of all complete lines. Raises UserError naming the number of a damaged line."""
    return list(each_json_line(path))


def each_json_line(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the rows of `read_json_lines` one at a time."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):  # incomplete: the run was killed, or is still writing it
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                message = f"{path}, line {number} is damaged ({error}): repair or delete that line."
                raise UserError(message) from error
            yield row


def whole_lines(path: Path) -> str:
    """The text up to its last newline: the rest is an incomplete line of a killed run."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode(errors="surrogateescape")


def _read_rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(whole_lines(path), newline="")))
