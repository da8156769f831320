"""A finished run as one page, from plain values and pictures, light enough to be mailed."""

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from vidtrain.reports.frames import few_digits
from vidtrain.reports.model_card import METRICS
from vidtrain.reports.pages import render
from vidtrain.reports.run_charts import baseline_chart, reliability_diagram, risk_chart

Plain = Mapping[str, Any]

HEADLINES = {"top1": "top-1 accuracy", "map": "mean average precision"}
MATRIX_UP_TO = 30  # classes; of more, the pairs that are most confused are listed
MOST_BYTES = 4_800_000  # of the page
MOST_HEADS, MOST_PAIRS, MOST_CLASSES, MOST_SETTINGS = 40, 30, 200, 20  # rows of tables
DROPPED = ("unsure", "wrong", "sheet")  # kinds of pictures, those first that are left out first
# rows of tables, and characters of a value; the first that fits is taken
CUTS = ((200, 2000), (60, 400), (12, 80))
WHOLE = ("command",)  # values that are of use only as a whole
MOST_WHOLE = 100_000  # characters of those


@dataclass(frozen=True)
class Picture:
    """A WebP or PNG file in its bytes; `kind` is wrong, unsure or sheet, and `shows` what vidtrain.runs.examples says
    of it, empty for a sheet of several videos."""

    kind: str
    data: bytes
    shows: Plain


def run_page(facts: Plain, pictures: Sequence[Picture], most_bytes: int = MOST_BYTES) -> str:
    """The page of vidtrain.runs.page.read_facts, of at most `most_bytes`.

    Pictures are left out until it fits: the last of the right answers first, then the last of the mistakes. A page
    that is too large without any has shorter tables and shorter values.
    """
    for rows, characters in CUTS:
        short = _cut(facts, characters)
        size = len(_page(short, [], len(pictures), rows).encode())
        if size <= most_bytes or (rows, characters) == CUTS[-1]:
            break
    kept = list(pictures)
    while kept and size > most_bytes - _room(kept):
        kept.remove(next(picture for kind in DROPPED for picture in reversed(kept) if picture.kind == kind))
    return _page(short, kept, len(pictures) - len(kept), rows)


def _room(pictures: Sequence[Picture]) -> int:
    """Bytes that pictures add to a page, at most: themselves in base64, and what is said of them, escaped."""
    return sum(len(picture.data) * 4 // 3 + 1000 + 6 * len(str(picture.shows)) for picture in pictures)


def _page(facts: Plain, pictures: Sequence[Picture], left_out: int, rows: int) -> str:
    folder = _common([picture.shows for picture in pictures])
    shown = [_with_names(picture, folder) for picture in pictures]
    metric, curve = facts["metric"], (facts["calibration"] or {"curve": None})["curve"]
    return render(
        "run.html.jinja",
        title=f"{facts['name'] or 'A run'}: {facts['run']}",
        run=facts,
        headline=None if metric is None else HEADLINES[metric],
        value=None if metric is None else facts["evaluated"]["metrics"][metric],
        titles=METRICS,
        chart=baseline_chart(facts["baselines"]),
        diagrams=[reliability_diagram(row) for row in facts["reliability"]],
        risk=risk_chart(curve) if curve else None,
        pictures={kind: [picture for picture in shown if picture["kind"] == kind] for kind in DROPPED},
        folder=folder,
        left_out=left_out,
        most={name: min(most, rows) for name, most in
              (("heads", MOST_HEADS), ("pairs", MOST_PAIRS), ("classes", MOST_CLASSES), ("settings", MOST_SETTINGS),
               ("rows", rows))},
        few_digits=few_digits,
    )  # fmt: skip


def _with_names(picture: Picture, folder: str) -> Plain:
    image = "webp" if picture.data.startswith(b"RIFF") else "png"
    path = picture.shows["path"] if picture.shows else ""
    return {
        **picture.shows,
        "kind": picture.kind,
        "source": f"data:image/{image};base64,{base64.b64encode(picture.data).decode()}",
        "below": path.removeprefix(f"{folder}/") if folder else path,
    }


def _common(videos: Sequence[Plain]) -> str:
    """The folder that all videos lie below, or nothing where there is none."""
    folders = {str(PurePath(video["path"]).parent) for video in videos if video}
    if not folders or len({os.path.isabs(folder) for folder in folders}) > 1:
        return ""
    return os.path.commonpath(folders)


def _cut(value: Any, longest: int) -> Any:
    """A copy in which no text is longer, as a name from outside may have any length."""
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[: longest - 1]}…"
    if isinstance(value, Mapping):
        return {
            _cut(key, longest): _cut(item, max(longest, MOST_WHOLE) if key in WHOLE else longest)
            for key, item in value.items()
        }
    return type(value)(_cut(item, longest) for item in value) if isinstance(value, list | tuple) else value
