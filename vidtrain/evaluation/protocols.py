"""Computes from one view table every protocol that it holds: fewer clips, one crop, each fusion, other frame orders.

`clip_choice` picks c of the n clips. If it reports `same`, an evaluation with c clips would read the same frames and
give the same numbers. Otherwise the chosen clips are the nearest that the table has.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import first_classes, from_label_logits, from_logits
from vidtrain.evaluation.view_store import StoredViews
from vidtrain.evaluation.views import ViewTable, fuse
from vidtrain.files.atomic import write_json_atomic, write_text_atomic
from vidtrain.files.escaping import csv_text

MOST_SUBSETS = 20  # a point of the curve is the mean over at most this many choices of clips
RULE = {
    "dense": "c of n clips: clip round(i (n - 1) / (c - 1)) for i = 0 ... c - 1, halves up; for one clip n // 2",
    "parts": "c of n clips: clip floor((2 i + 1) n / (2 c)) for i = 0 ... c - 1, the nearest by their middles",
    "uniform": "c of n clips: clip floor(i n / c) for i = 0 ... c - 1; for one clip n // 2",
    "vjepa2": "c of n clips: clip floor(i n / c) for i = 0 ... c - 1",
    "vjepa2_random": "c of n clips: clip floor(i n / c) for i = 0 ... c - 1",
    "videomae": "c of n clips: clip round(i (n - 1) / (c - 1)) for i = 0 ... c - 1, halves up; for one clip n // 2",
    "pyslowfast": "c of n clips: clip floor(i n / c) for i = 0 ... c - 1",
    "pyslowfast_offset": "as dense; their starts are rounded down, so fewer clips start a few frames elsewhere",
}


@dataclass(frozen=True)
class Choice:
    """Chosen clips or crops, numbered from 0; `same` if an evaluation with as many of them would take the same
    views."""

    numbers: tuple[int, ...]
    same: bool


@dataclass(frozen=True)
class Protocol:
    """One way to evaluate from the table, and its `metrics`: those of videos, and those of single views as `clip_...`.
    `num_clips` is the number of clips of each video; clips that the model attends jointly are one row of the table."""

    order: str
    num_clips: int
    clips: Choice
    crops: Choice
    fusion: str
    metrics: dict[str, float]

    @property
    def same(self) -> bool:
        return self.clips.same and self.crops.same

    @property
    def name(self) -> str:
        return f"{self.num_clips}x{len(self.crops.numbers)}"


@dataclass(frozen=True)
class Point:
    """The video metric with a number of `clips`: its mean, lowest and highest value over `subsets` choices of them."""

    clips: int
    crops: int
    subsets: int
    mean: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class Probe:
    """A protocol with another order of frames, compared with the first order: the `change` of the metric, and the share
    of videos whose predicted class stays the same."""

    protocol: Protocol
    change: float
    same_class: float


def clip_choice(sampling: str, overlap: bool, n: int, c: int) -> Choice:
    """Chooses c of n clips for an evaluation with c clips, and says whether that would read the same frames.

    Dense and VideoMAE clips start at even distances from the first possible start to the last; a single clip is
    centered. They are the same if all of these starts are in the table. Uniform clips are shifted by shares of a
    segment, and a single clip by half a segment. PySlowFast's clips start at shares of the possible range; its offsets
    are rounded to whole frames, so they are never the same. Clips of parts without overlap, and V-JEPA 2's, depend on
    the number of parts, so they are never the same either.
    """
    if c == n:
        return Choice(tuple(range(n)), True)
    if not sampling.startswith("vjepa2") and not overlap:
        return Choice(tuple((2 * i + 1) * n // (2 * c) for i in range(c)), False)
    if sampling.startswith("vjepa2"):
        return Choice(tuple(i * n // c for i in range(c)), False)
    if sampling == "pyslowfast":
        return Choice(tuple(i * n // c for i in range(c)), n % c == 0)
    rounded = sampling == "pyslowfast_offset"
    if c == 1:
        return Choice((n // 2,), not rounded and n % 2 == (0 if sampling == "uniform" else 1))
    if sampling == "uniform":
        return Choice(tuple(i * n // c for i in range(c)), n % c == 0)
    places = tuple((2 * i * (n - 1) + c - 1) // (2 * (c - 1)) for i in range(c))
    return Choice(places, not rounded and (n - 1) % (c - 1) == 0)


def crop_choice(s: int, wanted: int) -> Choice:
    """The `wanted` crops of a table with s crops: all, or the center crop of an odd number. Both are the `same` as in
    an evaluation of their own. Raises `UserError` for another number."""
    if wanted == s:
        return Choice(tuple(range(s)), True)
    if wanted == 1 and s % 2:
        return Choice((s // 2,), True)
    held = "1 or " if s % 2 else ""
    why = "" if s % 2 else ": an even number of crops has no center crop"
    raise UserError(f"crops={wanted} is not in the table, which holds {held}{s}{why}")


def choose(views: StoredViews, clips: int, crops: int) -> tuple[Choice, Choice]:
    """The clips and crops of the table for a protocol. Raises `UserError` if the table does not hold it."""
    about = views.about
    table_clips = about["num_clips"]
    if about["joint"] and clips != table_clips:
        raise UserError(
            f"eval_clips={clips}: the model attends over the tokens of all {table_clips} clips jointly, so its "
            "views cannot be taken apart; evaluate the checkpoint with as many clips"
        )
    if not 1 <= clips <= table_clips:
        raise UserError(f"eval_clips={clips} is not in the table, which holds 1 to {table_clips}")
    clip_numbers = Choice((0,), True)
    if not about["joint"]:
        clip_numbers = clip_choice(about["sampling"], about["overlap"], table_clips, clips)
    return clip_numbers, crop_choice(len(about["crops"]), crops)


def crop_counts(views: StoredViews) -> list[int]:
    s = len(views.about["crops"])
    return [1, s] if s > 1 and s % 2 else [s]


def all_protocols(views: StoredViews, fusions: Sequence[str]) -> list[Protocol]:
    """The protocols of every frame order, number of crops, number of clips and fusion."""
    table_clips = views.about["num_clips"]
    counts = [table_clips] if views.about["joint"] else range(1, table_clips + 1)
    protocols = []
    for order in views.about["orders"]:
        for crops in crop_counts(views):
            for clips in counts:
                protocols += measured(views, order, *choose(views, clips, crops), fusions)
    return protocols


def measured(views: StoredViews, order: str, clips: Choice, crops: Choice, fusions: Sequence[str]) -> list[Protocol]:
    """A protocol for each fusion, with the metrics of the chosen clips and crops."""
    table, independent = views.table(order, clips.numbers, crops.numbers), views.about["independent"]
    labels = table.labels.repeat_interleave(table.logits.shape[1], dim=0)
    of_views = _metrics(table.logits.flatten(0, 1), labels, independent)
    of_views = {f"clip_{key}": value for key, value in of_views.items()}
    count = views.about["num_clips"] if views.about["joint"] else len(clips.numbers)
    protocols = []
    for fusion in fusions:
        metrics = _metrics(fuse(table.logits, fusion, independent), table.labels, independent)
        protocols.append(Protocol(order, count, clips, crops, fusion, metrics | of_views))
    return protocols


def headline(multi_label: bool) -> str:
    """The metric that tables and charts show."""
    return "map" if multi_label else "top1"


def curve(views: StoredViews, fusion: str) -> list[Point]:
    """The metric against the number of clips, for each number of crops, in the table's first frame order. Every point
    is the mean over all subsets of that many clips or, if there are more, over `MOST_SUBSETS` drawn with a fixed seed.
    Empty if the model attends over all clips jointly."""
    about = views.about
    if about["joint"]:
        return []
    name, clips = headline(views.labels.ndim == 2), about["num_clips"]
    points = []
    for crops in crop_counts(views):
        crop_numbers = crop_choice(len(about["crops"]), crops).numbers
        whole = views.table(about["orders"][0], range(clips), crop_numbers)
        logits = whole.logits.unflatten(1, (clips, crops))

        def metric(subset: Sequence[int], whole: ViewTable = whole, logits: Tensor = logits) -> float:
            fused = fuse(logits[:, list(subset)].flatten(1, 2), fusion, about["independent"])
            return _metrics(fused, whole.labels, about["independent"])[name]

        for count in range(1, clips + 1):
            values = [metric(subset) for subset in subsets(clips, count)]
            points.append(Point(count, crops, len(values), float(np.mean(values)), min(values), max(values)))
    return points


def subsets(n: int, c: int) -> list[tuple[int, ...]]:
    """Different choices of c of n clips: all, or `MOST_SUBSETS` drawn with a fixed seed."""
    if math.comb(n, c) <= MOST_SUBSETS:
        return list(itertools.combinations(range(n), c))
    rng = np.random.default_rng([n, c])
    chosen: set[tuple[int, ...]] = set()
    while len(chosen) < MOST_SUBSETS:
        chosen.add(tuple(sorted(rng.choice(n, c, replace=False).tolist())))
    return sorted(chosen)


def probes(views: StoredViews, clips: Choice, crops: Choice, fusion: str) -> list[Probe]:
    """The same protocol with every order of frames, in the table's order."""
    independent, name = views.about["independent"], headline(views.labels.ndim == 2)
    orders = views.about["orders"]
    protocols = [measured(views, order, clips, crops, [fusion])[0] for order in orders]
    base = protocols[0].metrics[name]

    def classes_of(order: str) -> Tensor:
        table = views.table(order, clips.numbers, crops.numbers)
        return first_classes(fuse(table.logits, fusion, independent), 1)

    first = classes_of(orders[0])
    return [
        Probe(protocol, protocol.metrics[name] - base, (classes_of(order) == first).double().mean().item())
        for order, protocol in zip(orders, protocols, strict=True)
    ]


