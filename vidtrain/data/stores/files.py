"""One interface for all places that videos lie in: their status, ranges of their bytes, and what FFmpeg opens.

A clip is read by ranges. Some readers need a whole file: its hash, its metadata if outlines.py cannot read them, and
videos whose packets cannot be read one by one. For them an object in a store is copied into a temporary file without a
name, which is removed when the next object is copied.
"""

import errno
import io
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, nullcontext, suppress
from functools import partial
from typing import BinaryIO, Protocol

import numpy as np

from vidtrain.data.stores import objects
from vidtrain.data.stores.cache import current_cache
from vidtrain.data.stores.objects import Range, Status, StoreError
from vidtrain.data.stores.places import is_plain, is_url, member_of, name_of
from vidtrain.errors import UserError

# Ranges of a file on disk are read at once, unless the gaps between them exceed their own bytes by more than WASTE
WASTE = 1 << 20
MOST_AT_ONCE = 64 << 20
MOST_REQUESTS = 2  # to a store, for a run of packets; the request for its status is not counted
MOST_SURPLUS = 0.1  # unneeded bytes from a store, as a share of the needed ones
SMALL_GAP = 0.01  # as a share of the needed bytes: once the surplus is exceeded, such a gap costs less than a request
IN_MEMORY = 32 << 20  # a whole object of at most this many bytes is held in memory


