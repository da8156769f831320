"""Splitting a dataset so that classes keep their shares and groups stay whole."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidtrain.data.manifest.checks import path_hashes
from vidtrain.data.manifest.columns import OWN_PATH
from vidtrain.data.manifest.manifest import Manifest
from vidtrain.errors import UserError

SPLITS = ("train", "val", "test")
NAMED = 5


def shares_of(values: Sequence[float]) -> dict[str, float]:
    """Shares of train, val and test; of one that is 0 there will be no split.

    Raises `UserError` unless they are shares that sum to 1, with something for train and for val.
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
    found = split_indices(manifest, shares, seed)
    return {split: manifest.subset(indices) for split, indices in found.items()}


def hold_out(manifests: dict[str, Manifest], share: float, seed: int) -> dict[str, Manifest]:
    """`manifests` with a val split that is held out from train, groups kept whole."""
    if not 0 < share < 1:
        raise UserError(f"dataset.source.val_share={share}: must lie between 0 and 1")
    parts = split_manifest(manifests["train"], {"train": 1 - share, "val": share}, seed)
    return {**parts, **{split: each for split, each in manifests.items() if split not in parts}}


def complete(manifests: dict[str, Manifest], val_share: float | None, seed: int) -> dict[str, Manifest]:
    """Makes sure of a val split: the given one, or a share held out from train; 0 does without.

    Raises `UserError` where there is none or both.
    """
    if val_share is not None and "val" in manifests:
        raise UserError(
            f"dataset.source.val_share={val_share}, but dataset.source.val is given; take one of them back (=null)"
        )
    if "val" in manifests or val_share == 0:
        return manifests
    if val_share is None:
        raise UserError(
            "there is no val split to select on: give one, or hold out a share of train's groups with "
            "dataset.source.val_share=0.1"
        )
    return hold_out(manifests, val_share, seed)


def split_indices(manifest: Manifest, shares: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """The indices int64 of each split's records, in the manifest's order.

    Groups are dealt out whole, large ones first and those of one size in an order drawn from `seed`, each to the
    split where it brings the counts nearest to what the shares ask for. The distance is Pearson's chi-squared, summed
    over the classes and the whole: the sum of (count - wanted)^2 / wanted. The first group of a class goes
    to the largest split, and no split stays empty.

    Raises `UserError` where there are fewer groups than splits, and for a seed below 0.
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
        chosen.take(group, contents[group])
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
        self.counts: dict[int, int] = defaultdict(int)
        self.size = 0
        self.groups: dict[int, None] = {}  # as an ordered set

    def cost(self, size: int, counts: Mapping[int, int]) -> float:
        """By how much taking these changes the distance."""
        cost = size * (2 * (self.size - self.wanted_size) + size) / self.wanted_size
        for label, count in counts.items():
            wanted = self.wanted[label]
            cost += count * (2 * (self.counts[label] - wanted) + count) / wanted
        return cost

    def take(self, group: int, content: Content, sign: int = 1) -> None:
        size, counts = content
        self.size += sign * size
        for label, count in counts.items():
            self.counts[label] += sign * count
        if sign > 0:
            self.groups[group] = None
        else:
            del self.groups[group]


def _fill_empty(splits: Sequence[_Split], contents: Sequence[Content]) -> None:
    """Gives a split without a group one of the smallest of the split with the most groups, of a frequent class."""
    for split in splits:
        if split.groups:
            continue
        donor = max(splits, key=lambda each: len(each.groups))
        group = min(
            donor.groups,
            key=lambda each: (contents[each][0], -min(donor.counts[label] for label in contents[each][1])),
        )
        donor.take(group, contents[group], sign=-1)
        split.take(group, contents[group])


def group_numbers(manifest: Manifest) -> np.ndarray:
    """The number of every record's group, int64 [n], from 0 in order of appearance."""
    columns = manifest.columns
    if columns.groups is None:
        keys = path_hashes(manifest)
    else:
        own = columns.groups == OWN_PATH
        keys = np.where(own, path_hashes(manifest) if own.any() else 0, columns.groups)
    _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))  # hashes differ from process to process
    return rank[numbers]


def _groups_of(manifest: Manifest) -> tuple[np.ndarray, list[Content]]:
    """The number of every record's group, and what each group holds."""
    columns, numbers = manifest.columns, group_numbers(manifest)
    labels, owners = columns.labels, numbers
    if columns.label_offsets is not None:
        labels = columns.all_labels
        owners = np.repeat(numbers, np.diff(columns.label_offsets).astype(np.int64))
    pairs, counts = np.unique(owners * len(manifest.classes) + labels, return_counts=True)
    contents: list[Content] = [(size, {}) for size in np.bincount(numbers).tolist()]
    for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        group, label = divmod(pair, len(manifest.classes))
        contents[group][1][label] = count
    return numbers, contents


@dataclass(frozen=True)
class GroupPattern:
    """Groups from names: what the parentheses of a regular expression hold where it is found, or all that it matches.

    `r"_g(\\d+)_"` puts v_Diving_g01_c02.avi into group 01; `r"v_(\\w+)_g(\\d+)_"` into Diving/01. Raises `UserError`
    for an expression that is none.
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise UserError(
                f"dataset.source.group_pattern={self.pattern!r} is no regular expression: {error}"
            ) from error

    def groups(self, names: Sequence[str]) -> list[str]:
        """Raises `UserError` naming those that it is not found in: they would be split from their group."""
        found = [re.search(self.pattern, name) for name in names]
        missed = [name for name, match in zip(names, found, strict=True) if match is None]
        if missed:
            raise UserError(
                f"dataset.source.group_pattern={self.pattern!r} is not found in {len(missed)} of {len(names)} names, "
                f"such as {', '.join(missed[:NAMED])}"
            )
        return ["/".join(match.groups("")) or match[0] for match in found]
