"""Draws the pictures of a comparison from its summary: recipes, validation curves, classes, and settings of a sweep."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidtrain.reports.charts import (
    COLORS,
    color_bar,
    name_rows,
    save_png,
    shortened,
    spread_evenly,
    style,
    thinned,
    write_beside,
)
from vidtrain.reports.pages import RECIPE_NAME_LENGTH, name_of, ranked, warn_of_failure

Plain = Mapping[str, Any]

MOST_RECIPES = 30
MOST_LINES = 200  # runs in the picture of curves
MOST_POINTS = 2000  # points of a line
MOST_CLASSES = 40
MOST_COLUMNS = 8  # recipes in the picture of classes
FEW = 10  # a class with fewer videos is gray, as its bootstrap interval is too narrow
VERDICTS = {"better": COLORS[0], "worse": COLORS[1], "not told apart": "0.45"}
MOST_TICKS = 12
MOST_AXES = 12  # settings beside each other
MOST_BARS = 40  # settings below each other
MOST_TRIALS = 1000  # lines of parallel coordinates
TICK_LENGTH = 18
KEY_LENGTH = 22
LEAST_GAP = 0.05  # between ticks, as a share of the axis: closer texts would overlap


def draw(summary: Plain, folder: Path, console: Any) -> list[str]:
    """Draws the pictures for which the summary has data; returns the names of the files, without suffix. A picture that
    fails becomes a warning. Pictures of an earlier comparison that are not drawn again are removed."""
    wanted = {
        "comparison": True,
        "curves": any(run["curve"] for run in summary["runs"]),
        "classes": any(pair["classes"] for pair in summary["comparisons"]),
        "parallel_coordinates": summary["is_sweep"],
        "importance": bool(summary["importance"]),
    }
    for name, plot in PLOTS.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if wanted[name]:
            warn_of_failure(str(path), partial(plot, summary, path), console)
    return [name for name in PLOTS if (folder / f"{name}.png").is_file()]


# --- recipes ----------------------------------------------------------------------------------------------


def plot_recipes(summary: Plain, path: Path) -> None:
    """Draws each recipe's runs with their mean, and beside them its difference from the baseline with intervals."""
    order = ranked(summary)
    recipes = order[:MOST_RECIPES]
    recipes += [recipe for recipe in order[MOST_RECIPES:] if recipe["number"] == summary["baseline"]]
    pairs = {pair["other"]: pair for pair in summary["comparisons"]}
    figure = Figure(figsize=(11 if pairs else 7.5, 1.3 + 0.36 * len(recipes)), layout="constrained")
    panels = figure.subplots(1, 2 if pairs else 1, sharey=True, squeeze=False)[0]
    for row, recipe in enumerate(recipes):
        values = [value for value in recipe["values"] if value is not None]
        panels[0].plot(values, [row] * len(values), "o", color=COLORS[0], alpha=0.45, markersize=5, markeredgewidth=0)
        if values:
            panels[0].plot([recipe["mean"]] * 2, [row - 0.28, row + 0.28], color="0.15", linewidth=1.8)
    style(panels[0], f"{summary['metric']}: runs and their mean")
    if pairs:
        _draw_differences(panels[1], recipes, pairs, summary)
    name_rows(panels[0], [name_of(recipe) for recipe in recipes])
    save_png(figure, path)


def _draw_differences(axes: Axes, recipes: Sequence[Plain], pairs: Mapping[int, Plain], summary: Plain) -> None:
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    for row, recipe in enumerate(recipes):
        if recipe["number"] == summary["baseline"]:
            write_beside(axes, "baseline", (0, row), (5, 0), va="center", fontsize=9, color="0.4")
        elif recipe["number"] in pairs:
            pair = pairs[recipe["number"]]
            color = VERDICTS[pair["verdict"]]
            if pair["interval_with_seeds"]:
                axes.plot(pair["interval_with_seeds"], [row, row], color=color, linewidth=1.2)
            _draw_interval(axes, row, pair["difference"], pair["interval"], color)
    wide = any(pair["interval_with_seeds"] for pair in pairs.values())
    over = "seeds" if summary["pretraining"] else f"videos{'; thin: and seeds' if wide else ''}"
    style(axes, f"difference in {summary['tested']} ({summary['confidence']:.0%} over {over})")
    axes.tick_params(axis="y", length=0)


