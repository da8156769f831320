"""What no dataset may be: the same video on both sides of a split, or twice with different labels."""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import combinations

import numpy as np

from vidtrain.data.manifest.class_names import NO_UTF8
from vidtrain.data.manifest.manifest import Manifest, Record, check_same_classes
from vidtrain.errors import UserError
from vidtrain.files.escaping import is_utf8, shown

SAMPLED = 20  # files of a split that are looked for before anything starts
NAMED = 8  # how many of the faulty a message names

logger = logging.getLogger(__name__)


def check_splits(manifests: Mapping[str, Manifest]) -> None:
    """Raises `UserError` unless the splits have the same classes and no video in common, nor one twice as two classes.

    A file that splits share is a fault where the parts that they take of it overlap. Warns of files that are listed
    twice, and of groups (and files, in parts) that splits share.
    """
    check_same_classes(manifests)
    hashes = {split: path_hashes(manifest) for split, manifest in manifests.items()}
    for split, manifest in manifests.items():
        _check_repeated(split, manifest, hashes[split])
    for first, second in combinations(manifests, 2):
        _check_shared(first, second, manifests, hashes)
        _warn_of_shared_groups(first, second, manifests)


def check_present(manifests: Mapping[str, Manifest], hint: str, warn: Callable[[str], None]) -> None:
    """Looks for a few files of every split, spread over it: where most are missing, something is wrong with all.

    Raises `UserError` with the count, a path and `hint` where more than half of a split's are missing; warns of fewer.
    """
    said = []
    for split, manifest in manifests.items():
        count = min(len(manifest), SAMPLED)
        tried = [manifest.paths[number * len(manifest) // count] for number in range(count)]
        missing = [path for path in tried if not os.path.exists(path)]
        if missing:
            words = f"{len(missing)} of {count} {split} videos that were looked for are missing"
            words += f", such as {missing[0]}"
            if any(not is_utf8(path) for path in missing):
                words += f" (what lists them {NO_UTF8})"
            elif any(_in_other_form(path) for path in missing):
                words += " (they are there in another of Unicode's forms, NFC or NFD: list names as the disk has them)"
            said.append((2 * len(missing) > count, words))
    if any(most for most, _ in said):
        raise UserError("; ".join(words for _, words in said) + f": {hint}")
    for _, words in said:
        warn(words)


def _in_other_form(path: str) -> bool:
    forms = {unicodedata.normalize(form, path) for form in ("NFC", "NFD")} - {path}
    return any(os.path.exists(each) for each in forms)


def path_hashes(manifest: Manifest) -> np.ndarray:
    """A number for every path, int64 [n], which means something within this process only."""
    return np.fromiter(map(hash, manifest.paths), dtype=np.int64, count=len(manifest))


def _among(manifest: Manifest, chosen: np.ndarray) -> dict[str, list[Record]]:
    """The records at the true places of `chosen`, by path."""
    by_path = defaultdict(list)
    for index in np.flatnonzero(chosen).tolist():
        record = manifest[index]
        by_path[record.path].append(record)
    return by_path


def _check_repeated(split: str, manifest: Manifest, hashes: np.ndarray) -> None:
    ordered = np.sort(hashes)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(repeated):
        return
    contradictory, twice = [], []
    for path, records in _among(manifest, np.isin(hashes, repeated)).items():
        for one, other in combinations(records, 2):
            # parts of a file may well show different things, and listings may share videos
            if (one.start, one.end, one.source) != (other.start, other.end, other.source):
                continue
            if set(one.labels) != set(other.labels):
                names = [manifest.classes[each.label] for each in (one, other)]
                contradictory.append(f"{shown(path)} as {' and '.join(map(shown, names))}")
            else:
                twice.append(path)
    if contradictory:
        raise UserError(
            f"{split} lists videos more than once, with different labels: {_some(contradictory)}; "
            "keep one, or give several labels in one field (dataset.source.label_separator)"
        )
    if twice:
        logger.warning("%s lists %d videos more than once, such as %s", split, len(set(twice)), twice[0])


def _check_shared(
    first: str, second: str, manifests: Mapping[str, Manifest], hashes: Mapping[str, np.ndarray]
) -> None:
    shared = np.intersect1d(hashes[first], hashes[second])
    if not len(shared):
        return
    here, there = (_among(manifests[split], np.isin(hashes[split], shared)) for split in (first, second))
    files = sorted(here.keys() & there.keys())
    same = [path for path in files if any(overlap(a, b) for a in here[path] for b in there[path])]
    if same:
        raise UserError(
            f"{len(same)} videos are in both {first} and {second}: {_some(same)}; remove them from one"
        )
    if files:
        logger.warning(
            "%d files are in both %s and %s, in different parts, such as %s",
            len(files),
            first,
            second,
            files[0],
        )


def overlap(one: Record, other: Record) -> bool:
    """Whether two records of one file have a moment in common."""
    starts = (one.start or 0.0, other.start or 0.0)
    ends = (np.inf if each.end is None else each.end for each in (one, other))
    return max(starts) < min(ends)


def _warn_of_shared_groups(first: str, second: str, manifests: Mapping[str, Manifest]) -> None:
    names = [manifests[split].columns.group_names for split in (first, second)]
    if names[0] is None or names[1] is None:
        return
    shared = sorted(set(names[0]) & set(names[1]))
    if shared:
        counts = [
            int(
                np.isin(
                    manifests[split].columns.groups, [i for i, n in enumerate(known) if n in set(shared)]
                ).sum()
            )
            for split, known in zip((first, second), names, strict=True)
        ]
        logger.warning(
            "%d groups are in both %s (%d videos) and %s (%d videos), such as %s: their videos may be alike",
            len(shared),
            first,
            counts[0],
            second,
            counts[1],
            shared[0],
        )


def _some(names: list[str]) -> str:
    return ", ".join(map(shown, names[:NAMED])) + (
        f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    )
