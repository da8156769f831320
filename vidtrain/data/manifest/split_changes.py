"""What differs between what a split held and what it holds."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vidtrain.data.manifest.split_records import GONE, SplitRecord, spread

# (path, bytes, earlier time): whether the content is the same, if known
Same = Callable[[str, int, int], bool | None]
MOST_READ = 200  # files with another time whose content is looked at
MOST_ROOTS = 16  # that the files of a split may have moved from
MIX = 0x5BD1E995  # an odd number, that keeps what is combined apart
SAMPLED = 200  # files by which it is found where others have moved to


@dataclass
class SplitChanges:
    """What differs, by kind, each named. `touched` files have another time and perhaps the same content: whether they
    have is not known any more."""

    removed: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    relabeled: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)

    @property
    def of_labels(self) -> bool:
        return bool(self.relabeled or self.classes)

    @property
    def any(self) -> bool:
        """Whether something is not what it was; `touched` files are not known to be."""
        return bool(self.kinds())

    def kinds(self) -> dict[str, list[str]]:
        """What there is, by a word for the kind."""
        words = {
            "removed": self.removed, "added": self.added, "replaced by another file": self.replaced,
            "in another class": self.relabeled, "different among the classes": self.classes,
            "in another order": self.reordered,
        }  # fmt: skip
        return {word: names for word, names in words.items() if names}


def unknown(path: str, size: int, modified: int) -> None:
    """No content is known."""


def split_changes(before: SplitRecord, now: SplitRecord, same: Same = unknown) -> SplitChanges:
    """What differs in `now`. The files may all lie elsewhere: then only their bytes are held against each other, as
    copies have times of their own. `same` is asked about files that have another time in the same place."""
    found = SplitChanges()
    _compare_classes(before, now, found)
    if _same_paths(before, now):
        pairs = np.arange(len(now)), np.arange(len(now))
        moved = before.columns.paths.prefix != now.columns.paths.prefix
        _compare_pairs(before, now, *pairs, moved, same, found)
        return found
    first, second, moved, gone, new = _matched(before, now)
    _compare_pairs(before, now, first, second, moved, same, found)
    gone, new = _renamed_to_another_class(before, now, gone, new, found)
    found.removed += [_named(before, place) for place in gone.tolist()]
    found.added += [_named(now, place) for place in new.tolist()]
    if not found.any and (np.diff(first[np.argsort(second)]) < 0).any():
        found.reordered.append(f"all {len(now)} videos are there")
    return found


def _renamed_to_another_class(
    before: SplitRecord, now: SplitRecord, gone: np.ndarray, new: np.ndarray, found: SplitChanges
) -> tuple[np.ndarray, np.ndarray]:
    """Takes what is left that nothing but its bytes tells to be the same file, in another class and by another name."""
    sizes = [Counter(each.tolist()) for each in (before.sizes[gone], now.sizes[new])]
    alone = {size for size, count in sizes[0].items() if count == 1 and size > 0 and sizes[1][size] == 1}
    was = {int(before.sizes[place]): place for place in gone.tolist() if int(before.sizes[place]) in alone}
    pairs = [(was[size], place) for place in new.tolist() if (size := int(now.sizes[place])) in was]
    for old, place in pairs:
        labels = _labels(before, now, old, place)
        if labels[0] != labels[1]:
            words = " -> ".join(";".join(each) for each in labels)
            found.relabeled.append(
                f"{now.columns.paths[place]}, which was {before.columns.paths[old]} ({words})"
            )
            gone, new = gone[gone != old], new[new != place]
    return gone, new


def _named(record: SplitRecord, place: int) -> str:
    start, end, _ = record.cut_of(place)
    path = record.columns.paths[place]
    if start is None and end is None:
        return path
    return f"{path} from {start or 0:g} s to {'its end' if end is None else f'{end:g} s'}"


def _compare_classes(before: SplitRecord, now: SplitRecord, found: SplitChanges) -> None:
    found.classes += [f"{name} is gone" for name in before.classes if name not in set(now.classes)]
    found.classes += [f"{name} is new" for name in now.classes if name not in set(before.classes)]
    if before.classes != now.classes and not found.classes:
        found.classes.append("the same classes in another order")


def _same_paths(before: SplitRecord, now: SplitRecord) -> bool:
    """Whether the paths below the common folder, and cuts, are the same in the same order: the ordinary case."""
    one, other = before.columns, now.columns
    arrays = [(one.paths.blob, other.paths.blob), (one.paths.offsets, other.paths.offsets)]
    arrays += [(getattr(one, name), getattr(other, name)) for name in ("starts", "ends", "sources")]
    return all(
        (a is None) == (b is None) and (a is None or np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
        for a, b in arrays
    )


def _compare_pairs(
    before: SplitRecord,
    now: SplitRecord,
    first: np.ndarray,
    second: np.ndarray,
    moved: bool | np.ndarray,
    same: Same,
    found: SplitChanges,
) -> None:
    """Records `first` of `before` and `second` of `now` are the same ones by name; `moved` says which lie elsewhere."""
    was, size = before.sizes[first], now.sizes[second]
    paths = now.columns.paths
    found.removed += [paths[place] for place in second[(was >= 0) & (size == GONE)].tolist()]
    found.added += [paths[place] for place in second[(was == GONE) & (size >= 0)].tolist()]
    both = (was >= 0) & (size >= 0)
    for place in np.flatnonzero(both & (was != size)).tolist():
        found.replaced.append(f"{paths[second[place]]} ({was[place]} -> {size[place]} bytes)")
    times = before.times[first]
    touched = np.flatnonzero(both & (was == size) & (times != now.times[second]) & ~np.asarray(moved))
    unread = []
    for place in spread(touched.tolist(), MOST_READ):
        path = paths[second[place]]
        verdict = same(path, int(size[place]), int(times[place]))
        if verdict is False:
            found.replaced.append(f"{path} (of as many bytes)")
        elif verdict is None:
            unread.append(path)
    found.touched += unread
    for place in _relabeled(before, now, first, second):
        labels = " -> ".join(";".join(each) for each in _labels(before, now, first[place], second[place]))
        found.relabeled.append(f"{paths[second[place]]} ({labels})")


def _relabeled(before: SplitRecord, now: SplitRecord, first: np.ndarray, second: np.ndarray) -> list[int]:
    single = before.columns.label_offsets is None and now.columns.label_offsets is None
    if single and before.classes == now.classes:
        return np.flatnonzero(before.columns.labels[first] != now.columns.labels[second]).tolist()
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return [place for place, (a, b) in enumerate(pairs) if len(set(_labels(before, now, a, b))) > 1]


def _labels(before: SplitRecord, now: SplitRecord, a: int, b: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return before.labels_of(a), now.labels_of(b)


# --- which is which ---------------------------------------------------------------------------------------


def _matched(
    before: SplitRecord, now: SplitRecord
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Records that are the same by path and cut: places in both, and whether they lie elsewhere now; and the places
    that are left in each. Records of one name are taken in order."""
    gone, new = np.arange(len(before)), np.arange(len(now))
    pairs: list[tuple[np.ndarray, np.ndarray, bool]] = []
    root = ("", "")
    while root is not None and len(pairs) <= MOST_ROOTS:
        of_new, candidates = _keys(now, new, root)
        _, a, b = np.intersect1d(_keys(before, gone)[0], of_new, return_indices=True)
        first, second = gone[a], new[candidates[b]]
        if root != ("", ""):
            first, second = _likely(before, now, first, second, root)
        pairs.append((first, second, root != ("", "")))
        gone, new = np.setdiff1d(gone, first), np.setdiff1d(new, second)
        root = _root_of_moved(before, now, gone, new) if len(first) or root == ("", "") else None
    moved = np.concatenate([np.full(len(first), there) for first, _, there in pairs])
    first, second = (np.concatenate([each[side] for each in pairs]) for side in (0, 1))
    return first, second, moved, gone, new


