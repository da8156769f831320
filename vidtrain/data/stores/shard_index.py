"""What is known of the videos in a tar file, kept in a file beside it: NAME.tar.index.

A line of JSON (format of the entries, bytes of the tar file, what it was made of, and of each member its name, first
byte, bytes and bytes of its entry), then the entries one after the other. An entry is what `decoding.index` keeps of a
video; one that could not be read has none.
"""

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vidtrain.data.stores.files import file_status, open_binary
from vidtrain.data.stores.places import Member
from vidtrain.errors import UserError

SUFFIX = ".index"


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
    path = archive + SUFFIX
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
