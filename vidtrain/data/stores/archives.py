"""Tar files: what others have packed is found by reading little more than headers, and what `vidtrain.prepare` has
packed by the index beside it, NAME.tar.index.

Names in foreign ones are those of WebDataset: what belongs to one sample has a name in common up to its first dot.

An index is a line of JSON (format of the entries, bytes of the tar file, what it was made of, and of each member its
name, first byte, bytes and bytes of its entry), then the entries one after the other. An entry is what `decoding.index`
keeps of a video; an unreadable video has none.
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
WINDOW = 16 << 10  # bytes that are read where a header is: what follows small members is among them
LARGEST_TEXT = 1 << 20  # bytes of a member that says something of a video
_NAME = re.compile(r"((?:.*/)?[^./][^.]*)\.([^/]*)", re.DOTALL)


class Entry(NamedTuple):
    """What is known of a member of a tar file: `entry` as `decoding.index.pack` gives it, or nothing."""

    name: str
    begin: int
    length: int
    entry: bytes


class ShardIndex(NamedTuple):
    """`size` is that of the tar file (bytes); `made_of` changes with what was packed into it."""

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
        """The inverse of `to_bytes`. Raises `ValueError` for what it did not make."""
        line, _, rest = data.partition(b"\n")
        try:
            head = json.loads(line)
            entries, at = [], 0
            for name, begin, length, size in head["members"]:
                entries.append(Entry(str(name), int(begin), int(length), rest[at : at + size]))
                at += size
            if at != len(rest):
                raise ValueError(f"{len(rest)} bytes of entries where there should be {at}")
            return cls(str(head["format"]), int(head["size"]), str(head["made_of"]), entries)
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"it is no index of a tar file ({error})") from error

    def paths(self, archive: str) -> Iterator[tuple[str, Entry]]:
        """The path of each member of the tar file `archive`, and what is known of it."""
        for entry in self.entries:
            yield Member(archive, *entry[:3]).path, entry


def read_shard_index(archive: str) -> ShardIndex | None:
    """The index beside the tar file `archive`; None where there is none. Raises `OSError`, and `UserError` where it is
    damaged or that of another file."""
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
        raise UserError(f"{path} is damaged ({error}): copy it anew, or delete it") from error
    size = file_status(archive).size
    if index.size != size:
        raise UserError(
            f"{archive} has {size} bytes, and {path} is that of one of {index.size}: copy both anew, as one is cut "
            "or of another time"
        )
    return index


class PackedSample(NamedTuple):
    """A video in a tar file, by its path, and the texts beside it by their ending, such as cls or json."""

    key: str
    video: str
    texts: dict[str, str]


class _Window(io.RawIOBase):
    """A file as `tarfile` takes it, of which a little is read at a time."""

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
    """The videos of a tar file, which are its members with one of `endings`, in their order, with the texts of members
    that end on one of `beside`. Raises `UserError` where it cannot be read, is compressed, cut or damaged, or a sample
    has two videos."""
    try:
        with _opened(archive) as window, tarfile.TarFile(fileobj=window) as file:  # type: ignore[arg-type]
            samples = _samples(archive, window, file, tuple(endings), beside)
            window.seek(file.offset)
            if window.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"there is no header at byte {file.offset}")
    except tarfile.TarError as error:
        raise UserError(f"{archive} is cut, compressed or no tar file ({error})") from error
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
            raise tarfile.ReadError("it is cut")
        key, ending = name[1], name[2].lower()
        if f".{ending}".endswith(endings):
            if key in videos:
                raise tarfile.ReadError(f"{key} has two videos, {videos[key].name} and {member.name}")
            videos[key] = Member(archive, member.name, member.offset_data, member.size)
        elif ending in beside and member.size <= LARGEST_TEXT:
            window.seek(member.offset_data)
            texts.setdefault(key, {})[ending] = window.read(member.size).decode(errors="replace")
    return [PackedSample(key, video.path, texts.get(key, {})) for key, video in videos.items()]
