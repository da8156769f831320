"""The pictures of a comparison, from its summary: recipes, validation curves and classes."""

from collections.abc import Mapping, Sequence
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

from vidtrain.reports.fonts import shortened
from vidtrain.reports.guarding import made_or_warned
from vidtrain.reports.plots import COLORS, Curve, save_png
from vidtrain.reports.sweep_charts import plot_importance, plot_parallel_coordinates

Plain = Mapping[str, Any]

MOST_RECIPES = 30
MOST_LINES = 200  # runs in the picture of curves
MOST_CLASSES = 40
MOST_COLUMNS = 8  # recipes in the picture of classes
NAME_LENGTH = 44
FEW = 10  # videos of a class, below which a bootstrap's interval is narrower than what is known
BETTER, WORSE, NEITHER = COLORS[0], COLORS[1], "0.45"


def draw(summary: Plain, folder: Path, console: Any) -> list[str]:
    """Draws what the summary has something to show of; returns the names of the files, without their ending. One that
    fails is warned about.

    Pictures of an earlier comparison that this one does not draw are taken away.
    """
    wanted = {
        "comparison": True,
        "curves": any(run["curve"] for run in summary["runs"]),
        "classes": bool(summary["comparisons"]),
        "parallel_coordinates": summary["is_sweep"],
        "importance": bool(summary["importance"]),
    }
    for name, plot in PLOTS.items():
        path = folder / f"{name}.png"
        path.unlink(missing_ok=True)
        if wanted[name]:
            made_or_warned(str(path), partial(plot, summary, path), console)
    return [name for name in PLOTS if (folder / f"{name}.png").is_file()]


def ranked(summary: Plain) -> list[Plain]:
    """The recipes that were compared, the best first; one without a value comes last."""
    sign = -1 if summary["higher_is_better"] else 1
    compared = [each for each in summary["recipes"] if each["compared"]]
    return sorted(compared, key=lambda each: (each["mean"] is None, sign * (each["mean"] or 0.0)))


def chosen_words(summary: Plain) -> str:
    """Which recipe val chooses, and what that comes to on the split that is reported."""
    chosen = summary["chosen"]
    recipe = next(each for each in summary["recipes"] if each["number"] == chosen["recipe"])
    words = (
        f"chosen on val, by the mean of {chosen['monitor']}, {chosen['mean']:.4f}: recipe {recipe['number']}, "
        f"{recipe['label']}"
    )
    if recipe["mean"] is None or recipe["split"].startswith("val"):
        return words
    return (
        f"{words}; on {recipe['split']} its {summary['metric']} is {recipe['mean']:.4f}. Report that one: the best of "
        f"many on {recipe['split']} is too good"
    )


def name_of(recipe: Plain, length: int = NAME_LENGTH) -> str:
    """`3: lr=0.001, augmentation=none`"""
    return shortened(f"{recipe['number']}: {recipe['label']}", length)


def color_of(verdict: str) -> str:
    return {"better": BETTER, "worse": WORSE, "not told apart": NEITHER}[verdict]


# --- recipes ----------------------------------------------------------------------------------------------


def plot_recipes(summary: Plain, path: Path) -> None:
    """Each recipe's runs with their mean, beside its difference from the baseline with the intervals."""
    recipes = _shown(summary)
    pairs = {pair["other"]: pair for pair in summary["comparisons"]}
    height = 1.3 + 0.36 * len(recipes)
    figure = Figure(figsize=(11 if pairs else 7.5, height), layout="constrained")
    grid = figure.subplots(1, 2 if pairs else 1, sharey=True, squeeze=False)[0]
    rows = range(len(recipes))
    values = grid[0]
    for row, recipe in zip(rows, recipes, strict=True):
        known = [value for value in recipe["values"] if value is not None]
        values.plot(
            known, [row] * len(known), "o", color=COLORS[0], alpha=0.45, markersize=5, markeredgewidth=0
        )
        if known:
            values.plot([recipe["mean"]] * 2, [row - 0.28, row + 0.28], color="0.15", linewidth=1.8)
    _style(values, f"{summary['metric']}: runs, and their mean")
    values.set_yticks(rows, [name_of(each) for each in recipes], fontsize=9)
    values.set_ylim(len(recipes) - 0.4, -0.6)
    if pairs:
        _draw_differences(grid[1], recipes, pairs, summary)
    save_png(figure, path)


def _shown(summary: Plain) -> list[Plain]:
    """The best recipes that have room, and the baseline."""
    order = ranked(summary)
    kept = order[:MOST_RECIPES]
    return kept + [each for each in order[MOST_RECIPES:] if each["number"] == summary["baseline"]]


def _draw_differences(
    axes: Axes, recipes: Sequence[Plain], pairs: Mapping[int, Plain], summary: Plain
) -> None:
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    for row, recipe in enumerate(recipes):
        if recipe["number"] == summary["baseline"]:
            axes.annotate(
                "baseline",
                (0, row),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                color="0.4",
            )
            continue
        if recipe["number"] not in pairs:
            continue
        pair = pairs[recipe["number"]]
        color = color_of(pair["verdict"])
        if pair["interval_with_seeds"]:
            axes.plot(pair["interval_with_seeds"], [row, row], color=color, linewidth=1.2)
        axes.plot(pair["interval"], [row, row], color=color, linewidth=4, alpha=0.55, solid_capstyle="butt")
        axes.plot(pair["difference"], row, "o", color=color, markersize=5)
    wide = "; thin: and seeds" if any(pair["interval_with_seeds"] for pair in pairs.values()) else ""
    _style(axes, f"difference in {summary['tested']} ({summary['confidence']:.0%} over videos{wide})")


