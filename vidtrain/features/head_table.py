"""The heads of a grid, each at its best evaluation on val: which was selected, and how near the others came."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from vidtrain.training.heads import head_choices, head_names
from vidtrain.training.run import PhaseSettings
from vidtrain.training.validation import HEADS


def head_table(
    rows: Sequence[Mapping[str, Any]], phases: Mapping[str, PhaseSettings], monitor: str, direction: str
) -> list[dict[str, Any]]:
    """A row for each head of every phase that has a grid, the best value of `monitor` first.

    `rows` are those of metrics.jsonl. Each result has the phase, the head's name, its peak rate and weight decay, the
    step of its best evaluation and all metrics of that. Heads that diverged before any evaluation come last.
    Equal values are in the order in which training would have selected them: the earlier step, then the earlier head.
    """
    found = []
    sign = -1 if direction == "max" else 1
    for phase_name, phase in phases.items():
        if phase.heads is None:
            continue
        choices = zip(head_names(phase.heads), head_choices(phase.heads), strict=True)
        for place, (name, (lr, decay)) in enumerate(choices):
            prefix = f"{HEADS}/{name}/"
            judged = [row for row in rows if row.get("phase") == phase_name and f"{prefix}{monitor}" in row]
            best = min(judged, key=lambda row: (_cost(row, prefix, monitor, sign), row["step"]), default=None)
            if best is None:
                continue
            metrics = {
                key.removeprefix(prefix): value for key, value in best.items() if key.startswith(prefix)
            }
            given = {"phase": phase_name, "head": name, "lr": lr, "weight_decay": decay, "step": best["step"]}
            order = (_cost(best, prefix, monitor, sign), best["step"], place)
            found.append((order, {**given, **metrics}))
    return [row for _, row in sorted(found, key=lambda each: each[0])]


def _cost(row: Mapping[str, Any], prefix: str, monitor: str, sign: int) -> float:
    # metrics.jsonl has null for what is not finite, and the loss of a head that has diverged is not
    if row[f"{prefix}loss"] is None or row[f"{prefix}{monitor}"] is None:
        return math.inf
    return sign * row[f"{prefix}{monitor}"]
