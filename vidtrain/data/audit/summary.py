"""Summarizes an audit: all findings as plain values for JSON, CSV and the page."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vidtrain.data.audit.findings import (
    Balance,
    Entry,
    Inspections,
    balance,
    copies,
    groups_across_splits,
    records_by_path,
    shortcuts,
)
from vidtrain.data.audit.inspection import Inspection
from vidtrain.data.stores.places import absolute, common_folder, relative
from vidtrain.files.escaping import csv_text

SAMPLES = 6  # files of a class that are shown
HISTOGRAM_BINS = 24
MOST_VALUES = 8  # frame rates and sizes that are shown; rarer ones are counted as other
BROKEN = ("truncated", "damaged")  # issues with which part of a file is lost
MEANINGS = {
    "max_unreadable_share": "share of files that cannot be read",
    "max_damaged_share": "share of files that are truncated or damaged",
    "max_absent_classes": "classes without a readable video in some split",
    "max_duplicates_across_splits": "sets of alike files in more than one split",
    "max_groups_across_splits": "groups in more than one split",
    "max_shortcut_gain": "accuracy that one attribute of the files gives above the most common class",
}
OF_COPIES = ("kind", "distance", "splits", "across_splits", "classes_differ")
COLUMNS = ("split", "class", "group", "path", "start", "end", "cause", "issues", "copies")
MEASURED = (
    "size", "num_frames", "stated_frames", "width", "height", "rotation", "mirrored", "sample_aspect",
    "duration", "rate", "container", "codec", "pixel_format", "audio", "digest",
)  # fmt: skip

Plain = dict[str, Any]


@dataclass(frozen=True)
class Bounds:
    """Upper bounds for the findings of a dataset; None is no bound. Shares are those of all files."""

    max_unreadable_share: float | None
    max_damaged_share: float | None
    max_absent_classes: int | None
    max_duplicates_across_splits: int | None
    max_groups_across_splits: int | None
    max_shortcut_gain: float | None


def summarize(
    records: Sequence[Entry],
    classes: Sequence[str],
    inspections: Inspections,
    max_distance: float,
    bounds: Bounds,
) -> Plain:
    """All findings, in the order of `classes`; `inspections` must hold every path of `records`."""
    splits = list(dict.fromkeys(entry.split for entry in records))
    by_path = records_by_path(records)
    root = common_folder(by_path)  # paths are shown relative to it
    readable = [entry for entry in records if not inspections[entry.path].cause]

    def describe(path: str) -> Plain:
        return _describe(by_path[path], inspections[path], root)

    copy_sets = copies(records, inspections, max_distance)
    crossing = groups_across_splits(records)
    groups_known = len({entry.group for entry in records}) < len(records)
    leaks = shortcuts(records, inspections)
    unreadable = [path for path in by_path if inspections[path].cause]
    damaged = [path for path in by_path if any(kind in BROKEN for kind, _ in inspections[path].issues)]
    counts = balance(readable, classes, splits)
    absent = [name for name, of_split in counts.items() if not all(of_split.values())]
    values = {
        "max_unreadable_share": len(unreadable) / len(by_path),
        "max_damaged_share": len(damaged) / len(by_path),
        "max_absent_classes": len(absent),
        "max_duplicates_across_splits": sum(same.across_splits for same in copy_sets),
        "max_groups_across_splits": len(crossing) if groups_known else None,
        "max_shortcut_gain": max((shortcut.gain for shortcut in leaks), default=0.0),
    }
    return {
        "root": root,
        "files": len(by_path),
        "records": len(records),
        "seconds": sum(inspections[path].duration for path in by_path),
        "bytes": sum(inspections[path].size for path in by_path),
        "splits": {split: sum(entry.split == split for entry in records) for split in splits},
        "bounds": _bounds(bounds, values),
        "unreadable": [{**describe(path), "cause": inspections[path].cause} for path in unreadable],
        "damaged": len(damaged),
        "issues": [
            {**describe(path), "kind": kind, "words": text}
            for path in by_path
            for kind, text in (*inspections[path].issues, *_empty_cuts(by_path[path], inspections[path]))
        ],
        "classes": _classes(records, counts, inspections),
        "absent_classes": absent,
        "distributions": _distributions(readable, classes, inspections),
        "shortcuts": [{**asdict(shortcut), "gain": shortcut.gain} for shortcut in leaks],
        "copies": [
            {key: getattr(same, key) for key in OF_COPIES} | {"files": list(map(describe, same.paths))}
            for same in copy_sets
        ],
        "groups_known": groups_known,
        "groups_across_splits": crossing,
        "samples": _samples(readable, classes, describe),
    }


def table(records: Sequence[Entry], inspections: Inspections, summary: Plain) -> str:
    """A CSV table with a row for every record, including the number of the set of copies that holds it."""
    copies_by_number = enumerate(summary["copies"], start=1)
    sets = {file["path"]: number for number, same in copies_by_number for file in same["files"]}
    rows: list[tuple[Any, ...]] = [(*COLUMNS, *MEASURED)]
    for entry in records:
        inspection, path = inspections[entry.path], _short(entry.path, summary["root"])
        issues = "; ".join(f"{kind}: {text}" for kind, text in inspection.issues)
        copy = sets[path] if path in sets else ""
        about = (entry.split, "|".join(entry.classes), entry.group, path, entry.start, entry.end)
        measured = [getattr(inspection, name) for name in MEASURED]
        rows.append((*about, inspection.cause, issues, copy, *measured))
    return csv_text(rows)


def _empty_cuts(listed: Sequence[Entry], inspection: Inspection) -> list[tuple[str, str]]:
    """Issues of records that start after the end of their file."""
    starts = [entry.start for entry in listed if entry.start is not None and not inspection.cause]
    after_end = [start for start in starts if start >= inspection.duration]
    return [("cut behind the end", f"from {start:g} s of {inspection.duration:g} s") for start in after_end]


def _short(path: str, root: str) -> str:
    return relative(absolute(path), root) if root else path


def _describe(listed: Sequence[Entry], inspection: Inspection, root: str) -> Plain:
    """The description of a file on the page; `listed` are its records."""
    shape = f"{inspection.width}x{inspection.height}, {inspection.rate:.4g}/s, {inspection.duration:.1f} s"
    return {
        "path": _short(listed[0].path, root),
        "split": ", ".join(dict.fromkeys(entry.split for entry in listed)),
        "class": ", ".join(dict.fromkeys(name for entry in listed for name in entry.classes)),
        "shape": "" if inspection.cause else shape,
        "thumbnail": inspection.thumbnail,
    }


def _bounds(bounds: Bounds, values: Mapping[str, float | None]) -> list[Plain]:
    limits = asdict(bounds)
    return [
        {
            "name": name,
            "meaning": MEANINGS[name],
            "value": value,
            "bound": limits[name],
            "shown": _spell(name, value),
            "shown_bound": _spell(name, limits[name]),
            "kept": limits[name] is None or value is None or value <= limits[name],
        }
        for name, value in values.items()
    ]


def _spell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if name.endswith(("share", "gain")) else str(value)


def _classes(records: Sequence[Entry], counts: Balance, inspections: Inspections) -> list[Plain]:
    by_class: dict[str, list[Inspection]] = {name: [] for name in counts}
    for entry in records:
        for name in entry.classes:
            by_class[name].append(inspections[entry.path])

    def row(name: str, files: Sequence[Inspection]) -> Plain:
        readable = [file for file in files if not file.cause]
        return {
            "name": name,
            "counts": dict(counts[name]),
            "unreadable": len(files) - len(readable),
            "median_seconds": float(np.median([file.duration for file in readable])) if readable else None,
            "rates": _most_common(f"{file.rate:.4g}" for file in readable),
            "sizes": _most_common(f"{file.width}x{file.height}" for file in readable),
        }

    return [row(name, files) for name, files in by_class.items()]


def _most_common(values: Iterable[str]) -> str:
    """The two most common values with their shares, as `25 (80%), 30 (20%)`."""
    counts = Counter(values)
    spelled = [f"{value} ({count / counts.total():.0%})" for value, count in counts.most_common(2)]
    return ", ".join(spelled) + (f", {len(counts) - 2} more" if len(counts) > 2 else "")


def _distributions(readable: list[Entry], classes: Sequence[str], inspections: Inspections) -> list[Plain]:
    """For each attribute, how often its values (or bins) occur in each class: `labels` [n] and `counts` {class:
    [n]}."""
    if not readable:
        return []
    files = [inspections[entry.path] for entry in readable]
    seconds = np.array([file.duration for file in files])
    top = float(np.quantile(seconds, 0.99)) * 1.02 or 1.0
    edges = np.linspace(0, top, HISTOGRAM_BINS + 1)
    bins = np.minimum((seconds / top * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1)
    columns = {
        "duration": (True, [f"{edge:.3g} s" for edge in edges[:-1]], bins.tolist()),
        "frame rate": (False, *_ranked([f"{file.rate:.4g}" for file in files])),
        "frame size": (False, *_ranked([f"{file.width}x{file.height}" for file in files])),
    }
    tables = []
    for attribute, (ordered, labels, places) in columns.items():
        counts = {name: [0] * len(labels) for name in classes}
        for entry, place in zip(readable, places, strict=True):
            for name in entry.classes:
                counts[name][place] += 1
        tables.append({"attribute": attribute, "ordered": ordered, "labels": labels, "counts": counts})
    return tables


def _ranked(values: Sequence[str]) -> tuple[list[str], list[int]]:
    """The most common values, then "other" for the rest; and the index of each value in this list."""
    common = [value for value, _ in Counter(values).most_common(MOST_VALUES)]
    rare = ["other"] if len(set(values)) > len(common) else []
    places = {value: place for place, value in enumerate(common)}
    return common + rare, [places.get(value, len(common)) for value in values]


def _samples(
    readable: Sequence[Entry], classes: Sequence[str], describe: Callable[[str], Plain]
) -> dict[str, list[Plain]]:
    """Some files of every class, evenly spread over its records."""
    paths: dict[str, list[str]] = {name: [] for name in classes}
    for entry in readable:
        for name in entry.classes:
            paths[name].append(entry.path)
    samples = {}
    for name, class_paths in paths.items():
        chosen = np.linspace(0, len(class_paths) - 1, min(SAMPLES, len(class_paths))).round().astype(int)
        samples[name] = [describe(class_paths[number]) for number in chosen]
    return samples
