"""The pictures of a run folder, drawn without a display and without pyplot's global state."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from vidtrain.reports.fonts import add_note, prepare, shortened

# Okabe and Ito (2008): told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
DOTS_PER_INCH = 150
SMOOTH_FROM = 100
"""A curve of at least so many points is drawn pale, with its running mean on top."""
COUNTS_UP_TO = 30
"""Largest number of classes whose confusion matrix has its counts written in the cells."""
WHOLE_UP_TO = 400
"""Largest number of classes whose confusion matrix is drawn whole."""
MOST_CONFUSED = 100
NAME_LENGTH = 26  # columns
POINTS = 2000  # of a curve, at least, before its points are taken together; twice as many at most
MOST_CURVES = 60  # of a panel
MOST_BORDERS = 50  # between phases
MOST_PIXELS = 40e6  # of a picture, which takes some ten bytes each
MOST_ACROSS = 30_000  # pixels


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


def plot_curves(metrics_rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw the rows of metrics.jsonl over the step, one panel for each kind of number that they hold.

    Borders between phases are dashed lines, where rows carry "phase". Unknown (null) values leave gaps. Rows are taken
    one at a time; of a curve of very many points, stretches are drawn: their means, and from their lowest to their
    highest value.
    """
    logged, borders = _gathered(metrics_rows)
    charts = [(panel, curves) for panel in PANELS if (curves := _curves(panel, logged))]
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


def plot_confusion(
    matrix: np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray], classes: Sequence[str], path: Path
) -> None:
    """Draw counts `[k k]` (row: true class, column: predicted) as shares of each row, 0 in an empty row.

    `matrix` may instead be the pairs that occur: (true classes, predicted ones, counts), each [m]. Of more than 400
    classes the most confused 100 are drawn; shares are of all videos of a class all the same.
    """
    pairs = matrix if isinstance(matrix, tuple) else _pairs(np.asarray(matrix))
    labels, predictions, counted = (np.asarray(each) for each in pairs)
    shown = np.arange(len(classes))
    title = f"Confusion: share of each true class (n = {int(counted.sum()):,})"
    if len(classes) > WHOLE_UP_TO:
        shown = most_confused(labels, predictions, counted, len(classes), MOST_CONFUSED)
        wrong = labels != predictions
        inside = wrong & np.isin(labels, shown) & np.isin(predictions, shown)
        title += (
            f"\nthe {len(shown)} most confused of {len(classes):,} classes, with {int(counted[inside].sum()):,} of "
            f"{int(counted[wrong].sum()):,} mistakes"
        )
    total = np.bincount(labels, counted, minlength=len(classes))[shown]
    k, place = len(shown), np.full(len(classes), -1)
    place[shown] = np.arange(k)
    kept = (place[labels] >= 0) & (place[predictions] >= 0)
    counts = np.zeros((k, k), dtype=np.int64)
    counts[place[labels[kept]], place[predictions[kept]]] = counted[kept]
    shares = counts / np.maximum(total, 1)[:, None]
    _draw_confusion(counts, shares, [shortened(classes[each], NAME_LENGTH) for each in shown], title, path)


