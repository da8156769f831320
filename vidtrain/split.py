"""Splits videos into train, val and test, and writes the lists; moves no file.

python -m vidtrain.split path=/data/mine out=/data/mine_split
"""

import csv
import io
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vidtrain.app import launch
from vidtrain.config import suggest
from vidtrain.errors import UserError

if TYPE_CHECKING:  # --help should not wait for numpy
    from vidtrain.data.manifest import Manifest, Record
    from vidtrain.tracking.console import Console

SEPARATOR = "|"  # between the labels of a record, where the listing names none
ANNOTATIONS = "annotations.json"
PATHS = ("absolute", "relative")
NAMED = 10


def check(cfg: Any) -> list[tuple[str, str]]:
    from vidtrain.data.splitting import shares_of

    faults = []
    if cfg.source not in READERS:
        faults.append(("source", f"{cfg.source} is unknown{suggest(cfg.source, list(READERS))}"))
    for key in ("path", "out"):
        if cfg[key] is None:
            faults.append((key, f"must be given: {key}=..."))
    if cfg.paths not in PATHS:
        faults.append(("paths", f"{cfg.paths} is unknown{suggest(cfg.paths, PATHS)}"))
    if (cfg.source == "frame_folders") != (cfg.ground_truth is not None):
        faults.append(("ground_truth", "goes with source=frame_folders, and only with it"))
    if cfg.group_column is not None and cfg.source != "listing":
        faults.append(("group_column", f"goes with source=listing; {cfg.source} has no columns"))
    if cfg.classes is not None and cfg.source == "class_folders":
        faults.append(("classes", "class_folders are the classes; take it back"))
    try:
        shares_of(list(cfg.shares))
    except UserError as error:
        faults.append(("shares", str(error)))
    return faults


# --- what there is to split -------------------------------------------------------------------------------


def _class_folders(cfg: Any) -> "Manifest":
    from vidtrain.data.sources.class_folders import ClassFolders

    return ClassFolders(cfg.path, group_pattern=cfg.group_pattern, split=list(cfg.shares)).pool()


def _listing(cfg: Any) -> "Manifest":
    from vidtrain.data.manifest import Manifest
    from vidtrain.data.sources.listings import ListingFormat, read_listing

    layout = ListingFormat(
        **cfg.listing,
        group_column=cfg.group_column,
        group_pattern=cfg.group_pattern,
        classes=_classes(cfg),
    )
    labels = layout.label_reader()
    columns = read_listing(Path(cfg.path), layout, labels)
    classes, order = labels.settle()
    columns = columns if order is None else columns.relabeled(order)
    return Manifest.from_columns(columns, classes, cfg.listing.frame_rate)


def _frame_folders(cfg: Any) -> "Manifest":
    from vidtrain.data.sources.frame_folders import FrameFolders

    # the rate is the reader's matter: none is written
    source = FrameFolders(
        root=cfg.path,
        frame_rate=1.0,
        ground_truth=cfg.ground_truth,
        classes=_classes(cfg),
        group_pattern=cfg.group_pattern,
    )
    return source.pool()


def _classes(cfg: Any) -> str | list[str] | None:
    return cfg.classes if cfg.classes is None or isinstance(cfg.classes, str) else list(cfg.classes)


READERS: dict[str, Callable[[Any], "Manifest"]] = {
    "class_folders": _class_folders,
    "listing": _listing,
    "frame_folders": _frame_folders,
}


# --- the program ------------------------------------------------------------------------------------------


def split(cfg: Any) -> None:
    from vidtrain.data.manifest_checks import check_splits
    from vidtrain.data.splitting import shares_of, split_manifest
    from vidtrain.tracking.atomic import write_text_atomic
    from vidtrain.tracking.console import make_console

    console, out = make_console(is_main=True), Path(cfg.out)
    pool = READERS[cfg.source](cfg)
    check_splits({"all": pool})
    found = split_manifest(pool, shares_of(list(cfg.shares)), cfg.seed)
    separator = (cfg.listing.label_separator or SEPARATOR) if pool.multi_label else ""
    folder = None if cfg.paths == "absolute" else out
    texts = {f"{name}.csv": _csv_text(part, separator, folder) for name, part in found.items()}
    texts[ANNOTATIONS] = _annotations_text(found, _root(cfg), cfg.source == "frame_folders")
    _refuse_to_overwrite(out, texts, cfg.overwrite)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            write_text_atomic(out / name, text)
    except OSError as error:
        raise UserError(f"cannot write into out={out}: {error.strerror}; choose another folder") from error
    _report(console, pool, found)
    console.info(f"wrote {', '.join(texts)} into {out}")


