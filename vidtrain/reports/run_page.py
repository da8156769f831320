"""Makes the page of a finished run from plain values and pictures, small enough for mail.

This module computes coordinates for its charts; templates/run_charts.svg.jinja draws them as inline SVG in the page's
colors, so that they follow dark mode.
"""

import base64
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vidtrain.reports.charts import shortened, thinned
from vidtrain.reports.frames import few_digits
from vidtrain.reports.pages import METRIC_TITLES, render
from vidtrain.reports.plots import (
    PANELS,
    SMOOTH_FROM,
    Curves,
    Panel,
    curves_of,
    read_curves,
    running_mean,
    spans_a_decade,
)

Plain = Mapping[str, Any]
Curve = tuple[ArrayLike, ArrayLike, int]  # x, y, and its color

HEADLINES = {"top1": "top-1 accuracy", "map": "mean average precision"}
MATRIX_UP_TO = 30  # classes; with more, the most confused pairs are listed instead
MOST_BYTES = 4_800_000  # of the page
MOST_ROWS = {"heads": 40, "pairs": 30, "classes": 200, "settings": 20}  # rows of each table
DROPPED = ("unsure", "wrong", "sheet")  # kinds of pictures, in the order in which they are left out
# (rows of a table, characters of a value): the first pair with which the page fits is used
CUTS = ((200, 2000), (60, 400), (12, 80))
WHOLE = ("command",)  # values that are useless when cut
MOST_WHOLE = 100_000  # characters of these values
# CSS pixels: as wide as a phone, so that text is not scaled there
WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 58, 8, 24, 20  # LEFT has room for 0.00015
POINTS = 240  # points of a curve; more are averaged
MOST_LINES = 6  # lines of a panel: there are as many colors
DOTS_UP_TO = 40  # points up to which each is marked
LONGEST_PHASE, LETTER = 13, 5.5  # characters of a phase's name, and the approximate width of one in pixels
LEAST_OF_A_BIN = 5  # answers; smaller bins are left out, as their share is mostly chance
ROW = 40  # height of a baseline's row: its name above its interval
BASELINE_LEFT, BASELINE_RIGHT, BASELINE_TOP = 12, 12, 8


@dataclass(frozen=True)
class Picture:
    """The bytes of a WebP or PNG file. `kind` is wrong, unsure or sheet; `shows` describes the video as
    vidtrain.runs.examples does, and is empty for a sheet of several videos."""

    kind: str
    data: bytes
    shows: Plain

    @property
    def room(self) -> int:
        """An upper bound of the bytes that it adds to a page: the file in base64, and its description, escaped."""
        return len(self.data) * 4 // 3 + 1000 + 6 * len(str(self.shows))


def run_page(facts: Plain, pictures: Sequence[Picture], most_bytes: int = MOST_BYTES) -> str:
    """The HTML page of a run, from what vidtrain.runs.page.read_facts returns, with at most `most_bytes`. Pictures are
    left out until it fits: first the last right answers, then the last mistakes. If it is too large without pictures,
    its tables and values are shortened."""
    for rows, characters in CUTS:
        short = _cut(facts, characters)
        size = len(_page(short, [], len(pictures), rows).encode())
        if size <= most_bytes or (rows, characters) == CUTS[-1]:
            break
    kept = list(pictures)
    while kept and size + sum(picture.room for picture in kept) > most_bytes:
        kept.remove(next(picture for kind in DROPPED for picture in reversed(kept) if picture.kind == kind))
    return _page(short, kept, len(pictures) - len(kept), rows)


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
        titles=METRIC_TITLES,
        chart=baseline_chart(facts["baselines"]),
        diagrams=[reliability_diagram(row) for row in facts["reliability"]],
        risk=risk_chart(curve) if curve else None,
        pictures={kind: [picture for picture in shown if picture["kind"] == kind] for kind in DROPPED},
        folder=folder,
        left_out=left_out,
        most={name: min(most, rows) for name, most in MOST_ROWS.items()} | {"rows": rows},
        few_digits=few_digits,
    )


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
    """The deepest folder that holds all videos; empty if there is none."""
    folders = {str(PurePath(video["path"]).parent) for video in videos if video}
    if not folders or len({os.path.isabs(folder) for folder in folders}) > 1:
        return ""
    return os.path.commonpath(folders)


def _cut(value: Any, longest: int) -> Any:
    """A copy of `value` in which no text is longer than `longest` characters, as names may have any length."""
    if isinstance(value, str):
        return value if len(value) <= longest else f"{value[: longest - 1]}…"
    if isinstance(value, Mapping):
        return {
            _cut(key, longest): _cut(item, max(longest, MOST_WHOLE) if key in WHOLE else longest)
            for key, item in value.items()
        }
    return type(value)(_cut(item, longest) for item in value) if isinstance(value, list | tuple) else value


# --- charts: coordinates of ticks, lines and dots ---------------------------------------------------------


