"""Finds relations between the records of a dataset: groups in several splits, copies, and shortcuts, which are file
attributes that predict the class."""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vidtrain.data.audit.duplicates import Signature, clusters, near_duplicates
from vidtrain.data.audit.inspection import Inspection
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.data.manifest.splitting import group_in, overlap
from vidtrain.errors import UserError

HALVINGS = 10  # number of random halvings over which a shortcut's accuracy is averaged
BINS = 10  # a quantity is divided into this many bins, with equal shares of the videos
# A shortcut is called out if its accuracy exceeds the majority class by this much, and by this many standard errors
SHORTCUT_GAIN, NOISE = 0.1, 3.0
# A value gives a class away if it has at least this share of the class, and makes the class this much more likely
MOST_OF_CLASS, LIFT = 0.5, 2.0

Inspections = Mapping[str, Inspection]
Balance = dict[str, dict[str, int]]  # records by class and split
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """A record of a split: a file, or its part from `start` to `end` (seconds), and the names of its classes."""

    path: str
    split: str
    classes: tuple[str, ...]
    group: str
    start: float | None = None
    end: float | None = None


def entries(manifests: Mapping[str, Manifest], group_pattern: str | None = None) -> list[Entry]:
    """All records of all splits. `group_pattern` (`group_in`) reads a record's group from its path; if it does not
    match, the source's group is used, with a warning. Raises `UserError` if it matches no path."""
    records, unmatched = [], []
    for split, manifest in manifests.items():
        for record in manifest:
            group = group_in(group_pattern, record.path) if group_pattern else None
            if group is None:
                unmatched.append(record.path)
                group = record.group
            names = tuple(manifest.classes[label] for label in record.labels)
            records.append(Entry(record.path, split, names, group, record.start, record.end))
    if group_pattern and unmatched:
        matched = len(records) - len(unmatched)
        where = f"matches {matched} of {len(records)} paths, and not {unmatched[0]}"
        if not matched:
            raise UserError(f"group_pattern={group_pattern} {where}")
        logger.warning("group_pattern=%s %s; for other paths the dataset's own groups are used", group_pattern, where)
    return records


def records_by_path(records: Iterable[Entry]) -> dict[str, list[Entry]]:
    by_path: dict[str, list[Entry]] = defaultdict(list)
    for entry in records:
        by_path[entry.path].append(entry)
    return by_path


def groups_across_splits(records: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Groups in more than one split, with the number of records in each."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in records:
        counts[entry.group][entry.split] += 1
    return {group: dict(splits) for group, splits in sorted(counts.items()) if len(splits) > 1}


def balance(records: Iterable[Entry], classes: Sequence[str], splits: Sequence[str]) -> Balance:
    """The number of records of every class in every split, including zeros."""
    counts = Counter((name, entry.split) for entry in records for name in entry.classes)
    return {name: {split: counts[name, split] for split in splits} for name in classes}


# --- copies -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Copies:
    """A set of equal or similar files. `kind` is "listed twice" (one file), "exact" (the same bytes) or "near";
    `distance` (bits) is the largest among the pairs that link them."""

    kind: str
    paths: tuple[str, ...]
    splits: tuple[str, ...]
    classes: tuple[str, ...]
    distance: float

    @property
    def across_splits(self) -> bool:
        return len(self.splits) > 1

    @property
    def classes_differ(self) -> bool:
        return len(self.classes) > 1


def copies(records: Iterable[Entry], inspections: Inspections, max_distance: float) -> list[Copies]:
    """Sets of equal or similar files: those in several splits first, then exact copies, then by distance."""
    by_path = records_by_path(records)
    paths = [path for path in by_path if not inspections[path].cause]
    by_digest: dict[str, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        by_digest[inspections[path].digest].append(number)
    distinct = [same[0] for same in by_digest.values()]
    signatures = [Signature.from_text(inspections[paths[number]].signature) for number in distinct]
    exact_links = [(same[0], other) for same in by_digest.values() for other in same[1:]]
    near_links, distances = [], defaultdict(list)  # distances of each file to later ones
    for pair in near_duplicates(signatures, max_distance):
        near_links.append((distinct[pair.first], distinct[pair.second]))
        distances[distinct[pair.first]].append(pair.distance)
    sets = []
    for members in clusters(len(paths), [*exact_links, *near_links]):
        bits_apart = [bits for number in members for bits in distances[number]]
        names = tuple(paths[number] for number in members)
        sets.append(_copies("near" if bits_apart else "exact", names, by_path, max(bits_apart, default=0.0)))
    for path, listed in by_path.items():
        in_order = sorted(listed, key=lambda entry: entry.start or 0.0)
        if any(overlap(one, other) for one, other in pairwise(in_order)):
            sets.append(_copies("listed twice", (path,), by_path, 0.0))
    return sorted(sets, key=lambda found: (not found.across_splits, found.kind == "near", found.distance, found.paths))


def _copies(kind: str, paths: tuple[str, ...], by_path: Mapping[str, list[Entry]], distance: float) -> Copies:
    listed = [entry for path in paths for entry in by_path[path]]
    splits = tuple(dict.fromkeys(entry.split for entry in listed))
    classes = tuple(dict.fromkeys(name for entry in listed for name in entry.classes))
    return Copies(kind, paths, splits, classes, distance)


# --- shortcuts --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Giveaway:
    """A value that predicts a class: a share `of_class` of the class's videos have it, and a share `of_value` of the
    videos with this value are of the class, which is `lift` times the class's share of all videos."""

    name: str
    value: str
    of_class: float
    of_value: float
    lift: float


@dataclass(frozen=True)
class Shortcut:
    """How well a single attribute of the files predicts the class.

    `accuracy` is that of answering the most common class of a value, learned from one half of the videos and tested on
    the other, averaged over halvings that keep groups together. (Leaving out one video at a time would give 0 for
    balanced classes.) `fitted` is learned and tested on all videos; `baseline` is the share of the most common class.
    """

    attribute: str
    values: int
    accuracy: float
    fitted: float
    baseline: float
    called_out: bool
    giveaways: tuple[Giveaway, ...]

    @property
    def gain(self) -> float:
        return self.accuracy - self.baseline


def attributes(inspections: Sequence[Inspection]) -> dict[str, list[str]]:
    """The value of every file for each attribute; quantities are divided into bins."""
    return {
        "frame rate": [f"{file.rate:.2f}/s" for file in inspections],
        "frame size": [f"{file.width}x{file.height}" for file in inspections],
        "duration": _binned([file.duration for file in inspections], 1.0, "s"),
        "file size": _binned([file.size for file in inspections], 1e3, "kB"),
        "bit rate": _binned([8 * file.size / (file.duration or 1.0) for file in inspections], 1e3, "kb/s"),
        "codec": [file.codec for file in inspections],
        "pixel format": [file.pixel_format for file in inspections],
        "container": [file.container for file in inspections],
        "audio": ["with audio" if file.audio else "no audio" for file in inspections],
        "rotation": ["mirrored, " * file.mirrored + f"rotated by {file.rotation}" for file in inspections],
    }


def _binned(values: Sequence[float], unit: float, name: str) -> list[str]:
    scaled = np.array(values) / unit
    edges = np.unique(np.quantile(scaled, np.linspace(0, 1, BINS + 1)))
    bins = np.clip(np.searchsorted(edges, scaled, side="right") - 1, 0, max(0, len(edges) - 2))
    return [f"{edges[low]:.4g} to {edges[min(low + 1, len(edges) - 1)]:.4g} {name}" for low in bins]


def shortcuts(records: Sequence[Entry], inspections: Inspections, seed: int = 0) -> list[Shortcut]:
    """How well each attribute of readable files predicts the class, best first. Empty if videos have several classes,
    or all have the same class."""
    readable = [entry for entry in records if not inspections[entry.path].cause]
    if len({entry.classes for entry in readable}) < 2 or any(len(entry.classes) > 1 for entry in readable):
        return []
    names = sorted({entry.classes[0] for entry in readable})
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[entry.classes[0]] for entry in readable])
    groups = np.unique([entry.group for entry in readable], return_inverse=True)[1]
    rng = np.random.default_rng(seed)
    halves = [_half(labels, groups, rng) for _ in range(HALVINGS)]
    table = attributes([inspections[entry.path] for entry in readable])
    rows = [_shortcut(name, np.array(values), labels, halves, names) for name, values in table.items()]
    return sorted(rows, key=lambda shortcut: -shortcut.gain)