def _root(cfg: Any) -> str:
    """What the paths of annotations.json are relative to."""
    if cfg.source != "listing":
        return cfg.path
    return os.path.dirname(cfg.path) if cfg.listing.root is None else cfg.listing.root


def _csv_text(manifest: "Manifest", separator: str, folder: Path | None) -> str:
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
    csv.writer(text, lineterminator="\n", quoting=quoting).writerows(rows)
    return text.getvalue()


def _check_text(row: tuple[str, ...]) -> None:
    whole = "".join(row)
    if "\n" in whole or "\r" in whole or not _is_utf8(whole):
        raise UserError(f"{row[0]!r} cannot be listed: its name has a line break or is not UTF-8; rename it")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _annotations_text(found: Mapping[str, "Manifest"], root: str, folders: bool) -> str:
    classes = next(iter(found.values())).classes
    parts = [f'"categories": {json.dumps({name: number for number, name in enumerate(classes)})}']
    for name, manifest in found.items():
        entries = (json.dumps(_annotation(record, root, folders)) for record in manifest)
        parts.append(
            f'"{name}": [\n' + ",\n".join(entries) + "\n]"
        )  # an entry a line, to be read and compared
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _annotation(record: "Record", root: str, folder: bool) -> dict[str, Any]:
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
    from vidtrain.data.image_folders import SUFFIXES, image_names

    count = len(image_names(folder))
    if not count:
        raise UserError(f"no images in {folder}; looked for {' '.join(SUFFIXES)}")
    return count


def _refuse_to_overwrite(out: Path, texts: Mapping[str, str], overwrite: bool) -> None:
    other = [
        name for name, text in texts.items() if (out / name).exists() and (out / name).read_text() != text
    ]
    # a split that has no test must not stand beside the test of another
    other += [name for name in ("test.csv",) if name not in texts and (out / name).exists()]
    if other and not overwrite:
        raise UserError(
            f"{out} holds another split ({', '.join(other)}): choose another folder with out=, or overwrite=true"
        )
    for name in other:
        if name not in texts:
            (out / name).unlink()


def _report(console: "Console", pool: "Manifest", found: Mapping[str, "Manifest"]) -> None:
    import numpy as np

    from vidtrain.data.splitting import group_numbers

    counts = {name: _class_counts(part) for name, part in found.items()}
    rows = [
        (
            name,
            len(part),
            f"{len(part) / len(pool):.1%}",
            int(group_numbers(part).max()) + 1,
            int(np.count_nonzero(counts[name])),
            f"{counts[name].min()} to {counts[name].max()}",
        )
        for name, part in found.items()
    ]
    columns = ("split", "videos", "share", "groups", "classes", "videos a class")
    console.table(f"{len(pool)} videos of {len(pool.classes)} classes", columns, rows)
    for name, each in counts.items():
        absent = [pool.classes[label] for label in np.flatnonzero(each == 0)]
        if absent:
            more = f" and {len(absent) - NAMED} more" if len(absent) > NAMED else ""
            console.warn(
                f"{name} lacks {len(absent)} of {len(pool.classes)} classes, which have too few groups: "
                f"{', '.join(absent[:NAMED])}{more}"
            )


def _class_counts(manifest: "Manifest") -> Any:
    import numpy as np

    columns = manifest.columns
    labels = columns.labels if columns.all_labels is None else columns.all_labels
    return np.bincount(labels, minlength=len(manifest.classes))


def main() -> None:
    launch("split", split, check)


if __name__ == "__main__":
    main()
