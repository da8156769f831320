"""A prepared copy of a dataset: one folder of re-encoded files, and records of how they were made.

    folder/
      prepared.json     settings, versions, the common folder of the sources, counts
      ledger.sqlite     for every source: its size and time of modification, the settings, and what became of it
      unreadable.csv    path and cause of the sources without a copy
      files/            the sources' tree below their common folder; the copy of a/b.avi is a/b.avi.mp4

Sources are known by their path below the common folder, so a dataset that was moved is known again.
"""

import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, Self

import av
import numpy as np

from vidtrain.data.loading.workers import TaskResult
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.prepared.reencode import EncodeSettings, Job, PrepareResult, prepare_file
from vidtrain.data.stores.files import file_status
from vidtrain.data.stores.places import absolute, common_folder, is_url, relative
from vidtrain.errors import UserError
from vidtrain.files.atomic import TEMPORARY, write_json_atomic, write_text_atomic
from vidtrain.files.escaping import csv_text, shown_some

FORMAT = 2  # of the copies; copies of another version are made again
MB = 1_000_000
NAMED = 5  # files named in a message
AT_A_TIME = 10_000  # sources asked for at once
WAIT_SECONDS = 60.0  # for another process that is writing
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS files (source BLOB PRIMARY KEY, source_bytes INTEGER, modified INTEGER,"
    " settings TEXT, bytes INTEGER, shift REAL, cause TEXT) WITHOUT ROWID"
)


@dataclass(frozen=True)
class Entry:
    """The result for a source that had `source_bytes` and was `modified` (ns) when it was read."""

    source_bytes: int
    modified: int
    outcome: PrepareResult


