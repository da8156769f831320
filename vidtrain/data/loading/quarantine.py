"""Remembers files that failed, so that a run does not read them again.

A file that cannot be opened fails for every clip; each process remembers it by itself to save time. A file that ends
the process which reads it may do so for some clips only. It counts as unreadable from that batch on. The number of the
batch is recorded, so that a resumed run computes the same with any number of workers.
"""

import json
import logging
import math
import signal
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.decoding.watchdog import describe_exit, reading
from vidtrain.data.stores.files import file_status
from vidtrain.errors import UserError
from vidtrain.files.atomic import Ledger
from vidtrain.files.escaping import shown

log = logging.getLogger(__name__)

Result = TypeVar("Result")

MOST_LOST, LOST_WITHIN = 16, 3600.0  # workers without a file to blame, and in how many seconds
MOST_HELD = 1_000  # lines that wait in memory while the disk is full

Signature = tuple[int | None, int | None]  # size in bytes, modification time in ns; None if there is no file


class Entry(NamedTuple):
    """A file that is not read for batches with numbers from `since` on."""

    split: str
    path: str
    cause: str
    since: int
    size: int | None
    modified: int | None

    @property
    def signature(self) -> Signature:
        return self.size, self.modified


class Quarantine:
    """The failed files of a split, as known to a process and its children.

    Files that ended worker processes are stored as JSON lines in `path`, for a resumed run; with None only in memory.
    Splits may share the file, but each rank needs its own: a rank's samples must not depend on other ranks. A file
    whose size or modification time has changed counts as new. On a full disk, lines are kept in memory.

    `number` is the number of the batch that is being read. Raises `UserError` if `path` cannot be read.
    """

    def __init__(self, path: Path | None = None, split: str = ""):
        self.number = 0
        self._split = split
        self._failed: dict[str, tuple[Signature, int, DecodeError]] = {}
        self._blamed: dict[str, Entry] = {}
        self._ledger = None if path is None else Ledger(path, MOST_HELD)
        self._warned = False
        for entry in _entries(path) if path is not None else ():
            if entry.split == split:
                self._learn(entry)

    def attempt(self, video: str, read: Callable[[], Result]) -> Result:
        """Returns `read()`, which reads the file `video`, and is called a second time if the first call fails. Raises
        `DecodeError` if both fail, and immediately for a file in quarantine."""
        entry = self._blamed.get(video)
        if entry is not None and self.number >= entry.since and _signature(video) == entry.signature:
            raise DecodeError(video, entry.cause)
        # storage can fail temporarily, so the file is blamed only if it fails twice
        with suppress(DecodeError), reading(video):
            return read()
        with reading(video):
            return read()

    def opened(self, video: str, read: Callable[[], Result]) -> Result:
        """Returns `read()`, which opens the file. Raises `DecodeError`; after two failures without trying again."""
        signature = _signature(video)
        times = 0
        if video in self._failed:
            before, times, error = self._failed[video]
            times = times if before == signature else 0
            if times == 2:
                raise DecodeError(error.path, error.cause)
        try:
            return read()
        except DecodeError as error:
            self._failed[video] = signature, times + 1, DecodeError(error.path, error.cause)
            raise

    def blame(self, video: str, cause: str, number: int) -> None:
        """Puts a file that ended worker processes in batch `number` into quarantine from that batch on."""
        entry = Entry(self._split, video, cause, number, *_signature(video))
        self._learn(entry)
        if self._ledger is not None:
            self._ledger.write(json.dumps(entry._asdict()) + "\n")
            self.flush()

    def flush(self) -> None:
        """Writes the lines that wait for room on the disk, if there is any. Raises `UserError` if the file cannot be
        written for another reason."""
        if self._ledger is None:
            return
        self._ledger.flush()
        if self._ledger.trouble is None:
            self._ledger.close()  # an open file could not go to another process
        elif not self._ledger.lacks_room:
            raise UserError(f"cannot write {self._ledger.path}: {self._ledger.trouble}")
        elif not self._warned:
            what = "it waits in memory; free some space, or a resumed run reads the files again that ended workers"
            log.warning("cannot write %s (%s): %s", self._ledger.path, self._ledger.trouble, what)
            self._warned = True

    @property
    def blamed(self) -> list[Entry]:
        return list(self._blamed.values())

    def _learn(self, entry: Entry) -> None:
        known = self._blamed.get(entry.path)
        if known is None or known.signature != entry.signature or known.since > entry.since:
            self._blamed[entry.path] = entry


def _entries(path: Path) -> list[Entry]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:  # nothing has been blamed yet
        return []
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    entries = []
    for line in filter(None, lines):
        try:
            entries.append(Entry(**json.loads(line)))
        except (ValueError, TypeError):
            # an incomplete line of a killed process: its file will be found again
            log.warning("%s: skipping a line that is not an entry: %s", path, line[:200])
    return entries


def _signature(video: str) -> Signature:
    try:
        return file_status(video)
    except OSError:  # a missing file may appear later
        return None, None


class _Loss(NamedTuple):
    when: float
    video: str | None
    cause: str


class Losses:
    """Counts the workers that a loader has lost, and blames files.

    A file is blamed if it ended two workers in the same batch. A single loss may have another cause: memory ran out,
    storage hung, the job was suspended. The last two end all workers at once, which counts as one loss.
    """

    def __init__(self, quarantine: Quarantine, time_limit: float):
        self._quarantine = quarantine
        self._time_limit = time_limit
        self._ended: Counter[tuple[int, str]] = Counter()
        self._unexplained: deque[_Loss] = deque()
        self._stood_still = -math.inf  # time of the last counted hang

    def add(self, status: int | None, video: str | None, number: int) -> bool:
        """Counts a worker that ended with `status` while it read `video` for batch `number`. Returns whether the file
        was put into quarantine. Raises `UserError` if there are too many unexplained losses."""
        cause = describe_exit(status, self._time_limit)
        if video is not None:
            self._ended[number, video] += 1
            if self._ended[number, video] > 1:
                log.warning("%s ended two worker processes (%s); this run does not read it again", video, cause)
                self._quarantine.blame(video, cause, number)
                self._unexplained = deque(loss for loss in self._unexplained if loss.video != video)
                return True
        now, hung = time.monotonic(), status == -signal.SIGALRM
        if not hung or now - self._stood_still >= self._time_limit / 2:
            self._unexplained.append(_Loss(now, video, cause))
            self._stood_still = now if hung else self._stood_still
        while self._unexplained and self._unexplained[0].when < now - LOST_WITHIN:
            self._unexplained.popleft()
        if len(self._unexplained) > MOST_LOST:
            raise UserError(self._refusal())
        if video is None:
            log.warning("a worker process was lost (%s) while it was reading no file; it is replaced", cause)
        else:
            log.warning(
                "a worker process was lost (%s) while it was reading %s; the file is tried once more", cause, video
            )
        return False

    def _refusal(self) -> str:
        lines = "\n  ".join(
            f"{loss.cause}, while reading {'no file' if loss.video is None else shown(loss.video)}"
            for loss in list(self._unexplained)[-5:]
        )
        return (
            f"{len(self._unexplained)} worker processes were lost within an hour, and no file ended two of them; the "
            f"last:\n  {lines}\nIf they were killed, memory ran out: lower trainer.num_workers or "
            "trainer.batch_size. If they hung, storage was too slow, or data.decode_timeout_s is too short. If they "
            "crashed, trainer.num_workers=0 shows the error"
        )
