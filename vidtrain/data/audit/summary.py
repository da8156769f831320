"""An audit in numbers: what was found of a dataset and its files, as plain values for JSON and the page."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vidtrain.data.audit.findings import Copies, Entry, balance, copies, groups_across_splits
from vidtrain.data.audit.inspection import Inspection
from vidtrain.data.audit.shortcuts import Shortcut, shortcuts

SAMPLES = 6  # files shown of a class
HISTOGRAM_BINS = 24
MOST_VALUES = 8  # of rates and sizes; rarer ones are taken together
BROKEN = ("truncated", "damaged")  # issues for which part of a file is lost

Plain = dict[str, Any]


@dataclass(frozen=True)
class Bounds:
    """What a dataset may have at most; None is no bound. Shares are of all files."""

    max_unreadable_share: float | None
    max_damaged_share: float | None
    max_absent_classes: int | None
    max_duplicates_across_splits: int | None
    max_groups_across_splits: int | None
    max_shortcut_gain: float | None


MEANINGS = {
    "max_unreadable_share": "share of files that cannot be read",
    "max_damaged_share": "share of files that are truncated or damaged",
    "max_absent_classes": "classes without a readable video in some split",
    "max_duplicates_across_splits": "sets of alike files in more than one split",
    "max_groups_across_splits": "groups in more than one split",
    "max_shortcut_gain": "accuracy that one attribute of the files gives above the most common class",
}


def summarize(
    records: Sequence[Entry],
    classes: Sequence[str],
    inspections: Mapping[str, Inspection],
    max_distance: float,
    bounds: Bounds,
) -> Plain:
    """All findings. `classes` gives their order; `inspections` holds every path of `records`."""
    splits = list(dict.fromkeys(entry.split for entry in records))
    by_path: dict[str, list[Entry]] = {}
    for entry in records:
        by_path.setdefault(entry.path, []).append(entry)
    root = common_folder(list(by_path))
    readable = [entry for entry in records if not inspections[entry.path].cause]

    def shown(path: str) -> Plain:
        return describe(by_path[path], inspections[path], root)

    alike = copies(records, inspections, max_distance)
    crossing = groups_across_splits(records)
    groups_known = len({entry.group for entry in records}) < len(records)
    told = shortcuts(records, inspections)
    unreadable = [path for path in by_path if inspections[path].cause]
    damaged = [path for path in by_path if any(kind in BROKEN for kind, _ in inspections[path].issues)]
    counts = balance(readable, classes, splits)
    absent = [name for name, of_split in counts.items() if not all(of_split.values())]
    found = {
        "max_unreadable_share": len(unreadable) / len(by_path),
        "max_damaged_share": len(damaged) / len(by_path),
        "max_absent_classes": len(absent),
        "max_duplicates_across_splits": sum(each.across_splits for each in alike),
        "max_groups_across_splits": len(crossing) if groups_known else None,
        "max_shortcut_gain": max((each.gain for each in told), default=0.0),
    }
    return {
        "root": root,
        "files": len(by_path),
        "records": len(records),
        "seconds": sum(inspections[path].duration for path in by_path),
        "bytes": sum(inspections[path].size for path in by_path),
        "splits": {split: sum(entry.split == split for entry in records) for split in splits},
        "bounds": _bounds(bounds, found),
        "unreadable": [{**shown(path), "cause": inspections[path].cause} for path in unreadable],
        "damaged": len(damaged),
        "issues": [
            {**shown(path), "kind": kind, "words": words}
            for path in by_path
            for kind, words in (*inspections[path].issues, *_empty_cuts(by_path[path], inspections[path]))
        ],
        "classes": _classes(records, counts, inspections),
        "absent_classes": absent,
        "distributions": _distributions(readable, classes, inspections),
        "shortcuts": [_shortcut(each) for each in told],
        "copies": [_copies(each, shown) for each in alike],
        "groups_known": groups_known,
        "groups_across_splits": crossing,
        "samples": _samples(readable, classes, shown),
    }


def _empty_cuts(listed: Sequence[Entry], inspection: Inspection) -> list[tuple[str, str]]:
    """Issues of records that begin behind the end of their file."""
    if inspection.cause:
        return []
    starts = [
        entry.start for entry in listed if entry.start is not None and entry.start >= inspection.duration
    ]
    return [("cut behind the end", f"from {start:g} s of {inspection.duration:g} s") for start in starts]


def common_folder(paths: Sequence[str]) -> str:
    """The folder below which all paths lie, so that what is shown of them can be short."""
    folders = {os.path.dirname(os.path.abspath(path)) for path in paths}
    return os.path.commonpath(sorted(folders))


def short(path: str, root: str) -> str:
    """A path below `root`."""
    return os.path.relpath(os.path.abspath(path), root)


def describe(listed: Sequence[Entry], inspection: Inspection, root: str) -> Plain:
    """What is shown of a file; `listed` are its records."""
    shape = f"{inspection.width}x{inspection.height}, {inspection.rate:.4g}/s, {inspection.duration:.1f} s"
    return {
        "path": short(listed[0].path, root),
        "split": ", ".join(dict.fromkeys(entry.split for entry in listed)),
        "class": ", ".join(dict.fromkeys(name for entry in listed for name in entry.classes)),
        "shape": "" if inspection.cause else shape,
        "thumbnail": inspection.thumbnail,
    }


def _bounds(bounds: Bounds, found: Mapping[str, float | None]) -> list[Plain]:
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
        for name, value in found.items()
    ]


def _spell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2%}" if name.endswith(("share", "gain")) else str(value)


def _classes(
    records: Sequence[Entry],
    counts: Mapping[str, Mapping[str, int]],
    inspections: Mapping[str, Inspection],
) -> list[Plain]:
    by_class: dict[str, list[Inspection]] = {name: [] for name in counts}
    for entry in records:
        for name in entry.classes:
            by_class[name].append(inspections[entry.path])
    rows = []
    for name, files in by_class.items():
        readable = [each for each in files if not each.cause]
        rows.append(
            {
                "name": name,
                "counts": dict(counts[name]),
                "unreadable": len(files) - len(readable),
                "median_seconds": float(np.median([each.duration for each in readable]))
                if readable
                else None,
                "rates": _most_common(f"{each.rate:.4g}" for each in readable),
                "sizes": _most_common(f"{each.width}x{each.height}" for each in readable),
            }
        )
    return rows


def _most_common(values) -> str:
    """The two most common values with their shares, such as `25 (80%), 30 (20%)`."""
    counts = Counter(values)
    total = counts.total()
    shown = [f"{value} ({count / total:.0%})" for value, count in counts.most_common(2)]
    return ", ".join(shown) + (f", {len(counts) - 2} more" if len(counts) > 2 else "")


def _distributions(
    readable: Sequence[Entry], classes: Sequence[str], inspections: Mapping[str, Inspection]
) -> list[Plain]:
    """How often each value, or bin of values, is in each class: `labels` [n] and `counts` {class: [n]}."""
    if not readable:
        return []
    found = [inspections[entry.path] for entry in readable]
    seconds = np.array([each.duration for each in found])
    top = float(np.quantile(seconds, 0.99)) * 1.02 or 1.0
    edges = np.linspace(0, top, HISTOGRAM_BINS + 1)
    bins = np.minimum((seconds / top * HISTOGRAM_BINS).astype(int), HISTOGRAM_BINS - 1)
    columns = {
        "duration": (True, [f"{edge:.3g} s" for edge in edges[:-1]], bins.tolist()),
        "frame rate": (False, *_ranked([f"{each.rate:.4g}" for each in found])),
        "frame size": (False, *_ranked([f"{each.width}x{each.height}" for each in found])),
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
    """The most common values, and the place among them of each, the last one being for all others."""
    common = [value for value, _ in Counter(values).most_common(MOST_VALUES)]
    rare = ["other"] if len(set(values)) > len(common) else []
    places = {value: place for place, value in enumerate(common)}
    return common + rare, [places[value] if value in places else len(common) for value in values]


def _shortcut(found: Shortcut) -> Plain:
    return {**asdict(found), "gain": found.gain}


def _copies(found: Copies, shown) -> Plain:
    return {
        "kind": found.kind,
        "distance": found.distance,
        "splits": list(found.splits),
        "across_splits": found.across_splits,
        "classes_differ": len(found.classes) > 1,
        "files": [shown(path) for path in found.paths],
    }


def _samples(readable: Sequence[Entry], classes: Sequence[str], shown) -> dict[str, list[Plain]]:
    """Files of every class, evenly spread over its records."""
    paths: dict[str, list[str]] = {name: [] for name in classes}
    for entry in readable:
        for name in entry.classes:
            paths[name].append(entry.path)
    samples = {}
    for name, of_class in paths.items():
        chosen = np.linspace(0, len(of_class) - 1, min(SAMPLES, len(of_class))).round().astype(int)
        samples[name] = [shown(of_class[number]) for number in chosen]
    return samples
