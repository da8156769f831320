"""Probabilities over the time of a video as a picture that can be read for seconds and for hours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vidtrain.reports.fonts import shortened
from vidtrain.reports.plots import COLORS, NAME_LENGTH, save_png

MOST_CLASSES = 12
MOST_WINDOWS = 4000  # columns; of more windows, several are taken together
OTHER = "0.55"  # the color of what has none of its own
STEPS = (1, 2, 3, 5, 6, 10)  # round numbers of seconds and minutes


@dataclass(frozen=True)
class Stretch:
    """A part of the video, in seconds, for which one class was the answer."""

    start: float
    end: float
    class_index: int


def draw_timeline(
    path: Path,
    title: str,
    classes: Sequence[str],
    edges: np.ndarray,
    chances: np.ndarray,
    stretches: Sequence[Stretch],
) -> None:
    """Draws the `chances` [w k] of w windows, window i shown from edges[i] to edges[i + 1] seconds, NaN for those that
    could not be read; and above them the answers.

    A row a class, of up to 12: those that are the answer for longest, then those of the largest mean. A map keeps
    thousands of windows apart where lines would run into each other.
    """
    chosen = shown_classes(chances, stretches)
    shown = chances[:, chosen]
    edges, shown = thinned(np.asarray(edges), shown, MOST_WINDOWS)
    figure = Figure(figsize=(13, 1.9 + 0.32 * len(chosen)), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    answers, axes = figure.subplots(2, 1, sharex=True, height_ratios=[0.5, 0.32 * len(chosen) + 0.3])
    colors = []
    for stretch in stretches:
        place = chosen.index(stretch.class_index) if stretch.class_index in chosen else len(COLORS)
        colors.append(COLORS[place] if place < len(COLORS) else OTHER)
    spans = [(each.start, each.end - each.start) for each in stretches]
    answers.broken_barh(spans, (0, 1), facecolors=colors, linewidth=0)
    for stretch in stretches:
        if stretch.end - stretch.start > 0.09 * (edges[-1] - edges[0]):
            middle, name = (stretch.start + stretch.end) / 2, _short(classes[stretch.class_index])
            answers.text(middle, 0.5, name, ha="center", va="center", fontsize=8, color="white", clip_on=True)
    answers.set_yticks([0.5], ["answer"], fontsize=9)
    answers.set_ylim(0, 1)
    answers.tick_params(length=0, labelbottom=False)
    answers.spines[:].set_visible(False)
    axes.set_facecolor("0.85")  # what could not be read
    rows = np.arange(len(chosen) + 1) - 0.5
    drawn = axes.pcolormesh(
        edges, rows, np.ma.masked_invalid(shown.T), cmap="Blues", vmin=0, vmax=1, rasterized=True
    )
    axes.set_yticks(range(len(chosen)), [_short(classes[index]) for index in chosen], fontsize=9)
    for number, label in enumerate(axes.get_yticklabels()):
        label.set_color(COLORS[number] if number < len(COLORS) else OTHER)
    axes.invert_yaxis()
    axes.set_xlim(edges[0], edges[-1])
    minutes = edges[-1] > 120
    axes.xaxis.set_major_locator(_Times(minutes))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock_text(seconds, minutes)))
    axes.set_xlabel(
        "time (h:mm:ss)" if edges[-1] >= 3600 else "time (m:ss)" if minutes else "time (s)", fontsize=9
    )
    axes.tick_params(labelsize=9)
    axes.spines[:].set_visible(False)
    for border in rows[1:-1]:
        axes.axhline(border, color="white", linewidth=1)
    bar = figure.colorbar(drawn, ax=[answers, axes], fraction=0.02, pad=0.01)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.set_label("probability", fontsize=8)
    save_png(figure, path)


def thinned(edges: np.ndarray, chances: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The `edges` [w + 1] and `chances` [w k] of windows; where there are more than `most`, of stretches of several of
    them: their means, NaN where none of a stretch could be read."""
    together = -(-len(chances) // most)
    if together == 1:
        return edges, chances
    starts = np.arange(0, len(chances), together)
    known = np.isfinite(chances)
    counts = np.add.reduceat(known.astype(np.int64), starts)
    sums = np.add.reduceat(np.where(known, chances, 0.0), starts)
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return np.append(edges[starts], edges[-1]), means


def shown_classes(chances: np.ndarray, stretches: Sequence[Stretch]) -> list[int]:
    """The classes that a timeline shows, the most important first."""
    seconds = np.zeros(chances.shape[1])
    for stretch in stretches:
        seconds[stretch.class_index] += stretch.end - stretch.start
    means = np.zeros(chances.shape[1]) if np.isnan(chances).all() else np.nanmean(chances, axis=0)
    order = np.lexsort((np.arange(chances.shape[1]), -means, -seconds))
    return order[:MOST_CLASSES].tolist()


def clock_text(seconds: float, minutes: bool) -> str:
    """A time as h:mm:ss or m:ss, or in plain seconds."""
    if not minutes:
        return f"{seconds:g}"
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


class _Times(MaxNLocator):
    """Ticks at round times: so many seconds, or minutes."""

    def __init__(self, minutes: bool):
        super().__init__(nbins=12, steps=STEPS if not minutes else [1, 1.5, 2, 3, 5, 6, 10])
        self._unit = 60 if minutes else 1

    def tick_values(self, vmin: float, vmax: float) -> np.ndarray:
        return super().tick_values(vmin / self._unit, vmax / self._unit) * self._unit


def _short(name: str) -> str:
    return shortened(name, NAME_LENGTH)
