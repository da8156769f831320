"""A contact sheet of what a model got wrong with the most confidence."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vidtrain.tracking.plots import save_png

MOST = 16  # videos on a sheet
COLUMNS = 4
NAME_LENGTH = 24
TRUE, PREDICTED = "#1a7f37", "#c2410c"


@dataclass(frozen=True)
class Wrong:
    """A video whose class was missed: the true and the predicted class, and the probability of the latter."""

    row: int  # of what was evaluated
    true: str
    predicted: str
    probability: float


def most_wrong(labels: Any, probabilities: Any, classes: Sequence[str]) -> tuple[list[Wrong], int]:
    """Of videos with `labels` [v] and class `probabilities` [v k], those whose most probable class is not the label:
    at most 16, the most confident first, and how many there are."""
    labels, probabilities = np.asarray(labels), np.asarray(probabilities)
    predicted = probabilities.argmax(axis=1)
    rows = np.flatnonzero(predicted != labels)
    confidence = probabilities[rows, predicted[rows]]
    order = rows[np.argsort(-confidence, kind="stable")]
    chosen = [
        Wrong(int(row), classes[labels[row]], classes[predicted[row]], float(probabilities[row].max()))
        for row in order[:MOST]
    ]
    return chosen, len(rows)


def plot_wrong(frames: Sequence[np.ndarray], wrong: Sequence[Wrong], title: str, path: Path) -> None:
    """Draw a frame (uint8 [h w 3]) for each of `wrong`, with both classes and the probability below it."""
    columns = min(COLUMNS, len(wrong))
    lines = -(-len(wrong) // columns)
    ratio = max(frame.shape[0] / frame.shape[1] for frame in frames)
    width = 2.5  # inches of a cell
    figure = Figure(
        figsize=(max(width * columns, 5.0), (width * ratio + 0.55) * lines + 0.45), layout="constrained"
    )
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    for number, (frame, each) in enumerate(zip(frames, wrong, strict=True), start=1):
        axes = figure.add_subplot(lines, columns, number)
        axes.imshow(frame, interpolation="nearest" if frame.shape[0] < 100 else "auto")
        axes.set_axis_off()
        predicted = f"predicted: {_short(each.predicted)} {each.probability:.2f}"
        for offset, words, color in ((-4, f"true: {_short(each.true)}", TRUE), (-16, predicted, PREDICTED)):
            axes.annotate(
                words,
                (0.5, 0.0),
                xycoords="axes fraction",
                xytext=(0, offset),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8.5,
                color=color,
            )
    save_png(figure, path)


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…"
