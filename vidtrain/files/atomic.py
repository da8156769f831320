"""Files that survive a crash: replaced as a whole, or growing by complete rows; strict JSON."""

import csv
import errno
import hashlib
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from vidtrain.errors import UserError
from vidtrain.files.escaping import csv_text, map_leaves, masked

TEMPORARY = ".tmp"  # suffix of unfinished files
# The disk or the user's quota is full, or the file is too large
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing_path(path: Path) -> Iterator[Path]:
    """A context that yields a temporary path to write to, and renames it to `path` at its end.

    A crash leaves the old file or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        yield temporary
        temporary.replace(path)
        flush_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[TextIO]:
    """A context that yields a text file, which is flushed to the disk and renamed to `path` at its end."""
    # A path in the text may not be UTF-8; surrogateescape writes its bytes unchanged
    with (
        replacing_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Flushes a folder to the disk, so that a new or renamed file in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    """Replaces `path` by a file with `text`, in which secrets are masked.

    Raises `UserError` if the disk is full; the old file stays.
    """
    try:
        with replacing(path) as file:
            file.write(masked(text))
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(f"cannot write {path} ({error.strerror}): free some space.") from error


def write_json_atomic(path: Path, value: object) -> None:
    """Writes `value` as indented strict JSON, see `strict_json`."""
    write_text_atomic(path, strict_json(value, indent=2) + "\n")


def read_json(path: Path, advice: str, needed: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a JSON file, which must have the keys `needed`.

    Raises `UserError` if the file is absent or damaged, or lacks a key; `advice` tells the user what to do then.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {advice}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} cannot be read (it holds no mapping); {advice}")
    for key in needed:
        if key not in record:
            raise UserError(f"{path} has no {key}: another program wrote it, or it was changed; {advice}")
    return record


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as sha256sum prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strict_json(value: object, indent: int | None = None) -> str:
    """JSON that every reader accepts: NaN and infinities, which JSON does not have, become null."""
    return json.dumps(map_leaves(value, _finite), indent=indent, allow_nan=False)


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


# --- files that grow by one row at a time, and can be cut back to an earlier step ---------------------------
#
# They survive a kill at any instant. A kill can leave an incomplete last line, and rows of steps that the resumed run
# repeats. The next opening or reading drops an incomplete line; `keep` and `rewind` drop rows of repeated steps.


NO_ROOM = (*FULL, errno.EIO)  # what writing to a full disk raises


class Ledger:
    """A file to which complete lines are appended. After `write` the kernel has them, or `trouble` holds the cause.

    On a full disk, at most `most_held` lines wait in memory, in order, until there is space again. After `close`, the
    next line opens the file again.
    """

    def __init__(self, path: Path, most_held: int = 0):
        self.path = path
        self.trouble: str | None = None  # why lines wait in memory; None if none do
        self.lacks_room = False  # whether the trouble is a full disk, so that waiting may help
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
                self._note(error)

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
                if self.path.exists():  # a killed run may have left an incomplete last line
                    os.truncate(self.path, len(whole_lines(self.path).encode(errors="surrogateescape")))
                self._file = io.FileIO(self.path, "a")
            written = self._file.write(self._held)
            if written < len(self._held):
                # There was space for a part only: the file is cut back to its last complete line
                complete = self._held.rfind(b"\n", 0, written) + 1
                self._file.truncate(os.fstat(self._file.fileno()).st_size - (written - complete))
                self._held, self.trouble = self._held[complete:], "there is no space for a whole row"
                self.lacks_room = True
            else:
                self._held, self.trouble = b"", None
        except OSError as error:
            self._note(error)

    def _note(self, error: OSError) -> None:
        self.trouble, self.lacks_room = error.strerror, error.errno in NO_ROOM


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
            raise ValueError(f"{self.path.name} has the columns {self._columns}, but a row has {list(row)}")
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
                "another version of the code wrote it. Start in a new run folder, or move this file away."
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
            if not line.endswith(b"\n"):  # incomplete: the run was killed, or is still writing
                return
            try:
                row = json.loads(line)
            except ValueError as error:
                message = f"{path}, line {number} is damaged ({error}): repair or delete that line."
                raise UserError(message) from error
            yield row


def whole_lines(path: Path) -> str:
    """The text up to its last newline, without an incomplete line of a killed run."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1].decode(errors="surrogateescape")


def _read_rows(path: Path) -> list[list[str]]:
    return list(csv.reader(io.StringIO(whole_lines(path), newline="")))
