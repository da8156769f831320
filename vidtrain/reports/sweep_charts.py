"""The pictures of a sweep, from the summary of its comparison: parallel coordinates, and what each setting explains."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from vidtrain.reports.plots import COLORS, save_png

Plain = Mapping[str, Any]

MOST_TICKS = 12
MOST_AXES = 12  # settings beside each other
MOST_BARS = 40  # settings below each other
MOST_LINES = 1000  # runs
TICK_LENGTH = 18
KEY_LENGTH = 22


@dataclass(frozen=True)
class Axis:
    """Where each value of a setting stands, from 0 to 1, and what is written beside it."""

    name: str
    places: list[float]  # of the runs
    ticks: list[tuple[float, str]]


def plot_parallel_coordinates(summary: Plain, path: Path) -> None:
    """A line for every run, through its value of each swept setting to its metric; brighter is better."""
    metric = summary["metric"]
    compared = {each["number"] for each in summary["recipes"] if each["compared"]}
    runs = [
        run for run in summary["runs"] if run["recipe"] in compared and run["metrics"][metric] is not None
    ]
    keys = [key for key in summary["keys"] if len({str(run["settings"][key]) for run in runs}) > 1]
    if len(keys) > MOST_AXES:  # those that account for most; of others, the first
        credit = {each["key"]: each["share"] for each in summary["importance"]}
        told = {key: credit[key] if key in credit else 0.0 for key in keys}
        kept = sorted(keys, key=lambda key: -told[key])[:MOST_AXES]
        keys = [key for key in keys if key in kept]
    axes_of = [setting_axis(summary["keys"][key], [run["settings"][key] for run in runs]) for key in keys]
    values = np.array([run["metrics"][metric] for run in runs])
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    ticks = [((tick - low) / span, f"{tick:.3g}") for tick in np.linspace(low, high, 5)]
    axes_of.append(Axis(metric, ((values - low) / span).tolist(), ticks))

    figure = Figure(figsize=(min(16, 3.2 + 2.1 * len(axes_of)), 4.6), layout="constrained")
    axes = figure.add_subplot()
    scale = Normalize(low, high) if summary["higher_is_better"] else Normalize(-high, -low)
    better = values if summary["higher_is_better"] else -values
    order = np.argsort(better)  # the best are drawn last, on top
    if len(order) > MOST_LINES:
        order = order[np.linspace(0, len(order) - 1, MOST_LINES).round().astype(int)]
    for place in order:
        color = colormaps["viridis"](scale(better[place]))
        xs, ys = _smooth([axis.places[place] for axis in axes_of])
        axes.plot(xs, ys, color=color, linewidth=1.6, alpha=0.85, zorder=2)
    for x, axis in enumerate(axes_of):
        _draw_axis(axes, x, axis, last=x == len(axes_of) - 1)
    axes.set_xlim(-0.25, len(axes_of) - 1 + 0.3)
    axes.set_ylim(-0.06, 1.2)
    axes.set_axis_off()
    figure.suptitle(f"{len(runs)} runs: settings and {metric}", fontsize=10.5, x=0.01, ha="left")
    bar = figure.colorbar(
        ScalarMappable(
            Normalize(low, high), colormaps["viridis" if summary["higher_is_better"] else "viridis_r"]
        ),
        ax=axes,
        pad=0.01,
        shrink=0.75,
    )
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    save_png(figure, path)


def setting_axis(name: str, row: Sequence[Any]) -> Axis:
    """Numbers by size, on a logarithmic axis where they span a factor of ten; anything else at even distances."""
    short = name if len(name) <= KEY_LENGTH else f"…{name[1 - KEY_LENGTH :]}"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in row):
        numbers = [float(value) for value in row]
        logarithmic = min(numbers) > 0 and max(numbers) >= 10 * min(numbers)
        scaled = [math.log10(value) if logarithmic else value for value in numbers]
        low, span = min(scaled), (max(scaled) - min(scaled)) or 1.0
        places = [(value - low) / span for value in scaled]
        known = sorted(set(zip(places, numbers, strict=True)))
        if len(known) > MOST_TICKS:
            known = [known[index] for index in np.linspace(0, len(known) - 1, 5).astype(int)]
        return Axis(short, places, _apart([(place, f"{value:.4g}") for place, value in known]))
    names = list(dict.fromkeys(str(value) for value in row))
    step = 1 / max(1, len(names) - 1)
    places = {each: index * step if len(names) > 1 else 0.5 for index, each in enumerate(names)}
    ticks = [
        (places[each], each if len(each) <= TICK_LENGTH else f"{each[: TICK_LENGTH - 1]}…") for each in names
    ]
    if len(ticks) > MOST_TICKS:
        ticks = [ticks[index] for index in np.linspace(0, len(ticks) - 1, MOST_TICKS).round().astype(int)]
    return Axis(short, [places[str(value)] for value in row], ticks)


def _apart(ticks: Sequence[tuple[float, str]]) -> list[tuple[float, str]]:
    """Ticks without those whose words would run into the one before."""
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        if not kept or tick[0] - kept[-1][0] >= 0.05:
            kept.append(tick)
    return kept


def _smooth(places: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A line through `places` at 0, 1, 2, ... that is level at each of them, so that crossings can be followed."""
    t = np.linspace(0, 1, 25)
    ease = t * t * (3 - 2 * t)
    xs = [index + t for index in range(len(places) - 1)]
    ys = [a + (b - a) * ease for a, b in zip(places, places[1:], strict=False)]
    return np.concatenate(xs), np.concatenate(ys)


