"""Objects behind URLs: their size, their version, and ranges of their bytes.

fsspec implements the protocols. This module makes the requests: any number at once, each with a time limit and several
tries, as stores sometimes answer late, incompletely, or with status 503. If all tries fail, `StoreError` is raised.

Over HTTP and from S3, a range is requested of the version whose status is known, so a request notices that an object
has changed. fsspec has no such request for other stores. Their status is requested again after `STATUS_SECONDS`; until
then a clip may come from a changed object.

Credentials are those of each client: ~/.netrc, AWS_PROFILE, the files and variables of fsspec. None are stored here.
"""

import asyncio
import errno
import hashlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import fsspec
import fsspec.asyn
from fsspec.core import url_to_fs

from vidtrain.data.decoding import watchdog
from vidtrain.data.stores.places import is_http
from vidtrain.errors import UserError
from vidtrain.files.escaping import masked
from vidtrain.files.folders import install_hint

log = logging.getLogger(__name__)

T = TypeVar("T")
Range = tuple[int, int]  # the first byte, and the one after the last

TRIES = 6
FIRST_WAIT = 0.5  # seconds before the second try, then twice as long each time
REQUEST_SECONDS = 10.0  # the time limit of a request, without the time for its bytes at the rate SLOWEST
SLOWEST = 1 << 19  # bytes a second
LIST_SECONDS = 600.0  # the time limit for the names of all objects in a folder
STATUS_SECONDS = 300.0  # after so long, the status of an object is requested again
FAILURE_SECONDS = 5.0  # the same, if the request failed
MOST_REMEMBERED = 100_000  # objects whose status is remembered
PART = 8 << 20  # bytes of one request for a part of a whole object
PARTS_AT_ONCE = 4
# Ranges are requested without compression, with the credentials and proxies of the environment
HEADERS = {"Accept-Encoding": "identity"}
HTTP = {"headers": HEADERS, "client_kwargs": {"trust_env": True}}
OPTIONS = {"http": HTTP, "https": HTTP}
# A request with one of these answers is not repeated
FINAL_STATUS = {400, 401, 403, 404, 405, 410, 411, 414, 416, 451, 501}
CHANGED = "%s has changed in the store; its new version is read"
VERSIONS = (
    "VersionId", "ETag", "etag", "generation", "md5Hash", "Content-MD5", "Last-Modified", "LastModified",
    "last_modified", "mtime", "modified", "created",
)  # fmt: skip


class StoreError(OSError):
    """A store did not answer a request; `strerror` says why, in words."""


class ChangedError(StoreError):
    """An object has changed since its status was requested."""


class Status(NamedTuple):
    """Bytes of an object, and a number that changes with the object (for a plain file its modification time in ns)."""

    size: int
    version: int


FINAL = (
    ChangedError, FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, UserError,
)  # fmt: skip


class Use(NamedTuple):
    """How much a process has used stores: seconds that it waited, requests, bytes of objects, and `whole` videos that
    were fetched for their metadata, as parts did not suffice."""

    waited: float = 0.0
    requests: int = 0
    bytes: int = 0
    whole: int = 0

    def since(self, earlier: "Use") -> "Use":
        return Use._make(now - before for now, before in zip(self, earlier, strict=True))


@dataclass
class _Look:
    """A request for the status of an object. When the `future` is done, `status` is known; it is valid `until` a time,
    which is 0 if a later request found that the object has changed. `same` are the headers of requests for ranges, with
    which the store answers only for this version."""

    same: dict[str, str]
    status: Status | OSError | None = None
    until: float = 0.0
    future: "Future[None]" = field(init=False)


_use = Use()
_looks: dict[str, _Look] = {}  # the last one for each URL
_without_ranges: set[str] = set()  # stores
_clients: dict[int, Any] = {}  # kept: in a forked process, one without references would be closed, and must not be
_lock = threading.Lock()


def used() -> Use:
    """How much this process has used stores so far."""
    return _use


def count(**more: float) -> None:
    """Adds to the numbers of `used`, by the names of `Use`."""
    global _use
    with _lock:  # the thread that reads and the one of requests both count
        _use = _use._replace(**{name: getattr(_use, name) + value for name, value in more.items()})


def status_of(url: str) -> Status:
    """Size and version of the object at `url`. Raises `OSError` if there is none, or the store does not answer."""
    look = _looked(url)
    if look.status is None:
        waited(look.future)
    assert look.status is not None
    if isinstance(look.status, OSError):
        raise look.status
    return look.status


def known_status(url: str) -> Status | OSError | None:
    """The valid status of the object, or the error of the last request; None if neither is known."""
    return _looks[url].status if url in _looks and time.monotonic() < _looks[url].until else None