def _keys(
    record: SplitRecord, places: np.ndarray, root: tuple[str, str] = ("", "")
) -> tuple[np.ndarray, np.ndarray]:
    """A number for each record at `places` whose path begins with root[1], which is taken for root[0]; and which of
    `places` those are. Records of the same path and cut get different numbers, by their order. The numbers mean
    something within this process only."""
    paths, (was, there) = record.columns.paths, root
    whole = len(places) == len(record)  # going through all of them is faster
    every = enumerate(paths if whole else (paths[place] for place in places.tolist()))
    found = [(which, hash(was + path[len(there) :])) for which, path in every if path.startswith(there)]
    chosen, numbers = np.array(found, dtype=np.int64).reshape(-1, 2).T
    for factor, name in ((3, "starts"), (5, "ends"), (7, "sources")):
        column = getattr(record.columns, name)
        if column is not None:
            values = column[places[chosen]]
            bits = (
                np.where(np.isnan(values), 0.0, values + 1.0).view(np.int64)
                if values.dtype.kind == "f"
                else values
            )
            numbers = numbers ^ (bits.astype(np.int64) * np.int64(factor * MIX))
    order = np.argsort(numbers, kind="stable")
    starts = np.flatnonzero(np.diff(numbers[order], prepend=numbers[order][:1] - 1))
    ranks = np.empty(len(order), dtype=np.int64)
    runs = np.diff(np.append(starts, len(order)))
    ranks[order] = np.arange(len(order)) - np.repeat(starts, runs)
    return numbers ^ (ranks * np.int64(MIX)), chosen


def _root_of_moved(
    before: SplitRecord, now: SplitRecord, gone: np.ndarray, new: np.ndarray
) -> tuple[str, str] | None:
    """From where to where most of the files that are left have moved, going by the names that paths end with."""
    if not len(gone) or not len(new):
        return None
    sample = [now.columns.paths[place] for place in spread(new.tolist(), SAMPLED)]
    names: dict[str, list[str]] = {os.path.basename(path): [] for path in sample}
    for path in (before.columns.paths[place] for place in gone.tolist()):
        alike = names.get(os.path.basename(path))
        if alike is not None and len(alike) < MOST_ROOTS:
            alike.append(path)
    votes: Counter[tuple[str, str]] = Counter()
    for path in sample:
        roots = [_apart(each, path) for each in names[os.path.basename(path)]]
        if roots:
            closest = min(roots, key=lambda pair: len(pair[1]))  # most of the path is shared with it
            votes[closest] += 1
    return votes.most_common(1)[0][0] if votes else None


def _apart(one: str, other: str) -> tuple[str, str]:
    """What is left of two paths without the names that both end with."""
    shared = 0
    for a, b in zip(reversed(one.split("/")), reversed(other.split("/")), strict=False):
        if a != b:
            break
        shared += len(a) + 1
    return one[: max(0, len(one) - shared + 1)], other[: max(0, len(other) - shared + 1)]


def _likely(
    before: SplitRecord, now: SplitRecord, first: np.ndarray, second: np.ndarray, root: tuple[str, str]
) -> tuple[np.ndarray, np.ndarray]:
    """Without files that share nothing but their own name, and have other bytes."""
    paths = now.columns.paths
    inside = np.array(["/" in paths[place][len(root[1]) :] for place in second.tolist()], dtype=bool)
    kept = inside | (before.sizes[first] == now.sizes[second])
    return first[kept], second[kept]