def _draw_interval(axes: Axes, row: int, value: float, interval: Sequence[float] | None, color: str) -> None:
    if interval is not None:
        axes.plot(interval, [row, row], color=color, linewidth=4, alpha=0.5, solid_capstyle="butt")
    axes.plot(value, row, "o", color=color, markersize=5)


# --- validation curves ------------------------------------------------------------------------------------


def plot_validation(summary: Plain, path: Path) -> None:
    """Draws the metric on val over steps: a line for each run, in the color of its recipe."""
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    recipes = {recipe["number"]: recipe for recipe in summary["recipes"]}
    distinct_colors = len(recipes) <= len(COLORS)
    means = {number: recipe["mean"] for number, recipe in recipes.items() if recipe["mean"] is not None}
    lowest, highest = min(means.values(), default=0), max(means.values(), default=1)
    scale = ScalarMappable(Normalize(lowest, highest), colormaps["viridis"])
    colors: dict[int, Any] = {number: scale.to_rgba(mean) for number, mean in means.items()}
    if distinct_colors:
        colors = dict(zip(recipes, COLORS, strict=False))
    drawn = [run for run in summary["runs"] if run["curve"] and run["recipe"] in colors]
    labeled_recipes = set()
    for run in (drawn[place] for place in spread_evenly(len(drawn), MOST_LINES)):
        number = run["recipe"]
        by_step = np.array(run["curve"])
        steps, values = thinned(by_step[:, 0], by_step[:, 1], MOST_POINTS)[:2]
        axes.plot(
            steps,
            values,
            color=colors[number],
            linewidth=1.3,
            marker="o" if len(steps) <= 40 else None,
            markersize=2.8,
            label=name_of(recipes[number]) if number not in labeled_recipes else None,
        )
        labeled_recipes.add(number)
    where = "" if summary["pretraining"] else " on val"
    style(axes, f"{summary['metric']}{where}, one line for each run", "step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if distinct_colors:
        axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        color_bar(figure, scale, f"mean {summary['metric']} of the recipe", ax=axes, pad=0.02)
    save_png(figure, path)


# --- classes ----------------------------------------------------------------------------------------------


def plot_classes(summary: Plain, path: Path) -> None:
    """Draws differences in recall: bars with intervals for a single recipe, shaded cells for several."""
    pairs = {pair["other"]: pair for pair in summary["comparisons"]}
    shown = [recipe for recipe in ranked(summary) if recipe["number"] in pairs][:MOST_COLUMNS]
    changes = [{row["name"]: row for row in pairs[recipe["number"]]["classes"]} for recipe in shown]
    names = [name for name in changes[0] if all(name in change for change in changes)]
    table = {name: [change[name]["recall_difference"] for change in changes] for name in names}
    kept = sorted(names, key=lambda name: -max(map(abs, table[name])))[:MOST_CLASSES]
    kept.sort(key=lambda name: -np.mean(table[name]))
    title = f"difference in recall from recipe {summary['baseline']}"
    if len(kept) < len(names):
        title += f", the {len(kept)} classes of {len(names)} that change most"
    if len(shown) > 1:
        columns = [name_of(recipe, 34) for recipe in shown]
        _draw_cells(np.array([table[name] for name in kept]), kept, columns, title, path)
        return
    over = "videos and seeds" if pairs[shown[0]["number"]]["interval_with_seeds"] else "videos"
    title += f" ({summary['confidence']:.0%} over {over})"
    rows = [changes[0][name] for name in kept]
    if any(row["support"] < FEW for row in rows):
        title += f"\nclasses of fewer than {FEW} videos are gray: these are too few for a conclusion"
    _draw_bars(rows, title, path)


def _draw_bars(rows: Sequence[Plain], title: str, path: Path) -> None:
    figure = Figure(figsize=(8.6, 1.2 + 0.3 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    for number, row in enumerate(rows):
        bounds, change = row["interval"], row["recall_difference"]
        is_clear = row["support"] >= FEW and bounds is not None and not bounds[0] <= 0 <= bounds[1]
        verdict = ("better" if change > 0 else "worse") if is_clear else "not told apart"
        _draw_interval(axes, number, change, bounds, VERDICTS[verdict])
    style(axes, title)
    name_rows(axes, [f"{shortened(row['name'], RECIPE_NAME_LENGTH)} ({row['support']})" for row in rows])
    save_png(figure, path)


def _draw_cells(table: np.ndarray, names: Sequence[str], columns: Sequence[str], title: str, path: Path) -> None:
    figure = Figure(figsize=(3.0 + 0.95 * len(columns), 1.2 + 0.27 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    bound = max(0.05, float(np.abs(table).max()))
    image = axes.imshow(table, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, fontsize=8.5, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [shortened(name, RECIPE_NAME_LENGTH) for name in names], fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(table):
        color = "white" if abs(value) > 0.65 * bound else "0.15"
        axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=color)
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    color_bar(figure, image, ax=axes, pad=0.02, shrink=0.7)
    save_png(figure, path)


# --- settings of a sweep ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A vertical axis for the values of a setting: the position of each run, from 0 to 1, and ticks with their
    texts."""

    name: str
    places: list[float]  # one for each run
    ticks: list[tuple[float, str]]


def plot_parallel_coordinates(summary: Plain, path: Path) -> None:
    """Draws a line for every run, through its value of each swept setting to its metric; brighter is better."""
    metric = summary["metric"]
    compared = {recipe["number"] for recipe in summary["recipes"] if recipe["compared"]}
    runs = [run for run in summary["runs"] if run["recipe"] in compared and run["metrics"][metric] is not None]
    values = np.array([run["metrics"][metric] for run in runs])
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0
    ticks = [((tick - low) / span, f"{tick:.3g}") for tick in np.linspace(low, high, 5)]
    columns = [
        setting_axis(summary["keys"][key], [run["settings"][key] for run in runs]) for key in _shown_keys(summary, runs)
    ]
    columns.append(Axis(metric, ((values - low) / span).tolist(), ticks))

    figure = Figure(figsize=(min(16, 3.2 + 2.1 * len(columns)), 4.6), layout="constrained")
    axes = figure.add_subplot()
    palette = "viridis" if summary["higher_is_better"] else "viridis_r"
    scale = ScalarMappable(Normalize(low, high), colormaps[palette])
    order = np.argsort(values if summary["higher_is_better"] else -values)  # the best are drawn last, on top
    for run in order[spread_evenly(len(order), MOST_TRIALS)]:
        xs, ys = _smooth([axis.places[run] for axis in columns])
        axes.plot(xs, ys, color=scale.to_rgba(values[run]), linewidth=1.6, alpha=0.85, zorder=2)
    for x, axis in enumerate(columns):
        _draw_axis(axes, x, axis, last=x == len(columns) - 1)
    axes.set_xlim(-0.25, len(columns) - 1 + 0.3)
    axes.set_ylim(-0.06, 1.2)
    axes.set_axis_off()
    figure.suptitle(f"{len(runs)} runs: settings and {metric}", fontsize=10.5, x=0.01, ha="left")
    color_bar(figure, scale, ax=axes, pad=0.01, shrink=0.75)
    save_png(figure, path)


def _shown_keys(summary: Plain, runs: Sequence[Plain]) -> list[str]:
    """The settings that differ between `runs`. If there are too many, those with the largest importance are kept, then
    the first of the others."""
    keys = [key for key in summary["keys"] if len({str(run["settings"][key]) for run in runs}) > 1]
    shares = dict.fromkeys(keys, 0.0) | {row["key"]: row["share"] for row in summary["importance"]}
    kept = sorted(keys, key=lambda key: -shares[key])[:MOST_AXES]
    return [key for key in keys if key in kept]


def setting_axis(name: str, row: Sequence[Any]) -> Axis:
    """The axis of a setting with the values `row`. Numbers are placed by size, logarithmically if they span a factor of
    ten; other values at even distances."""
    short = name if len(name) <= KEY_LENGTH else f"…{name[1 - KEY_LENGTH :]}"
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in row):
        logarithmic = min(row) > 0 and max(row) >= 10 * min(row)
        scaled = [math.log10(value) if logarithmic else float(value) for value in row]
        low, span = min(scaled), (max(scaled) - min(scaled)) or 1.0
        places = [(value - low) / span for value in scaled]
        points = sorted(set(zip(places, map(float, row), strict=True)))
        shown_points = [
            points[at] for at in spread_evenly(len(points), len(points) if len(points) <= MOST_TICKS else 5)
        ]
        ticks: list[tuple[float, str]] = []
        for place, value in shown_points:
            if not ticks or place - ticks[-1][0] >= LEAST_GAP:
                ticks.append((place, f"{value:.4g}"))
        return Axis(short, places, ticks)
    names = list(dict.fromkeys(map(str, row)))
    places = np.linspace(0, 1, len(names)).tolist() if len(names) > 1 else [0.5]
    place_of = dict(zip(names, places, strict=True))
    shown = [names[at] for at in spread_evenly(len(names), MOST_TICKS)]
    cut = {name: name if len(name) <= TICK_LENGTH else f"{name[: TICK_LENGTH - 1]}…" for name in shown}
    ticks = [(place_of[name], cut[name]) for name in shown]
    return Axis(short, [place_of[str(value)] for value in row], ticks)


def _smooth(places: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """A line through `places` at x = 0, 1, 2, ... that is horizontal at each of them, so that crossings can be
    followed."""
    t = np.linspace(0, 1, 25)
    ease = t * t * (3 - 2 * t)
    xs = [index + t for index in range(len(places) - 1)]
    ys = [a + (b - a) * ease for a, b in zip(places, places[1:], strict=False)]
    return np.concatenate(xs), np.concatenate(ys)


def _draw_axis(axes: Axes, x: int, axis: Axis, last: bool) -> None:
    ticks = [place for place, _ in axis.ticks]
    axes.vlines(x, 0, 1, colors="0.35", linewidth=1, zorder=3)
    axes.hlines(ticks, x - 0.012, x + 0.012, colors="0.35", linewidth=1, zorder=3)
    axes.text(x, 1.09, axis.name, ha="center", va="bottom", fontsize=9.5, fontweight="bold")
    # texts stand above the lines, which are horizontal at an axis; to the right of the last axis there are no lines
    offset, side = ((6, 0), "center") if last else ((4, 2), "bottom")
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4}
    for place, text in axis.ticks:
        write_beside(axes, text, (x, place), offset, va=side, fontsize=8.5, bbox=box, zorder=4)


def plot_importance(summary: Plain, path: Path) -> None:
    """Draws the share of the variance between runs that each setting alone explains."""
    rows = summary["importance"][:MOST_BARS]
    figure = Figure(figsize=(8, 1.3 + 0.42 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh(places, [row["share"] for row in rows], height=0.62, color="0.9", label="as found")
    colors = ["0.55" if row["key"] in summary["repeats"] else COLORS[0] for row in rows]
    beyond = axes.barh(places, [row["adjusted"] or 0.0 for row in rows], height=0.62, color=colors)
    for place, row in enumerate(rows):
        if row["adjusted"] is None:
            axes.text(0.01, place, "one run for each value: unknown", va="center", fontsize=8.5, color="0.35")
        else:
            end = max(row["share"], row["adjusted"])
            axes.text(end + 0.012, place, f"{row['adjusted']:.0%}", va="center", fontsize=8.5)
    style(axes, f"share of the variance of {summary['metric']} between runs, each setting alone")
    axes.grid(False, axis="y")
    keys = summary["keys"]
    name_rows(axes, [keys[row["key"]] if row["key"] in keys else row["key"] for row in rows])
    axes.set_xlim(0, 1.08)
    axes.xaxis.set_major_formatter("{x:.0%}")
    legend = {"as found": axes.containers[0], "beyond chance": beyond}
    axes.legend(list(legend.values()), list(legend), fontsize=8.5, frameon=False, loc="lower right")
    save_png(figure, path)


PLOTS = {
    "comparison": plot_recipes,
    "curves": plot_validation,
    "classes": plot_classes,
    "parallel_coordinates": plot_parallel_coordinates,
    "importance": plot_importance,
}