def _shortcut(
    attribute: str, values: np.ndarray, labels: np.ndarray, halves: Sequence[np.ndarray], names: list[str]
) -> Shortcut:
    total = len(labels)
    hits = sum(
        _right_guesses(values[learn], labels[learn], values[~learn], labels[~learn])
        for half in halves
        for learn in (half, ~half)
    )
    baseline, accuracy = float(np.bincount(labels).max() / total), hits / (len(halves) * total)
    noise = NOISE * np.sqrt(baseline * (1 - baseline) / total)
    called_out = bool(accuracy - baseline >= max(SHORTCUT_GAIN, noise))
    return Shortcut(
        attribute=attribute,
        values=len(set(values.tolist())),
        accuracy=accuracy,
        fitted=_right_guesses(values, labels, values, labels) / total,
        baseline=baseline,
        called_out=called_out,
        giveaways=_giveaways(values.tolist(), labels.tolist(), names) if called_out else (),
    )


def _right_guesses(values: np.ndarray, labels: np.ndarray, others: np.ndarray, of_others: np.ndarray) -> int:
    """How many of `others` have the class that is most common for their value among `values` (the first of equal ones),
    or the most common class of all if no video has their value."""
    otherwise = int(np.bincount(labels).argmax())
    counts = Counter(zip(values.tolist(), labels.tolist(), strict=True))
    rarest_first = sorted(counts, key=lambda pair: (counts[pair], -pair[1]))  # the last entry of a value stays
    most_common = dict(rarest_first)
    pairs = zip(others.tolist(), of_others.tolist(), strict=True)
    return sum(most_common.get(value, otherwise) == label for value, label in pairs)


def _half(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random half of the videos, bool [n], that keeps groups together and has about half of every class. With uneven
    halves the accuracy would be underestimated."""
    sizes = np.bincount(groups)
    class_of = np.zeros(len(sizes), dtype=np.int64)
    class_of[groups] = labels
    filled = np.zeros((labels.max() + 1, 2), dtype=np.int64)
    side = np.zeros(len(sizes), dtype=bool)
    for group in rng.permutation(len(sizes)):
        side[group] = filled[class_of[group]].argmin()
        filled[class_of[group], int(side[group])] += sizes[group]
    return side[groups]


def _giveaways(values: list[str], labels: list[int], names: list[str]) -> tuple[Giveaway, ...]:
    by_value, by_class = Counter(values), Counter(labels)
    giveaways = []
    for (value, label), count in sorted(Counter(zip(values, labels, strict=True)).items()):
        of_class, of_value = count / by_class[label], count / by_value[value]
        lift = of_value / (by_class[label] / len(labels))
        if of_class >= MOST_OF_CLASS and lift >= LIFT:
            giveaways.append(Giveaway(names[label], value, of_class, of_value, lift))
    return tuple(sorted(giveaways, key=lambda giveaway: (-giveaway.lift * giveaway.of_class, giveaway.name)))