def linear(low: float, high: float, start: float, end: float) -> Any:
    """A function that maps a value or an array linearly, `low` to `start` and `high` to `end`."""
    return lambda value: start + (value - low) / (high - low) * (end - start)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, about `most` of them."""
    tolerance = 1e-9 * (high - low)
    return [
        float(tick)
        for tick in MaxNLocator(most, steps=[1, 2, 5, 10]).tick_values(low, high)
        if low - tolerance <= tick <= high + tolerance
    ]


# --- curves -----------------------------------------------------------------------------------------------


def curve_panels(rows: Iterable[Mapping[str, Any]], best_step: int | None) -> list[Plain]:
    """A chart for each kind of number in rows of metrics.jsonl, with marks at the first step of each phase and at the
    best step."""
    logged, borders = read_curves(rows)
    panels = [(panel, curves) for panel in PANELS if (curves := curves_of(panel, logged))]
    if "weight_decay" in logged and len(set(logged["weight_decay"][1])) == 1:  # a constant is no chart
        panels = [(panel, curves) for panel, curves in panels if "weight_decay" not in curves]
    if not panels:
        return []
    steps = [step for _, curves in panels for curve in curves.values() for step in (curve[0][0], curve[0][-1])]
    low, high = min(steps), max(steps)
    if low == high:
        low, high = low - 1, high + 1
    across = linear(low, high, LEFT, WIDTH - RIGHT)
    marks = {
        **_frame([(across(tick), _number(tick)) for tick in ticks(low, high, 5)]),
        "phases": _phases(borders, across),
        "best": across(best_step) if best_step is not None and low <= best_step <= high else None,
    }
    return [{**marks, **_panel(panel, curves, across)} for panel, curves in panels]


def _phases(borders: Sequence[tuple[int, str]], across: Any) -> list[Plain]:
    """Marks where each of several phases begins. A phase's name is `shown` only if it does not overlap the one
    before."""
    if len(borders) < 2:
        return []
    phases: list[Plain] = []
    free = 0.0
    for step, name in borders:
        x = max(across(step), LEFT)
        shown = shortened(name, LONGEST_PHASE) if x >= free else ""
        phases.append({"x": x, "name": name, "shown": shown, "first": not phases})
        free = x + LETTER * (len(shown) + 1) if shown else free
    return phases


def _panel(panel: Panel, curves: Curves, across: Any) -> Plain:
    """One chart: its named lines, and the ticks of its vertical axis."""
    logarithmic = panel.log_scale and spans_a_decade(curves)
    lines = []
    for number, (key, curve) in enumerate(list(curves.items())[:MOST_LINES]):
        steps, values, low, high = thinned(*curve, POINTS)
        lines.append(
            {
                "name": key.removeprefix(panel.prefix).replace("_", " ").replace("/", " "),
                "color": number,
                "x": across(steps),
                "y": values,
                "band": (low, high) if len(curve[0]) > POINTS else None,
                "smooth": key.startswith("train/") and len(steps) >= SMOOTH_FROM,
            }
        )
    scale = np.log10 if logarithmic else np.asarray
    shown = np.concatenate([values for line in lines for values in (line["y"], *(line["band"] or ()))])
    values = scale(_positive(shown) if logarithmic else shown)
    bottom, top = panel.whole_range or _padded(values[np.isfinite(values)])
    down = linear(bottom, top, HEIGHT - BOTTOM, TOP)
    tick_texts = _log_ticks(bottom, top) if logarithmic else [(tick, _number(tick)) for tick in ticks(bottom, top, 5)]

    def to_pixels(values: np.ndarray) -> np.ndarray:
        return down(scale(_positive(values) if logarithmic else values))

    return {
        "title": panel.title,
        "y_ticks": [(down(value), text) for value, text in tick_texts],
        "lines": [_drawn(line, to_pixels) for line in reversed(lines)],  # the first is drawn last, on top
        "more": max(0, len(curves) - MOST_LINES),
    }


def _drawn(line: Plain, to_pixels: Any) -> Plain:
    x, y = line["x"], to_pixels(line["y"])
    smooth = to_pixels(running_mean(line["y"], max(1, len(x) // 50))) if line["smooth"] else None
    finite = np.isfinite(y)
    return {
        "name": line["name"],
        "color": line["color"],
        "path": path(x, y if smooth is None else smooth),
        "pale": "" if smooth is None else path(x, y),
        "band": "" if line["band"] is None else _band(x, *map(to_pixels, line["band"])),
        "dots": list(zip(x[finite].tolist(), y[finite].tolist(), strict=True)) if finite.sum() <= DOTS_UP_TO else [],
    }


def path(x: np.ndarray, y: np.ndarray) -> str:
    """The `d` attribute of an SVG path through points; points that are not finite leave gaps."""
    parts, drawing = [], False
    for across, down in zip(x.tolist(), y.tolist(), strict=True):
        if math.isfinite(down):
            parts.append(f"{'L' if drawing else 'M'}{across:.1f} {down:.1f}")
        drawing = math.isfinite(down)
    return "".join(parts)


def _band(x: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
    finite = np.isfinite(low) & np.isfinite(high)
    upper, lower = path(x[finite], high[finite]), path(x[finite][::-1], low[finite][::-1])
    return f"{upper}{lower.replace('M', 'L')}Z" if upper else ""


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)


def _padded(values: np.ndarray) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Ticks at 1, 2 and 5 times each power of ten, or only at the powers if that is more than five ticks; `low` and
    `high` are logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    for digits in ((1, 2, 5), (1,)):
        values = [digit * 10.0**power for power in powers for digit in digits]
        inside = [(math.log10(value), _number(value)) for value in values if low <= math.log10(value) <= high]
        if len(inside) <= 5:
            break
    return inside


def _number(value: float) -> str:
    """`0.25`, `1,200`, `12k`"""
    value = 0.0 if abs(value) < 1e-12 else value
    if abs(value) >= 1e4:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


# --- probabilities ----------------------------------------------------------------------------------------


def reliability_diagram(row: Mapping[str, Any]) -> Plain:
    """A chart of the accuracy over the mean probability of each bin of `before` and, unless None, `after`; small bins
    are left out. Calibrated probabilities lie on the diagonal (DeGroot & Fienberg, 1983)."""
    curves: dict[str, Curve] = {"perfectly calibrated": ([0.0, 1.0], [0.0, 1.0], 5)}
    for number, name in enumerate(("before", "after")):
        if row[name] is not None:
            bins = [(mean, right) for answers, mean, right in row[name]["bins"] if answers >= LEAST_OF_A_BIN]
            shown = name if row["after"] is not None else "this run"
            curves[shown] = (*np.array(bins).reshape(-1, 2).T, number)
    return _chart(row["name"], curves, (0.0, 1.0), (0.0, 1.0))


def risk_chart(curve: Mapping[str, Sequence[float]]) -> Plain:
    """A chart of the share of wrong answers over the share of videos that are answered, the most confident first."""
    highest = max(curve["risk"]) or 0.01
    lines: dict[str, Curve] = {"wrong answers": (curve["coverage"], curve["risk"], 1)}
    return _chart("wrong, over share answered", lines, (0.0, 1.0), (0.0, 1.05 * highest))


def _chart(
    title: str,
    curves: Mapping[str, Curve],
    x_range: tuple[float, float],
    y_range: tuple[float, float],
) -> Plain:
    """A chart of named curves (x, y, color) in fixed ranges."""
    across, down = linear(*x_range, LEFT, WIDTH - RIGHT), linear(*y_range, HEIGHT - BOTTOM, TOP)
    lines = []
    for name, (x, y, color) in reversed(list(curves.items())):
        places = across(np.asarray(x)), down(np.asarray(y))
        dots = list(zip(*(axis.tolist() for axis in places), strict=True))
        marked = dots if len(dots) != 2 and len(dots) <= DOTS_UP_TO else []  # a straight line has none
        lines.append({"name": name, "color": color, "path": path(*places), "pale": "", "band": "", "dots": marked})
    marks = {"title": title, "lines": lines, "phases": [], "best": None, "more": 0}
    return {
        **marks,
        **_frame([(across(tick), _number(tick)) for tick in ticks(*x_range, 5)]),
        "y_ticks": [(down(tick), _number(tick)) for tick in ticks(*y_range, 5)],
    }


def _frame(x_ticks: list[tuple[float, str]]) -> Plain:
    """The size of a chart, its plot area, and the ticks of the horizontal axis."""
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "x_ticks": x_ticks,
    }


# --- differences to baselines -----------------------------------------------------------------------------


def baseline_chart(baselines: Sequence[Mapping[str, Any]]) -> Plain | None:
    """A chart of the differences to baselines (`difference`, `low`, `high`) as dots and intervals on one axis with 0;
    None if there is none."""
    with_difference = [row for row in baselines if row["difference"] is not None]
    if not with_difference:
        return None
    bounds = [
        0.0,
        *(row[key] for row in with_difference for key in ("low", "difference", "high") if row[key] is not None),
    ]
    margin = 0.05 * (max(bounds) - min(bounds)) or 0.05
    low, high = min(bounds) - margin, max(bounds) + margin
    across = linear(low, high, BASELINE_LEFT, WIDTH - BASELINE_RIGHT)
    bottom = BASELINE_TOP + ROW * len(with_difference)
    rows = []
    for number, row in enumerate(with_difference):
        has_interval = row["low"] is not None and row["high"] is not None
        rows.append(
            {
                "name": row["name"],
                "words": f"{row['difference']:+.4f} in {row['metric']}",
                "verdict": row["verdict"],
                "y": BASELINE_TOP + ROW * number,
                "dot": across(row["difference"]),
                "interval": (across(row["low"]), across(row["high"])) if has_interval else None,
            }
        )
    return {
        "width": WIDTH,
        "height": bottom + BOTTOM,
        "top": BASELINE_TOP,
        "bottom": bottom,
        "zero": across(0.0),
        "ticks": [(across(tick), f"{tick:+.3g}" if abs(tick) > 1e-12 else "0") for tick in ticks(low, high, 5)],
        "rows": rows,
    }
