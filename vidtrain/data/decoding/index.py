"""The video index: the metadata of files, which are read once and stored on disk for all workers and runs."""

import json
import logging
import os
import sqlite3
import zlib
from collections import OrderedDict
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from vidtrain.data.decoding.container import larger
from vidtrain.data.decoding.metadata import read_image_folder, read_metadata
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, PacketTable, VideoInfo
from vidtrain.data.stores.archives import read_shard_index
from vidtrain.data.stores.files import file_status, known_status
from vidtrain.data.stores.places import member_of
from vidtrain.errors import UserError
from vidtrain.files.folders import check_links

log = logging.getLogger(__name__)

# The version of entries, which depend on the decoder too; entries of another version are read again from the files
FORMAT = "6 libavcodec " + ".".join(map(str, av.library_versions["libavcodec"]))
# Pixels that are not square are read as if they were square, or are scaled as players do
SAMPLE_ASPECTS = ("ignore", "apply")
MOST_BYTES = 1 << 30  # limit of an unpacked entry: 20 million frames
REMEMBERED_BYTES = 64 << 20  # size of the memory cache of a process
WAIT_SECONDS = 20.0  # time to wait for a process that writes; well below the time limit of a file
SCHEMA = (
    "CREATE TABLE IF NOT EXISTS videos (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, format TEXT,"
    " entry BLOB) WITHOUT ROWID"
)


