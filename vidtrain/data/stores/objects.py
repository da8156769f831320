"""Objects behind URLs: how large they are, which version, and ranges of their bytes.

fsspec speaks the protocols. What is asked of a store is ours: any number of requests at once, each with a time limit
and a few tries, as stores answer late, in part, or with a 503 now and then. What fails in all raises `StoreError`.

Over HTTP and from S3 a range is asked for of the version that was looked at, so that the next request notices a change.
fsspec has no such question for other stores, which are looked at anew after `STATUS_SECONDS`: till then a clip may be
of a changed object.

Credentials are those of each client: ~/.netrc, AWS_PROFILE, the files and variables of fsspec. None is kept here.
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
Range = tuple[int, int]  # the first byte, and the one behind the last

TRIES = 6
FIRST_WAIT = 0.5  # seconds before the second try, then twice as long each time
REQUEST_SECONDS = 10.0  # for an answer, and one more for each so many bytes
SLOWEST = 1 << 19  # bytes a second
LIST_SECONDS = 600.0  # for the names of all objects in a folder
STATUS_SECONDS = 300.0  # for which a process believes what a store said of an object
FAILURE_SECONDS = 5.0  # ... or that it said nothing
MOST_REMEMBERED = 100_000  # objects
PART = 8 << 20  # bytes asked for at once of a whole object
PARTS_AT_ONCE = 4
# What a range is asked with: the bytes as they lie, and credentials and proxies from where other clients take them
HEADERS = {"Accept-Encoding": "identity"}
HTTP = {"headers": HEADERS, "client_kwargs": {"trust_env": True}}
OPTIONS = {"http": HTTP, "https": HTTP}
# Answers that asking again does not change
FINAL_STATUS = {400, 401, 403, 404, 405, 410, 411, 414, 416, 451, 501}
CHANGED = "%s has changed in the store: it is looked at anew"
VERSIONS = (
    "VersionId", "ETag", "etag", "generation", "md5Hash", "Content-MD5", "Last-Modified", "LastModified",
    "last_modified", "mtime", "modified", "created",
)  # fmt: skip


class StoreError(OSError):
    """A store that does not give what was asked for; `strerror` says why, in words."""


class ChangedError(StoreError):
    """An object that is another one than when it was looked at."""


class Status(NamedTuple):
    """Bytes of an object, and a number that changes when it does (of a plain file: when it was modified, in ns)."""

    size: int
    version: int


FINAL = (
    ChangedError, FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError, UserError,
)  # fmt: skip


class Use(NamedTuple):
    """What a process has had of stores: seconds that it waited for them, requests, bytes of objects, and `whole`
    videos that were fetched for what is in them, where parts do not tell."""

    waited: float = 0.0
    requests: int = 0
    bytes: int = 0
    whole: int = 0

    def since(self, earlier: "Use") -> "Use":
        return Use._make(now - before for now, before in zip(self, earlier, strict=True))


@dataclass
class _Look:
    """A look at an object: its `status`, once the `future` is done, which holds `until` then; 0 where it was refused
    meanwhile. Requests for ranges are asked with `same`, and so answered of the version that was seen alone."""

    same: dict[str, str]
    status: Status | OSError | None = None
    until: float = 0.0
    future: "Future[None]" = field(init=False)


_use = Use()
_looks: dict[str, _Look] = {}  # the last one at each URL
_without_ranges: set[str] = set()  # stores
_clients: dict[int, Any] = {}  # one that a forked process has inherited must not be closed there, as it would be
_lock = threading.Lock()


def used() -> Use:
    """What this process has had of stores so far."""
    return _use


def count(**more: float) -> None:
    """Adds to what this process has had, by the names of `Use`."""
    global _use
    with _lock:  # of the thread that reads, and of the one that asks
        _use = _use._replace(**{name: getattr(_use, name) + value for name, value in more.items()})


def status_of(url: str) -> Status:
    """Size and version of the object at `url`. Raises `OSError` where there is none, or the store does not answer."""
    look = _looked(url)
    if look.status is None:
        waited(look.future)
    assert look.status is not None
    if isinstance(look.status, OSError):
        raise look.status
    return look.status


def known_status(url: str) -> Status | OSError | None:
    """What was found lately; None where nothing was."""
    return _looks[url].status if url in _looks and time.monotonic() < _looks[url].until else None


def ask_status(url: str) -> "Future[None]":
    """Asks for what `known_status` then knows. Raises `UserError` for a protocol that is not installed."""
    return _looked(url).future


def _looked(url: str) -> _Look:
    """The look at `url` that is not over yet or still holds, or a new one."""
    earlier = _looks.get(url)
    if earlier is not None and (known_status(url) is not None or not earlier.future.done()):
        return earlier
    filesystem, path = _client(url)
    look = _Look(same=earlier.same if earlier else {})

    async def ask() -> None:
        if earlier is not None:  # what a listing said once is out of date too
            filesystem.invalidate_cache(path)
        try:
            info = await _tried(partial(_call, filesystem, "info", path), REQUEST_SECONDS)
            look.status, look.same = _status_in(url, info), _same_in(url, info)
        except OSError as error:
            look.status = error
        before = earlier.status if earlier is not None and earlier.until else None  # what was refused is told of
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
        raise StoreError(errno.EIO, "the store does not say how large it is, so parts of it cannot be asked for")
    if info.get("partial") is False:
        _note_without_ranges(url)
    label = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
    return Status(info["size"], int.from_bytes(hashlib.blake2b(label.encode(), digest_size=8).digest()) >> 1)


def _same_in(url: str, info: dict[str, Any]) -> dict[str, str]:
    """What a request for a range says so that it is answered of this version alone."""
    tag, modified = str(info.get("ETag") or ""), info.get("Last-Modified")
    if is_http(url) and tag.startswith('"'):  # a weak one, W/"...", matches nothing
        return {"If-Match": tag}
    if is_http(url) and isinstance(modified, str):
        return {"If-Unmodified-Since": modified}
    return {"IfMatch": tag} if url.startswith("s3://") and tag else {}


def ask(url: str, ranges: Sequence[Range]) -> "Future[list[bytes]]":
    """Asks for `ranges` of the object at `url`, all at once."""
    filesystem, path = _client(url)

    async def read(begin: int, end: int) -> bytes:
        return await _tried(partial(_range, filesystem, path, url, begin, end), _seconds(end - begin))

    async def read_all() -> list[bytes]:
        return list(await asyncio.gather(*(read(*bounds) for bounds in ranges)))

    return _started(read_all())


def fetch(url: str, begin: int, end: int, take: Callable[[int, bytes], object]) -> None:
    """Gives `take` the bytes from `begin` to `end`, in order, as (where they begin, bytes). Raises as `waited` does."""
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
    """The URLs of all objects below `url`, or that match it where it holds a *. Raises as `waited` does."""
    filesystem, path = _client(url)
    names = waited(_started(_tried(partial(_call, filesystem, "glob" if "*" in path else "find", path), LIST_SECONDS)))
    return [filesystem.unstrip_protocol(name) for name in names]


def waited(future: "Future[T]") -> T:
    """The answer. Raises `StoreError`, or another `OSError` for what is not there or may not be read, and `UserError`
    for a protocol that is not installed."""
    began = time.perf_counter()
    try:
        while True:
            watchdog.progress()  # every wait ends by itself
            try:
                return future.result(timeout=1.0)
            except TimeoutError:
                if future.done():
                    raise
    finally:
        count(waited=time.perf_counter() - began)


def serves_ranges(url: str) -> bool:
    """Whether the store has not shown that it gives whole objects only."""
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
    """What speaks the protocol of `url`, and the path there. Raises `UserError` for one that is not installed."""
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
    """A method of a filesystem, which blocks a thread where it is not one of coroutines."""
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
        refused = "IfMatch" in same and getattr(error, "errno", None) == errno.EINVAL  # as s3fs translates it
        if getattr(error, "status", None) != 412 and not refused:
            raise
        # Whoever looks next asks anew; a late answer to an earlier tag says nothing of what was found since
        if url in _looks and _looks[url].until and _looks[url].same == same:
            _looks[url].until = 0.0
            log.warning(CHANGED, masked(url))
        raise ChangedError(errno.ESTALE, "it has changed in the store since it was looked at") from error
    count(bytes=len(data))
    if len(data) > end - begin:  # all of it
        _note_without_ranges(url)
        data = data[begin:end]
    if len(data) < end - begin:
        raise StoreError(errno.EIO, f"{len(data)} of {end - begin} bytes came")
    return data


async def _range_of_s3(filesystem: Any, path: str, begin: int, end: int, tag: str) -> bytes:
    """A range of an object, as s3fs asks for it, if it still has this tag."""
    bucket, key, _ = filesystem.split_path(path)
    wanted = {"Bucket": bucket, "Key": key, "Range": f"bytes={begin}-{end - 1}", "IfMatch": tag}
    body = (await filesystem._call_s3("get_object", **wanted))["Body"]
    try:
        return await body.read()
    finally:
        body.close()


async def _tried(attempt: Callable[[], Awaitable[T]], seconds: float) -> T:
    """The answer to the first attempt that succeeds, each within `seconds`."""
    cause: BaseException = TimeoutError()
    for number in range(TRIES):
        if number:
            await asyncio.sleep(FIRST_WAIT * 2 ** (number - 1))
        count(requests=1)
        try:
            return await asyncio.wait_for(attempt(), seconds)
        # of any client: what it is called says little, and another try costs little
        except Exception as error:
            cause = error
        if isinstance(cause, FileNotFoundError) and type(cause.__cause__).__module__.startswith("aiohttp"):
            cause = cause.__cause__ or cause  # fsspec calls whatever a HEAD fails with so
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
        return PermissionError(errno.EACCES, f"the store does not let it be read ({detail}): look at its credentials")
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return StoreError(errno.ETIMEDOUT, "the store did not answer in time")
    text = f"status {status}" if status else masked(str(error)) or "no answer"
    return StoreError(errno.EIO, f"the store failed ({type(error).__name__}: {text})")
