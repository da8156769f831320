"""Shortcuts: what tells a video's class without a look at it, such as a frame rate that only one class has."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vidtrain.data.audit.findings import Entry
from vidtrain.data.audit.inspection import Inspection

HALVINGS = 10  # how often videos are halved to cross-check what an attribute tells
BINS = 10  # equal shares of the videos, that a quantity is cut into
# Called out: what an attribute adds to the majority class, in accuracy, if it is not within the noise
SHORTCUT_GAIN, NOISE = 0.1, 3.0
# A value gives a class away that has it this often, where it makes the class this much more likely
MOST_OF_CLASS, LIFT = 0.5, 2.0


@dataclass(frozen=True)
class Giveaway:
    """A value that tells a class: it is that of `of_class` of the class's videos, and `of_value` of the videos with
    it are of the class, which is `lift` times the class's share.
    """

    name: str
    value: str
    of_class: float
    of_value: float
    lift: float


@dataclass(frozen=True)
class Shortcut:
    """How well an attribute of the files alone tells the class.

    `accuracy` is that of guessing the class that is most common with a value, learned from one half of the videos
    and held against the other, on average over halvings that keep groups whole. `fitted` is the same without the
    halving, `baseline` the share of the most common class. Leaving one video out instead would say 0 for balanced
    classes: each is in the minority by just the one left out.
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
    """By attribute, the value of every file; quantities in bins of equal shares."""
    return {
        "frame rate": [f"{each.rate:.2f}/s" for each in inspections],
        "frame size": [f"{each.width}x{each.height}" for each in inspections],
        "duration": _binned([each.duration for each in inspections], 1.0, "s"),
        "file size": _binned([each.size for each in inspections], 1e3, "kB"),
        "bit rate": _binned([8 * each.size / (each.duration or 1.0) for each in inspections], 1e3, "kb/s"),
        "codec": [each.codec for each in inspections],
        "pixel format": [each.pixel_format for each in inspections],
        "container": [each.container for each in inspections],
        "audio": ["with audio" if each.audio else "no audio" for each in inspections],
        "rotation": ["mirrored, " * each.mirrored + f"rotated by {each.rotation}" for each in inspections],
    }


def _binned(values: Sequence[float], unit: float, name: str) -> list[str]:
    scaled = np.array(values) / unit
    edges = np.unique(np.quantile(scaled, np.linspace(0, 1, BINS + 1)))
    bins = np.clip(np.searchsorted(edges, scaled, side="right") - 1, 0, max(0, len(edges) - 2))
    return [f"{edges[each]:.4g} to {edges[min(each + 1, len(edges) - 1)]:.4g} {name}" for each in bins]


def shortcuts(
    records: Sequence[Entry], inspections: Mapping[str, Inspection], seed: int = 0
) -> list[Shortcut]:
    """What the attributes of readable files tell of their class, best first; nothing where videos have several
    classes, or all have one.
    """
    known = [entry for entry in records if not inspections[entry.path].cause]
    if len({entry.classes for entry in known}) < 2 or any(len(entry.classes) > 1 for entry in known):
        return []
    names = sorted({entry.classes[0] for entry in known})
    number = {name: place for place, name in enumerate(names)}
    labels = np.array([number[entry.classes[0]] for entry in known])
    groups = np.unique([entry.group for entry in known], return_inverse=True)[1]
    table = attributes([inspections[entry.path] for entry in known])
    found = [_shortcut(name, values, labels, groups, names, seed) for name, values in table.items()]
    return sorted(found, key=lambda each: -each.gain)


def _shortcut(
    attribute: str, values: list[str], labels: np.ndarray, groups: np.ndarray, names: list[str], seed: int
) -> Shortcut:
    spelled, codes = np.unique(values, return_inverse=True)
    of_class = np.bincount(labels, minlength=len(names))
    baseline = float(of_class.max() / len(labels))
    rng = np.random.default_rng(seed)
    hits = []
    for _ in range(HALVINGS):
        half = _half(labels, groups, rng)
        for learn in (half, ~half):
            most = np.bincount(labels[learn], minlength=len(names)).argmax()
            pairs, counts = _pairs(codes[learn], labels[learn], len(names))
            guess = _most_common_class(pairs, counts, len(spelled), len(names), most)
            hits.append((guess[codes[~learn]] == labels[~learn]).sum())
    accuracy = float(sum(hits) / (HALVINGS * len(labels)))
    noise = NOISE * np.sqrt(baseline * (1 - baseline) / len(labels))
    called_out = accuracy - baseline >= max(SHORTCUT_GAIN, noise)
    pairs, counts = _pairs(codes, labels, len(names))
    best = np.zeros(len(spelled), dtype=np.int64)
    np.maximum.at(best, pairs // len(names), counts)
    return Shortcut(
        attribute=attribute,
        values=len(spelled),
        accuracy=accuracy,
        fitted=float(best.sum() / len(labels)),
        baseline=baseline,
        called_out=bool(called_out),
        giveaways=_giveaways(pairs, counts, spelled, names) if called_out else (),
    )


def _half(labels: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random half of the videos, bool [n], that has whole groups and about half of every class: what one half had
    too much of, the other would lack, and guessing would look worse than it is.
    """
    sizes = np.bincount(groups)
    class_of = np.zeros(len(sizes), dtype=np.int64)
    class_of[groups] = labels
    filled = np.zeros((labels.max() + 1, 2), dtype=np.int64)
    side = np.zeros(len(sizes), dtype=bool)
    for group in rng.permutation(len(sizes)):
        side[group] = filled[class_of[group]].argmin()
        filled[class_of[group], int(side[group])] += sizes[group]
    return side[groups]


def _pairs(codes: np.ndarray, labels: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of a value and a class that occur, as value * classes + class in order, and how many videos have each.

    A table of all pairs has no room where every file has a size of its own and there are thousands of classes.
    """
    return np.unique(codes * num_classes + labels, return_counts=True)


def _most_common_class(
    pairs: np.ndarray, counts: np.ndarray, num_values: int, num_classes: int, otherwise: int
) -> np.ndarray:
    """The most common class [values] with each value, of equal ones the first; `otherwise` of a value not seen."""
    values, classes = np.divmod(pairs, num_classes)
    found = np.full(num_values, otherwise)
    rarest_first = np.lexsort((-classes, counts))  # what is written last stays
    found[values[rarest_first]] = classes[rarest_first]
    return found


def _giveaways(
    pairs: np.ndarray, counts: np.ndarray, spelled: np.ndarray, names: list[str]
) -> tuple[Giveaway, ...]:
    values, classes = np.divmod(pairs, len(names))
    by_class = np.bincount(classes, counts, minlength=len(names))
    of_class = counts / by_class[classes]
    of_value = counts / np.bincount(values, counts)[values]
    lift = of_value / (by_class[classes] / counts.sum())
    found = [
        Giveaway(names[c], str(spelled[v]), float(of_class[row]), float(of_value[row]), float(lift[row]))
        for row, (v, c) in enumerate(zip(values, classes, strict=True))
        if of_class[row] >= MOST_OF_CLASS and lift[row] >= LIFT
    ]
    return tuple(sorted(found, key=lambda each: (-each.lift * each.of_class, each.name)))
