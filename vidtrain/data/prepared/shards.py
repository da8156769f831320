"""Packs a dataset into tar files of about the same size, for parallel file systems and object stores.

    folder/
      train-000000.tar        the videos as they are, in the order of the split: 000000123/cat.mp4, and cat.json
      train-000000.tar.index  the metadata of the videos (stores/archives.py)
      train.csv               path,label,group of each record, where a path is that of a member: a listing
      shards.json             the classes, the splits, and bytes and videos of every tar file; written last

Names are those of WebDataset: what belongs to one video has a name in common up to its first dot.
"""

import hashlib
import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.index import FORMAT, VideoIndex, opened_index, pack
from vidtrain.data.decoding.video import DecodeError
from vidtrain.data.loading.workers import TaskResult
from vidtrain.data.manifest.files import csv_text
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.data.prepared.copy import Console
from vidtrain.data.stores.archives import INDEX_SUFFIX, Entry, ShardIndex
from vidtrain.data.stores.files import ask_statuses, file_status, opened_whole
from vidtrain.data.stores.places import Member, common_folder, name_of, relative
from vidtrain.errors import UserError
from vidtrain.files.atomic import replacing_path, write_json_atomic, write_text_atomic

SHARDS_FORMAT = 1
HEAD = "shards.json"
SEPARATOR = "|"  # separates the labels of a record
BLOCK = 1 << 20  # bytes
# Characters that names in a tar file must not contain, as they are special in shells or listings
ODD = re.compile(r"[\x00-\x1f\x7f\\/:@]")


@dataclass(frozen=True)
class Video:
    """A file to pack: its size in bytes, 0 if it cannot be read, and its side files."""

    source: str
    member: str
    size: int
    version: int
    about: dict[str, Any]


@dataclass(frozen=True)
class Shard:
    """A tar file to be written."""

    name: str
    videos: Sequence[Video]

    @property
    def made_of(self) -> str:
        rows = [[video.source, video.member, video.size, video.version, video.about] for video in self.videos]
        return hashlib.blake2b(json.dumps([SHARDS_FORMAT, rows]).encode(), digest_size=16).hexdigest()


def planned(splits: Mapping[str, Manifest], size: int) -> list[Shard]:
    """Distributes files over tar files of about `size` bytes each: every file once, in the order of the splits. Raises
    `UserError` for folders of images."""
    if any(manifest.frame_rate is not None for manifest in splits.values()):
        raise UserError("folders of images are not packed; make videos of them first, with vidtrain.prepare")
    folder = common_folder(path for manifest in splits.values() for path in manifest.paths)
    shards: list[Shard] = []
    packed: set[str] = set()
    for split, manifest in splits.items():
        ask_statuses(manifest.paths)
        waiting: list[Video] = []
        number = total = 0
        for record in manifest:
            if record.path in packed:
                continue
            waiting.append(_video(record, manifest, len(packed), folder))
            packed.add(record.path)
            total += waiting[-1].size
            if total >= size:
                shards.append(Shard(f"{split}-{number:06}.tar", waiting))
                waiting, number, total = [], number + 1, 0
        if waiting:
            shards.append(Shard(f"{split}-{number:06}.tar", waiting))
    return shards


def _video(record: Record, manifest: Manifest, number: int, folder: str) -> Video:
    try:
        size, version = file_status(record.path)
    except OSError:
        size, version = 0, 0
    stem, suffix = os.path.splitext(ODD.sub("_", name_of(record.path)))
    about = {
        "path": relative(record.path, folder) if folder else record.path,
        "labels": [manifest.classes[label] for label in record.labels],
    }
    return Video(record.path, f"{number:09}/{stem.replace('.', '_')}{suffix.lower()}", size, version, about)


def look(path: str, index_file: Path, max_pixels: int) -> str:
    """Adds a video to the index; returns why it cannot be read, or None. For worker processes."""
    try:
        opened_index(index_file, max_pixels).info(path, whole=True)
    except DecodeError as error:
        return error.cause
    return ""


