"""Makes and checks the splits train, val and test, stratified by class and without splitting groups."""

import logging
import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Protocol

import numpy as np

from vidtrain.data.manifest.columns import OWN_PATH
from vidtrain.data.manifest.manifest import NO_UTF8, Manifest, Record, check_same_classes
from vidtrain.data.stores.files import ask_statuses, exists
from vidtrain.errors import UserError, pluralize
from vidtrain.files.escaping import is_utf8, shown, shown_some

SPLITS = ("train", "val", "test")
SAMPLED = 20  # files of a split whose existence is checked before a run starts
NAMED = 8  # files named in a message
MISSED = 3  # paths without a group that are named in a message

logger = logging.getLogger(__name__)


def shares_of(values: Sequence[float]) -> dict[str, float]:
    """Shares of train, val and test; a split with share 0 is not made.

    Raises `UserError` unless the shares sum to 1, and those of train and val are above 0.
    """
    if len(values) != len(SPLITS):
        raise UserError(f"the shares {list(values)} must be three: of {', '.join(SPLITS)}")
    if min(values) < 0 or not math.isclose(sum(values), 1, abs_tol=1e-6):
        raise UserError(f"the shares {list(values)} of {', '.join(SPLITS)} must be 0 or more and sum to 1")
    if not values[0] or not values[1]:
        raise UserError(f"the shares {list(values)} leave nothing for {'val' if values[0] else 'train'}")
    return {split: share for split, share in zip(SPLITS, values, strict=True) if share}


def split_manifest(manifest: Manifest, shares: Mapping[str, float], seed: int) -> dict[str, Manifest]:
    """Splits by name with about the stated shares of every class and of the whole; see `split_indices`."""
    return {split: manifest.subset(part) for split, part in split_indices(manifest, shares, seed).items()}


def hold_out(manifests: dict[str, Manifest], share: float, seed: int) -> dict[str, Manifest]:
    """`manifests` with a val split that is held out from train without splitting groups."""
    if not 0 < share < 1:
        raise UserError(f"dataset.source.val_share={share}: must lie between 0 and 1")
    parts = split_manifest(manifests["train"], {"train": 1 - share, "val": share}, seed)
    return {**parts, **{split: manifest for split, manifest in manifests.items() if split not in parts}}


def complete(manifests: dict[str, Manifest], val_share: float | None, seed: int) -> dict[str, Manifest]:
    """Checks all splits and returns them with a val split: the given one, or `val_share` of train; 0 means no val.

    Raises `UserError` if neither or both are given, and as `check_splits` does.
    """
    if val_share is not None and "val" in manifests:
        raise UserError(f"dataset.source.val_share={val_share}, but dataset.source.val is given; unset one")
    if val_share is None and "val" not in manifests:
        raise UserError("there is no val split to select on: give one, or set dataset.source.val_share=0.1")
    if val_share:
        manifests = hold_out(manifests, val_share, seed)
    check_splits(manifests)
    return manifests