# --- validation curves ------------------------------------------------------------------------------------


def plot_validation(summary: Plain, path: Path) -> None:
    """The metric on val over steps: a line for each run, in the color of its recipe."""
    figure = Figure(figsize=(8.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    recipes = summary["recipes"]
    few = len(recipes) <= len(COLORS)
    if few:
        colors = {each["number"]: color for each, color in zip(recipes, COLORS, strict=False)}
    else:
        means = {each["number"]: each["mean"] for each in recipes if each["mean"] is not None}
        scale = Normalize(min(means.values()), max(means.values()))
        colors = {number: colormaps["viridis"](scale(mean)) for number, mean in means.items()}
    named = set()
    by_number = {each["number"]: each for each in recipes}
    drawn = [run for run in summary["runs"] if run["curve"] and run["recipe"] in colors]
    if len(drawn) > MOST_LINES:
        places = np.linspace(0, len(drawn) - 1, MOST_LINES).round().astype(int)
        drawn = [drawn[place] for place in places]
    for run in drawn:
        curve = Curve()
        for step, value in run["curve"]:
            curve.add(step, value)
        steps, values = curve.arrays()[:2]
        label = name_of(by_number[run["recipe"]]) if run["recipe"] not in named else None
        named.add(run["recipe"])
        marker = "o" if len(steps) <= 40 else None
        axes.plot(
            steps,
            values,
            color=colors[run["recipe"]],
            linewidth=1.3,
            marker=marker,
            markersize=2.8,
            label=label,
        )
    _style(axes, f"{summary['metric']} on val, a line a run")
    axes.set_xlabel("step", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    if few:
        axes.legend(fontsize=8.5, frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5))
    else:
        bar = figure.colorbar(ScalarMappable(scale, colormaps["viridis"]), ax=axes, pad=0.02)
        bar.set_label(f"mean {summary['metric']} of the recipe", fontsize=9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8)
    save_png(figure, path)


# --- classes ----------------------------------------------------------------------------------------------


def plot_classes(summary: Plain, path: Path) -> None:
    """Differences in recall: bars with intervals for a single recipe, shaded cells for several."""
    order = {each["number"]: place for place, each in enumerate(ranked(summary))}
    pairs = sorted(summary["comparisons"], key=lambda pair: order[pair["other"]])[:MOST_COLUMNS]
    changes = [{each["name"]: each for each in pair["classes"]} for pair in pairs]
    names = [name for name in changes[0] if all(name in change for change in changes)]
    largest = {name: max(abs(change[name]["recall_difference"]) for change in changes) for name in names}
    kept = sorted(names, key=lambda name: -largest[name])[:MOST_CLASSES]
    kept.sort(key=lambda name: -np.mean([change[name]["recall_difference"] for change in changes]))
    title = f"difference in recall from recipe {summary['baseline']}"
    if len(kept) < len(names):
        title += f", the {len(kept)} classes of {len(names)} that change most"
    if len(pairs) == 1:
        over = "videos" if pairs[0]["interval_with_seeds"] is None else "videos and seeds"
        title += f" ({summary['confidence']:.0%} over {over})"
        if any(changes[0][name]["support"] < FEW for name in kept):
            title += f"\nclasses of fewer than {FEW} videos are gray: so few tell too little"
        _class_bars(kept, changes[0], title, path)
    else:
        recipes = {each["number"]: each for each in summary["recipes"]}
        columns = [name_of(recipes[pair["other"]], 34) for pair in pairs]
        _class_cells(kept, changes, columns, title, path)


def _class_bars(names: Sequence[str], changes: Plain, title: str, path: Path) -> None:
    figure = Figure(figsize=(8.6, 1.2 + 0.3 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="0.6", linewidth=1, zorder=0)
    for row, name in enumerate(names):
        change = changes[name]
        low, high = change["interval"]
        told = change["support"] >= FEW and not low <= 0 <= high
        color = NEITHER if not told else BETTER if change["recall_difference"] > 0 else WORSE
        axes.plot([low, high], [row, row], color=color, linewidth=4, alpha=0.4, solid_capstyle="butt")
        axes.plot(change["recall_difference"], row, "o", color=color, markersize=5)
    labels = [f"{_short(name)} ({changes[name]['support']})" for name in names]
    axes.set_yticks(range(len(names)), labels, fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    _style(axes, title)
    save_png(figure, path)


def _class_cells(
    names: Sequence[str], changes: Sequence[Plain], columns: Sequence[str], title: str, path: Path
):
    table = np.array([[change[name]["recall_difference"] for change in changes] for name in names])
    figure = Figure(figsize=(3.0 + 0.95 * len(columns), 1.2 + 0.27 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    bound = max(0.05, float(np.abs(table).max()))
    image = axes.imshow(table, cmap="RdBu", vmin=-bound, vmax=bound, aspect="auto")
    axes.set_xticks(
        range(len(columns)), columns, fontsize=8.5, rotation=30, ha="right", rotation_mode="anchor"
    )
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for (row, column), value in np.ndenumerate(table):
        color = "white" if abs(value) > 0.65 * bound else "0.15"
        axes.text(column, row, f"{value:+.2f}", ha="center", va="center", fontsize=8, color=color)
    figure.suptitle(title, fontsize=10.5, x=0.01, ha="left")
    bar = figure.colorbar(image, ax=axes, pad=0.02, shrink=0.7)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    save_png(figure, path)


def _short(name: str) -> str:
    return shortened(name, NAME_LENGTH)


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


PLOTS = {
    "comparison": plot_recipes,
    "curves": plot_validation,
    "classes": plot_classes,
    "parallel_coordinates": plot_parallel_coordinates,
    "importance": plot_importance,
}