class PreparedCopy:
    """A prepared copy in `folder`, of sources below `root`, made with `settings` by `command`."""

    def __init__(self, folder: Path, root: str, settings: EncodeSettings, command: str):
        self.folder = folder
        self.root = root
        self.settings = settings
        self.command = command
        self._files = folder / "files"
        self._stated = asdict(settings)
        if settings.size_changes == "scale":  # the value in copies from before this setting existed
            del self._stated["size_changes"]
        self._key = json.dumps([FORMAT, self._stated])

    @classmethod
    def open(cls, folder: Path) -> "PreparedCopy":
        """The copy in `folder`. Raises `UserError` if there is none."""
        facts = _facts(folder)
        if facts is None:
            others = sorted(path.parent.name for path in folder.parent.glob("*/prepared.json"))
            hint = f"there are: {', '.join(others)}" if others else "make one with python -m vidtrain.prepare"
            raise UserError(f"no prepared copy {folder.name} in {folder.parent}; {hint}")
        try:
            settings = EncodeSettings(**facts["settings"])
        except TypeError as error:
            raise _damaged(folder / "prepared.json", error) from error
        return cls(folder, facts["root"], settings, facts["command"])

    @classmethod
    def begin(cls, folder: Path, sources: Sequence[str], settings: EncodeSettings, command: str) -> Self:
        """A new copy of `sources` in `folder`, or the existing one. Raises `UserError` if that is a copy of another
        folder's files."""
        facts = _facts(folder)
        copy = cls(folder, _root(facts["root"] if facts else None, sources, folder), settings, command)
        folder.mkdir(parents=True, exist_ok=True)
        copy._write_facts({"complete": False})
        return copy

    def target(self, source: str) -> Path:
        """The path of the copy of `source`, unique for each source."""
        return self._files / f"{self._name(source)}.mp4"

    def record(self, source: str, before: tuple[int, int], outcome: PrepareResult) -> None:
        """Stores the result for `source`, whose `signature` was `before` when its preparation started."""
        if outcome.cause:
            self.target(source).unlink(missing_ok=True)  # a copy from when the source could still be read
        result = (self._key, outcome.bytes, outcome.shift, outcome.cause)
        row = (os.fsencode(self._name(source)), *before, *result)
        with self._ledger() as ledger, ledger:
            ledger.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def pending(self, sources: Iterable[str]) -> list[str]:
        """The `sources` that must be prepared: not done yet, changed since, with other settings, unreadable, or with a
        missing copy. A source that no longer exists keeps its copy."""
        waiting = []
        for source, entry in self._entries(sources):
            now, copy = signature(source), signature(str(self.target(source)))
            if (
                entry is None
                or entry.outcome.cause
                or now not in ((entry.source_bytes, entry.modified), None)
                or copy is None
                or copy[0] != entry.outcome.bytes
            ):
                waiting.append(source)
        return waiting

    def finish(self, sources: Sequence[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
        """Writes prepared.json and unreadable.csv for `sources`, which must all be recorded.

        Returns counts (`videos`, `unreadable`, and of prepared files `source_bytes` and `bytes`), and the unreadable
        files, as (path, cause).
        """
        entries = [(source, entry) for source, entry in self._entries(sources) if entry is not None]
        unreadable = [(source, entry.outcome.cause) for source, entry in entries if entry.outcome.cause]
        prepared = [entry for _, entry in entries if not entry.outcome.cause]
        counts = {
            "videos": len(sources),
            "unreadable": len(unreadable),
            "source_bytes": sum(entry.source_bytes for entry in prepared),
            "bytes": sum(entry.outcome.bytes for entry in prepared),
        }
        write_text_atomic(self.folder / "unreadable.csv", csv_text([("path", "cause"), *unreadable]))
        self._write_facts({"complete": True, **counts})
        return counts, unreadable

    def clean(self) -> None:
        """Removes incomplete files of killed runs."""
        for path in self._files.rglob(f".*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def redirect(self, manifest: Manifest) -> Manifest:
        """`manifest` with the paths of the copies instead of the sources.

        A source that could not be read keeps its own path, so that reading it fails and is reported. Raises `UserError`
        if the copy lacks files. It does not check whether sources changed; preparing again does.
        """
        paths: list[str] = []
        missing: list[str] = []
        shifts = np.zeros(len(manifest))
        for index, (source, entry) in enumerate(self._entries(manifest.paths)):
            if entry is None:
                missing.append(source)
                continue
            paths.append(source if entry.outcome.cause else str(self.target(source)))
            shifts[index] = entry.outcome.shift
        if missing:
            raise UserError(
                f"{len(missing)} of {len(manifest)} files are not in the prepared copy {self.folder} "
                f"of the files in {self.root}: {shown_some(missing, NAMED)}\n"
                f"complete it with: {self.command}"
            )
        return manifest.with_paths(paths, shifts)

    def _name(self, source: str) -> str:
        path, root = absolute(source), os.path.join(self.root, "")
        name = path[len(root) :] if path.startswith(root) else relative(path, self.root)
        if is_url(path) and ".." in name.split("/"):
            raise UserError(f"{path}: the copy cannot be named so; write the URL without ..")
        return name

    @contextmanager
    def _ledger(self) -> Iterator[sqlite3.Connection]:
        path = self.folder / "ledger.sqlite"
        try:
            with closing(sqlite3.connect(path, timeout=WAIT_SECONDS)) as database:
                database.execute(SCHEMA)
                yield database
        except sqlite3.Error as error:
            raise UserError(
                f"{path} cannot be used ({error}): free some space if the disk is full; if the file is damaged, "
                f"delete {self.folder} and prepare again"
            ) from error

    def _entries(self, sources: Iterable[str]) -> Iterator[tuple[str, Entry | None]]:
        """`sources` with the result of each under these settings."""
        waiting = iter(sources)
        with self._ledger() as ledger:
            while chunk := list(islice(waiting, AT_A_TIME)):
                names = [os.fsencode(self._name(source)) for source in chunk]
                columns = "source, source_bytes, modified, bytes, shift, cause"
                query = f"SELECT {columns} FROM files WHERE settings = ?"
                query += f" AND source IN ({', '.join('?' * len(names))})"
                rows = ledger.execute(query, (self._key, *names))
                entries = {row[0]: Entry(row[1], row[2], PrepareResult(*row[3:])) for row in rows}
                for source, name in zip(chunk, names, strict=True):
                    yield source, entries.get(name)

    def _write_facts(self, more: dict[str, Any]) -> None:
        libraries = {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}
        facts = {
            "format": FORMAT,
            "root": self.root,
            "settings": self._stated,
            "command": self.command,
            "versions": {"av": av.__version__, **libraries},
            **more,
        }
        write_json_atomic(self.folder / "prepared.json", facts)


class Console(Protocol):
    """Shows progress, as `training.run.Console` does."""

    def info(self, text: str) -> None: ...

    def phase(self, name: str, total_steps: int, start_step: int = 0) -> AbstractContextManager[None, bool | None]: ...

    def advance(self, step: int, fields: Mapping[str, Any]) -> None: ...


def encode_all(
    copy: PreparedCopy,
    files: Mapping[str, float | None],
    max_pixels: int,
    workers: int,
    guarded: Callable[..., Iterator[TaskResult[Job, PrepareResult]]],
    console: Console,
) -> None:
    """Makes the missing copies. `files` maps each path to its frame rate, if it is a folder of images; `guarded` calls
    a function on each in worker processes. Raises `UserError` for a refusal that concerns all of them."""
    waiting = copy.pending(files)
    done = len(files) - len(waiting)
    if done:
        console.info(f"{done} of {len(files)} files are there already")
    # read first, so that a file that changes during copying is prepared again the next time
    before = {source: signature(source) or (0, 0) for source in waiting}
    jobs = [Job(source, copy.target(source), copy.settings, files[source], max_pixels) for source in waiting]
    read = written = unreadable = 0
    with console.phase("preparing", len(files), start_step=done):
        for result in guarded(prepare_file, jobs, num_workers=min(workers, len(jobs) or 1)):
            source = result.item.source
            outcome = result.value or PrepareResult(cause=result.failure)
            if outcome.refusal:
                raise UserError(f"{outcome.refusal}; mend that, and the same command goes on from there")
            copy.record(source, before[source], outcome)
            done += 1
            unreadable += bool(outcome.cause)
            read, written = read + before[source][0] * (not outcome.cause), written + outcome.bytes
            console.advance(done, {"MB": f"{read / MB:.1f} -> {written / MB:.1f}", "unreadable": unreadable})


def prepared_folder(data_root: str, dataset: str, name: str) -> Path:
    """The folder of the copy `name` of a dataset."""
    return Path(data_root) / "prepared" / dataset / name


def signature(source: str) -> tuple[int, int] | None:
    """Bytes and modification time (ns) of a file; for a folder of images, their sum and the latest time. None:
    missing."""
    try:
        if not os.path.isdir(source):
            return file_status(source)
        with os.scandir(source) as entries:
            statuses = [entry.stat() for entry in entries]
    except OSError:
        return None
    latest = max((status.st_mtime_ns for status in statuses), default=0)
    return sum(status.st_size for status in statuses), latest


def _facts(folder: Path) -> dict[str, Any] | None:
    path = folder / "prepared.json"
    if not path.is_file():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        known = {key: facts[key] for key in ("root", "settings", "command")}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(path, error) from error
    if list(map(type, known.values())) != [str, dict, str]:
        raise _damaged(path, TypeError("root and command are text, and settings a mapping"))
    return known


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} is damaged ({error}): delete the folder and prepare again")


def _root(known: str | None, sources: Sequence[str], folder: Path) -> str:
    """The common folder of the sources: `known` if they are still in it."""
    paths = [absolute(source) for source in sources]
    common = common_folder((min(paths), max(paths)))  # a folder common to these two is common to all
    inside = sum(path.startswith(os.path.join(known, "")) for path in paths) if known else 0
    if 0 < inside < len(paths):
        raise UserError(
            f"{folder} is a prepared copy of files in {known}, and {len(paths) - inside} of {len(paths)} files "
            "lie elsewhere: prepare them under another name with name="
        )
    return known if known and inside else common