def split_indices(manifest: Manifest, shares: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """The indices int64 of each split's records, in the manifest's order.

    Groups are not split. They are assigned in order of size, largest first; groups of equal size are in an order drawn
    from `seed`. Each goes to the split where the counts come nearest to the shares, by Pearson's chi-squared, the sum
    of (count - wanted)^2 / wanted over the classes and the total. The first group of a class goes to the largest split,
    and no split stays empty.

    Raises `UserError` if there are fewer groups than splits, and for a seed below 0.
    """
    if seed < 0:
        raise UserError(f"seed={seed} of a split must be 0 or more")
    groups, contents = _groups_of(manifest)
    if len(contents) < len(shares):
        raise UserError(f"{len(contents)} groups of videos cannot be dealt out to {', '.join(shares)}")
    splits = [_Split(share, contents) for share in shares.values()]
    largest = max(splits, key=lambda split: split.share)
    sizes = np.array([size for size, _ in contents])
    order = np.random.default_rng(seed).permutation(len(contents))
    for group in order[np.argsort(-sizes[order], kind="stable")].tolist():
        size, counts = contents[group]
        new = any(not any(split.counts[label] for split in splits) for label in counts)
        chosen = largest if new else min(splits, key=lambda split: split.cost(size, counts))
        chosen.add(group, contents[group])
    _fill_empty(splits, contents)
    member = np.empty(len(contents), dtype=np.int64)
    for number, split in enumerate(splits):
        member[list(split.groups)] = number
    return {name: np.flatnonzero(member[groups] == number) for number, name in enumerate(shares)}


Content = tuple[int, dict[int, int]]  # how many records, and how many of each label


class _Split:
    def __init__(self, share: float, contents: Sequence[Content]):
        totals: Counter[int] = Counter()
        for _, counts in contents:
            totals.update(counts)
        self.share = share
        self.wanted = {label: share * count for label, count in totals.items()}
        self.wanted_size = share * sum(size for size, _ in contents)
        self.counts: Counter[int] = Counter()
        self.size = 0
        self.groups: dict[int, None] = {}  # as an ordered set

    def cost(self, size: int, counts: Mapping[int, int]) -> float:
        """The change of the chi-squared distance if a group of these records is added."""
        cost = size * (2 * (self.size - self.wanted_size) + size) / self.wanted_size
        for label, count in counts.items():
            wanted = self.wanted[label]
            cost += count * (2 * (self.counts[label] - wanted) + count) / wanted
        return cost

    def add(self, group: int, content: Content) -> None:
        self.size += content[0]
        self.counts.update(content[1])
        self.groups[group] = None

    def remove(self, group: int, content: Content) -> None:
        self.size -= content[0]
        self.counts.subtract(content[1])
        del self.groups[group]


def _fill_empty(splits: Sequence[_Split], contents: Sequence[Content]) -> None:
    """Moves to each empty split one of the smallest groups, of a frequent class, of the split with the most groups."""
    for split in splits:
        if split.groups:
            continue
        donor = max(splits, key=lambda other: len(other.groups))
        group = min(
            donor.groups,
            key=lambda group: (contents[group][0], -min(donor.counts[label] for label in contents[group][1])),
        )
        donor.remove(group, contents[group])
        split.add(group, contents[group])


def group_numbers(manifest: Manifest) -> np.ndarray:
    """The number of every record's group, int64 [n], from 0 in order of appearance."""
    codes = manifest.columns.groups
    keys = path_hashes(manifest) if codes is None or (codes == OWN_PATH).any() else codes
    if codes is not None:
        keys = np.where(codes == OWN_PATH, keys, codes)
    _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # hashes differ from process to process
    return rank[numbers]


def _groups_of(manifest: Manifest) -> tuple[np.ndarray, list[Content]]:
    """The number of every record's group, and the contents of each group."""
    columns, numbers = manifest.columns, group_numbers(manifest)
    owners = np.repeat(numbers, columns.label_counts)
    pairs, counts = np.unique(owners * len(manifest.classes) + columns.every_label, return_counts=True)
    contents: list[Content] = [(size, {}) for size in np.bincount(numbers).tolist()]
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        group, label = divmod(pair, len(manifest.classes))
        contents[group][1][label] = count
    return numbers, contents


def group_in(pattern: str, name: str) -> str | None:
    """The group of a name by a regular expression: the text matched by its parentheses, or else by all of it; None
    without a match. `r"_g(\\d+)_"` puts v_Diving_g01_c02.avi into group 01; `r"v_(\\w+)_g(\\d+)_"` into Diving/01."""
    match = re.search(pattern, name)
    return ("/".join(match.groups("")) or match[0]) if match else None


def groups_by(pattern: str | None, names: Sequence[str]) -> list[str] | None:
    """The group of each name (`group_in`); None without a pattern.

    Raises `UserError` for an invalid regular expression, even without names, and if some names do not match.
    """
    if pattern is None:
        return None
    setting = f"dataset.source.group_pattern={pattern!r}"
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{setting} is not a regular expression: {error}") from error
    groups = [(name, group_in(pattern, name)) for name in names]
    missed = [name for name, group in groups if group is None]
    if missed:
        some = ", ".join(missed[:MISSED])
        raise UserError(
            f"{setting} must be found in the path of every video; it is not in {len(missed)} of {len(names)}, such as "
            f"{some}"
        )
    return [group for _, group in groups if group is not None]


# --- checks of splits ---------------------------------------------------------------------------------------


def check_splits(manifests: Mapping[str, Manifest]) -> None:
    """Raises `UserError` unless splits have the same classes, no video in common, and none twice with other labels.

    A file may be in two splits if its parts do not overlap. A warning names such files, files that are listed twice,
    and groups that splits share.
    """
    check_same_classes(manifests)
    hashes = {split: path_hashes(manifest) for split, manifest in manifests.items()}
    for split, manifest in manifests.items():
        _check_repeated(split, manifest, hashes[split])
    for first, second in combinations(manifests, 2):
        _check_shared(first, second, manifests, hashes)
        _warn_of_shared_groups(first, second, manifests)


def check_present(manifests: Mapping[str, Manifest], hint: str, warn: Callable[[str], None]) -> None:
    """Checks that a few files of every split exist. Raises `UserError` with `hint` if more than half of them are
    missing, or a store denies access; warns of fewer missing files."""
    messages, most_missing = [], False
    for split, manifest in manifests.items():
        count = min(len(manifest), SAMPLED)
        tried = [manifest.paths[number * len(manifest) // count] for number in range(count)]
        ask_statuses(tried)
        missing = [path for path in tried if not exists(path)]
        if not missing:
            continue
        why = ""
        if any(not is_utf8(path) for path in missing):
            why = f" (what lists them {NO_UTF8})"
        elif any(_in_other_form(path) for path in missing):
            why = " (they are there in another of Unicode's forms: list names as the disk has them)"
        some = f"{len(missing)} of {count} {split} videos"
        what = f"{some} that were looked for are missing, such as {missing[0]}"
        messages.append(what + why)
        most_missing |= 2 * len(missing) > count
    if most_missing:
        raise UserError("; ".join(messages) + f": {hint}")
    for message in messages:
        warn(message)


def _in_other_form(path: str) -> bool:
    forms = {unicodedata.normalize(form, path) for form in ("NFC", "NFD")} - {path}
    return any(map(os.path.exists, forms))


def path_hashes(manifest: Manifest) -> np.ndarray:
    """A hash of every path, int64 [n], valid within this process only."""
    return np.fromiter(map(hash, manifest.paths), dtype=np.int64, count=len(manifest))


def _by_path(manifest: Manifest, chosen: np.ndarray) -> dict[str, list[Record]]:
    """The records for which `chosen` is true, by path."""
    by_path = defaultdict(list)
    for index in np.flatnonzero(chosen).tolist():
        record = manifest[index]
        by_path[record.path].append(record)
    return by_path


def _check_repeated(split: str, manifest: Manifest, hashes: np.ndarray) -> None:
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) == len(hashes):
        return
    contradictory, twice = [], []
    for path, records in _by_path(manifest, np.isin(hashes, values[counts > 1])).items():
        for one, other in combinations(records, 2):
            # parts of a file may have different labels, and listings may share videos
            if (one.start, one.end, one.source) != (other.start, other.end, other.source):
                continue
            if set(one.labels) == set(other.labels):
                twice.append(path)
            else:
                names = [shown(manifest.classes[record.label]) for record in (one, other)]
                contradictory.append(f"{path} as {' and '.join(names)}")
    if contradictory:
        raise UserError(
            f"{split} lists videos more than once, with different labels: {shown_some(contradictory, NAMED)}; "
            "keep one, or give several labels in one field (dataset.source.label_separator)"
        )
    if twice:
        repeated = pluralize(len(set(twice)), "video")
        logger.warning("%s lists %s more than once, such as %s", split, repeated, twice[0])


def _check_shared(first: str, second: str, manifests: Mapping[str, Manifest], hashes: Mapping[str, np.ndarray]) -> None:
    shared = np.intersect1d(hashes[first], hashes[second])
    if not len(shared):
        return
    here, there = (_by_path(manifests[split], np.isin(hashes[split], shared)) for split in (first, second))
    files = sorted(here.keys() & there.keys())
    same = [path for path in files if any(overlap(a, b) for a in here[path] for b in there[path])]
    if same:
        videos = pluralize(len(same), "video")
        raise UserError(f"both {first} and {second} hold {videos}: {shown_some(same, NAMED)}; remove them from one")
    if files:
        message = "both %s and %s hold %s in different parts, such as %s"
        logger.warning(message, first, second, pluralize(len(files), "file"), files[0])


class Cut(Protocol):
    """A part of a file, from start to end in seconds; None is the file's start or end."""

    @property
    def start(self) -> float | None: ...
    @property
    def end(self) -> float | None: ...


def overlap(one: Cut, other: Cut) -> bool:
    """Whether two parts of one file overlap."""
    ends = (np.inf if part.end is None else part.end for part in (one, other))
    return max(one.start or 0.0, other.start or 0.0) < min(ends)


def _warn_of_shared_groups(first: str, second: str, manifests: Mapping[str, Manifest]) -> None:
    columns = [manifests[split].columns for split in (first, second)]
    names = [list(part.group_names or ()) for part in columns]
    shared = sorted(set(names[0]) & set(names[1]))
    if not shared:
        return
    counts = []
    for part, known in zip(columns, names, strict=True):
        codes = [code for code, name in enumerate(known) if name in set(shared)]
        counts.append(int(np.isin(np.asarray(part.groups), codes).sum()))
    message = "both %s (%s) and %s (%s) hold %s, such as %s: their videos may be alike"
    videos = [pluralize(count, "video") for count in counts]
    logger.warning(message, first, videos[0], second, videos[1], pluralize(len(shared), "group"), shared[0])


# --- statistics of splits ---------------------------------------------------------------------------------


def split_rows(pool: Manifest, splits: Mapping[str, Manifest]) -> list[tuple[str, int, str, int, int, str]]:
    """A row for each split: name, videos, share of all, groups, classes, fewest and most videos of a class."""
    rows = []
    for name, part in splits.items():
        share, counts = f"{len(part) / len(pool):.1%}", _class_counts(part)
        groups = int(group_numbers(part).max()) + 1
        fewest, most = counts.min(), counts.max()
        spread = str(most) if fewest == most else f"{fewest} to {most}"
        rows.append((name, len(part), share, groups, int(np.count_nonzero(counts)), spread))
    return rows


def absent_classes(manifest: Manifest) -> list[str]:
    """The classes without a record."""
    return [manifest.classes[label] for label in np.flatnonzero(_class_counts(manifest) == 0).tolist()]


def _class_counts(manifest: Manifest) -> np.ndarray:
    return np.bincount(manifest.columns.every_label, minlength=len(manifest.classes))