def ask_status(url: str) -> "Future[None]":
    """Requests the status; when the future is done, `known_status` has it. Raises `UserError` for a protocol that is
    not installed."""
    return _looked(url).future


def _looked(url: str) -> _Look:
    """The request for the status of `url` that runs or is still valid, or a new one."""
    earlier = _looks.get(url)
    if earlier is not None and (known_status(url) is not None or not earlier.future.done()):
        return earlier
    filesystem, path = _client(url)
    look = _Look(same=earlier.same if earlier else {})

    async def ask() -> None:
        if earlier is not None:  # the status in an earlier listing is out of date too
            filesystem.invalidate_cache(path)
        try:
            info = await _tried(partial(_call, filesystem, "info", path), REQUEST_SECONDS)
            look.status, look.same = _status_in(url, info), _same_in(url, info)
        except OSError as error:
            look.status = error
        before = earlier.status if earlier is not None and earlier.until else None  # until is 0 after a warning
        if isinstance(before, Status) and before != look.status:
            log.warning(CHANGED, masked(url))
        seconds = FAILURE_SECONDS if isinstance(look.status, OSError) else STATUS_SECONDS
        look.until = time.monotonic() + seconds

    look.future = _started(ask())
    if len(_looks) >= MOST_REMEMBERED:
        _looks.clear()
    _looks[url] = look
    return look


def _status_in(url: str, info: dict[str, Any]) -> Status:
    if info.get("type") == "directory":
        raise StoreError(errno.EISDIR, "it is a folder")
    if not isinstance(info.get("size"), int):
        raise StoreError(errno.EIO, "the store does not report its size, so ranges of it cannot be read")
    if info.get("partial") is False:
        _note_without_ranges(url)
    label = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
    return Status(info["size"], int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest()) >> 1)


def _same_in(url: str, info: dict[str, Any]) -> dict[str, str]:
    """The headers with which a store answers a request for a range only if the object still has this version."""
    tag, modified = str(info.get("ETag") or ""), info.get("Last-Modified")
    if is_http(url) and tag.startswith('"'):  # a weak tag, W/"...", never matches
        return {"If-Match": tag}
    if is_http(url) and isinstance(modified, str):
        return {"If-Unmodified-Since": modified}
    return {"IfMatch": tag} if url.startswith("s3://") and tag else {}


def ask(url: str, ranges: Sequence[Range]) -> "Future[list[bytes]]":
    """Requests `ranges` of the object at `url`, all at once."""
    filesystem, path = _client(url)

    async def read(begin: int, end: int) -> bytes:
        return await _tried(partial(_range, filesystem, path, url, begin, end), _seconds(end - begin))

    async def read_all() -> list[bytes]:
        return list(await asyncio.gather(*(read(*bounds) for bounds in ranges)))

    return _started(read_all())


def fetch(url: str, begin: int, end: int, take: Callable[[int, bytes], object]) -> None:
    """Calls `take` with the bytes from `begin` to `end`, in order, as (position, bytes). Raises as `waited` does."""
    starts = range(begin, end, PART)
    for first in range(0, len(starts), PARTS_AT_ONCE):
        parts = [(start, min(end, start + PART)) for start in starts[first : first + PARTS_AT_ONCE]]
        answers = waited(ask(url, parts))
        for (start, _), data in zip(parts, answers, strict=True):
            take(start, data)


def read_whole(url: str) -> bytes:
    """All bytes of the object at `url`. Raises as `waited` does."""
    filesystem, path = _client(url)
    size = status_of(url).size
    return waited(_started(_tried(partial(_call, filesystem, "cat_file", path), _seconds(size))))


def objects_at(url: str) -> list[str]:
    """The URLs of all objects below `url`; if it has a *, of those that match it. Raises as `waited` does."""
    filesystem, path = _client(url)
    names = waited(_started(_tried(partial(_call, filesystem, "glob" if "*" in path else "find", path), LIST_SECONDS)))
    return [filesystem.unstrip_protocol(name) for name in names]


def waited(future: "Future[T]") -> T:
    """Waits for the result. Raises `StoreError`, or another `OSError` for an object that does not exist or may not be
    read, and `UserError` for a protocol that is not installed."""
    began = time.perf_counter()
    try:
        while True:
            watchdog.progress()  # no hang: every request has a time limit
            try:
                return future.result(timeout=1.0)
            except TimeoutError:
                if future.done():
                    raise
    finally:
        count(waited=time.perf_counter() - began)


def serves_ranges(url: str) -> bool:
    """Whether the store serves ranges, as far as is known."""
    return _store(url) not in _without_ranges


def _store(url: str) -> str:
    head, _, rest = url.partition("://")
    return f"{head}://{rest.split('/', 1)[0].rpartition('@')[2]}"


