"""Source: several listings (or other sources) as one, each with its weight and its own frames per clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vidtrain.data.columns import CHUNK, Columns, ColumnsBuilder
from vidtrain.data.manifest import Manifest, Source, SourceInfo
from vidtrain.data.manifest_checks import check_splits
from vidtrain.errors import UserError


@dataclass(frozen=True)
class Part:
    """One source of a mixture.

    `weight` is the share of training samples that are drawn from it, relative to the weights of the other parts.
    `frames` are its frames per clip; null: the run's.
    """

    name: str
    source: Source
    weight: float = 1.0
    frames: int | None = None

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise UserError(
                f"weight={self.weight} of {self.name}: must be above 0; leave the part out instead"
            )
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames={self.frames} of {self.name}: must be 1 or more")


@dataclass(frozen=True)
class Mixture:
    """The videos of all `parts`, which name the same classes in the same order.

    A part may lack val and test (a `Listing` with val_share=0), but one must have val. Every record knows its part,
    and `Manifest.sources` what is to be known of that. Raises `UserError` where parts do not fit together.
    """

    parts: Sequence[Part]

    def inputs(self) -> list[Path] | None:
        """The files of all parts; None where a part does not say which it reads."""
        files: list[Path] = []
        for part in self.parts:
            own = part.source.inputs() if hasattr(part.source, "inputs") else None
            if own is None:
                return None
            files += own
        return files

    def manifests(self) -> dict[str, Manifest]:
        names = [part.name for part in self.parts]
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"a mixture needs parts, each with a name of its own, not {', '.join(names) or 'none'}"
            )
        found = [part.source.manifests() for part in self.parts]
        self._check(found)
        infos = tuple(SourceInfo(part.name, float(part.weight), part.frames) for part in self.parts)
        mixed = {}
        for split in ("train", "val", "test"):
            held = {number: each[split] for number, each in enumerate(found) if split in each}
            if held:
                first = next(iter(held.values()))
                mixed[split] = Manifest.from_columns(_together(held), first.classes, first.frame_rate, infos)
        if "val" not in mixed:
            raise UserError("no part of the mixture has a val split to select on; one must")
        check_splits(mixed)
        return mixed

    def _check(self, found: Sequence[dict[str, Manifest]]) -> None:
        reference, name = found[0]["train"], self.parts[0].name
        for part, manifests in zip(self.parts, found, strict=True):
            train = manifests["train"]
            if train.classes != reference.classes:
                differing = sorted(set(train.classes) ^ set(reference.classes)) or ["only their order"]
                raise UserError(
                    f"the classes of {part.name} ({len(train.classes)}) and {name} ({len(reference.classes)}) differ: "
                    f"{', '.join(differing[:8])}; give both the same list with classes"
                )
            if (train.frame_rate, train.multi_label) != (reference.frame_rate, reference.multi_label):
                raise UserError(
                    f"{part.name} and {name} cannot be mixed: one holds folders of images (or of another frame rate), "
                    "or videos of several labels, and the other does not"
                )


def _together(manifests: dict[int, Manifest]) -> Columns:
    """The records of all, in turn, with their numbers as sources."""
    builder = ColumnsBuilder(multi_label=next(iter(manifests.values())).multi_label)
    for number, manifest in manifests.items():
        for first in range(0, len(manifest), CHUNK):
            records = [manifest[index] for index in range(first, min(first + CHUNK, len(manifest)))]
            times = [
                [math.nan if time is None else time for time in column]
                for column in ([each.start for each in records], [each.end for each in records])
            ]
            builder.extend(
                [each.path for each in records],
                [each.labels if manifest.multi_label else each.label for each in records],
                [each.group for each in records],
                *(None if all(map(math.isnan, column)) else column for column in times),
                source=number,
            )
    return builder.build()
