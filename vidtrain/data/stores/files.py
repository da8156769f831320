"""One face for all places that videos lie in: their status, ranges of their bytes, and what FFmpeg opens.

A clip is read by ranges. What needs a file as a whole (what is in one that outlines.py does not know, its hash, a video
whose packets cannot be read one by one) gets it in a file without a name, in the folder for temporary ones, which is
gone with the next one.
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

# Ranges of a file on disk are read in one go, unless what lies between them is longer than they are and this many bytes
WASTE = 1 << 20
MOST_AT_ONCE = 64 << 20
# Of a store: few requests for a run of packets, beside the one for its status, and little that nobody needs
MOST_REQUESTS = 2
MOST_SURPLUS = 0.1  # of the bytes that are needed
SMALL_GAP = 0.01  # of them: a gap that costs less than one more request, where the surplus is exceeded anyway
IN_MEMORY = 32 << 20  # bytes of a whole object


class ByteRanges(Protocol):
    """A file whose packets are read."""

    def expect(self, runs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        """Says what will be read, as the positions and sizes of the packets of each run."""

    def begin(self, positions: np.ndarray, sizes: np.ndarray) -> None:
        """Says which run is read next."""

    def read_at(self, begin: int, size: int) -> memoryview | bytes:
        """Up to `size` bytes from `begin` on, fewer where the file ends. Raises `OSError`."""

    def close(self) -> None: ...


class LocalFile:
    """A file on disk, or `length` bytes from `offset` on of one."""

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
    """An object in a store, or a member of a tar file there: what was expected is asked for at once and kept."""

    def __init__(self, path: str):
        member = member_of(path)
        self._url, self._offset = (member.archive, member.begin) if member else (path, 0)
        self._asked: list[tuple[list[Range], Future[list[bytes]]]] = []
        self._held: dict[int, bytes] = {}
        self.size = 0  # bytes that were asked for

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
    """The ranges to ask for so that `ranges` are among what comes, sorted: the shortest gaps between them are read as
    well, as long as that is a tenth of what is needed, or more than `most` would be left.

    Both bounds cannot hold where sound is more than a tenth of a file, as it lies between the pictures. Then `most`
    does: at 20 ms a request takes as long as a megabyte at 50 MB/s. Of a file that is a fifth sound 1.25 times the
    bytes of its packets are read, where 1.1 times would take 86 requests.
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
    """The file that `path` names, for reading ranges of it. Raises `OSError`."""
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
    """The file that `path` names, for reading all of it. Raises `OSError`."""
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
            raise StoreError(errno.EIO, f"{member.archive} is cut: {member.name} ends behind its end")
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


_last: list[tuple[str, Status, BinaryIO]] = []  # the object that was fetched last


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
    """Meanwhile `file` is read in place of the whole object."""
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
    """Bytes and version of the file that `path` names; of a member, the version of its tar file. Raises `OSError`."""
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
        raise StoreError(errno.EIO, f"{member.archive} is cut: {member.name} ends behind its end")
    return Status(member.length, whole.version)


def in_store(path: str) -> bool:
    """Whether clips of the file are asked for by ranges, from a store."""
    return is_url(path) and objects.serves_ranges(path) and current_cache() is None


def ask_statuses(paths: Iterable[str]) -> None:
    """Asks stores, all at once, for what `file_status` will be asked for."""
    for path in filter(is_url, paths):
        ask_status(path)


def exists(path: str) -> bool:
    """Whether there is such a file. Raises `UserError` where a store does not say."""
    if not is_url(path):
        member = member_of(path)
        return os.path.exists(member.archive if member else path)
    try:
        file_status(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{path} cannot be looked for: {error.strerror}") from error
    return True


def ask_status(path: str) -> "Future[None]":
    """Asks a store for what `known_status` then knows."""
    member = member_of(path)
    return objects.ask_status(member.archive if member else path)


def known_status(path: str) -> Status | None:
    """As `file_status`, where that is known of a store without asking it; None elsewhere, and of what failed."""
    member = member_of(path)
    if not is_url(path) or isinstance(objects.known_status(member.archive if member else path), Status):
        with suppress(OSError):
            return file_status(path)
    return None


def open_binary(path: str) -> io.BufferedReader:
    """A file to read from its beginning. Raises `OSError`."""
    if is_url(path):
        return io.BufferedReader(io.BytesIO(objects.read_whole(path)))  # type: ignore[arg-type]
    return open(path, "rb")


class _Stream(io.RawIOBase):
    """A file as FFmpeg takes it, which goes by the ending of its `name` too."""

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
    """What `av.open` takes for the file that `path` names. Raises `OSError`."""
    if is_plain(path):
        # an absolute path, as a colon in a relative one would stand behind a protocol
        yield os.path.abspath(path)
        return
    with opened_whole(path) as file:
        yield _Stream(file, name_of(path))
