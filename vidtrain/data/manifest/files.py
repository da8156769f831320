"""Caches manifests on disk: a source is read once, and all processes and runs map the result. Writes splits as
listings.

    folder/manifests/SOURCE-CONTENTS/
      splits.json         the names of the splits, and the source's warnings
      {train,val,test}/   a .npy file for each column

SOURCE is a hash of the source's settings, CONTENTS one of the files that it reads or, if it does not name these, of the
manifests.
"""

import csv
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from logging.handlers import BufferingHandler
from pathlib import Path
from typing import Any

from vidtrain.data.decoding.metadata import IMAGE_SUFFIXES, image_names
from vidtrain.data.manifest.manifest import Manifest, Record, Source
from vidtrain.data.stores.files import file_status
from vidtrain.data.stores.places import absolute, relative
from vidtrain.errors import UserError
from vidtrain.files.atomic import write_text_atomic
from vidtrain.files.escaping import guarded_cell, is_utf8
from vidtrain.files.folders import check_links

# Long, as a run of weeks may still use a manifest, perhaps on another machine, and removing it would end that run
KEEP_DAYS = 30
UNFINISHED = ".unfinished-"
SPLITS = "splits.json"
SECONDS_A_DAY = 86_400
# Increase this when sources make other manifests from the same files, or when manifests are stored differently
FORMAT = 4

logger = logging.getLogger(__name__)


def open_manifests(source: Source, folder: Path) -> dict[str, Manifest]:
    """The splits of `source`, memory-mapped from files below `folder`, the folder of the dataset.

    A source with `inputs()` is read only if it is new, or if one of these files has changed (by path, size and
    modification time); others are read every time. Processes that start together may all read it, as they store the
    same. Manifests that were not opened for 30 days are removed.

    Raises `UserError` if `folder` cannot be written, and the errors of the source.
    """
    kept = Path(folder).absolute() / "manifests"
    check_links(kept.parent)
    inputs = source.inputs() if hasattr(source, "inputs") else None
    # taken before reading, so that files that change during reading are read again next time
    state = None if inputs is None else _state_of(inputs)
    if state is not None:
        stored = _open_stored(kept / f"{_key_of(source)}-{state}", repeat_warnings=True)
        if stored is not None:
            return stored
    with _listening() as warnings:
        manifests = source.manifests()
    for _ in range(2):  # a second time if a damaged manifest was there
        try:
            kept.mkdir(parents=True, exist_ok=True)
            place = _store(manifests, warnings, kept, _key_of(source), state)
            _remove_unused(kept)
        except OSError as error:
            way = "choose a folder that you may write to with data.index_root"
            raise UserError(f"the manifests cannot be stored in {kept} ({error.strerror}); {way}") from error
        stored = _open_stored(place)
        if stored is not None:
            return stored
    raise UserError(f"{place} was removed while it was written; start again")


def _key_of(source: Source) -> str:
    kind = type(source)
    return _short_hash(f"{FORMAT} {kind.__module__} {source!r}".encode("utf-8", "surrogateescape"))


def _state_of(inputs: Sequence[Path | str]) -> str:
    known = []
    for path in map(str, inputs):
        try:
            known.append((absolute(path), *file_status(path)))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
    return _short_hash(json.dumps(known).encode())


def _short_hash(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=8).hexdigest()


@contextmanager
def _listening() -> Iterator[list[logging.LogRecord]]:
    """A context that collects the warnings that sources log."""
    package, keeper = logging.getLogger("vidtrain.data"), BufferingHandler(sys.maxsize)
    keeper.setLevel(logging.WARNING)
    package.addHandler(keeper)
    try:
        yield keeper.buffer
    finally:
        package.removeHandler(keeper)


def _store(
    manifests: dict[str, Manifest],
    warnings: Sequence[logging.LogRecord],
    kept: Path,
    key: str,
    state: str | None,
) -> Path:
    """Writes all splits, or none; returns their folder."""
    unfinished = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=kept))
    try:
        digests = {split: manifest.save(unfinished / split) for split, manifest in manifests.items()}
        place = kept / f"{key}-{state or _short_hash(json.dumps(digests).encode())}"
        about = {"splits": list(manifests), "warnings": [warning.getMessage() for warning in warnings]}
        (unfinished / SPLITS).write_text(json.dumps(about), encoding="utf-8")
        unfinished.chmod(0o755)  # mkdtemp allows only this user, but others may share the cache
        try:
            unfinished.rename(place)
        except OSError:
            if not place.is_dir():
                raise
            # another process stored the same first
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return place