def _draw_axis(axes: Axes, x: int, axis: Axis, last: bool) -> None:
    axes.plot([x, x], [0, 1], color="0.35", linewidth=1, zorder=3)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4}
    axes.text(x, 1.09, axis.name, ha="center", va="bottom", fontsize=9.5, fontweight="bold")
    for place, words in axis.ticks:
        axes.plot([x - 0.012, x + 0.012], [place, place], color="0.35", linewidth=1, zorder=3)
        # above the lines, which are level here; nothing is to the right of the last axis
        offset, side = ((6, 0), "center") if last else ((4, 2), "bottom")
        axes.annotate(
            words,
            (x, place),
            xytext=offset,
            textcoords="offset points",
            va=side,
            fontsize=8.5,
            bbox=box,
            zorder=4,
        )


def plot_importance(summary: Plain, path: Path) -> None:
    """The share of the variance between runs that each setting accounts for, taken alone."""
    found = summary["importance"][:MOST_BARS]
    figure = Figure(figsize=(8, 1.3 + 0.42 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    for row, each in enumerate(found):
        repeated = each["key"] in summary["repeats"]
        axes.barh(row, each["share"], height=0.62, color="0.9", label="as found" if row == 0 else None)
        if each["adjusted"] is None:
            axes.text(0.01, row, "one run a value: cannot be told", va="center", fontsize=8.5, color="0.35")
            continue
        color = "0.55" if repeated else COLORS[0]
        axes.barh(
            row, each["adjusted"], height=0.62, color=color, label="beyond chance" if row == 0 else None
        )
        axes.text(
            max(each["share"], each["adjusted"]) + 0.012,
            row,
            f"{each['adjusted']:.0%}",
            va="center",
            fontsize=8.5,
        )
    names = [
        summary["keys"][each["key"]] if each["key"] in summary["keys"] else each["key"] for each in found
    ]
    axes.set_yticks(range(len(found)), names, fontsize=9)
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6), [f"{tick:.0%}" for tick in np.linspace(0, 1, 6)], fontsize=8.5)
    axes.set_title(
        f"share of the variance of {summary['metric']} between runs, each setting alone",
        fontsize=10,
        loc="left",
    )
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8.5, frameon=False, loc="lower right")
    save_png(figure, path)
