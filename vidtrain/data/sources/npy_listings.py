"""Source: NumPy files of video paths."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidtrain.data.manifest.checks import check_splits
from vidtrain.data.manifest.columns import CHUNK, Columns, ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import GroupPattern, complete
from vidtrain.data.sources.labels import LabelReader, class_list
from vidtrain.data.sources.tables import listed_file
from vidtrain.errors import UserError


@dataclass(frozen=True, kw_only=True)
class NpyListing:
    """Arrays of paths (.npy), one for each split, with their labels in a second array, or without any, all 0.

    Arrays are one-dimensional; paths are text, labels are integers (also as floats, such as 2.0) or
    class names. Paths are relative to
    `root`, else to the array's folder. `classes` are names, or a file of them; without, they come from
    train's labels (`LabelReader`). `val_share` and `seed` hold out val where there is none, as in a `Listing`.

    Arrays of Python objects, and what NumPy stores as such, are refused: loading them may run code.
    """

    train: str
    train_labels: str | None = None
    val: str | None = None
    val_labels: str | None = None
    test: str | None = None
    test_labels: str | None = None
    root: str | None = None
    classes: str | Sequence[str] | None = None
    group_pattern: str | None = None
    val_share: float | None = None
    seed: int = 0

    def inputs(self) -> list[Path]:
        files = [path for pair in self._files().values() for path in pair if path is not None]
        return [*files, *([Path(self.classes)] if isinstance(self.classes, str) else [])]

    def manifests(self) -> dict[str, Manifest]:
        known = None if self.classes is None else class_list(self.classes)
        labels, found = LabelReader(None, known, None), {}
        for split, (paths, numbers) in self._files().items():
            columns = self._read(paths, numbers, labels)
            if split == "train":
                classes, order = labels.settle()
                columns = columns if order is None else columns.relabeled(order)
            found[split] = Manifest.from_columns(columns, classes)
        found = complete(found, self.val_share, self.seed)
        check_splits(found)
        return found

    def _files(self) -> dict[str, tuple[Path, Path | None]]:
        named = {
            "train": (self.train, self.train_labels),
            "val": (self.val, self.val_labels),
            "test": (self.test, self.test_labels),
        }
        for split, (paths, numbers) in named.items():
            if paths is None and numbers is not None:
                raise UserError(
                    f"dataset.source.{split}_labels={numbers} is given, but not dataset.source.{split}, the paths"
                )
            if paths is not None and (numbers is None) != (self.train_labels is None):
                given, lacks = ("train", split) if numbers is None else (split, "train")
                raise UserError(
                    f"{given} has labels and {lacks} has none: give dataset.source.{lacks}_labels, too, or take "
                    f"dataset.source.{given}_labels back, and all videos are of class 0"
                )
        return {
            split: (listed_file(split, paths), None if numbers is None else Path(numbers))
            for split, (paths, numbers) in named.items()
            if paths is not None
        }

    def _read(self, path: Path, label_path: Path | None, labels: LabelReader) -> Columns:
        paths = _load(path, "US")
        numbers = np.zeros(len(paths), np.int64) if label_path is None else _numbers(label_path)
        if len(numbers) != len(paths):
            raise UserError(f"{path} holds {len(paths)} paths, {label_path} {len(numbers)} labels")
        if not len(paths):
            raise UserError(f"{path} lists no videos")
        folder = path.parent if self.root is None else Path(self.root)
        pattern = None if self.group_pattern is None else GroupPattern(self.group_pattern)
        builder = ColumnsBuilder()
        for first in range(0, len(paths), CHUNK):
            part = slice(first, first + CHUNK)
            listed = _texts(paths[part])
            if not all(listed):
                raise UserError(f"{path}: entry {first + listed.index('')} is no path but empty")
            codes = labels.read(_texts(numbers[part]), _complain(label_path, first))
            groups = None if pattern is None else pattern.groups(listed)
            builder.extend([os.path.normpath(folder / name) for name in listed], codes, groups)
        return builder.build()


def _numbers(path: Path) -> np.ndarray:
    """Labels; integers that were saved as floats are integers again."""
    found = _load(path, "USiuf")
    if found.dtype.kind != "f":
        return found
    with np.errstate(invalid="ignore"):
        whole = (found == np.floor(found)) & (np.abs(found) < 2.0**31)
    if not whole.all():
        place = int(np.flatnonzero(~whole)[0])
        raise UserError(f"{path}: entry {place}: label {found[place]} is no integer")
    return found.astype(np.int64)


def _complain(path: Path | None, first: int):
    def complain(place: int, why: str) -> None:
        raise UserError(f"{path or 'labels of 0'}: entry {first + place}: {why}")

    return complain


def _texts(values: np.ndarray) -> list[str]:
    if values.dtype.kind == "S":
        return [os.fsdecode(value) for value in values.tolist()]
    return list(map(str, values.tolist()))


def _load(path: Path, kinds: str) -> np.ndarray:
    """A one-dimensional array whose dtype is of one of `kinds`, mapped, not read."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        if "allow_pickle" not in str(error) and "Python objects" not in str(error):
            raise UserError(f"{path} is no array that NumPy can load: {error}") from error
        raise UserError(
            f"{path} holds Python objects, and loading those may run code. Where you trust it, save it again as "
            f"text: np.save({path.name!r}, np.load({path.name!r}, allow_pickle=True).astype(np.str_))"
        ) from error
    if not isinstance(found, np.ndarray) or found.ndim != 1 or found.dtype.kind not in kinds:
        what = (
            f"{found.dtype} of shape {list(found.shape)}"
            if isinstance(found, np.ndarray)
            else "several arrays"
        )
        wanted = "text" if "i" not in kinds else "integers or text"
        raise UserError(f"{path} must hold one row of {wanted}; it holds {what}")
    return found