def _metrics(logits: Tensor, labels: Tensor, independent: bool) -> dict[str, float]:
    if labels.ndim == 2:
        return from_label_logits(logits, labels)
    return from_logits(logits, labels, independent)


def as_row(protocol: Protocol) -> dict[str, Any]:
    """A protocol as plain values."""
    return {
        "order": protocol.order,
        "clips": protocol.num_clips,
        "crops": len(protocol.crops.numbers),
        "fusion": protocol.fusion,
        "table_clips": [number + 1 for number in protocol.clips.numbers],
        "table_crops": [number + 1 for number in protocol.crops.numbers],
        "same_as_afresh": protocol.same,
        **protocol.metrics,
    }


def notes(about: Mapping[str, Any]) -> list[str]:
    """Sentences for the report on what the protocols mean."""
    sampling = about["sampling"]
    if about["joint"]:
        return [
            f"The model attends over the tokens of all {about['num_clips']} clips jointly: its views cannot be taken "
            "apart by clips. The table has one row per crop, and only crops and the order of frames vary."
        ]
    return [
        RULE["parts" if not sampling.startswith("vjepa2") and not about["overlap"] else sampling]
        + " (clips counted from 0).",
        "same_as_afresh: whether an evaluation with this number of clips would read the same frames; if it is false, "
        "the frames are only near, and the numbers of such an evaluation may differ.",
        "vote: each view votes for its most probable class; between classes with equal votes, the higher mean "
        "probability wins. The loss and top-5 of vote count the mean probability as one more vote.",
        f"views_curve: each point is the mean over choices of this number of clips, all or {MOST_SUBSETS} drawn with a "
        "fixed seed; protocols use the one choice above.",
    ]


