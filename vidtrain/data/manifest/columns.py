"""The columns of a manifest, which store millions of records without an object for each."""

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from typing import overload

import numpy as np

CHUNK = 1 << 16  # strings that are converted at a time
CHECKED_AT_A_TIME = 1 << 20
LARGEST_SMALL = 2**32 - 1
OWN_PATH = -1  # the group code of a record without a group: its path is the group


class Strings(Sequence[str]):
    """Many strings in one array of bytes: string i is `prefix` followed by the bytes [offsets[i], offsets[i + 1]) of
    `blob`, in UTF-8. Invalid bytes in file names become surrogates, as in Python's file system functions."""

    def __init__(self, blob: np.ndarray, offsets: np.ndarray, prefix: str = ""):
        self.blob, self.offsets, self.prefix = blob, offsets, prefix
        self._bytes = blob.data

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(len(self))[index]  # negative ones count from the end
        text = self._bytes[int(self.offsets[place]) : int(self.offsets[place + 1])]
        return self.prefix + str(text, "utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), CHUNK):
            for start, end in pairwise(self.offsets[first : first + CHUNK + 1].tolist()):
                yield self.prefix + str(self._bytes[start:end], "utf-8", "surrogateescape")

    def __reduce__(self):
        return Strings, (self.blob, self.offsets, self.prefix)

    def take(self, indices: np.ndarray) -> "Strings":
        return self._gather(self.offsets[indices], self.offsets[indices + 1], self.prefix)

    def with_common_folder(self, folder: str) -> "Strings":
        """The same strings with the prefix `folder`, with which all of them start."""
        length = len(folder.encode("utf-8", "surrogateescape"))
        return self._gather(self.offsets[:-1] + length, self.offsets[1:], folder)

    def _gather(self, starts: np.ndarray, ends: np.ndarray, prefix: str) -> "Strings":
        gathered = bytearray()
        for first in range(0, len(starts), CHUNK):
            part = slice(first, first + CHUNK)
            pairs = zip(starts[part].tolist(), ends[part].tolist(), strict=True)
            gathered += b"".join([self._bytes[start:end] for start, end in pairs])
        return Strings(np.frombuffer(gathered, dtype=np.uint8), running_sum(ends - starts), prefix)


def running_sum(lengths: np.ndarray) -> np.ndarray:
    """The offsets [n + 1] of items with `lengths` [n]: uint32 if they fit, else int64."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:], dtype=np.int64)
    return offsets.astype(np.uint32) if offsets[-1] <= LARGEST_SMALL else offsets


class StringsBuilder:
    """Builds `Strings` from many strings at a time."""

    def __init__(self) -> None:
        self._blob = bytearray()
        self._lengths = array("I")
        self._least: str | None = None
        self._greatest = ""

    def __len__(self) -> int:
        return len(self._lengths)

    def extend(self, texts: Sequence[str]) -> None:
        if not texts:
            return
        least = min(texts)
        self._least = least if self._least is None else min(self._least, least)
        self._greatest = max(self._greatest, max(texts))
        together = "".join(texts)
        if together.isascii():
            self._blob += together.encode()
            self._lengths.extend(map(len, texts))
        else:
            encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
            self._blob += b"".join(encoded)
            self._lengths.extend(map(len, encoded))

    def build(self) -> Strings:
        """The strings, with their common folder, if any, as the prefix."""
        offsets = running_sum(np.frombuffer(self._lengths, dtype=np.uint32))
        strings = Strings(np.frombuffer(self._blob, dtype=np.uint8), offsets)
        # the common prefix of the first and the last in order is common to all
        common = os.path.commonprefix([self._least or "", self._greatest])
        folder = common[: common.rfind("/") + 1]
        return strings.with_common_folder(folder) if folder else strings


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of n records. A column that no record needs is None.

    `labels` int32 [n] are the first labels; if records may have several, those of record i are `all_labels` int32 at
    [label_offsets[i], label_offsets[i + 1]). `groups` int32 [n] index `group_names`; if it is `OWN_PATH` or None, the
    path is the group. `starts` and `ends` float64 [n] are seconds, NaN for no cut. `sources` uint16 [n] are indices.
    """

    paths: Strings
    labels: np.ndarray
    label_offsets: np.ndarray | None = None
    all_labels: np.ndarray | None = None
    groups: np.ndarray | None = None
    group_names: Strings | None = None
    starts: np.ndarray | None = None
    ends: np.ndarray | None = None
    sources: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def every_label(self) -> np.ndarray:
        """All labels of all records, in order."""
        return self.labels if self.all_labels is None else self.all_labels

    @property
    def label_counts(self) -> np.ndarray:
        """The number of labels of each record, int64 [n]."""
        if self.label_offsets is None:
            return np.ones(len(self), dtype=np.int64)
        return np.diff(self.label_offsets.astype(np.int64))

    def labels_of(self, place: int) -> tuple[int, ...]:
        """All labels of one record."""
        if self.label_offsets is None:
            return (int(self.labels[place]),)
        first, last = self.label_offsets[place : place + 2].tolist()
        return tuple(self.every_label[first:last].tolist())

    def cut_of(self, place: int) -> tuple[float | None, float | None]:
        """Start and end of one record in seconds; None if the file is not cut there."""
        start, end = (
            None if times is None or np.isnan(times[place]) else float(times[place])
            for times in (self.starts, self.ends)
        )
        return start, end

    def take(self, indices: np.ndarray) -> "Columns":
        """The records at `indices` int64 [m], in that order."""
        label_offsets = all_labels = groups = names = None
        if self.label_offsets is not None:
            counts = self.label_counts[indices]
            label_offsets = running_sum(counts)
            shifts = self.label_offsets[indices].astype(np.int64) - label_offsets[:-1]
            all_labels = self.every_label[np.arange(counts.sum()) + np.repeat(shifts, counts)]
        if self.groups is not None and self.group_names is not None:
            used, codes = np.unique(self.groups[indices], return_inverse=True)
            own = int(np.count_nonzero(used == OWN_PATH))  # 0 or 1; it sorts first
            groups, names = (codes - own).astype(np.int32), self.group_names.take(used[own:])
        rest = (self.starts, self.ends, self.sources)
        first = (self.paths.take(indices), self.labels[indices], label_offsets, all_labels, groups, names)
        return Columns(*first, *(None if column is None else column[indices] for column in rest))

    def with_paths(self, paths: Sequence[str], shifts: np.ndarray | None = None) -> "Columns":
        """The same records with other paths, and with starts and ends increased by `shifts` (seconds [n])."""
        strings = StringsBuilder()
        strings.extend(paths)
        later = 0.0 if shifts is None else shifts
        starts, ends = (None if times is None else times + later for times in (self.starts, self.ends))
        return replace(self, paths=strings.build(), starts=starts, ends=ends)

    def relabeled(self, new: np.ndarray | None) -> "Columns":
        """The same records with label l replaced by `new[l]`; None keeps all labels."""
        if new is None:
            return self
        all_labels = None if self.all_labels is None else new[self.all_labels].astype(np.int32)
        return replace(self, labels=new[self.labels].astype(np.int32), all_labels=all_labels)

    def check(self) -> None:
        """Raises `ValueError` if lengths of columns or offsets are inconsistent, as in damaged files."""
        one_a_record = (self.labels, self.groups, self.starts, self.ends, self.sources)
        if any(column is not None and column.shape != (len(self),) for column in one_a_record):
            raise ValueError("its columns are of different lengths")
        spans = [("paths", self.paths.offsets, self.paths.blob, len(self))]
        if self.group_names is not None:
            names = self.group_names
            spans.append(("group_names", names.offsets, names.blob, len(names)))
        if self.label_offsets is not None:
            spans.append(("labels", self.label_offsets, self.every_label, len(self)))
        for name, offsets, values, count in spans:
            if offsets.dtype.kind not in "iu" or offsets.shape != (count + 1,) or values.ndim != 1:
                raise ValueError(f"its {name} are of another kind or length")
            if offsets[0] != 0 or offsets[-1] != len(values):
                raise ValueError(f"its {name} are not whole")
            for first in range(0, count, CHECKED_AT_A_TIME):
                part = offsets[first : first + CHECKED_AT_A_TIME + 1]
                if np.any(part[1:] < part[:-1]):
                    raise ValueError(f"the offsets of its {name} do not increase")


class _Optional:
    """A column that needs no memory until a record has a value in it."""

    def __init__(self, code: str, fill: float):
        self._code, self._fill = code, fill
        self._values: array | None = None

    def extend(self, values: Sequence[float] | None, before: int, count: int) -> None:
        if self._values is None:
            # `value != value` is true for NaN, which is used as a fill
            if values is None or all(value == self._fill or value != value for value in values):
                return
            self._values = array(self._code, [self._fill]) * before
        self._values.extend(repeat(self._fill, count) if values is None else values)

    def build(self, dtype: type) -> np.ndarray | None:
        return None if self._values is None else np.frombuffer(self._values, dtype=dtype)


class ColumnsBuilder:
    """Builds `Columns` from many records at a time, without more memory than the result."""

    def __init__(self, multi_label: bool = False):
        self._paths = StringsBuilder()
        self._labels = array("i")
        self._label_counts = array("I") if multi_label else None
        self._groups = _Optional("i", OWN_PATH)
        self._group_codes: dict[str, int] = {}
        self._starts = _Optional("d", np.nan)
        self._ends = _Optional("d", np.nan)
        self._sources = _Optional("H", 0)

    def __len__(self) -> int:
        return len(self._paths)

    def extend(
        self,
        paths: Sequence[str],
        labels: Sequence[int],
        groups: Sequence[str] | None = None,
        starts: Sequence[float] | None = None,
        ends: Sequence[float] | None = None,
        sources: Sequence[int] | None = None,
        label_counts: Sequence[int] | None = None,
    ) -> None:
        """Adds records. `labels` holds the labels of all records in order; `label_counts` says how many each record
        has, None means one each. Without `groups`, each record is its own group. NaN in `starts` or `ends` means no
        cut.
        """
        before, count, known = len(self), len(paths), self._group_codes
        codes = None
        if groups is not None:
            pairs = zip(groups, paths, strict=True)
            codes = [OWN_PATH if g == path else known.setdefault(g, len(known)) for g, path in pairs]
        self._paths.extend(paths)
        self._labels.extend(labels)
        if self._label_counts is not None:
            self._label_counts.extend(repeat(1, count) if label_counts is None else label_counts)
        self._groups.extend(codes, before, count)
        self._starts.extend(starts, before, count)
        self._ends.extend(ends, before, count)
        self._sources.extend(sources, before, count)

    def build(self) -> Columns:
        labels = np.frombuffer(self._labels, dtype=np.int32)
        label_offsets = all_labels = names = None
        if self._label_counts is not None:
            label_offsets = running_sum(np.frombuffer(self._label_counts, dtype=np.uint32))
            all_labels, labels = labels, labels[label_offsets[:-1]]
        if self._group_codes:
            named = StringsBuilder()
            named.extend(list(self._group_codes))
            names = named.build()
        return Columns(
            paths=self._paths.build(),
            labels=labels,
            label_offsets=label_offsets,
            all_labels=all_labels,
            groups=self._groups.build(np.int32) if names is not None else None,
            group_names=names,
            starts=self._starts.build(np.float64),
            ends=self._ends.build(np.float64),
            sources=self._sources.build(np.uint16),
        )
