"""Outlines of MP4 files in a store: sparse files of the same size, with all boxes but not the pictures. The metadata of
a video is read from its outline, so little of the file is fetched."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import BinaryIO

from vidtrain.data.stores import files, objects
from vidtrain.data.stores.objects import Range
from vidtrain.data.stores.places import member_of

SMALLEST = 2 << 20  # bytes; smaller files are fetched whole without a warning, as that takes no longer
AT_ONCE = 64 << 10  # bytes that are read at the beginning of a box
LARGEST_MOOV = 64 << 20  # bytes
MOST_BOXES = 64  # at the top level
# A file in fragments has other boxes too: the metadata of its packets lies between the pictures
KNOWN_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"uuid", b"udta", b"meta", b"pdin")


class Outline:
    """The outline of the file at `path`, which has `length` bytes. It is empty until parts of it are added."""

    def __init__(self, path: str, length: int):
        member = member_of(path)
        self._url, self._begin = (member.archive, member.begin) if member else (path, 0)
        self.length = length
        self.file: BinaryIO = files.nameless(length)
        self.file.truncate(length)

    def add(self, ranges: Sequence[Range]) -> list[bytes]:
        """Fetches `ranges` of the file, writes them to the outline and returns them. Raises `OSError`."""
        wanted = [(self._begin + begin, self._begin + min(end, self.length)) for begin, end in ranges]
        parts = objects.waited(objects.ask(self._url, wanted))
        for (begin, _), data in zip(ranges, parts, strict=True):
            os.pwrite(self.file.fileno(), data, begin)
        return parts

    def add_boxes(self) -> bool:
        """Fetches all but the pictures. Returns whether that is all metadata, as it is in files without fragments.
        Raises `OSError`."""
        at, data, begin = 0, self.add([(0, AT_ONCE)])[0], 0
        kinds: list[bytes] = []
        while at + 8 <= self.length and len(kinds) < MOST_BOXES:
            if not begin <= at <= begin + len(data) - min(16, self.length - at):
                begin, data = at, self.add([(at, at + AT_ONCE)])[0]
            head = data[at - begin : at - begin + 16]
            size, kind = int.from_bytes(head[:4], "big"), head[4:8]
            size = int.from_bytes(head[8:16], "big") if size == 1 else size or self.length - at
            if kind not in KNOWN_BOXES or (kind != b"ftyp") == (not kinds) or size < 8 or size > self.length - at:
                return False
            held = begin + len(data) - at
            if kind != b"mdat" and size > held:
                if size > LARGEST_MOOV:
                    return False
                self.add([(at + held, at + size)])
            kinds.append(kind)
            at += size
        return b"moov" in kinds and at == self.length


def worth_outlining(path: str) -> bool:
    """Whether the file lies in a store, and is so large that an outline takes less time than all of it. Raises
    `OSError`."""
    return files.in_store(path) and files.file_status(path).size >= SMALLEST


@contextmanager
def outlined(path: str) -> Iterator[Outline | None]:
    """A context in which the outline of an MP4 file in a store is read in place of the file. Yields None for other
    files and for files in fragments. Raises `OSError`."""
    status = files.file_status(path)
    outline = Outline(path, status.size)
    if not outline.add_boxes():
        yield None
        return
    with files.standing_in(path, status, outline.file):
        yield outline
