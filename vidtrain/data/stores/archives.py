"""Tar files. The members of those from `vidtrain.prepare` are listed in an index beside each, NAME.tar.index. In those
from other programs, members are found by reading little more than their headers.

Other programs' files follow WebDataset: the members of one sample share their name up to its first dot.

An index is a line of JSON, followed by the entries of all members. The line has the format of the entries, the size of
the tar file, a digest of what was packed, and for each member its name, first byte, size, and the size of its entry. An
entry is the metadata that `decoding.index` stores of a video; an unreadable video has none.
"""

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

from vidtrain.data.stores import objects
from vidtrain.data.stores.files import file_status, open_binary, opened_whole
from vidtrain.data.stores.places import Member, is_url
from vidtrain.errors import UserError

INDEX_SUFFIX = ".index"
WINDOW = 16 << 10  # bytes that are read at a header; they include the headers of small members after it
LARGEST_TEXT = 1 << 20  # bytes of a member with a text, such as a label
_NAME = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]*)", re.DOTALL)


class Entry(NamedTuple):
    """A member of a tar file; `entry` is its metadata from `decoding.index.pack`, or empty."""

    name: str
    begin: int
    length: int
    entry: bytes


class ShardIndex(NamedTuple):
    """The index of a tar file. `size` is that of the tar file in bytes; `made_of` is a digest of what was packed."""

    format: str
    size: int
    made_of: str
    entries: Sequence[Entry]

    def to_bytes(self) -> bytes:
        members = [[*entry[:3], len(entry.entry)] for entry in self.entries]
        head = {"format": self.format, "size": self.size, "made_of": self.made_of, "members": members}
        return json.dumps(head).encode() + b"\n" + b"".join(entry.entry for entry in self.entries)

    @classmethod
    def of_bytes(cls, data: bytes) -> "ShardIndex":
        """The inverse of `to_bytes`. Raises `ValueError` for other bytes."""
        line, _, rest = data.partition(b"\n")
        try:
            head = json.loads(line)
            entries, at = [], 0
            for name, begin, length, size in head["members"]:
                entries.append(Entry(str(name), int(begin), int(length), rest[at : at + size]))
                at += size
            if at != len(rest):
                raise ValueError(f"its entries have {len(rest)} bytes and not {at}")
            return cls(str(head["format"]), int(head["size"]), str(head["made_of"]), entries)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it is not the index of a tar file ({error})") from error

    def paths(self, archive: str) -> Iterator[tuple[str, Entry]]:
        """The path of each member of the tar file `archive`, and its entry."""
        for entry in self.entries:
            yield Member(archive, *entry[:3]).path, entry


def read_shard_index(archive: str) -> ShardIndex | None:
    """The index beside the tar file `archive`; None if there is none. Raises `OSError`, and `UserError` if it is
    damaged or belongs to another file."""
    path = archive + INDEX_SUFFIX
    try:
        file_status(path)
    except FileNotFoundError:
        return None
    with open_binary(path) as file:
        data = file.read()
    try:
        index = ShardIndex.of_bytes(data)
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): copy it again, or delete it") from error
    size = file_status(archive).size
    if index.size != size:
        raise UserError(
            f"{archive} has {size} bytes, and {path} belongs to a file of {index.size}: one of them is incomplete or "
            "of another version; copy both again"
        )
    return index


class PackedSample(NamedTuple):
    """The path of a video in a tar file, and the texts of its sample by their extension, such as cls or json."""

    key: str
    video: str
    texts: dict[str, str]


class _Window(io.RawIOBase):
    """A file for `tarfile`, which reads little of it at a time."""

    def __init__(self, read: Callable[[int, int], bytes], length: int):
        self._read, self.length = read, length
        self._at = self._begin = 0
        self._held = b""

    def read(self, size: int = -1) -> bytes:
        begin, end = self._at, min(self.length, self._at + max(0, size))
        if begin < self._begin or end > self._begin + len(self._held):
            self._held = self._read(begin, min(self.length, max(end, begin + WINDOW)))
            self._begin = begin
        self._at = max(begin, end)
        return self._held[begin - self._begin : end - self._begin] if end > begin else b""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.length}[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at


@contextmanager
def _opened(archive: str) -> Iterator[_Window]:
    length = file_status(archive).size
    with nullcontext() if is_url(archive) else opened_whole(archive) as file:

        def read(begin: int, end: int) -> bytes:
            if file is None:
                return objects.waited(objects.ask(archive, [(begin, end)]))[0]
            return bytes(file.read_at(begin, end - begin))

        yield _Window(read, length)


def packed_samples(archive: str, endings: Sequence[str], beside: Sequence[str]) -> list[PackedSample]:
    """The videos of a tar file in its order, each with the texts of its sample. Videos are members with one of
    `endings`, texts those with an extension in `beside`. Raises `UserError` if the file cannot be read, is compressed,
    incomplete or damaged, or if a sample has two videos."""
    try:
        with _opened(archive) as window, tarfile.TarFile(fileobj=window) as file:  # type: ignore[arg-type]
            samples = _samples(archive, window, file, tuple(endings), beside)
            window.seek(file.offset)
            if window.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"there is no header at byte {file.offset}")
    except tarfile.TarError as error:
        raise UserError(f"{archive} is incomplete, compressed or no tar file ({error})") from error
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror or error}") from error
    return samples


def _samples(
    archive: str, window: _Window, file: tarfile.TarFile, endings: tuple[str, ...], beside: Sequence[str]
) -> list[PackedSample]:
    videos: dict[str, Member] = {}
    texts: dict[str, dict[str, str]] = {}
    for member in file:
        name = _NAME.fullmatch(member.name)
        if not member.isreg() or name is None:
            continue
        if member.offset_data + member.size > window.length:
            raise tarfile.ReadError(f"{member.name} ends after the end of the file")
        key, ending = name[1], name[2].lower()
        if f".{ending}".endswith(endings):
            if key in videos:
                raise tarfile.ReadError(f"{key} has two videos, {videos[key].name} and {member.name}")
            videos[key] = Member(archive, member.name, member.offset_data, member.size)
        elif ending in beside and member.size <= LARGEST_TEXT:
            window.seek(member.offset_data)
            texts.setdefault(key, {})[ending] = window.read(member.size).decode(errors="replace")
    return [PackedSample(key, video.path, texts.get(key, {})) for key, video in videos.items()]
