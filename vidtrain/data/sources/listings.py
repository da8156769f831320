"""Sources: listing files, one line a video; NumPy files of paths; and several sources mixed as one."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vidtrain.data.manifest.columns import CHUNK, Columns, ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest, Source, SourceInfo, columns_of
from vidtrain.data.manifest.splitting import SPLITS, check_splits, complete, groups_by
from vidtrain.data.sources.labels import LabelReader
from vidtrain.data.sources.listing_format import ListingFormat, recognize
from vidtrain.data.sources.tables import Faults, Rows, read_rows
from vidtrain.data.stores.files import file_status
from vidtrain.data.stores.places import check_no_secret, is_url, joined
from vidtrain.errors import UserError
from vidtrain.files.escaping import shown_some

WITHOUT = {"val": "dataset.source.val=null dataset.source.val_share=0.1", "test": "dataset.source.test=null"}


@dataclass(frozen=True, kw_only=True)
class Listing(ListingFormat):
    """Videos named by files: one for each split, of which `test` may be absent.

    Without `val`, `val_share` of train's videos is held out, stratified, without splitting groups, drawn from `seed`; 0
    means no val (for a part of a mixture). `manifests` raises `UserError` that names the file and the faulty lines.
    """

    train: str
    val: str | None = None
    test: str | None = None
    val_share: float | None = None
    seed: int = 0

    def inputs(self) -> list[str]:
        return [*self._files().values(), *_file_of(self.classes)]

    def manifests(self) -> dict[str, Manifest]:
        labels = self.label_reader()
        manifests = {
            split: Manifest(*labels.settle(read_listing(path, self, labels)), self.frame_rate)
            for split, path in self._files().items()
        }
        return complete(manifests, self.val_share, self.seed)

    def _files(self) -> dict[str, str]:
        named = {split: getattr(self, split) for split in SPLITS}
        return {split: _listed_file(split, path) for split, path in named.items() if path is not None}


def _file_of(classes: str | Sequence[str] | None) -> list[str]:
    return [classes] if isinstance(classes, str) else []


def _listed_file(split: str, name: str) -> str:
    """The file of a split. Raises `UserError` with a hint if it does not exist."""
    check_no_secret(name, f"dataset.source.{split}")
    try:
        file_status(name)
    except FileNotFoundError as error:
        hint = f"; without one, set {WITHOUT[split]}" if split in WITHOUT else ""
        if not is_url(name) and not os.path.isdir(os.path.dirname(name) or "."):
            hint = ", and no such folder; dataset.folder names it, and python -m vidtrain.split makes one"
        raise UserError(f"dataset.source.{split}={name}: there is no such file{hint}") from error
    except OSError as error:
        raise UserError(f"dataset.source.{split}={name}: {error.strerror}") from error
    return name


def read_listing(path: str, layout: ListingFormat, labels: LabelReader) -> Columns:
    """The records of one listing; `labels` maps labels to numbers. Raises `UserError` naming the faulty lines."""
    table = recognize(path, layout)
    cut, places = table.cut, table.places
    faults = Faults(path)
    builder = ColumnsBuilder(labels.multi_label)
    folder = os.path.dirname(path) if layout.root is None else layout.root
    for rows in read_rows(path, cut.delimiter, cut.width, faults, table.header, cut.whole):

        def complain(place: int, why: str, lines: Sequence[int] = rows.lines) -> None:
            faults.add(lines[place], why)

        listed = rows.column(places["path"])
        numbers, counts = labels.read(rows.column(places["label"]), complain)
        groups = groups_by(layout.group_pattern, listed)
        if groups is None and "group" in places:
            groups = rows.column(places["group"])
            for place in _empty(groups):
                complain(place, "no group")
        starts, ends = _times(rows, places, complain)
        paths = _resolved(listed, folder, complain)
        if groups is not None:  # a group with the name of its video's path, in any form, is that video alone
            groups = [p if g == name else g for p, g, name in zip(paths, groups, listed, strict=True)]
        builder.extend(paths, numbers, groups, starts, ends, label_counts=counts)
    faults.raise_if_any()
    if not len(builder):
        raise UserError(f"{path} lists no videos")
    return builder.build()


def read_pool(path: str, layout: ListingFormat) -> Manifest:
    """All videos of one listing, not split."""
    labels = layout.label_reader()
    return Manifest(*labels.settle(read_listing(path, layout, labels)), layout.frame_rate)


def _empty(values: Sequence[str]) -> list[int]:
    return [] if all(values) else [place for place, value in enumerate(values) if not value]


def _resolved(listed: Sequence[str], folder: str, complain: Callable[[int, str], None]) -> list[str]:
    """The paths with which files are opened."""
    for place in _empty(listed):
        complain(place, "no path")
    if "\0" in "".join(listed):
        for place, name in enumerate(listed):
            if "\0" in name:
                complain(place, "a path with a zero byte")
    # two forms of one path would count as two videos
    if is_url(folder) or "://" in "".join(listed):
        paths = [joined(folder, name) for name in listed]
        for place, path in enumerate(paths):
            try:
                check_no_secret(path)
            except UserError as error:
                complain(place, str(error))
        return [path if is_url(path) else os.path.normpath(path) for path in paths]
    folder = os.path.join(folder, "")
    paths = [name if name.startswith("/") else folder + name for name in listed]
    odd = ("/.", "//")
    return [os.path.normpath(p) if p.endswith("/") or any(part in p for part in odd) else p for p in paths]


def _times(
    rows: Rows, places: Mapping[str, int], complain: Callable[[int, str], None]
) -> tuple[list[float] | None, list[float] | None]:
    """Starts and ends in seconds, NaN for an empty field; None without such a column."""

    def seconds(name: str) -> list[float] | None:
        if name not in places:
            return None
        times = []
        for place, text in enumerate(rows.column(places[name])):
            try:
                times.append(float(text) if text else math.nan)
            except ValueError:
                complain(place, f"{text!r} is not a time in seconds")
                times.append(math.nan)
        return times

    columns = seconds("start"), seconds("end")
    starts, ends = (np.array(np.nan if column is None else column) for column in columns)
    wrong = (starts < 0) | (ends <= np.nan_to_num(starts)) | np.isinf(starts) | np.isinf(ends)
    for place in np.flatnonzero(wrong).tolist():
        complain(place, "a video must start at 0 s or later, and end later than it starts")
    return columns


# --- NumPy files --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NpyListing:
    """Arrays of paths (.npy), one for each split, with labels in a second array; without it, labels are 0.

    Arrays are one-dimensional: paths are text, labels are integers (also as floats, such as 2.0) or class names. Paths
    are relative to `root`, else to the array's folder. `classes` are names, or a file of them; without, they come from
    train's labels (`LabelReader`). `val_share` and `seed` hold out val if there is none, as in a `Listing`.

    Arrays of Python objects are refused, as loading them may run code.
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

    def inputs(self) -> list[str | Path]:
        files = [path for pair in self._files().values() for path in pair if path is not None]
        return [*files, *_file_of(self.classes)]

    def manifests(self) -> dict[str, Manifest]:
        labels, files = LabelReader(None, self.classes, None), self._files().items()
        manifests = {split: Manifest(*labels.settle(self._read(*pair, labels))) for split, pair in files}
        return complete(manifests, self.val_share, self.seed)

    def _files(self) -> dict[str, tuple[Path, Path | None]]:
        files = {}
        for split in SPLITS:
            paths, labels = getattr(self, split), getattr(self, f"{split}_labels")
            if paths is None:
                if labels is not None:
                    setting = f"dataset.source.{split}"
                    raise UserError(f"{setting}_labels={labels} is given, but not {setting}, the paths")
                continue
            if (labels is None) != (self.train_labels is None):
                has, lacks = ("train", split) if labels is None else (split, "train")
                raise UserError(
                    f"{has} has labels and {lacks} has none: give dataset.source.{lacks}_labels, or take "
                    f"dataset.source.{has}_labels back, and all videos are of class 0"
                )
            files[split] = Path(_listed_file(split, paths)), None if labels is None else Path(labels)
        return files

    def _read(self, path: Path, label_path: Path | None, labels: LabelReader) -> Columns:
        paths = _load(path, "US")
        values = np.zeros(len(paths), np.int64) if label_path is None else _label_array(label_path)
        if len(values) != len(paths):
            raise UserError(f"{path} holds {len(paths)} paths, {label_path} {len(values)} labels")
        if not len(paths):
            raise UserError(f"{path} lists no videos")
        folder = path.parent if self.root is None else Path(self.root)
        builder = ColumnsBuilder()

        def complain(place: int, why: str) -> None:
            raise UserError(f"{label_path or 'labels of 0'}: entry {len(builder) + place}: {why}")

        for first in range(0, len(paths), CHUNK):
            part = slice(first, first + CHUNK)
            listed = _texts(paths[part])
            if not all(listed):
                raise UserError(f"{path}: entry {first + listed.index('')} is empty, not a path")
            numbers, _ = labels.read(_texts(values[part]), complain)
            groups = groups_by(self.group_pattern, listed)
            builder.extend([os.path.normpath(folder / name) for name in listed], numbers, groups)
        return builder.build()


