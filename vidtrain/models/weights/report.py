"""What of a file of weights found its place in a model, said in the log and kept in the run folder."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# What becomes of tensors that are not loaded, in words
KINDS = {
    "skipped": " of a head for other classes",
    "missing": " that the model has and the file has not",
    "unexpected": " that the file has and the model has not",
    "mismatched": " of another shape",
}


@dataclass
class LoadReport:
    """Tensors by what became of them, by our names; `left_out` and `unexpected` by those of the file.

    `changed` are those of `loaded` that were joined, split or folded, `resized` those that were fitted to the
    model's sizes; both say how. `skipped` is a head for other classes, left as it was initialized. `left_out` is
    what the model has no use for, with the reason.
    """

    source: str
    format: str
    loaded: list[str] = field(default_factory=list)
    changed: dict[str, str] = field(default_factory=dict)
    resized: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    match: float = 0.0  # the share of the tensors that should have found a place, and did

    def lines(self) -> list[str]:
        """A line for the source, then one for each kind that is not empty: how many, why, and the first names."""
        rows = [f"{self.source}: {self.format}; {self.match:.1%} of the tensors match"]
        rows.append(f"loaded {len(self.loaded)}{_reasons(self.changed, ', among them ')}")
        if self.resized:
            how = [f"{name} ({why})" for name, why in self.resized.items()]
            rows.append(f"resized {len(how)}: {_some(how, 3)}")
        for kind, why in KINDS.items():
            names = getattr(self, kind)
            if names:
                rows.append(f"{kind} {len(names)}{why}: {_some(names, 4)}")
        if self.left_out:
            rows.append(f"left out {len(self.left_out)}{_reasons(self.left_out, ': ')}")
        return rows

    def as_dict(self) -> dict[str, Any]:
        """For starting_point.json: every name of every kind, and the counts."""
        kinds = asdict(self)
        counts = {kind: len(names) for kind, names in kinds.items() if isinstance(names, list | dict)}
        return {"source": self.source, "format": self.format, "match": self.match, "counts": counts} | kinds


def _reasons(why: Mapping[str, str], before: str) -> str:
    said = "; ".join(f"{reason} ({count})" for reason, count in Counter(why.values()).most_common())
    return before + said if said else ""


def _some(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (", ..." if names[most:] else "")