def _open_stored(place: Path, repeat_warnings: bool = False) -> dict[str, Manifest] | None:
    """The splits in the folder `place`; None if there are none, or if they are damaged, in which case they are
    removed."""
    try:
        about = json.loads((place / SPLITS).read_text(encoding="utf-8"))
        manifests = {split: Manifest.open(place / split) for split in about["splits"]}
        warnings = list(about["warnings"]) if repeat_warnings else []
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, UserError) as error:
        logger.warning("%s is damaged (%s) and will be made again", place, error)
        shutil.rmtree(place, ignore_errors=True)
        return None
    for message in warnings:
        logger.warning("%s", message)
    with suppress(PermissionError):  # it belongs to another user
        os.utime(place)  # records the last use
    return manifests


def _remove_unused(kept: Path) -> None:
    oldest = time.time() - KEEP_DAYS * SECONDS_A_DAY
    for place in kept.iterdir():
        ours = (place / SPLITS).is_file() or place.name.startswith(UNFINISHED)
        with suppress(FileNotFoundError):  # another process has renamed it
            if ours and place.stat().st_mtime < oldest:
                shutil.rmtree(place, ignore_errors=True)


# --- the files that vidtrain.split writes -----------------------------------------------------------------


def csv_text(manifest: Manifest, separator: str, folder: Path | None) -> str:
    """A CSV listing with a row for every record: path (relative to `folder`, if any), labels joined by `separator`,
    group, and start and end, if any.

    Fields are escaped as in `vidtrain.files.escaping.csv_lines`. A path that is not UTF-8 is written as its bytes.
    Raises `UserError` naming a path with a line break, or a label that is not UTF-8.
    """
    cut = manifest.columns.starts is not None or manifest.columns.ends is not None
    rows = [["path", "label", "group", *(("start", "end") if cut else ())]]
    for record in manifest:
        path = absolute(record.path)
        path = relative(path, str(folder)) if folder else path
        label = separator.join(manifest.classes[number] for number in record.labels)
        times = ["" if time is None else repr(time) for time in (record.start, record.end)]
        group = path if record.group == record.path else record.group
        if any(end in name for name in (path, label, group) for end in "\r\n"):
            raise UserError(f"{path!r} cannot be listed: its name has a line break; rename it")
        if not is_utf8(label):
            raise UserError(f"{path!r} cannot be listed: its label {label!r} is not UTF-8; rename the folder")
        rows.append([path, label, group, *(times if cut else ())])
    # readers strip spaces around a field unless it is quoted
    bare = all(field == field.strip() for row in rows for field in row)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_MINIMAL if bare else csv.QUOTE_ALL)
    writer.writerows([guarded_cell(field) for field in row] for row in rows)
    return text.getvalue()


def annotations_text(splits: Mapping[str, Manifest], root: str, folders: bool) -> str:
    """All splits as JSON, one entry per line; paths are relative to `root`, and are folders of images with
    `folders`."""
    classes = next(iter(splits.values())).classes
    parts = [f'"categories": {json.dumps({name: number for number, name in enumerate(classes)})}']
    for name, manifest in splits.items():
        entries = ",\n".join(json.dumps(_annotation(record, root, folders)) for record in manifest)
        parts.append(f'"{name}": [\n{entries}\n]')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _annotation(record: Record, root: str, folder: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "video": relative(record.path, root or "."),
        "target": record.label if len(record.labels) == 1 else list(record.labels),
    }
    if folder:
        count = len(image_names(record.path))
        if not count:
            raise UserError(f"no images in {record.path}; looked for {' '.join(IMAGE_SUFFIXES)}")
        entry["segment"] = [0, count - 1]
    if record.group != record.path:
        entry["group"] = record.group
    cut = {"start": record.start, "end": record.end}
    return entry | {name: time for name, time in cut.items() if time is not None}


def write_split(out: Path, texts: Mapping[str, str], overwrite: bool) -> None:
    """Writes files by name into the folder `out`. Raises `UserError` if it holds another split, unless `overwrite`, or
    if it cannot be written."""
    # a split without test must not be mixed with the test.csv of another split
    encoded = {name: text.encode(errors="surrogateescape") for name, text in texts.items()}
    wanted = {"test.csv": None, **encoded}
    for name in texts:
        if (out / name).is_dir():
            raise UserError(f"{out / name} is a folder: choose another out=")
    present = {name: data for name, data in wanted.items() if (out / name).exists()}
    other = [name for name, data in present.items() if (out / name).read_bytes() != data]
    if other and not overwrite:
        names = ", ".join(sorted(other))
        raise UserError(f"{out} holds another split ({names}): choose another out=, or overwrite=true")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if "test.csv" not in texts:
            (out / "test.csv").unlink(missing_ok=True)
        for name, text in texts.items():
            write_text_atomic(out / name, text)
    except OSError as error:
        raise UserError(f"cannot write into out={out}: {error.strerror}; choose another folder") from error
