"""What the records of a dataset have to do with each other: balance, groups on both sides of a split, copies."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vidtrain.data.audit.duplicates import Signature, clusters, near_duplicates
from vidtrain.data.audit.inspection import Inspection
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One record of a split: a file, or from `start` to `end` (seconds) of one, and the names of its classes."""

    path: str
    split: str
    classes: tuple[str, ...]
    group: str
    start: float | None = None
    end: float | None = None

    def overlaps(self, other: "Entry") -> bool:
        """Whether both show the same moment, if they are of one file."""
        starts = (self.start or 0.0, other.start or 0.0)
        ends = [np.inf if each is None else each for each in (self.end, other.end)]
        return max(starts) < min(ends)


def entries(manifests: Mapping[str, Manifest], group_pattern: str | None = None) -> list[Entry]:
    """Every record of every split. Where `group_pattern` is found in a path, what its parentheses hold, or all of it
    where there are none, is the group; elsewhere it is what the source says, which is warned of.

    Raises `UserError` where it is found in none.
    """
    pattern = re.compile(group_pattern) if group_pattern is not None else None
    found, unmatched = [], []
    for split, manifest in manifests.items():
        for record in manifest:
            match = pattern.search(record.path) if pattern else None
            if pattern and not match:
                unmatched.append(record.path)
            group = ("/".join(match.groups("")) or match[0]) if match else record.group
            names = tuple(manifest.classes[label] for label in record.labels)
            found.append(Entry(record.path, split, names, group, record.start, record.end))
    if unmatched:
        where = f"is found in {len(found) - len(unmatched)} of {len(found)} paths, and not in {unmatched[0]}"
        if len(unmatched) == len(found):
            raise UserError(f"group_pattern={group_pattern} {where}")
        logger.warning("group_pattern=%s %s; there the dataset's own groups count", group_pattern, where)
    return found


# --- groups and balance -----------------------------------------------------------------------------------


def groups_across_splits(records: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Groups that stand in more than one split, with how many records in each."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in records:
        counts[entry.group][entry.split] += 1
    return {group: dict(splits) for group, splits in sorted(counts.items()) if len(splits) > 1}


def balance(
    records: Iterable[Entry], classes: Sequence[str], splits: Sequence[str]
) -> dict[str, dict[str, int]]:
    """How many records of every class are in every split; zeros are written out."""
    counts = Counter((name, entry.split) for entry in records for name in entry.classes)
    return {name: {split: counts[name, split] for split in splits} for name in classes}


# --- copies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """Files that are alike. `kind` is "listed twice" (one file), "exact" (the same bytes) or "near"; `distance` in
    bits is that of the pair least alike of those that link them.
    """

    kind: str
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    distance: float

    @property
    def across_splits(self) -> bool:
        return len(self.splits) > 1


def copies(
    records: Iterable[Entry], inspections: Mapping[str, Inspection], max_distance: float
) -> list[Copies]:
    """Sets of files that are alike: those in several splits first, then exact copies, then the most alike."""
    by_path: dict[str, list[Entry]] = defaultdict(list)
    for entry in records:
        by_path[entry.path].append(entry)
    paths = [path for path in by_path if not inspections[path].cause]
    by_digest: dict[str, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        by_digest[inspections[path].digest].append(number)
    ones = [same[0] for same in by_digest.values()]
    signatures = [Signature.from_text(inspections[paths[number]].signature) for number in ones]
    near = near_duplicates(signatures, max_distance)
    near_links = {(ones[pair.first], ones[pair.second]): pair.distance for pair in near}
    exact_links = [(same[0], other) for same in by_digest.values() for other in same[1:]]

    linked: dict[int, list[float]] = defaultdict(list)  # the distances of each one to later ones
    for (one, _), bits in near_links.items():
        linked[one].append(bits)

    found = []
    for members in clusters(len(paths), [*exact_links, *near_links]):
        distances = [bits for one in members if one in linked for bits in linked[one]]
        kind = "near" if distances else "exact"
        names = tuple(paths[number] for number in members)
        found.append(_copies(kind, names, by_path, max(distances, default=0.0)))
    for path, listed in by_path.items():
        if _overlapping(listed):
            found.append(_copies("listed twice", (path,), by_path, 0.0))
    return sorted(
        found, key=lambda each: (not each.across_splits, each.kind == "near", each.distance, each.paths)
    )


def _overlapping(listed: Sequence[Entry]) -> bool:
    """Whether two records of one file show the same moment: of those in order of their starts, two neighbors do."""
    in_order = sorted(listed, key=lambda entry: entry.start or 0.0)
    return any(one.overlaps(other) for one, other in pairwise(in_order))


def _copies(kind: str, paths: tuple[str, ...], by_path: Mapping[str, list[Entry]], distance: float) -> Copies:
    listed = [entry for path in paths for entry in by_path[path]]
    splits = tuple(dict.fromkeys(entry.split for entry in listed))
    classes = tuple(dict.fromkeys(name for entry in listed for name in entry.classes))
    return Copies(kind, paths, splits, classes, distance)