class VideoIndex:
    """The metadata of video files, by path, size and modification time. Files with pictures of more than `max_pixels`
    cannot be read. `sample_aspect` is one of `SAMPLE_ASPECTS`.

    `path` is an SQLite file, one for each dataset, shared by any number of processes; with None nothing is stored on
    disk. Worker processes open it themselves. Raises `UserError` if the file cannot be created, or is no index. If it
    fails later, a warning is logged, and files are read again.
    """

    def __init__(self, path: Path | None, max_pixels: int = MAX_PIXELS, sample_aspect: str = "ignore"):
        self._path = path
        self._sample_aspect = sample_aspect
        self._max_pixels = max_pixels
        self._database: tuple[int, sqlite3.Connection] | None = None
        self._inherited: list[object] = []
        self._warned = False
        self._remembered: OrderedDict[tuple, VideoInfo] = OrderedDict()
        self._remembered_bytes = 0
        self._shards: set[str] = set()  # tar files whose own index was imported, or that have none
        self._shipped: dict[str, bytes] = {}  # imported entries, if nothing is stored on disk
        if path is not None:
            check_links(path.parent)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._connect().execute(SCHEMA)
                self._connect().commit()
            except (OSError, sqlite3.Error) as error:
                way = "choose another folder with data.index_root, or delete the file if it is damaged"
                raise UserError(f"the video index {path} cannot be used ({error}); {way}") from error

    def info(self, video: str, frame_rate: float | None = None, whole: bool = False) -> VideoInfo:
        """The metadata of the file `video`, which is read if it is new or has changed. Raises `DecodeError`. With a
        `frame_rate` it is a folder of images, which is listed in each process. From a file in a store only the needed
        parts are fetched or, for a reader that fetches the `whole` file anyway, the whole file."""
        try:
            key = (video, *file_status(video))
        except (OSError, ValueError) as error:  # ValueError: a zero byte, which no path has
            raise DecodeError(video, getattr(error, "strerror", None) or str(error)) from error
        known = self._remembered[key, frame_rate] if (key, frame_rate) in self._remembered else None
        if known is not None and (known.digest or known.images or not whole):
            self._remembered.move_to_end((key, frame_rate))
            return known
        info = read_image_folder(video, frame_rate, self._max_pixels) if frame_rate else self._read(key)
        if info is None and self._take_shard_index(key):
            info = self._read(key)
        if info is None or (whole and not info.digest and not info.images):
            info = read_metadata(video, self._max_pixels, whole)
            if self._path is not None:
                self._insert([(os.fsencode(video), *key[1:], FORMAT, pack(info))])
        elif cause := larger(info.width, info.height, self._max_pixels):  # the limit was higher when it was read
            raise DecodeError(video, cause)
        if self._sample_aspect == "apply":
            info = info.with_square_pixels()
            if cause := larger(info.width, info.height, self._max_pixels):
                raise DecodeError(video, f"with square pixels (clip.sample_aspect=apply) {cause}")
        self._remember((key, frame_rate), info)
        return info

    def known(self, video: str) -> VideoInfo | None:
        """The result of `info` if it is known without reading the file or asking a store, else None."""
        status = known_status(video)
        if status is None:
            return None
        if ((video, *status), None) in self._remembered or self._read((video, *status)) is not None:
            return self.info(video)
        return None

    def known_digest(self, video: str, size: int, modified: int) -> bytes | None:
        """The hash of a file's content when it had this size and modification time; None if unknown."""
        info = self._read((video, size, modified))
        return info.digest if info is not None and info.digest else None

    def close(self) -> None:
        if self._database is not None:
            self._database[1].close()
            self._database = None

    def __reduce__(self):
        return VideoIndex, (self._path, self._max_pixels, self._sample_aspect)

    def _connect(self) -> sqlite3.Connection:
        # a connection must not cross a fork, so it belongs to the process that opened it
        if self._database is None or self._database[0] != os.getpid():
            assert self._path is not None
            self._inherited.append(self._database)  # closing it here would touch the locks of its owner
            connection = sqlite3.connect(self._path, timeout=WAIT_SECONDS, check_same_thread=False)
            # all entries can be read again from the files, so writes need not wait for the disk
            connection.execute("PRAGMA synchronous=OFF")
            self._database = os.getpid(), connection
        return self._database[1]

    def _take_shard_index(self, key: tuple[str, int, int]) -> bool:
        """Imports the index beside the tar file that contains the video; returns whether entries were added. Raises
        `UserError` if the index belongs to another tar file."""
        path, _, modified = key
        member = member_of(path)
        if member is None or member.archive in self._shards:
            return False
        self._shards.add(member.archive)
        try:
            shard = read_shard_index(member.archive)
        except OSError as error:
            message = "the index of %s cannot be read (%s): its videos are looked at"
            log.warning(message, member.archive, error.strerror)
            return False
        if shard is not None and shard.format != FORMAT:
            message = "the index of %s is of another version of FFmpeg: its videos are looked at"
            log.warning(message, member.archive)
        if shard is None or shard.format != FORMAT:
            return False
        entries = [(path, entry) for path, entry in shard.paths(member.archive) if entry.entry]
        if self._path is None:
            self._shipped |= {path: entry.entry for path, entry in entries}
        else:
            self._insert([(os.fsencode(p), e.length, modified, FORMAT, e.entry) for p, e in entries])
        return True

    def _read(self, key: tuple[str, int, int]) -> VideoInfo | None:
        path, size, modified = key
        if path in self._shipped:
            return replace(unpack(path, self._shipped[path]), max_pixels=self._max_pixels)
        if self._path is None:
            return None
        query = "SELECT entry FROM videos WHERE path = ? AND size = ? AND modified = ? AND format = ?"
        try:
            row = self._connect().execute(query, (os.fsencode(path), size, modified, FORMAT)).fetchone()
            return None if row is None else replace(unpack(path, row[0]), max_pixels=self._max_pixels)
        except (sqlite3.Error, ValueError) as error:  # locked for long, or damaged
            self._warn(error)
            return None

    def _insert(self, rows: list[tuple[bytes, int, int, str, bytes]]) -> None:
        try:
            with self._connect() as transaction:
                transaction.executemany("INSERT OR REPLACE INTO videos VALUES (?, ?, ?, ?, ?)", rows)
        except sqlite3.Error as error:  # locked for long, damaged, or no room
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning("the video index %s fails (%s): files are read without it", self._path, error)
        self._warned = True

    def _remember(self, key: tuple, info: VideoInfo) -> None:
        self._remembered[key] = info
        self._remembered_bytes += _weight(info)
        while self._remembered_bytes > REMEMBERED_BYTES and len(self._remembered) > 1:
            _, forgotten = self._remembered.popitem(last=False)
            self._remembered_bytes -= _weight(forgotten)


@lru_cache(maxsize=1)
def opened_index(path: Path | None, max_pixels: int) -> VideoIndex:
    """An index; that of the last call is reused, so that its connection stays open for the next file."""
    return VideoIndex(path, max_pixels)


def _weight(video: VideoInfo) -> int:
    """The approximate size in memory in bytes; the arrays have 8, 8, 8, 4, 4, 4, 1 and 1 bytes per frame."""
    return 1000 + 40 * video.num_frames + sum(50 + len(image) for image in video.images)


