"""The files that vidtrain.split writes: a CSV file for each split, and annotations.json for all of them."""

import csv
import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidtrain.data.decoding.metadata import IMAGE_SUFFIXES, image_names
from vidtrain.data.manifest.manifest import Manifest, Record
from vidtrain.errors import UserError
from vidtrain.files.escaping import guarded_cell, is_utf8


def csv_text(manifest: Manifest, separator: str, folder: Path | None) -> str:
    """A row for every record: path (relative to `folder` where there is one), labels with `separator` between them,
    group, and the times of cuts where there are any.

    Fields are guarded as in `vidtrain.files.escaping.csv_lines`, and listings are read so. A path that is no UTF-8 is
    written as its bytes. Raises `UserError` naming a path that no line can hold, or a label that no reader takes.
    """
    cut = manifest.columns.starts is not None or manifest.columns.ends is not None
    rows = [("path", "label", "group", *(("start", "end") if cut else ()))]
    for record in manifest:
        path = os.path.abspath(record.path)
        path = os.path.relpath(path, folder) if folder else path
        label = separator.join(manifest.classes[each] for each in record.labels)
        times = ["" if time is None else repr(time) for time in (record.start, record.end)]
        rows.append(
            (path, label, path if record.group == record.path else record.group, *(times if cut else ()))
        )
    for row in rows:
        _check_text(row)
    # spaces around a field would not count without quotes
    bare = all(field == field.strip() for row in rows for field in row)
    text = io.StringIO()
    quoting = csv.QUOTE_MINIMAL if bare else csv.QUOTE_ALL
    guarded = [[guarded_cell(field) for field in row] for row in rows]
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(guarded)
    return text.getvalue()


def _check_text(row: tuple[str, ...]) -> None:
    whole = "".join(row)
    if "\n" in whole or "\r" in whole:
        raise UserError(f"{row[0]!r} cannot be listed: its name has a line break; rename it")
    if not is_utf8(row[1]):
        raise UserError(f"{row[0]!r} cannot be listed: its label {row[1]!r} is not UTF-8; rename the folder")


def annotations_text(found: Mapping[str, Manifest], root: str, folders: bool) -> str:
    """All splits as JSON, an entry a line; paths are relative to `root`, and `folders` says that they hold images."""
    classes = next(iter(found.values())).classes
    parts = [f'"categories": {json.dumps({name: number for number, name in enumerate(classes)})}']
    for name, manifest in found.items():
        entries = (json.dumps(_annotation(record, root, folders)) for record in manifest)
        parts.append(
            f'"{name}": [\n' + ",\n".join(entries) + "\n]"
        )  # an entry a line, to be read and compared
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _annotation(record: Record, root: str, folder: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "video": os.path.relpath(record.path, root or "."),
        "target": record.label if len(record.labels) == 1 else list(record.labels),
    }
    if folder:
        entry["segment"] = [0, _count_images(record.path) - 1]
    if record.group != record.path:
        entry["group"] = record.group
    for name, time in (("start", record.start), ("end", record.end)):
        if time is not None:
            entry[name] = time
    return entry


def _count_images(folder: str) -> int:
    count = len(image_names(folder))
    if not count:
        raise UserError(f"no images in {folder}; looked for {' '.join(IMAGE_SUFFIXES)}")
    return count