def most_confused(
    labels: np.ndarray, predictions: np.ndarray, counts: np.ndarray, k: int, most: int
) -> np.ndarray:
    """Up to `most` of k classes: those of the pairs that are taken for each other most often, a pair beside each
    other; where there are too few, those of most videos. One without any video is among them only where some video
    was taken for it."""
    low, high = np.minimum(labels, predictions), np.maximum(labels, predictions)
    wrong = low != high
    pairs, where = np.unique(low[wrong].astype(np.int64) * k + high[wrong], return_inverse=True)
    often = np.bincount(where, counts[wrong], minlength=len(pairs))
    in_order = pairs[np.argsort(-often, kind="stable")]
    chosen = np.stack([in_order // k, in_order % k], axis=1).ravel()
    videos = np.bincount(labels, counts, minlength=k)
    by_videos = np.argsort(-videos, kind="stable")[: np.count_nonzero(videos)]
    every = np.concatenate([chosen, by_videos])
    _, first = np.unique(every, return_index=True)
    return every[np.sort(first)[:most]]


def _pairs(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels, predictions = np.nonzero(matrix)
    return labels, predictions, matrix[labels, predictions]


def _draw_confusion(
    counts: np.ndarray, shares: np.ndarray, names: Sequence[str], title: str, path: Path
) -> None:
    k = len(names)
    cell = float(np.clip(14 / k, 0.065, 0.55)) if k > 4 else 0.9  # inches
    font = float(np.clip(cell * 72 * 0.8, 3.4, 9))  # points

    # The axes fill the figure, so that cells have their size; the picture grows by the labels around them.
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
    style = {"colors": "0.9", "linewidth": min(0.6, cell)}
    axes.hlines(borders, -0.5, k - 0.5, **style)
    axes.vlines(borders, -0.5, k - 0.5, **style)
    if k <= COUNTS_UP_TO:
        for row, column in np.argwhere(counts > 0):
            color = "white" if shares[row, column] > 0.55 else "0.2"
            axes.text(
                column, row, str(counts[row, column]), ha="center", va="center", fontsize=font, color=color
            )
    bar = figure.colorbar(image, cax=axes.inset_axes((1 + 0.3 / (cell * k), 0.25, 0.15 / (cell * k), 0.5)))
    bar.outline.set_visible(False)
    save_png(figure, path)


class Curve:
    """The points of a curve, or of so many that they have no room, stretches of as many points each.

    A stretch has the means of its steps and of its known values, and the lowest and the highest of those.
    """

    def __init__(self, most: int = 2 * POINTS):
        self._most = most
        self._in_each = 1
        # of each: points, sum of steps, known values, their sum, lowest, highest
        self._stretches: list[list[float]] = []

    def add(self, step: float, value: float | None) -> None:
        known = value is not None and math.isfinite(value)
        point = [1, step, 1, value, value, value] if known else [1, step, 0, 0.0, math.inf, -math.inf]
        if self._stretches and self._stretches[-1][0] < self._in_each:
            self._stretches[-1] = _together(self._stretches[-1], point)
            return
        if len(self._stretches) == self._most:
            pairs = zip(self._stretches[::2], self._stretches[1::2], strict=True)
            self._stretches = [_together(*pair) for pair in pairs]
            self._in_each *= 2
        self._stretches.append(point)

    @property
    def whole(self) -> bool:
        """Whether every point is there."""
        return self._in_each == 1

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Steps, values, and the lowest and the highest of each stretch; NaN where none is known."""
        points, steps, known, sums, low, high = np.array(self._stretches, dtype=np.float64).T
        nothing = np.full(len(points), np.nan)
        values = np.divide(sums, known, out=nothing.copy(), where=known > 0)
        values = np.clip(values, low, high)  # of what stays the same, a sum is rounded
        return steps / points, values, np.where(known > 0, low, nothing), np.where(known > 0, high, nothing)


def _together(one: list[float], other: list[float]) -> list[float]:
    sums = [a + b for a, b in zip(one[:4], other[:4], strict=True)]
    return [*sums, min(one[4], other[4]), max(one[5], other[5])]


Curves = dict[str, Curve]


def _gathered(rows: Iterable[Mapping[str, Any]]) -> tuple[Curves, list[tuple[int, str]]]:
    """The curve of every key of a panel, in the order of logging; and the name of each phase after another with where
    it begins: at the first step logged, or at the last logged of the phase before, which is its end, as phases end
    with an evaluation."""
    wanted = {key for panel in PANELS for key in panel.keys}
    prefixes = tuple(panel.prefix for panel in PANELS if panel.prefix)
    logged: Curves = {}
    borders: list[tuple[int, str]] = []
    last = None  # the step logged last of any phase
    for row in rows:
        for key, value in row.items():
            if key in wanted or key.startswith(prefixes):
                logged.setdefault(key, Curve()).add(row["step"], value)
        phase = row["phase"] if "phase" in row else None
        if phase is not None:
            if (not borders or borders[-1][1] != phase) and len(borders) < MOST_BORDERS:
                borders.append((row["step"] if last is None else last, phase))
            last = row["step"]
    return logged, borders


def _curves(panel: Panel, logged: Curves) -> Curves:
    """Those of a panel, in its order, for which there is any value; of very many, some evenly spread."""
    keys = [key for key in panel.keys if key in logged]
    keys += [key for key in logged if panel.prefix and key.startswith(panel.prefix)]
    keys = [key for key in keys if np.isfinite(logged[key].arrays()[1]).any()]
    if len(keys) > MOST_CURVES:
        keys = [keys[place] for place in np.linspace(0, len(keys) - 1, MOST_CURVES).round().astype(int)]
    return {key: logged[key] for key in keys}


def _draw_panel(axes: Axes, panel: Panel, curves: Curves) -> None:
    for color, (key, curve) in zip(_colors(len(curves)), curves.items(), strict=True):
        steps, values, low, high = curve.arrays()
        label = key.removeprefix(panel.prefix).replace("_", " ").replace("/", " ")
        if not curve.whole:
            axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0.6)
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
    values = np.concatenate([each.arrays()[1] for each in curves.values()])
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
    """Written beside and renamed, as a reader may look at any time.

    Names are drawn in any script (see vidtrain.reports.fonts). A figure too large for memory is drawn less finely.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    legend = prepare(figure)
    names = legend.write(path)
    if names is not None:
        add_note(
            figure, f"#1 and so on: names in {names.name}, which no font here has (install one, such as Noto)"
        )
    width, height = figure.get_size_inches()
    finest = min(math.sqrt(MOST_PIXELS / (width * height)), MOST_ACROSS / max(width, height))
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_figure(
        temporary, dpi=min(DOTS_PER_INCH, finest), format="png", bbox_inches="tight", pad_inches=0.15
    )
    temporary.replace(path)
