"""Tokens on disk: float16, mapped into memory, written chunk by chunk so that a kill costs one chunk at most.

    FOLDER/key.json            what the tokens are of, and their shape
           tokens.f16          [rows, ...], as NumPy lays them out
           read.i64            [rows], the record that a row was read from; -1 where none could be
           done.u8             [chunks], 1 for those that are whole
           faults_rank{r}.jsonl   files that could not be read, and why
           videos.txt             a line a row: the digest and the cut of the video that it is of

A chunk's rows are on the disk before its byte in done.u8 is set. Ranks, and even other runs, may fill one store at
once: each writes whole chunks, and what they write is the same.
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
OWN = ("dataset", "videos", "rows")  # of the key, what stores may differ in that have tokens of the same kind


@dataclass(frozen=True)
class TokenStore:
    """`rows` of tokens of `shape` each, in chunks of `chunk` rows, below `folder`; `key` tells what they are of.

    Raises `UserError` for a folder that holds something else, that cannot be written, or that has no room.
    """

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
        """Of the tokens, on disk."""
        return self.rows * prod(self.shape) * 2

    @property
    def header(self) -> dict[str, Any]:
        return {**self.key, "rows": self.rows, "shape": list(self.shape), "chunk": self.chunk}

    def prepare(self) -> None:
        """Makes the files where they are absent; else compares them with the key."""
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
            temporary.replace(header)  # the last: without it the folder holds nothing
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
        wrong = [name for name, value in self.header.items() if name not in stored or stored[name] != value]
        wrong += self._wrong_files()
        if wrong:
            raise UserError(
                f"the cached features in {self.folder} are damaged or of something else (differing: "
                f"{', '.join(wrong)}); delete the folder, and they are computed anew"
            )

    def _wrong_files(self) -> list[str]:
        return [
            name
            for name, size in self._sizes().items()
            if not (self.folder / name).is_file() or (self.folder / name).stat().st_size != size
        ]

    def pending(self) -> list[int]:
        """The chunks that are not whole yet."""
        return np.flatnonzero(np.fromfile(self.folder / "done.u8", np.uint8) == 0).tolist()

    def take_over(self, videos: Sequence[str]) -> None:
        """Makes pending chunks whole whose rows are all in stores beside this one, of the same kind.

        `videos` says what each row is of, and is kept for the stores to come.
        """
        write_text_atomic(self.folder / VIDEOS, "\n".join(videos))
        pending = self.pending()
        sources = self._known_rows() if pending else {}
        for chunk in pending:
            rows = self.rows_of(chunk)
            known = [sources[videos[row]] for row in rows if videos[row] in sources]
            if len(known) == len(rows):
                tokens = np.stack([store.tokens[row] for store, row in known])
                self.write(chunk, tokens, np.array(rows, np.int64))

    def _known_rows(self) -> "dict[str, tuple[TokenStore, int]]":
        """Where the tokens of a video are whole: a store beside this one, and its row."""
        kind = {name: value for name, value in self.header.items() if name not in OWN}
        sources: dict[str, tuple[TokenStore, int]] = {}
        for path in sorted(self.folder.parent.glob(f"*/{VIDEOS}")):
            try:
                header = json.loads((path.parent / "key.json").read_text(encoding="utf-8"))
                if path.parent == self.folder or {name: header[name] for name in kind} != kind:
                    continue
                store = TokenStore(path.parent, self.key, header["rows"], self.shape, self.chunk)
                if store._wrong_files():
                    continue
                pending, read = set(store.pending()), store.read
            except (OSError, ValueError, KeyError):  # removed or made this moment, or damaged: encoded anew
                continue
            for row, video in enumerate(path.read_text(encoding="utf-8").split("\n")[: store.rows]):
                if read[row] >= 0 and row // self.chunk not in pending:
                    sources[video] = store, row
        return sources

    def rows_of(self, chunk: int) -> range:
        return range(chunk * self.chunk, min(self.rows, (chunk + 1) * self.chunk))

    def write(self, chunk: int, tokens: np.ndarray, read: np.ndarray) -> None:
        """A whole chunk: `tokens` float16 [rows of the chunk, *shape], `read` int64 [rows of the chunk]."""
        rows = self.rows_of(chunk)
        try:
            self._put("tokens.f16", rows.start * prod(self.shape) * 2, tokens.astype(np.float16, copy=False))
            self._put("read.i64", rows.start * 8, read.astype(np.int64, copy=False))
            self._put("done.u8", chunk, np.ones(1, np.uint8))
        except OSError as error:
            raise UserError(
                f"the cached features in {self.folder} could not be written ({error.strerror}); what is there stays, "
                "and the same command goes on from it"
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
        """Records files that could not be read, and why. Call it before their chunk is written."""
        if faults:
            with open(self.folder / f"faults_rank{rank}.jsonl", "a", encoding="utf-8") as file:
                file.writelines(json.dumps([path, cause]) + "\n" for path, cause in faults)
                file.flush()
                os.fsync(file.fileno())

    @cached_property
    def causes(self) -> dict[str, str]:
        """Why a file could not be read, by path; a line that a kill cut short is passed over."""
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
        """Float16 [rows, *shape], mapped into memory."""
        return np.memmap(self.folder / "tokens.f16", np.float16, "r", shape=(self.rows, *self.shape))