def _note_without_ranges(url: str) -> None:
    store = _store(url)
    with _lock:
        told = store in _without_ranges
        _without_ranges.add(store)
    if not told:
        log.warning("%s serves no ranges of bytes: whole files are read for every clip; data.cache keeps them", store)


def _client(url: str) -> tuple[Any, str]:
    """The filesystem for the protocol of `url`, and the path in it. Raises `UserError` if it is not installed."""
    protocol = url.partition("://")[0]
    try:
        filesystem, path = url_to_fs(url, **(OPTIONS[protocol] if protocol in OPTIONS else {}))
    except ImportError as error:
        raise UserError(
            f"{masked(url)}: reading {protocol}:// needs more packages: {install_hint('remote')}"
        ) from error
    except ValueError as error:
        raise UserError(f"{masked(url)} cannot be read: {masked(str(error))}") from error
    _clients[id(filesystem)] = filesystem
    return filesystem, path


def _started(work: Any) -> "Future[Any]":
    return asyncio.run_coroutine_threadsafe(work, fsspec.asyn.get_loop())


def _seconds(size: int) -> float:
    return REQUEST_SECONDS + size / SLOWEST


async def _call(filesystem: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """Calls a method of a filesystem; in a thread, if the filesystem has no coroutines."""
    if filesystem.async_impl:
        return await getattr(filesystem, f"_{method}")(*args, **kwargs)
    return await asyncio.to_thread(getattr(filesystem, method), *args, **kwargs)


async def _range(filesystem: Any, path: str, url: str, begin: int, end: int) -> bytes:
    same = _looks[url].same if url in _looks else {}
    try:
        if "IfMatch" in same:
            data = await _range_of_s3(filesystem, path, begin, end, same["IfMatch"])
        else:
            headers = {"headers": HEADERS | same} if same else {}
            data = await _call(filesystem, "cat_file", path, start=begin, end=end, **headers)
    except Exception as error:
        refused = "IfMatch" in same and getattr(error, "errno", None) == errno.EINVAL  # s3fs turns 412 into this
        if getattr(error, "status", None) != 412 and not refused:
            raise
        # The next reader requests the status again, unless it was requested since this range was
        if url in _looks and _looks[url].until and _looks[url].same == same:
            _looks[url].until = 0.0
            log.warning(CHANGED, masked(url))
        raise ChangedError(errno.ESTALE, "it has changed in the store since it was looked at") from error
    count(bytes=len(data))
    if len(data) > end - begin:  # the whole object
        _note_without_ranges(url)
        data = data[begin:end]
    if len(data) < end - begin:
        raise StoreError(errno.EIO, f"only {len(data)} of {end - begin} bytes were received")
    return data


async def _range_of_s3(filesystem: Any, path: str, begin: int, end: int, tag: str) -> bytes:
    """A range of an object, requested as s3fs does, but only if the object still has this tag."""
    bucket, key, _ = filesystem.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={begin}-{end - 1}", "IfMatch": tag}
    body = (await filesystem._call_s3("get_object", **wanted))["Body"]
    try:
        return await body.read()
    finally:
        body.close()


async def _tried(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """The result of the first attempt that succeeds. Each may take `seconds`."""
    cause: BaseException = TimeoutError()
    for number in range(TRIES):
        if number:
            await asyncio.sleep(FIRST_WAIT * 2 ** (number - 1))
        count(requests=1)
        try:
            return await asyncio.wait_for(attempt(), seconds)
        # any exception: clients raise many kinds, and another try costs little
        except Exception as error:
            cause = error
        if isinstance(cause, FileNotFoundError) and type(cause.__cause__).__module__.startswith("aiohttp"):
            cause = cause.__cause__ or cause  # fsspec raises this for every failure of a HEAD request
        lasting = isinstance(cause, FINAL) or type(cause).__name__ == "NoCredentialsError"
        if lasting or getattr(cause, "status", None) in FINAL_STATUS:
            raise _in_words(cause) from cause
    raise StoreError(errno.EIO, f"{_in_words(cause).strerror}, {TRIES} times") from cause


def _in_words(error: BaseException) -> OSError:
    if isinstance(error, UserError | StoreError):
        return error  # type: ignore[return-value]
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(errno.ENOENT, "there is no such object in the store")
    if isinstance(error, PermissionError) or status in (401, 403) or type(error).__name__ == "NoCredentialsError":
        detail = masked(str(error)) if isinstance(error, PermissionError) or status is None else f"status {status}"
        return PermissionError(errno.EACCES, f"the store refuses access ({detail}): check the credentials")
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return StoreError(errno.ETIMEDOUT, "the store did not answer in time")
    text = f"status {status}" if status else masked(str(error)) or "no answer"
    return StoreError(errno.EIO, f"the store failed ({type(error).__name__}: {text})")
