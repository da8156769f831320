"""Files that grow by one row at a time and can be rewound: JSON lines and a CSV table.

Both survive a kill at any instant. What it can leave is a torn last line, and rows of steps that the
resumed run will take again. The first is dropped when the file is next opened or read, the second by `keep`
and `rewind`.

On a full disk rows may wait in memory, whole and in order, until there is room again: `most_held` says how many.
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


class JsonLines:
    """One strict JSON object per line, in the kernel's hands as soon as `append` returns, or else `trouble` says why
    not. More than `most_held` rows do not wait: then `append` raises UserError."""

    def __init__(self, path: Path, most_held: int = 0):
        self.path = path
        self.most_held = most_held
        self._end: FileEnd | None = None

    @property
    def trouble(self) -> str | None:
        """Why rows wait in memory; None where none do."""
        return None if self._end is None else self._end.trouble

    def append(self, row: Mapping[str, Any]) -> None:
        if self._end is None:
            self._end = FileEnd(self.path, self.most_held)
        self._end.write(masked(strict_json(row)) + "\n")

    def keep(self, wanted: Callable[[dict[str, Any]], bool]) -> None:
        """Drop every row that is not wanted, in one atomic rewrite."""
        self.close()
        if self.path.exists():
            rows = [row for row in read_json_lines(self.path) if wanted(row)]
            write_text_atomic(self.path, "".join(strict_json(row) + "\n" for row in rows))

    def flush(self) -> None:
        """Make every row so far survive even a power cut, or say in `trouble` why not."""
        if self._end is not None:
            self._end.sync()

    def close(self) -> None:
        """Raises UserError where rows still wait in memory: they are lost."""
        if self._end is not None:
            end, self._end = self._end, None
            end.close()


class StepTable:
    """A CSV table with the column "step" first. Its columns are the keys of the first row.

    Rows are buffered, as there is one for every step: `flush_every` of them are handed over at once.
    """

    def __init__(self, path: Path, flush_every: int = 50, most_held: int = 0):
        self.path = path
        self.flush_every = flush_every
        self.most_held = most_held
        self._columns: list[str] = []
        self._pending: list[list[Any]] = []
        self._end: FileEnd | None = None

    @property
    def trouble(self) -> str | None:
        """Why rows wait in memory for a disk; None where none do."""
        return None if self._end is None else self._end.trouble

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
        """Make every row so far survive even a power cut, or say in `trouble` why not."""
        if self._end is not None:
            self._write_pending()
            self._end.sync()

    def close(self) -> None:
        """Raises UserError where rows still wait in memory: they are lost."""
        if self._end is not None:
            self._write_pending()
            end, self._end = self._end, None
            end.close()

    def _open(self, first_row: Mapping[str, Any]) -> None:
        if "step" not in first_row:
            raise ValueError(f'a row of {self.path.name} needs a "step", got {list(first_row)}')
        columns = ["step", *(key for key in first_row if key != "step")]
        self._end = FileEnd(self.path, self.most_held)
        present = None
        if self.path.exists():
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

    Unbuffered: what `write` was given is in the kernel's hands. Where it cannot be, `trouble` says why, and up to
    `most_held` lines wait in memory, to be written before the next; beyond that, UserError. No half of a line stays in
    the file.
    """

    def __init__(self, path: Path, most_held: int = 0):
        if path.exists():
            os.truncate(path, len(whole_lines(path).encode(errors="surrogateescape")))
        self.trouble: str | None = None
        self._path = path
        self._most_held = most_held
        self._held = b""
        self._file: io.FileIO | None = None  # opened with the first line, for which there may be no room

    def write(self, text: str) -> None:
        self._held += text.encode(errors="surrogateescape")  # a path may be no UTF-8
        self._drain()
        held = self._held.count(b"\n")
        if held > self._most_held:
            self._held = b""  # reported once
            raise UserError(f"cannot write {self._path} ({self.trouble}), {held} rows: free some space.")

    def _drain(self) -> None:
        if not self._held:
            return
        try:
            if self._file is None:
                self._file = io.FileIO(self._path, "a")
            written = self._file.write(self._held)
            if written < len(self._held):  # room for a part
                whole = self._held.rfind(b"\n", 0, written) + 1
                self._file.truncate(os.fstat(self._file.fileno()).st_size - (written - whole))
                self._held = self._held[whole:]
                self.trouble = "there is no room for all of a row"
                return
        except OSError as error:
            self.trouble = error.strerror
            return
        self._held, self.trouble = b"", None

    def sync(self) -> None:
        self._drain()
        if self._file is not None and not self._held:
            try:
                os.fsync(self._file.fileno())
                self.trouble = None
            except OSError as error:  # some file systems look for room only now
                self.trouble = error.strerror

    def close(self) -> None:
        """Raises UserError where lines still wait: they are lost."""
        self._drain()
        if self._file is not None:
            self._file.close()
        if self._held:
            held, self._held = self._held.count(b"\n"), b""
            raise UserError(
                f"cannot write {self._path} ({self.trouble}): {held} rows are lost; free some space."
            )


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
                raise UserError(
                    f"{path}, line {number} is damaged ({error}): repair or delete that line."
                ) from error
            yield row


def whole_lines(path: Path) -> str:
    """The text up to its last line end: what lies behind that was being written when the run was killed."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode(errors="surrogateescape")


def _as_csv(rows: list[list[Any]]) -> str:
    return csv_text(rows)