def _label_array(path: Path) -> np.ndarray:
    """Labels; integers that were saved as floats are converted to integers."""
    labels = _load(path, "USiuf")
    if labels.dtype.kind != "f":
        return labels
    with np.errstate(invalid="ignore"):
        whole = (labels == np.floor(labels)) & (np.abs(labels) < 2.0**31)
    if not whole.all():
        place = int(np.flatnonzero(~whole)[0])
        raise UserError(f"{path}: entry {place}: label {labels[place]} is not an integer")
    return labels.astype(np.int64)


def _texts(values: np.ndarray) -> list[str]:
    if values.dtype.kind == "S":
        return [os.fsdecode(value) for value in values.tolist()]
    return list(map(str, values.tolist()))


def _load(path: Path, kinds: str) -> np.ndarray:
    """A one-dimensional array whose dtype is of one of `kinds`, mapped, not read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, EOFError) as error:
        if "allow_pickle" not in str(error) and "Python objects" not in str(error):
            raise UserError(f"{path} is not an array that NumPy can load: {error}") from error
        raise UserError(
            f"{path} holds Python objects, and loading those may run code. Where you trust it, save it again as "
            f"text: np.save({path.name!r}, np.load({path.name!r}, allow_pickle=True).astype(np.str_))"
        ) from error
    is_array = isinstance(array, np.ndarray)
    if not is_array or array.ndim != 1 or array.dtype.kind not in kinds:
        content = f"{array.dtype} of shape {list(array.shape)}" if is_array else "several arrays"
        wanted = "text" if "i" not in kinds else "integers or text"
        raise UserError(f"{path} must hold one row of {wanted}; it holds {content}")
    return array


# --- several sources as one ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One source of a mixture. `weight` is its share of the training samples, relative to the other parts' weights;
    `frames` are its frames per clip (null: the run's)."""

    source: Source
    weight: float = 1.0
    frames: int | None = None

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise UserError(f"weight={self.weight}: must be above 0; to leave a part out, set it to null")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames={self.frames}: must be 1 or more")