# --- files --------------------------------------------------------------------------------------------------


def write_protocols(
    folder: Path,
    about: Mapping[str, Any],
    protocols: Sequence[Protocol],
    probed: Sequence[Probe],
    points: Sequence[Point],
    fusion: str,
    metric: str,
) -> None:
    """Writes protocols.csv, probes.csv, views_curve.csv and protocols.json into `folder`; `points` show `metric` with
    `fusion`. Clips and crops are numbered from 1. A metric that is not finite is empty in CSV and null in JSON."""
    rows = [as_row(protocol) for protocol in protocols]
    changes = ({"change": probe.change, "same_class": probe.same_class} for probe in probed)
    probe_rows = [as_row(probe.protocol) | change for probe, change in zip(probed, changes, strict=True)]
    of = {"order": about["orders"][0], "fusion": fusion, "metric": metric}
    curve_rows = [of | asdict(point) for point in points]
    _write_csv(folder / "protocols.csv", rows)
    _write_csv(folder / "probes.csv", probe_rows)
    _write_csv(folder / "views_curve.csv", curve_rows)
    whole = {
        "coverage": about["coverage"],
        "clips": about["clip_names"],
        "crops": about["crops"],
        "orders": about["orders"],
        "joint": about["joint"],
        "notes": notes(about),
        "protocols": rows,
        "probes": probe_rows,
        "views_curve": curve_rows,
    }
    write_json_atomic(folder / "protocols.json", whole)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with the same keys. Without rows it removes the file of an earlier evaluation."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    cells = [[_cell(value) for value in row.values()] for row in rows]
    write_text_atomic(path, csv_text([list(rows[0]), *cells], end="\r\n"))


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float):
        return f"{value:.6f}" if math.isfinite(value) else ""
    return value