def write_shard(folder: Path, shard: Shard, index: VideoIndex) -> ShardIndex:
    """Writes a tar file and its index atomically, unless the existing ones have the same contents. Raises `UserError`
    if they cannot be written, or a video changes during packing."""
    path = folder / shard.name
    beside = path.with_name(shard.name + INDEX_SUFFIX)
    if (known := _known(path, beside, shard)) is not None:
        return known
    try:
        beside.unlink(missing_ok=True)
        with replacing_path(path) as temporary, tarfile.TarFile(temporary, "w", copybufsize=BLOCK) as archive:
            entries = [_add(archive, video, index) for video in shard.videos]
        result = ShardIndex(FORMAT, path.stat().st_size, shard.made_of, entries)
        with replacing_path(beside) as temporary:
            temporary.write_bytes(result.to_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another out=") from error
    return result


def _known(path: Path, beside: Path, shard: Shard) -> ShardIndex | None:
    try:
        known = ShardIndex.of_bytes(beside.read_bytes())
        same = (known.size, known.made_of, known.format) == (path.stat().st_size, shard.made_of, FORMAT)
        return known if same else None
    except (OSError, ValueError):
        return None


def _add(archive: tarfile.TarFile, video: Video, index: VideoIndex) -> Entry:
    """Adds a video and its side files; a video that cannot be opened is added as an empty file."""
    header = tarfile.TarInfo(video.member)
    header.mode = 0o644
    header.size = video.size
    if video.size:
        with opened_whole(video.source) as file:
            if file.length != video.size:
                raise UserError(f"{video.source} has changed during packing; start again")
            archive.addfile(header, _Bytes(file))  # type: ignore[arg-type]  # it only reads
    else:
        archive.addfile(header)
    begin = archive.offset - -(-video.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    info = index.known(video.source) if video.size else None
    text = json.dumps(video.about).encode()
    beside = tarfile.TarInfo(os.path.splitext(video.member)[0] + ".json")
    beside.mode, beside.size = 0o644, len(text)
    archive.addfile(beside, io.BytesIO(text))
    return Entry(video.member, begin, video.size, pack(info) if info is not None else b"")


class _Bytes:
    """A file that is read from its start, for tarfile."""

    def __init__(self, file: Any):
        self._file = file
        self._at = 0

    def read(self, size: int) -> bytes:
        watchdog.progress()
        data = bytes(self._file.read_at(self._at, size))
        self._at += len(data)
        return data


def pack_dataset(
    splits: Mapping[str, Manifest],
    folder: Path,
    size: int,
    index_file: Path,
    max_pixels: int,
    look_at: Callable[[Callable[[str], str], Sequence[str]], Iterator[TaskResult[str, str]]],
    console: Console,
) -> tuple[list[Shard], list[tuple[str, str]]]:
    """Packs all splits into `folder`; existing tar files are kept. Returns the tar files, and the videos that cannot be
    read, as (path, cause), which are packed unchanged.

    `look_at` calls a function on every file, in processes that may crash. Raises `UserError` if a file changes
    during packing, or a file cannot be written.
    """
    shards = planned(splits, size)
    sources = [video.source for shard in shards for video in shard.videos]
    unreadable = []
    with console.phase("looking at videos", len(sources)):
        results = look_at(partial(look, index_file=index_file, max_pixels=max_pixels), sources)
        for done, result in enumerate(results, start=1):
            if cause := result.failure or result.value:
                unreadable.append((result.item, cause))
            console.advance(done, {"unreadable": len(unreadable)})
    index, packed = VideoIndex(index_file, max_pixels), []
    with console.phase("packing", len(shards)):
        for done, shard in enumerate(shards, start=1):
            packed.append((shard, write_shard(folder, shard, index)))
            console.advance(done, {"MB": round(sum(written.size for _, written in packed) / 1e6)})
    write_listings(folder, splits, packed)
    return shards, unreadable


def write_listings(folder: Path, splits: Mapping[str, Manifest], shards: Iterable[tuple[Shard, ShardIndex]]) -> None:
    """Writes the listings of all splits, and shards.json last."""
    places: dict[str, str] = {}
    rows = []
    for shard, index in shards:
        rows.append({"name": shard.name, "bytes": index.size, "videos": len(index.entries)})
        for video, entry in zip(shard.videos, index.entries, strict=True):
            places[video.source] = Member(str(folder / shard.name), *entry[:3]).path
    for split, manifest in splits.items():
        moved = manifest.with_paths([places[path] for path in manifest.paths])
        write_text_atomic(folder / f"{split}.csv", csv_text(moved, SEPARATOR, folder))
    first = next(iter(splits.values()))
    head = {
        "format": SHARDS_FORMAT,
        "classes": list(first.classes),
        "label_separator": SEPARATOR if first.multi_label else None,
        "splits": {split: len(manifest) for split, manifest in splits.items()},
        "shards": rows,
    }
    write_json_atomic(folder / HEAD, head)
