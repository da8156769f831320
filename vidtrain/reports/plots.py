"""Draws the charts of a run, without a display: curves, confusion matrix, the metric by clips, crops and orders."""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vidtrain.reports.charts import (
    COLORS,
    color_bar,
    save_png,
    shortened,
    spread_evenly,
    style,
    thinned,
    write_beside,
)

SMOOTH_FROM = 100
"""A curve with at least this many points is drawn pale, with its running mean on top."""
COUNTS_UP_TO = 30
"""Largest number of classes whose confusion matrix has its counts written in the cells."""
WHOLE_UP_TO = 400
"""Largest number of classes whose confusion matrix is drawn whole."""
MOST_CONFUSED = 100  # classes that are drawn if there are more
POINTS = 2000  # points of a curve; more are averaged
MOST_CURVES = 60  # curves of a panel
MOST_BORDERS = 50  # borders between phases
LEAST_SPAN = 0.05  # of a metric's axis in the chart of views: otherwise a single video would look like a trend


@dataclass(frozen=True)
class Panel:
    """One chart of `plot_curves`. It shows the keys named in `keys`, and those that begin with `prefix`."""

    title: str
    keys: tuple[str, ...] = ()
    prefix: str = ""
    log_scale: bool = False
    whole_range: tuple[float, float] | None = None


PANELS = (
    Panel("Loss", ("train/loss", "val/loss", "val_ema/loss")),
    Panel(
        "Accuracy and F1",  # with several labels a video there is only F1
        (
            "train/top1",
            "val/top1",
            "val_ema/top1",
            "val/clip_top1",
            "val/top5",
            "val/f1_macro",
            "val/f1_micro",
        ),
        whole_range=(-0.02, 1.02),
    ),
    Panel("Average precision", ("val/map", "val_ema/map", "val/map_micro"), whole_range=(-0.02, 1.02)),
    Panel("Frozen features", ("val/knn_top1", "val/linear_top1"), whole_range=(-0.02, 1.02)),
    Panel("Effective rank", ("val/effective_rank", "val_ema/effective_rank")),
    Panel("Spread of features", ("val/spread", "val_ema/spread")),
    Panel("Gradient norm", ("train/grad_norm",), log_scale=True),
    Panel("Learning rate", prefix="lr/"),
    Panel("Weight decay", ("weight_decay",)),
    Panel("Clips per second", ("train/clips_per_s",)),
)


# --- curves -----------------------------------------------------------------------------------------------


Curve = tuple[array, array]  # steps and values; NaN for unknown values
Curves = dict[str, Curve]


