"""Tokens on disk: float16, memory-mapped, written in chunks so that a kill loses at most the chunk being written.

    FOLDER/key.json            digests of weights, protocol and videos, and the shape of the tokens
           tokens.f16          [rows, ...], in NumPy's C order
           read.i64            [rows], the record that a row was read from; -1 if it could not be read
           done.u8             [chunks], 1 for each complete chunk
           faults_rank{r}.jsonl   files that could not be read, and why
           videos.txt             for each row a line with the digest and the cut of its video

A chunk's rows are on the disk before its byte in done.u8 is set. Several ranks, and even other runs, may fill one store
at the same time: each writes whole chunks, and all write the same values.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from vidtrain.errors import UserError
from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.folders import check_links

LARGEST = float(np.finfo(np.float16).max)  # 65504
VIDEOS = "videos.txt"
MAY_DIFFER = ("dataset", "videos", "rows")  # keys that may differ between stores with interchangeable tokens


@dataclass(frozen=True)
class TokenStore:
    """`rows` rows of tokens with `shape` each, in chunks of `chunk` rows, in `folder`; `key` identifies their content.
    Raises `UserError` for a folder with other content, that cannot be written, or whose disk has too little space."""

    folder: Path
    key: Mapping[str, Any]
    rows: int
    shape: tuple[int, ...]
    chunk: int

    @property
    def num_chunks(self) -> int:
        return -(-self.rows // self.chunk)

    @property
    def bytes(self) -> int:
        """The size of the tokens on disk."""
        return self.rows * prod(self.shape) * 2

    @property
    def header(self) -> dict[str, Any]:
        return {**self.key, "rows": self.rows, "shape": list(self.shape), "chunk": self.chunk}

    def prepare(self) -> None:
        """Creates the files if they are absent; otherwise compares them with the key."""
        header = self.folder / "key.json"
        check_links(self.folder)
        try:
            if header.is_file():
                self._check(header)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if self.bytes > free:
                raise UserError(
                    f"the cached features take {self.bytes / 1e9:.2f} GB, and {self.folder} has {free / 1e9:.2f} GB "
                    "free; make room, choose another disk with data.features_root, or fewer cache_views"
                )
            for name, size in self._sizes().items():
                with open(self.folder / name, "ab") as file:
                    file.truncate(size)
            temporary = self.folder / f".key.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(self.header, indent=2) + "\n", encoding="utf-8")
            temporary.replace(header)  # written last: a folder without key.json counts as empty
        except OSError as error:
            raise UserError(
                f"the cached features in {self.folder} cannot be used ({error.strerror}); choose a folder that you may "
                "write to with data.features_root"
            ) from error

    def _sizes(self) -> dict[str, int]:
        return {"tokens.f16": self.bytes, "read.i64": 8 * self.rows, "done.u8": self.num_chunks}

    def _check(self, header: Path) -> None:
        try:
            stored = json.loads(header.read_text(encoding="utf-8"))
        except ValueError:
            stored = {}
        differing = [name for name, value in self.header.items() if name not in stored or stored[name] != value]
        differing += self._wrong_files()
        if differing:
            raise UserError(
                f"the cached features in {self.folder} are damaged or belong to something else (differing: "
                f"{', '.join(differing)}); delete the folder, and they are computed again"
            )

    def _wrong_files(self) -> list[str]:
        return [
            name
            for name, size in self._sizes().items()
            if not (self.folder / name).is_file() or (self.folder / name).stat().st_size != size
        ]

    def pending(self) -> list[int]:
        """The chunks that are not complete yet."""
        return np.flatnonzero(np.fromfile(self.folder / "done.u8", np.uint8) == 0).tolist()

    def take_over(self, videos: Sequence[str]) -> None:
        """Fills pending chunks whose rows are all in neighboring stores with interchangeable tokens. `videos`
        identifies the video of each row, and is stored so that later stores can copy from this one."""
        write_text_atomic(self.folder / VIDEOS, "\n".join(videos))
        pending = self.pending()
        sources = self._known_rows() if pending else {}
        for chunk in pending:
            rows = self.rows_of(chunk)
            places = [sources[videos[row]] for row in rows if videos[row] in sources]
            if len(places) == len(rows):
                tokens = np.stack([store.tokens[row] for store, row in places])
                self.write(chunk, tokens, np.array(rows, np.int64))

    def _known_rows(self) -> "dict[str, tuple[TokenStore, int]]":
        """For each video whose tokens a neighboring store has: the store and its row."""
        needed = {name: value for name, value in self.header.items() if name not in MAY_DIFFER}
        sources: dict[str, tuple[TokenStore, int]] = {}
        for path in sorted(self.folder.parent.glob(f"*/{VIDEOS}")):
            try:
                header = json.loads((path.parent / "key.json").read_text(encoding="utf-8"))
                if path.parent == self.folder or {name: header[name] for name in needed} != needed:
                    continue
                store = TokenStore(path.parent, self.key, header["rows"], self.shape, self.chunk)
                if store._wrong_files():
                    continue
                pending, read = set(store.pending()), store.read
            except (OSError, ValueError, KeyError):  # just being removed or created, or damaged: not used
                continue
            for row, video in enumerate(path.read_text(encoding="utf-8").split("\n")[: store.rows]):
                if read[row] >= 0 and row // self.chunk not in pending:
                    sources[video] = store, row
        return sources

    def rows_of(self, chunk: int) -> range:
        return range(chunk * self.chunk, min(self.rows, (chunk + 1) * self.chunk))

    def write(self, chunk: int, tokens: np.ndarray, read: np.ndarray) -> None:
        """Writes a chunk: `tokens` float16 [rows of the chunk, *shape], `read` int64 [rows of the chunk]."""
        rows = self.rows_of(chunk)
        try:
            self._put("tokens.f16", rows.start * prod(self.shape) * 2, tokens.astype(np.float16, copy=False))
            self._put("read.i64", rows.start * 8, read.astype(np.int64, copy=False))
            self._put("done.u8", chunk, np.ones(1, np.uint8))
        except OSError as error:
            raise UserError(
                f"the cached features in {self.folder} could not be written ({error.strerror}); complete chunks stay, "
                "and the same command continues from them"
            ) from error

    def _put(self, name: str, offset: int, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values).data.cast("B")
        handle = os.open(self.folder / name, os.O_WRONLY)
        try:
            while len(data):
                written = os.pwrite(handle, data, offset)
                data, offset = data[written:], offset + written
            os.fsync(handle)
        finally:
            os.close(handle)

    def add_faults(self, faults: Sequence[tuple[str, str]], rank: int) -> None:
        """Records files that could not be read, and why. To be called before their chunk is written."""
        if faults:
            with open(self.folder / f"faults_rank{rank}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps([path, cause]) + "\n" for path, cause in faults)
                file.flush()
                os.fsync(file.fileno())

    @cached_property
    def causes(self) -> dict[str, str]:
        """Why a file could not be read, by path; a line that a kill left incomplete is skipped."""
        causes = {}
        for path in sorted(self.folder.glob("faults_rank*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("]"):
                    name, cause = json.loads(line)
                    causes[name] = cause
        return causes

    @cached_property
    def read(self) -> np.ndarray:
        return np.fromfile(self.folder / "read.i64", np.int64)

    @cached_property
    def tokens(self) -> np.ndarray:
        """Float16 [rows, *shape], memory-mapped."""
        return np.memmap(self.folder / "tokens.f16", np.float16, "r", shape=(self.rows, *self.shape))