class ByteRanges(Protocol):
    """A file whose packets are read."""

    def expect(self, runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Announces what will be read: the positions and sizes of the packets of each run."""

    def begin(self, positions: np.ndarray, sizes: np.ndarray) -> None:
        """Announces the run that is read next."""

    def read_at(self, begin: int, size: int) -> memoryview | bytes:
        """Up to `size` bytes from `begin` on, fewer at the end of the file. Raises `OSError`."""

    def close(self) -> None: ...


class LocalFile:
    """A file on disk, or `length` bytes of it from `offset` on."""

    def __init__(self, file: BinaryIO, offset: int = 0, length: int | None = None):
        self._file = file
        self._number = file.fileno()
        self._offset = offset
        self.length = os.fstat(self._number).st_size - offset if length is None else length
        self._block, self._block_begin = memoryview(b""), 0

    def expect(self, runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        pass

    def begin(self, positions: np.ndarray, sizes: np.ndarray) -> None:
        begin, end = int(positions.min()), int((positions + sizes).max())
        self._block = memoryview(b"")
        if end - begin <= min(2 * int(sizes.sum()) + WASTE, MOST_AT_ONCE):
            self._block, self._block_begin = memoryview(self._read(begin, end - begin)), begin

    def read_at(self, begin: int, size: int) -> memoryview | bytes:
        if self._block:
            return self._block[begin - self._block_begin :][:size]
        return self._read(begin, size)

    def _read(self, begin: int, size: int) -> bytes:
        return os.pread(self._number, max(0, min(size, self.length - begin)), self._offset + begin)

    def close(self) -> None:
        self._file.close()


class RemoteFile:
    """An object in a store, or a member of a tar file there. The expected ranges are requested at once and kept."""

    def __init__(self, path: str):
        member = member_of(path)
        self._url, self._offset = (member.archive, member.begin) if member else (path, 0)
        self._asked: list[tuple[list[Range], Future[list[bytes]]]] = []
        self._held: dict[int, bytes] = {}
        self.size = 0  # requested bytes

    def expect(self, runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        ranges = merged([packets for run in runs for packets in ranges_of(*run)], MOST_REQUESTS * len(runs))
        places = [(begin + self._offset, end + self._offset) for begin, end in ranges]
        self._asked.append((ranges, objects.ask(self._url, places)))
        self.size += sum(end - begin for begin, end in ranges)

    def begin(self, positions: np.ndarray, sizes: np.ndarray) -> None:
        self._receive()
        if any(not len(self._from_held(at, size)) for at, size in zip(positions.tolist(), sizes.tolist(), strict=True)):
            self.expect([(positions, sizes)])
            self._receive()

    def read_at(self, begin: int, size: int) -> memoryview | bytes:
        return self._from_held(begin, size)

    def _receive(self) -> None:
        while self._asked:
            ranges, future = self._asked.pop()
            answers = objects.waited(future)
            self._held |= {begin: data for (begin, _), data in zip(ranges, answers, strict=True)}
        self._starts = sorted(self._held)

    def _from_held(self, begin: int, size: int) -> memoryview:
        place = bisect_right(self._starts, begin) - 1
        if place < 0:
            return memoryview(b"")
        start = self._starts[place]
        data = memoryview(self._held[start])[begin - start :][:size]
        return data if len(data) == size else memoryview(b"")

    def close(self) -> None:
        for _, future in self._asked:
            future.cancel()


def ranges_of(positions: np.ndarray, sizes: np.ndarray) -> list[Range]:
    return list(zip(positions.tolist(), (positions + sizes).tolist(), strict=True))


def merged(ranges: Sequence[Range], most: int) -> list[Range]:
    """The sorted ranges to request, which cover `ranges`. The shortest gaps are requested too, until they are a tenth
    of the needed bytes and at most `most` ranges remain.

    If sound, which lies between the pictures, is more than a tenth of a file, both bounds cannot hold. Then `most`
    holds: a request of 20 ms takes as long as a megabyte at 50 MB/s. Of a file with a fifth of sound, 1.25 times the
    bytes of its packets are read; 1.1 times would take 86 requests.
    """
    whole: list[list[int]] = []
    for begin, end in sorted(ranges):
        if whole and begin <= whole[-1][1]:
            whole[-1][1] = max(end, whole[-1][1])
        else:
            whole.append([begin, end])
    needed = sum(end - begin for begin, end in whole)
    allowed = MOST_SURPLUS * needed
    gaps = sorted((after[0] - before[1], after[0]) for before, after in zip(whole, whole[1:], strict=False))
    bridged, remaining = set(), len(whole)
    for gap, start in gaps:
        exceeded = allowed < 0
        allowed -= gap
        if allowed < 0 and remaining <= most and not (exceeded and gap <= SMALL_GAP * needed):
            break
        bridged.add(start)
        remaining -= 1
    joint: list[Range] = []
    for begin, end in whole:
        joint[len(joint) - (begin in bridged) :] = [(joint[-1][0] if begin in bridged else begin, end)]
    return joint


@contextmanager
def opened(path: str) -> Iterator[ByteRanges]:
    """Opens the file at `path` to read ranges of it. Raises `OSError`."""
    if in_store(path):
        file: RemoteFile | LocalFile = RemoteFile(path)
        try:
            yield file
        finally:
            file.close()
    else:
        with opened_whole(path) as file:
            yield file


@contextmanager
def opened_whole(path: str) -> Iterator[LocalFile]:
    """Opens the file at `path` to read all of it. Raises `OSError`."""
    if is_url(path):
        cached = _from_cache(path)
        with nullcontext(_fetched(path)) if cached is None else cached as file:
            yield file
        return
    member = member_of(path)
    with open(member.archive if member else path, "rb", buffering=0) as file:
        if member is None:
            yield LocalFile(file)
            return
        if os.fstat(file.fileno()).st_size < member.begin + member.length:
            raise StoreError(errno.EIO, f"{member.archive} is cut off before the end of {member.name}")
        yield LocalFile(file, member.begin, member.length)


def _from_cache(path: str) -> "closing[LocalFile] | None":
    cache = current_cache()
    if cache is None:
        return None
    status = file_status(path)
    file = cache.opened((path, *status), partial(_download, path, status.size))
    return None if file is None else closing(LocalFile(file))


def _download(path: str, size: int, file: BinaryIO) -> None:
    member = member_of(path)
    url, begin = (member.archive, member.begin) if member else (path, 0)
    if objects.serves_ranges(url):
        objects.fetch(url, begin, begin + size, lambda _, data: file.write(data))
    else:
        file.write(objects.read_whole(url)[begin : begin + size])
    file.flush()


_last: list[tuple[str, Status, BinaryIO]] = []  # the object that was fetched last, or none


def _fetched(path: str) -> LocalFile:
    current = file_status(path)
    if _last and _last[0][:2] == (path, current):
        return LocalFile(_last[0][2])
    _last.clear()
    file = nameless(current.size)
    _download(path, current.size, file)
    _last.append((path, current, file))
    return LocalFile(file)


@contextmanager
def standing_in(path: str, status: Status, file: BinaryIO) -> Iterator[None]:
    """A context in which `file` is read in place of the whole object."""
    _last[:] = [(path, status, file)]
    try:
        yield
    finally:
        _last.clear()


def nameless(size: int) -> BinaryIO:
    if size <= IN_MEMORY and hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("object"), "w+b")
    return tempfile.TemporaryFile()


def file_status(path: str) -> Status:
    """Size and version of the file at `path`; a member has the version of its tar file. Raises `OSError`."""
    member = member_of(path)
    place = member.archive if member else path
    if is_url(place):
        whole = objects.status_of(place)
    else:
        stat = os.stat(place)
        whole = Status(stat.st_size, stat.st_mtime_ns)
    if member is None:
        return whole
    if whole.size < member.begin + member.length:
        raise StoreError(errno.EIO, f"{member.archive} is cut off before the end of {member.name}")
    return Status(member.length, whole.version)


def in_store(path: str) -> bool:
    """Whether clips of the file are read from a store, by ranges."""
    return is_url(path) and objects.serves_ranges(path) and current_cache() is None


def ask_statuses(paths: Iterable[str]) -> None:
    """Requests the status of all `paths` in stores at once, so that `file_status` has them sooner."""
    for path in filter(is_url, paths):
        ask_status(path)


def exists(path: str) -> bool:
    """Whether the file exists. Raises `UserError` if its store cannot be asked."""
    if not is_url(path):
        member = member_of(path)
        return os.path.exists(member.archive if member else path)
    try:
        file_status(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"whether {path} exists is not known: {error.strerror}") from error
    return True


def ask_status(path: str) -> "Future[None]":
    """Requests the status of the file at `path`; when the future is done, `known_status` has it."""
    member = member_of(path)
    return objects.ask_status(member.archive if member else path)


def known_status(path: str) -> Status | None:
    """As `file_status`, but None if a store would have to be asked, or if it failed."""
    member = member_of(path)
    if not is_url(path) or isinstance(objects.known_status(member.archive if member else path), Status):
        with suppress(OSError):
            return file_status(path)
    return None


def open_binary(path: str) -> io.BufferedReader:
    """Opens a file to read it from its beginning. Raises `OSError`."""
    if is_url(path):
        return io.BufferedReader(io.BytesIO(objects.read_whole(path)))  # type: ignore[arg-type]
    return open(path, "rb")


class _Stream(io.RawIOBase):
    """A file for FFmpeg, which also uses the extension of its `name`."""

    def __init__(self, file: LocalFile, name: str):
        self._file = file
        self._at = 0
        self.name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = bytes(self._file.read_at(self._at, self._file.length if size < 0 else size))
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._file.length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at


@contextmanager
def opened_by_ffmpeg(path: str) -> Iterator[str | io.RawIOBase]:
    """What `av.open` takes for the file at `path`. Raises `OSError`."""
    if is_plain(path):
        # absolute, as FFmpeg takes what precedes a colon in a relative path for a protocol
        yield os.path.abspath(path)
        return
    with opened_whole(path) as file:
        yield _Stream(file, name_of(path))