# Arrays are stored as differences, which compress to one or two bytes per frame
ARRAYS: dict[str, type] = {"positions": np.int64, "sizes": np.int32, "order": np.int32, "starts": np.int32}
ARRAYS |= {"disposable": bool, "second": bool}


def pack(video: VideoInfo) -> bytes:
    """A `VideoInfo` without its path, as bytes."""
    table = video.packets
    arrays = {"ticks": video.ticks}
    head: dict[str, object] = {
        "tick": [video.tick.numerator, video.tick.denominator],
        "shape": [video.width, video.height, video.rotation, video.mirrored],
        "aspect": [video.aspect.numerator, video.aspect.denominator],
        "digest": video.digest.hex(),
    }
    if table is not None:
        names = ("codec", "tag", "width", "height", "color")
        decoder = {name: getattr(table, name) for name in names}
        head["decoder"] = decoder | {"extradata": table.extradata.hex()}
        arrays |= {name: getattr(table, name) for name in ARRAYS}
    head["arrays"] = {name: len(values) for name, values in arrays.items()}
    text = json.dumps(head).encode()
    zero = np.int64(0)
    differences = [np.diff(values.astype(np.int64), prepend=zero).tobytes() for values in arrays.values()]
    return zlib.compress(len(text).to_bytes(4, "little") + text + b"".join(differences), 1)


def unpack(path: str, entry: bytes) -> VideoInfo:
    """The inverse of `pack`. Raises `ValueError` for bytes that `pack` did not make."""
    try:
        video = _unpacked(path, entry)
        _check_entry(video)
        return video
    # raised for rows of another type or with missing parts, deeply nested JSON, and numbers out of range
    except (zlib.error, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise ValueError(f"an entry is damaged: {type(error).__name__}: {error}") from error


def _unpacked(path: str, entry: bytes) -> VideoInfo:
    decompress = zlib.decompressobj()
    data = decompress.decompress(entry, MOST_BYTES)
    if not decompress.eof:
        raise ValueError(f"an entry is truncated, or has more than {MOST_BYTES} bytes")
    length = int.from_bytes(data[:4], "little")
    head = json.loads(data[4 : 4 + length])
    at, arrays = 4 + length, {}
    for name, count in head["arrays"].items():
        arrays[name] = np.frombuffer(data, np.int64, count, at).cumsum()
        at += 8 * count
    table = None
    if "decoder" in head:
        decoder = head["decoder"]
        decoder |= {"extradata": bytes.fromhex(decoder["extradata"]), "color": tuple(decoder["color"])}
        decoder |= {name: arrays[name].astype(kind) for name, kind in ARRAYS.items()}
        table = PacketTable(**decoder)
    width, height, rotation, mirrored = head["shape"]
    digest, aspect, tick = bytes.fromhex(head["digest"]), Fraction(*head["aspect"]), Fraction(*head["tick"])
    video = VideoInfo(path, arrays["ticks"], tick, width, height, rotation, table)
    return replace(video, digest=digest, mirrored=mirrored, aspect=aspect)


def _check_entry(video: VideoInfo) -> None:
    """Raises `ValueError` for an entry with wrong types, values or indices."""
    table, whole = video.packets, (video.width, video.height, video.rotation)
    valid = (
        all(type(number) is int for number in whole)
        and min(video.width, video.height) > 0
        and video.rotation in (0, 90, 180, 270)
        and type(video.mirrored) is bool
        and video.tick > 0
        and video.aspect > 0
        and video.num_frames > 0
        and len(video.digest) in (0, 16)
    )
    if valid and table is not None:
        packets = len(table.positions)
        valid = (
            type(table.codec) is type(table.tag) is str
            and all(type(number) is int and number >= 0 for number in (table.width, table.height, *table.color))
            and len(table.color) == 2
            and len(table.sizes) == len(table.disposable) == len(table.second) == packets
            and len(table.order) == video.num_frames
            and len(table.starts) > 0
            and bool((table.positions >= 0).all() and (table.sizes >= 0).all())
            and all(numbers.min() >= 0 and numbers.max() < packets for numbers in (table.order, table.starts))
        )
    if not valid:
        raise ValueError("an entry has values that no file has")
