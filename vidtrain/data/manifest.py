"""What a dataset is to the rest of the package: records of path, label and group, and the class names."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vidtrain.errors import UserError


@dataclass(frozen=True, slots=True)
class Record:
    """One video: where it lies, the index of its class, and what it must not be split from.

    Videos of one `group` (a person, a recording) are too alike to stand on both sides of a split.
    """

    path: str
    label: int
    group: str


class Manifest:
    """The videos of one split and the class names that their labels index.

    Raises `UserError` where there is no record or no class, a class is named twice, or a label has no class.
    """

    def __init__(self, records: Iterable[Record], classes: Sequence[str]):
        self.records = tuple(records)
        self.classes = tuple(classes)
        if not self.classes:
            raise UserError("the dataset names no classes")
        if len(set(self.classes)) < len(self.classes):
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise UserError(f"the dataset names a class more than once: {', '.join(twice)}")
        if not self.records:
            raise UserError(f"the dataset holds no videos of its {len(self.classes)} classes")
        for record in self.records:
            if not 0 <= record.label < len(self.classes):
                raise UserError(
                    f"{record.path}: label {record.label} is outside 0..{len(self.classes) - 1}, "
                    f"the labels of the {len(self.classes)} classes"
                )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Record:
        return self.records[index]

    @property
    def labels(self) -> np.ndarray:
        """The label of every record, int64 [len(self)]."""
        return np.array([record.label for record in self.records], dtype=np.int64)


class Source(Protocol):
    """Anything that finds a dataset's videos: class folders, listing files, a generator of its own."""

    def manifests(self) -> dict[str, Manifest]:
        """One manifest per split, keyed "train", "val" and, where there is one, "test"."""
        ...


def check_same_classes(manifests: Mapping[str, Manifest]) -> None:
    """Raises `UserError` unless all splits name the same classes in the same order."""
    (first, reference), *others = manifests.items()
    for split, manifest in others:
        if manifest.classes == reference.classes:
            continue
        missing = [name for name in reference.classes if name not in manifest.classes]
        extra = [name for name in manifest.classes if name not in reference.classes]
        raise UserError(
            f"the classes of split {split!r} differ from those of {first!r}: "
            f"missing {', '.join(missing) or 'none'}; extra {', '.join(extra) or 'none'}"
            + ("" if missing or extra else "; the same names in another order")
        )
