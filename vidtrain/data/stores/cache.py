"""A cache of whole videos from stores, on a disk of this machine, shared by all its processes. The least recently used
videos are removed first.

The name of a file is a hash of path, size and version of the object. A file gets its name when it is complete: a crash
leaves a temporary file, which is removed a day later. A process can still read a file that another process removes, as
it keeps the file open.
"""

import fcntl
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from vidtrain.errors import UserError
from vidtrain.files.atomic import FULL, TEMPORARY
from vidtrain.files.folders import check_links

log = logging.getLogger(__name__)

_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?", re.IGNORECASE)
LARGEST = 0.1  # a larger video, as a share of the cache's size, is not kept
LOOKED_AFTER = 0.01  # after writing this share of its size, a process checks whether the cache is full
LEFT = 0.95  # a full cache is reduced to this share of its size
STALE_SECONDS = 86_400  # the age at which a temporary file counts as left behind


def bytes_in(text: str) -> int:
    """The bytes of a size such as 500GiB, 1.5 GB or 1000000. Raises `UserError` for other texts, and below one byte."""
    match = _SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if size < 1:
        raise UserError(f"{text!r} is not a size; write it as 500MB, 1GiB or 2TiB")
    return size


class Cache:
    """A cache of about `size` bytes at most, in `folder`. Raises `UserError` if the folder cannot be written."""

    def __init__(self, folder: Path, size: int):
        self._folder = folder
        self._size = size
        self._added = size  # so that the cache is checked after the first file
        self._warned = False
        check_links(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "lock").touch()
        except OSError as error:
            raise UserError(
                f"data.cache={folder} cannot be written ({error.strerror}); choose another folder"
            ) from error

    def opened(self, key: tuple[str, int, int], fill: Callable[[BinaryIO], object]) -> BinaryIO | None:
        """The file of the object with this path, size and version; `fill` writes it if it is not in the cache.

        None if it is too large, or the disk is full. Raises the exceptions of `fill`.
        """
        name = hashlib.blake2b(repr(key).encode(errors="surrogateescape"), digest_size=16).hexdigest()
        path = self._folder / name[:2] / name
        with suppress(FileNotFoundError):
            file = open(path, "rb", buffering=0)  # noqa: SIM115  # the caller closes it
            if os.fstat(file.fileno()).st_size == key[1]:
                os.utime(path)
                return file
            file.close()
        if key[1] > LARGEST * self._size:
            return None
        temporary = path.with_name(f".{name}.{os.getpid()}{TEMPORARY}")
        try:
            path.parent.mkdir(exist_ok=True)
            target = temporary.open("w+b")
        except OSError as error:
            self._warn(error)
            return None
        try:
            fill(target)
            target.flush()
            os.fsync(target.fileno())
            temporary.replace(path)
        except OSError as error:
            target.close()
            if error.errno not in FULL:  # an error of the store, not of this disk
                raise
            self._warn(error)
            return None
        finally:
            temporary.unlink(missing_ok=True)
        self._added += key[1]
        if self._added > LOOKED_AFTER * self._size:
            self._added = 0
            self._trim()
        return target

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            message = "data.cache=%s cannot be written (%s): videos are read without it"
            log.warning(message, self._folder, error.strerror)
        self._warned = True

    def _trim(self) -> None:
        """Removes the least recently used files if the cache is full; one process at a time does so."""
        with open(self._folder / "lock", "r+b") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            files = sorted(self._files())
            total = sum(size for _, size, _ in files)
            least = LEFT * self._size if total > self._size else total
            for _, size, path in files:
                if total <= least:
                    return
                path.unlink(missing_ok=True)
                total -= size

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of each file. Removes temporary files that were left behind."""
        for path in self._folder.glob("??/*"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # another process has renamed it
                continue
            if not path.name.endswith(TEMPORARY):
                yield stat.st_mtime, stat.st_size, path
            elif stat.st_mtime < time.time() - STALE_SECONDS:
                path.unlink(missing_ok=True)


_current: Cache | None = None


def use_cache(folder: str | None, size: str) -> None:
    """Sets the cache of this process and of those that it forks; with `folder` None, there is none."""
    global _current
    _current = None if folder is None else Cache(Path(folder), bytes_in(size))


def current_cache() -> Cache | None:
    return _current
