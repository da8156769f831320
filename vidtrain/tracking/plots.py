"""The pictures of a run folder, drawn without a display and without pyplot's global state."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

Rows = Sequence[Mapping[str, Any]]

# Okabe and Ito (2008): told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
DOTS_PER_INCH = 150
SMOOTH_FROM = 100
"""A curve of at least so many points is drawn pale, with its running mean on top."""
COUNTS_UP_TO = 30
"""Largest number of classes whose confusion matrix has its counts written in the cells."""
NAME_LENGTH = 26


@dataclass(frozen=True)
class Panel:
    """One chart of `plot_curves`: the keys that it shows, by name or by the prefix before "/"."""

    title: str
    keys: tuple[str, ...] = ()
    prefix: str = ""
    log_scale: bool = False
    whole_range: tuple[float, float] | None = None


PANELS = (
    Panel("Loss", ("train/loss", "val/loss", "val_ema/loss")),
    Panel(
        "Accuracy",
        ("train/top1", "val/top1", "val_ema/top1", "val/clip_top1", "val/top5", "val/f1_macro"),
        whole_range=(-0.02, 1.02),
    ),
    Panel("Average precision", ("val/map", "val_ema/map", "val/map_micro"), whole_range=(-0.02, 1.02)),
    Panel("Gradient norm", ("train/grad_norm",), log_scale=True),
    Panel("Learning rate", prefix="lr/"),
    Panel("Weight decay", ("weight_decay",)),
    Panel("Clips per second", ("train/clips_per_s",)),
)


def plot_curves(metrics_rows: Rows, path: Path) -> None:
    """Draw the rows of metrics.jsonl over the step, one panel for each kind of number that they hold.

    Borders between phases are dashed lines, where rows carry "phase". Unknown (null) values leave gaps.
    """
    charts = [(panel, curves) for panel in PANELS if (curves := _curves(panel, metrics_rows))]
    columns = min(3, max(1, len(charts)))
    lines = max(1, -(-len(charts) // columns))
    figure = Figure(figsize=(5.4 * columns, 3.6 * lines), layout="constrained")
    borders = _phase_borders(metrics_rows)
    for number, (panel, curves) in enumerate(charts, start=1):
        axes = figure.add_subplot(lines, columns, number)
        _draw_panel(axes, panel, curves)
        _mark_phases(axes, borders, named=number <= columns)
    if not charts:
        figure.text(0.5, 0.5, "nothing logged yet", ha="center", va="center")
    save_png(figure, path)


def plot_confusion(matrix: np.ndarray, classes: Sequence[str], path: Path) -> None:
    """Draw counts `[k k]` (row: true class, column: predicted) as shares of each row, 0 in an empty row."""
    counts = np.asarray(matrix)
    total = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, total, out=np.zeros(counts.shape), where=total > 0)
    k = len(classes)
    cell = float(np.clip(14 / k, 0.065, 0.55)) if k > 4 else 0.9  # inches
    font = float(np.clip(cell * 72 * 0.8, 3.4, 9))  # points
    names = [name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…" for name in classes]

    # The axes fill the figure, so that cells have their size; the picture grows by the labels around them.
    figure = Figure(figsize=(cell * k, cell * k))
    axes = figure.add_axes((0, 0, 1, 1))
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(range(k), names, rotation=90, fontsize=font)
    axes.set_yticks(range(k), names, fontsize=font)
    axes.tick_params(length=0, pad=2)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.set_title(f"Confusion: share of each true class (n = {int(counts.sum())})", fontsize=11)
    axes.spines[:].set_visible(False)
    for border in np.arange(1, k) - 0.5:
        axes.axhline(border, color="0.9", linewidth=min(0.6, cell))
        axes.axvline(border, color="0.9", linewidth=min(0.6, cell))
    if k <= COUNTS_UP_TO:
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.55 else "0.2"
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", fontsize=font, color=color
            )
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.3 / (cell * k), 0.25, 0.15 / (cell * k), 0.5)))
    bar.outline.set_visible(False)
    save_png(figure, path)


Curves = dict[str, tuple[np.ndarray, np.ndarray]]


def _curves(panel: Panel, rows: Rows) -> Curves:
    """Steps and values by key, in the panel's order, of the keys for which there is any value."""
    logged = dict.fromkeys(key for row in rows for key in row)
    keys = [key for key in panel.keys if key in logged]
    keys += [key for key in logged if panel.prefix and key.startswith(panel.prefix)]
    curves = {}
    for key in keys:
        points = [(row["step"], np.nan if row[key] is None else row[key]) for row in rows if key in row]
        steps, values = np.array(points, dtype=np.float64).T
        if np.isfinite(values).any():
            curves[key] = steps, values
    return curves