def plot_curves(metrics_rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draws the rows of metrics.jsonl over the step, with one panel for each kind of number.

    Dashed lines mark borders between phases, if rows have "phase". Unknown (null) values leave gaps. Rows are read one
    at a time. A curve with more than 2000 points is averaged over stretches, with a band from their lowest to their
    highest value.
    """
    logged, borders = read_curves(metrics_rows)
    charts = [(panel, curves) for panel in PANELS if (curves := curves_of(panel, logged))]
    columns = min(3, max(1, len(charts)))
    lines = max(1, -(-len(charts) // columns))
    figure = Figure(figsize=(5.4 * columns, 3.6 * lines), layout="constrained")
    for number, (panel, curves) in enumerate(charts, start=1):
        axes = figure.add_subplot(lines, columns, number)
        _draw_panel(axes, panel, curves)
        _mark_phases(axes, borders, named=number <= columns)
    if not charts:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center")
    save_png(figure, path)


def read_curves(rows: Iterable[Mapping[str, Any]]) -> tuple[Curves, list[tuple[int, str]]]:
    """Returns the curve of every key that a panel shows, in the order of logging, and (first step, name) of each phase.
    A phase begins at the last logged step of the phase before it, as phases end with an evaluation."""
    keys = {key for panel in PANELS for key in panel.keys}
    prefixes = tuple(panel.prefix for panel in PANELS if panel.prefix)
    logged: Curves = {}
    borders: list[tuple[int, str]] = []
    last = None  # the last step logged in any phase
    for row in rows:
        for key, value in row.items():
            if key in keys or key.startswith(prefixes):
                steps, values = logged.setdefault(key, (array("d"), array("d")))
                steps.append(row["step"])
                values.append(math.nan if value is None else value)
        phase = row["phase"] if "phase" in row else None
        if phase is not None:
            if (not borders or borders[-1][1] != phase) and len(borders) < MOST_BORDERS:
                borders.append((row["step"] if last is None else last, phase))
            last = row["step"]
    return logged, borders


def curves_of(panel: Panel, logged: Curves) -> Curves:
    """The curves of a panel that have a finite value, in its order; at most `MOST_CURVES`, evenly spread."""
    keys = [key for key in panel.keys if key in logged]
    keys += [key for key in logged if panel.prefix and key.startswith(panel.prefix)]
    keys = [key for key in keys if np.isfinite(logged[key][1]).any()]
    return {keys[place]: logged[keys[place]] for place in spread_evenly(len(keys), MOST_CURVES)}


def _draw_panel(axes: Axes, panel: Panel, curves: Curves) -> None:
    colors: Any = COLORS  # distinct for a few curves, a ramp for many, such as the rates of layer-wise decay
    if len(curves) > len(COLORS):
        colors = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    for color, (key, curve) in zip(colors, curves.items(), strict=False):
        steps, values, low, high = thinned(*curve, POINTS)
        label = key.removeprefix(panel.prefix).replace("_", " ").replace("/", " ")
        marker = "o" if len(steps) == 1 or (key.startswith("val/") and len(steps) <= 60) else None
        if len(curve[0]) > POINTS:
            axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0.6)
        if len(steps) >= SMOOTH_FROM and key.startswith("train/"):
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
            values = running_mean(values, len(values) // 50)
        axes.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=3.5, label=label)
    style(axes, panel.title, "step")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if panel.log_scale and spans_a_decade(curves):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.whole_range:
        axes.set_ylim(*panel.whole_range)
    if len(curves) > 1 or panel.prefix:
        every = -(-len(curves) // len(COLORS))
        handles = axes.get_legend_handles_labels()[0][::every]
        axes.legend(handles=handles, fontsize=8, framealpha=0.85, edgecolor="none")


def spans_a_decade(curves: Curves) -> bool:
    """Whether the values span a factor of ten. A narrower range has too few round numbers to label a logarithmic
    axis."""
    values = np.concatenate([values for _, values in curves.values()])
    positive = values[values > 0]
    return bool(positive.size) and positive.max() >= 10 * positive.min()


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """The mean over up to `width` values on either side; values that are not finite are left out."""
    finite = np.isfinite(values)
    kernel = np.ones(2 * width + 1)
    sums = np.convolve(np.where(finite, values, 0.0), kernel, mode="same")
    counts = np.convolve(finite.astype(np.float64), kernel, mode="same")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _mark_phases(axes: Axes, borders: list[tuple[int, str]], named: bool) -> None:
    """Draws lines between phases and, if `named`, the phases' names above. A single phase is not marked."""
    if len(borders) < 2:
        return
    if named:
        axes.set_title(axes.get_title("left"), fontsize=10.5, loc="left", pad=18)
    for number, (step, name) in enumerate(borders):
        if number > 0:
            axes.axvline(step, color="0.55", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
        if named:
            above = axes.get_xaxis_transform()
            write_beside(axes, name, (step, 1.0), (3, 3), xycoords=above, fontsize=7.5, color="0.35")


# --- confusion matrix -------------------------------------------------------------------------------------


def plot_confusion(pairs: tuple[np.ndarray, np.ndarray, np.ndarray], classes: Sequence[str], path: Path) -> None:
    """Draws the confusion matrix as shares of each true class. `pairs` are (true classes, predicted classes, counts),
    each [m], of the pairs that occur. Rows are true classes; a class without videos has a row of 0. With more than 400
    classes, only the 100 most confused are drawn; shares still count all videos of a class."""
    labels, predictions, counted = pairs
    shown = np.arange(len(classes))
    title = f"Confusion: share of each true class (n = {int(counted.sum()):,})"
    if len(classes) > WHOLE_UP_TO:
        shown = most_confused(labels, predictions, counted, len(classes), MOST_CONFUSED)
        wrong = labels != predictions
        shown_wrong = wrong & np.isin(labels, shown) & np.isin(predictions, shown)
        title += (
            f"\nthe {len(shown)} most confused of {len(classes):,} classes, with {int(counted[shown_wrong].sum()):,} "
            f"of {int(counted[wrong].sum()):,} mistakes"
        )
    total = np.bincount(labels, counted, minlength=len(classes))[shown]
    k, place = len(shown), np.full(len(classes), -1)
    place[shown] = np.arange(k)
    kept = (place[labels] >= 0) & (place[predictions] >= 0)
    counts = np.zeros((k, k), dtype=np.int64)
    counts[place[labels[kept]], place[predictions[kept]]] = counted[kept]
    shares = counts / np.maximum(total, 1)[:, None]
    _draw_confusion(counts, shares, [shortened(classes[number]) for number in shown.tolist()], title, path)


def most_confused(labels: np.ndarray, predictions: np.ndarray, counts: np.ndarray, k: int, most: int) -> np.ndarray:
    """Up to `most` of k classes: first the pairs that are confused with each other most often, side by side, then the
    classes with most videos. A class without videos is included only if it was predicted for some video."""
    low, high = np.minimum(labels, predictions), np.maximum(labels, predictions)
    wrong = low != high
    pairs, where = np.unique(low[wrong].astype(np.int64) * k + high[wrong], return_inverse=True)
    confusions = np.bincount(where, counts[wrong], minlength=len(pairs))
    pairs_by_confusions = pairs[np.argsort(-confusions, kind="stable")]
    chosen = np.stack([pairs_by_confusions // k, pairs_by_confusions % k], axis=1).ravel()
    videos = np.bincount(labels, counts, minlength=k)
    by_videos = np.argsort(-videos, kind="stable")[: np.count_nonzero(videos)]
    candidates = np.concatenate([chosen, by_videos])
    _, first = np.unique(candidates, return_index=True)
    return candidates[np.sort(first)[:most]]


def _draw_confusion(counts: np.ndarray, shares: np.ndarray, names: Sequence[str], title: str, path: Path) -> None:
    k = len(names)
    cell = float(np.clip(14 / k, 0.065, 0.55)) if k > 4 else 0.9  # inches
    font = float(np.clip(cell * 72 * 0.8, 3.4, 9))  # points

    # The axes fill the figure, so that cells have a fixed size; the labels around them enlarge the picture.
    figure = Figure(figsize=(cell * k, cell * k))
    axes = figure.add_axes((0, 0, 1, 1))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(range(k), names, rotation=90, fontsize=font)
    axes.set_yticks(range(k), names, fontsize=font)
    axes.tick_params(length=0, pad=2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(title, fontsize=11)
    axes.spines[:].set_visible(False)
    borders = np.arange(1, k) - 0.5
    axes.hlines(borders, -0.5, k - 0.5, colors="0.9", linewidth=min(0.6, cell))
    axes.vlines(borders, -0.5, k - 0.5, colors="0.9", linewidth=min(0.6, cell))
    if k <= COUNTS_UP_TO:
        for row, column in np.argwhere(counts > 0).tolist():
            color = "white" if shares[row, column] > 0.55 else "0.2"
            count = str(counts[row, column])
            axes.text(column, row, count, ha="center", va="center", fontsize=font, color=color)
    color_bar(figure, image, cax=axes.inset_axes((1 + 0.3 / (cell * k), 0.25, 0.15 / (cell * k), 0.5)))
    save_png(figure, path)


# --- the metric by clips, crops, fusion and frame order ---------------------------------------------------


def plot_views(
    about: Mapping[str, Any],
    protocols: Sequence[Any],
    points: Sequence[Any],
    probes: Sequence[Any],
    fusion: str,
    metric: str,
    path: Path,
) -> None:
    """Draws the protocols of a view table: the metric by clips and crops, by fusion, and by order of frames, as far as
    the table has several of them. `about` is that of the table; `protocols`, `points` and `probes` are those of
    vidtrain.evaluation.protocols; `metric` is the key of the metric that is drawn."""
    panels: list[Callable[[Axes], None]] = []
    if len({point.clips for point in points}) > 1:
        panels.append(partial(_draw_clips, points=points, fusion=fusion))
    if len({protocol.fusion for protocol in protocols}) > 1 and len(points) > 1:
        panels.append(partial(_draw_fusions, about=about, protocols=protocols, metric=metric))
    if len(probes) > 1:
        panels.append(partial(_draw_orders, probes=probes, metric=metric, classes=len(about["classes"])))
    if not panels:
        panels.append(partial(_draw_crops, protocols=protocols, metric=metric))
    figure = Figure(figsize=(5.0 * len(panels), 3.7), layout="constrained")
    for number, draw in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        draw(axes)
        low, high = axes.get_ylim()
        if high - low < LEAST_SPAN:
            axes.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
        axes.grid(False, axis="x")
        axes.set_ylabel(f"video {metric}", fontsize=9)
    frames = about["frames"][about["orders"][0]]
    figure.suptitle(f"{frames}; {about['split']}, {about['coverage']} videos", fontsize=9)
    save_png(figure, path)


def _draw_clips(axes: Axes, points: Sequence[Any], fusion: str) -> None:
    for color, crops in zip(COLORS, sorted({point.crops for point in points}), strict=False):
        rows = [(p.clips, p.mean, p.lowest, p.highest) for p in points if p.crops == crops]
        clips, means, lowest, highest = zip(*rows, strict=True)
        axes.fill_between(clips, lowest, highest, color=color, alpha=0.15, linewidth=0)
        axes.plot(clips, means, color=color, marker="o", markersize=3.5, label=_crops(crops))
    _style_of_clips(axes, f"By clips, {fusion}", "clips a video: mean and range over choices of clips")


def _draw_fusions(axes: Axes, about: Mapping[str, Any], protocols: Sequence[Any], metric: str) -> None:
    order, crops = about["orders"][0], len(about["crops"])
    shown = [protocol for protocol in protocols if protocol.order == order and len(protocol.crops.numbers) == crops]
    for number, fusion in enumerate(dict.fromkeys(protocol.fusion for protocol in protocols)):
        points = [(protocol.num_clips, protocol.metrics[metric]) for protocol in shown if protocol.fusion == fusion]
        line = ("-", "--", ":")[number % 3]  # equal curves stay visible
        clips, values = zip(*points, strict=True)
        axes.plot(clips, values, line, color=COLORS[number], marker="o", markersize=3.5, label=fusion)
    _style_of_clips(axes, f"By fusion, {_crops(crops)}", "clips a video, evenly spaced in the table")


def _style_of_clips(axes: Axes, title: str, across: str) -> None:
    style(axes, title, across)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")


def _draw_orders(axes: Axes, probes: Sequence[Any], metric: str, classes: int) -> None:
    names = [probe.protocol.order.replace("_", " ") for probe in probes]
    values = [probe.protocol.metrics[metric] for probe in probes]
    style(axes, f"By order of frames, {probes[0].protocol.name}")
    _draw_columns(axes, names, values, [COLORS[0], *[COLORS[5]] * (len(names) - 1)])
    highest = max(0.05, *(value for value in values if not math.isnan(value)))
    if metric == "top1":
        highest = max(highest, 1 / classes)
        axes.axhline(1 / classes, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)))
        right = axes.get_yaxis_transform()
        look = {"xycoords": right, "fontsize": 7.5, "va": "center", "color": "0.35"}
        write_beside(axes, f"1 of {classes}\nclasses", (1, 1 / classes), (3, 0), **look)
    axes.set_ylim(0, 1.1 * highest)


def _draw_crops(axes: Axes, protocols: Sequence[Any], metric: str) -> None:
    names = [_crops(len(protocol.crops.numbers)) for protocol in protocols]
    style(axes, "By crops")
    _draw_columns(axes, names, [protocol.metrics[metric] for protocol in protocols], COLORS[0])


def _draw_columns(axes: Axes, names: Sequence[str], values: Sequence[float], colors: str | Sequence[str]) -> None:
    bars = axes.bar(names, values, color=colors, width=0.55)
    axes.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=8, padding=2)


def _crops(count: int) -> str:
    return f"{count} crop{'s' if count > 1 else ''}"
