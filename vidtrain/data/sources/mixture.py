"""Source: several listings (or other sources) as one, each with its weight and its own frames per clip."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vidtrain.data.manifest.checks import check_splits
from vidtrain.data.manifest.class_names import describe_alike
from vidtrain.data.manifest.columns import CHUNK, Columns, ColumnsBuilder
from vidtrain.data.manifest.manifest import Manifest, Source, SourceInfo
from vidtrain.errors import UserError


@dataclass(frozen=True)
class Part:
    """One source of a mixture, which knows it by name.

    `weight` is the share of training samples that are drawn from it, relative to the weights of the other parts.
    `frames` are its frames per clip; null: the run's.
    """

    source: Source
    weight: float = 1.0
    frames: int | None = None

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise UserError(f"weight={self.weight}: must be above 0; to leave a part out, set it to null")
        if self.frames is not None and self.frames < 1:
            raise UserError(f"frames={self.frames}: must be 1 or more")


@dataclass(frozen=True)
class Mixture:
    """The videos of all `parts`, by name, which have the same classes in the same order. A part of None is left out.

    A part may lack val and test (a `Listing` with val_share=0), but one must have val. Every record knows its part,
    and `Manifest.sources` what is to be known of that. Raises `UserError` where parts do not fit together.
    """

    parts: Mapping[str, Part | None]

    def __post_init__(self) -> None:
        if not self._chosen():
            raise UserError("dataset.source.parts holds no part; a mixture needs one or more")

    def _chosen(self) -> dict[str, Part]:
        return {name: part for name, part in self.parts.items() if part is not None}

    def inputs(self) -> list[Path] | None:
        """The files of all parts; None where a part does not say which it reads."""
        files: list[Path] = []
        for part in self._chosen().values():
            own = part.source.inputs() if hasattr(part.source, "inputs") else None
            if own is None:
                return None
            files += own
        return files

    def manifests(self) -> dict[str, Manifest]:
        parts = self._chosen()
        found = {name: _manifests_of(name, part) for name, part in parts.items()}
        self._check(found)
        infos = tuple(SourceInfo(name, float(part.weight), part.frames) for name, part in parts.items())
        mixed = {}
        for split in ("train", "val", "test"):
            held = {number: each[split] for number, each in enumerate(found.values()) if split in each}
            if held:
                first = next(iter(held.values()))
                mixed[split] = Manifest.from_columns(_together(held), first.classes, first.frame_rate, infos)
        if "val" not in mixed:
            raise UserError("no part of the mixture has a val split to select on; one must")
        check_splits(mixed)
        return mixed

    def _check(self, found: Mapping[str, dict[str, Manifest]]) -> None:
        name, reference = next((name, manifests["train"]) for name, manifests in found.items())
        for other, manifests in found.items():
            train = manifests["train"]
            if train.classes != reference.classes:
                differing = sorted(set(train.classes) ^ set(reference.classes)) or ["only their order"]
                raise UserError(
                    f"the classes of {other} ({len(train.classes)}) and {name} ({len(reference.classes)}) differ: "
                    f"{', '.join(differing[:8])}; give both the same list with "
                    f"dataset.source.parts.{other}.source.classes"
                    + describe_alike(train.classes, reference.classes)
                )
            if (train.frame_rate, train.multi_label) != (reference.frame_rate, reference.multi_label):
                raise UserError(
                    f"{other} and {name} cannot be mixed: one holds folders of images (or of another frame rate), "
                    "or videos of several labels, and the other does not"
                )


def _manifests_of(name: str, part: Part) -> dict[str, Manifest]:
    try:
        return part.source.manifests()
    except UserError as error:
        # sources name their settings as if they were the dataset's only one
        own = str(error).replace("dataset.source.", f"dataset.source.parts.{name}.source.")
        raise UserError(f"part {name} of the mixture: {own}") from error


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