@dataclass(frozen=True)
class Mixture:
    """The videos of all `parts`, by name; all must have the same classes in the same order. Parts that are None are
    left out.

    A part may lack val and test (a `Listing` with val_share=0), but one must have val. `Manifest.sources` describes the
    parts. Raises `UserError` if they do not fit together.
    """

    parts: Mapping[str, Part | None]

    def __post_init__(self) -> None:
        if not self._chosen():
            raise UserError("dataset.source.parts holds no part; a mixture needs one or more")

    def _chosen(self) -> dict[str, Part]:
        return {name: part for name, part in self.parts.items() if part is not None}

    def inputs(self) -> list[str | Path] | None:
        """The files of all parts; None if a part does not tell its files."""
        files: list[str | Path] = []
        for part in self._chosen().values():
            own = part.source.inputs() if hasattr(part.source, "inputs") else None
            if own is None:
                return None
            files += own
        return files

    def manifests(self) -> dict[str, Manifest]:
        parts = self._chosen()
        by_part = {name: _manifests_of(name, part) for name, part in parts.items()}
        first, *others = ((name, manifests["train"]) for name, manifests in by_part.items())
        for other in others:
            _check_alike(*first, *other)
        infos = tuple(SourceInfo(name, float(part.weight), part.frames) for name, part in parts.items())
        mixed = {}
        for split in SPLITS:
            records = (
                replace(record, source=number)
                for number, manifests in enumerate(by_part.values())
                if split in manifests
                for record in manifests[split]
            )
            columns = columns_of(records, first[1].multi_label)
            if len(columns):
                mixed[split] = Manifest(columns, first[1].classes, first[1].frame_rate, infos)
        if "val" not in mixed:
            raise UserError("no part of the mixture has a val split to select on; one must")
        check_splits(mixed)
        return mixed


def _manifests_of(name: str, part: Part) -> dict[str, Manifest]:
    try:
        return part.source.manifests()
    except UserError as error:
        # sources name their settings as if they were the only source
        own = str(error).replace("dataset.source.", f"dataset.source.parts.{name}.source.")
        raise UserError(f"part {name} of the mixture: {own}") from error


def _check_alike(name: str, reference: Manifest, other: str, train: Manifest) -> None:
    if train.classes != reference.classes:
        differing = sorted(set(train.classes) ^ set(reference.classes)) or ["only their order"]
        raise UserError(
            f"the classes of {other} ({len(train.classes)}) and {name} ({len(reference.classes)}) differ: "
            f"{shown_some(differing, 8)}; give both the same list with dataset.source.parts.{other}.source.classes"
        )
    if (train.frame_rate, train.multi_label) != (reference.frame_rate, reference.multi_label):
        raise UserError(
            f"{other} and {name} cannot be mixed: one holds folders of images (or of another frame rate), "
            "or videos of several labels, and the other does not"
        )