def _draw_panel(axes: Axes, panel: Panel, curves: Curves) -> None:
    for color, (key, (steps, values)) in zip(_colors(len(curves)), curves.items(), strict=True):
        label = key.removeprefix(panel.prefix).replace("_", " ").replace("/", " ")
        if len(steps) >= SMOOTH_FROM and key.startswith("train/"):
            axes.plot(steps, values, color=color, linewidth=0.7, alpha=0.3)
            axes.plot(
                steps, _running_mean(values, len(values) // 50), color=color, linewidth=1.6, label=label
            )
        else:
            marker = "o" if len(steps) == 1 or (key.startswith("val/") and len(steps) <= 60) else None
            axes.plot(steps, values, color=color, linewidth=1.6, marker=marker, markersize=3.5, label=label)
    axes.set_title(panel.title, fontsize=11, loc="left")
    axes.set_xlabel("step", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if panel.log_scale and _spans_a_decade(curves):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.whole_range:
        axes.set_ylim(*panel.whole_range)
    if len(curves) > 1 or panel.prefix:
        every = -(-len(curves) // len(COLORS))
        axes.legend(
            handles=axes.get_legend_handles_labels()[0][::every],
            fontsize=8,
            framealpha=0.85,
            edgecolor="none",
        )


def _spans_a_decade(curves: Curves) -> bool:
    """A narrower range has too few round numbers to label a logarithmic axis."""
    values = np.concatenate([values for _, values in curves.values()])
    positive = values[values > 0]
    return bool(positive.size) and positive.max() >= 10 * positive.min()


def _colors(count: int) -> Sequence[Any]:
    """Distinct ones for a few curves, a ramp for many, such as the rates of layer-wise decay."""
    return COLORS[:count] if count <= len(COLORS) else colormaps["viridis"](np.linspace(0, 0.9, count))


def _running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean over up to `width` values on either side; unknown ones are left out."""
    known = np.isfinite(values)
    kernel = np.ones(2 * width + 1)
    sums = np.convolve(np.where(known, values, 0.0), kernel, mode="same")
    counts = np.convolve(known.astype(np.float64), kernel, mode="same")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _phase_borders(rows: Rows) -> list[tuple[int, str]]:
    """Name of each phase after another, and where it begins: at the first step logged, or at the last logged of the
    phase before, which is its end, as phases end with an evaluation."""
    borders: list[tuple[int, str]] = []
    phased = [(row["step"], row["phase"]) for row in rows if row.get("phase") is not None]
    for number, (step, phase) in enumerate(phased):
        if not borders or borders[-1][1] != phase:
            borders.append((phased[number - 1][0] if borders else step, phase))
    return borders


def _mark_phases(axes: Axes, borders: list[tuple[int, str]], named: bool) -> None:
    """Lines between phases, and in the top row their names above them. A single phase needs neither."""
    if len(borders) < 2:
        return
    if named:
        axes.set_title(axes.get_title("left"), fontsize=11, loc="left", pad=18)
    for number, (step, name) in enumerate(borders):
        if number > 0:
            axes.axvline(step, color="0.55", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0.5)
        if named:
            axes.annotate(
                name,
                (step, 1.0),
                xycoords=("data", "axes fraction"),
                xytext=(3, 3),
                textcoords="offset points",
                fontsize=7.5,
                color="0.35",
            )


def save_png(figure: Figure, path: Path) -> None:
    """Written beside and renamed, as a reader may look at any time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_figure(
        temporary, dpi=DOTS_PER_INCH, format="png", bbox_inches="tight", pad_inches=0.15
    )
    temporary.replace(path)
