"""What views are worth, as one PNG: the metric against clips and crops, by fusion, and in other orders of frames."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vidtrain.reports.plots import COLORS, save_png

LEAST_SPAN = 0.05  # of the vertical axis


def plot_views(
    about: Mapping[str, Any],
    protocols: Sequence[Any],
    points: Sequence[Any],
    probes: Sequence[Any],
    fusion: str,
    metric: str,
    path: Path,
) -> None:
    """Draws a table's protocols: as many panels as there is something to show in.

    `about` is that of the table, `protocols`, `points` and `probes` are those of the evaluation wing; `metric` is the
    key of their numbers.
    """
    panels = []
    if len({point.clips for point in points}) > 1:
        panels.append(lambda axes: _clips(axes, points, fusion))
    fusions = list(dict.fromkeys(each.fusion for each in protocols))
    if len(fusions) > 1 and len(points) > 1:
        panels.append(lambda axes: _fusions(axes, about, protocols, fusions, metric))
    if len(probes) > 1:
        panels.append(lambda axes: _probes(axes, probes, metric, len(about["classes"])))
    if not panels:
        panels.append(lambda axes: _crops(axes, protocols, metric))
    figure = Figure(figsize=(5.0 * len(panels), 3.7), layout="constrained")
    for number, draw in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), number)
        draw(axes)
        low, high = axes.get_ylim()
        if high - low < LEAST_SPAN:  # else noise in the last video looks like a trend
            axes.set_ylim((low + high - LEAST_SPAN) / 2, (low + high + LEAST_SPAN) / 2)
        axes.tick_params(labelsize=8)
        axes.grid(color="0.92", linewidth=0.8, axis="y")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_ylabel(f"video {metric}", fontsize=9)
    figure.suptitle(
        f"{about['frames'][about['orders'][0]]}; {about['split']}, {about['coverage']} videos", fontsize=9
    )
    save_png(figure, path)


def _clips(axes: Axes, points: Sequence[Any], fusion: str) -> None:
    for color, crops in zip(COLORS, sorted({point.crops for point in points}), strict=False):
        mine = [point for point in points if point.crops == crops]
        clips = [point.clips for point in mine]
        axes.fill_between(
            clips, [p.lowest for p in mine], [p.highest for p in mine], color=color, alpha=0.15, linewidth=0
        )
        label = f"{crops} crop{'s' if crops > 1 else ''}"
        axes.plot(clips, [p.mean for p in mine], color=color, marker="o", markersize=3.5, label=label)
    axes.set_title(f"By clips, {fusion}", fontsize=11, loc="left")
    axes.set_xlabel("clips a video: mean over choices of them, and their range", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")


def _fusions(
    axes: Axes, about: Mapping[str, Any], protocols: Sequence[Any], fusions: Sequence[str], metric: str
) -> None:
    crops = len(about["crops"])
    for number, (color, fusion) in enumerate(zip(COLORS, fusions, strict=False)):
        mine = [
            each
            for each in protocols
            if each.fusion == fusion and each.order == about["orders"][0] and len(each.crops.numbers) == crops
        ]
        clips = [each.num_clips for each in mine]
        style = ("-", "--", ":")[number % 3]  # equal curves stay visible
        axes.plot(
            clips,
            [e.metrics[metric] for e in mine],
            style,
            color=color,
            marker="o",
            markersize=3.5,
            label=fusion,
        )
    axes.set_title(f"By fusion, {crops} crop{'s' if crops > 1 else ''}", fontsize=11, loc="left")
    axes.set_xlabel("clips a video: evenly spaced ones of the table", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.legend(fontsize=8, framealpha=0.85, edgecolor="none")


def _probes(axes: Axes, probes: Sequence[Any], metric: str, classes: int) -> None:
    names = [each.protocol.order.replace("_", " ") for each in probes]
    values = [each.protocol.metrics[metric] for each in probes]
    bars = axes.bar(names, values, color=[COLORS[0], *[COLORS[5]] * (len(names) - 1)], width=0.6)
    axes.bar_label(bars, [f"{value:.3f}" for value in values], fontsize=8, padding=2)
    if metric == "top1":
        axes.axhline(1 / classes, color="0.4", linewidth=0.9, linestyle=(0, (4, 3)))
        axes.annotate(
            f"1 of {classes}\nclasses",
            (1, 1 / classes),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
            color="0.35",
        )
    axes.set_ylim(0, max(1.05 * max(values), 0.05) if max(values) == max(values) else 1)
    axes.set_title(f"By order of frames, {probes[0].protocol.name}", fontsize=11, loc="left")


def _crops(axes: Axes, protocols: Sequence[Any], metric: str) -> None:
    names = [
        f"{len(each.crops.numbers)} crop{'s' if len(each.crops.numbers) > 1 else ''}" for each in protocols
    ]
    bars = axes.bar(names, [each.metrics[metric] for each in protocols], color=COLORS[0], width=0.5)
    axes.bar_label(bars, [f"{each.metrics[metric]:.3f}" for each in protocols], fontsize=8, padding=2)
    axes.set_title("By crops", fontsize=11, loc="left")
