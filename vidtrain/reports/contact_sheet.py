"""What a model saw of a video and where it looked, on one page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vidtrain.reports.fonts import shortened
from vidtrain.reports.overlays import Box, outlined, shade
from vidtrain.reports.plots import COLORS, NAME_LENGTH, save_png

COLUMNS = 8
MOST_CLIPS = 4


@dataclass(frozen=True)
class SeenClip:
    """One clip as the model saw it: `frames` uint8 [t h w 3] at `times` [t] in seconds, and where it looked, `heat`
    [a b c] of 0 to 1 over time, height and width, with its `shares` [a] of all heat of the clip; or None."""

    name: str
    frames: np.ndarray
    times: np.ndarray
    heat: np.ndarray | None
    shares: np.ndarray | None


def draw_contact_sheet(
    path: Path,
    title: str,
    note: str,
    top: Sequence[tuple[str, float]],
    frame: np.ndarray,
    boxes: Sequence[Box],
    clips: Sequence[SeenClip],
) -> None:
    """Draws the whole `frame`, uint8 [h w 3], with the boxes that the model saw; the `top` classes; and of every clip
    up to 8 frames, as they went into the model and below that under the heat map. Of many clips the first 4 are shown.
    """
    shown = clips[:MOST_CLIPS]
    height, width = clips[0].frames.shape[1:3]
    lines = 2 if clips[0].heat is not None else 1
    cell, top_inches = 1.55, 2.6
    row_inches = cell * min(height / width, 2) + 0.25
    figure = Figure(
        figsize=(cell * COLUMNS + 0.6, top_inches + row_inches * lines * len(shown)), layout="constrained"
    )
    above, below = figure.subfigures(2, 1, height_ratios=[top_inches, row_inches * lines * len(shown)])
    above.suptitle(title, fontsize=11, x=0.01, ha="left")
    whole, bars = above.subplots(1, 2, width_ratios=[1, 1.4])
    for box in boxes:
        frame = outlined(frame, box)
    whole.imshow(frame)
    whole.set_axis_off()
    whole.set_title("whole frame, and what the model sees of it", fontsize=8)
    _draw_bars(bars, top)
    grid = below.subplots(lines * len(shown), COLUMNS, squeeze=False)
    for number, clip in enumerate(shown):
        columns = _spread(len(clip.frames), COLUMNS)
        for line in range(lines):
            row = grid[number * lines + line]
            for axes, before, place in zip(row, [None, *columns], columns, strict=False):
                _draw_frame(axes, clip, before, place, heated=line == 1)
            for axes in row[len(columns) :]:
                axes.set_axis_off()
            row[0].set_ylabel("heat" if line == 1 else f"{clip.name}\nas seen", fontsize=7.5)
    hidden = f" {len(clips) - len(shown)} more clips are not shown." if len(clips) > len(shown) else ""
    below.supxlabel(note + hidden, fontsize=7.5, x=0.01, ha="left", color="0.35")
    save_png(figure, path)


def step_of(place: int, frames: int, steps: int) -> int:
    """Which of `steps` equal steps of a heat map frame `place` of `frames` belongs to."""
    return place * steps // frames


def _draw_bars(axes: Axes, top: Sequence[tuple[str, float]]) -> None:
    names = [shortened(name, NAME_LENGTH) for name, _ in top]
    shares = [share for _, share in top]
    axes.barh(range(len(top)), shares, color=[COLORS[0], *["#9DC3DE"] * (len(top) - 1)])
    axes.set_yticks(range(len(top)), names, fontsize=8)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    for row, share in enumerate(shares):
        axes.text(share + 0.01, row, f"{share:.1%}", va="center", fontsize=8)


def _draw_frame(axes: Axes, clip: SeenClip, before: int | None, place: int, heated: bool) -> None:
    # a step of the heat map may last for several frames: its share stands below the first that is shown
    picture = clip.frames[place]
    label = f"{clip.times[place]:.2f} s"
    if heated:
        step = step_of(place, len(clip.frames), len(clip.heat))
        picture = shade(picture, clip.heat[step])
        begins = before is None or step_of(before, len(clip.frames), len(clip.heat)) != step
        label = f"{clip.shares[step]:.0%}" if begins else "\N{HORIZONTAL ELLIPSIS}"
    axes.imshow(picture)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(label, fontsize=7.5, labelpad=1)


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of `count` places, evenly spread, both ends included."""
    if count <= most:
        return list(range(count))
    return [round(number * (count - 1) / (most - 1)) for number in range(most)]
