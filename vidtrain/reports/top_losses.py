"""A sheet of what a model got wrong with the most confidence: a strip of frames of each video, as it moves."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vidtrain.reports.fonts import shortened
from vidtrain.reports.plots import save_png

MOST = 16  # videos on a sheet
COLUMNS = 2
FRAMES = 5  # of a strip
WIDTH = 6.0  # inches of a strip
NAME_LENGTH = 26  # columns
TRUE, PREDICTED = "#1a7f37", "#c2410c"


@dataclass(frozen=True)
class Wrong:
    """A video whose class was missed: the true and the predicted class, and the probability of the latter."""

    row: int  # of what was evaluated
    true: str
    predicted: str
    probability: float


def most_wrong(
    labels: Any, predicted: Any, confidence: Any, classes: Sequence[str]
) -> tuple[list[Wrong], int]:
    """Of videos with `labels` [v], those `predicted` [v] otherwise: at most 16, of the most `confidence` [v] first, and
    how many there are."""
    labels, predicted, confidence = (np.asarray(each) for each in (labels, predicted, confidence))
    rows = np.flatnonzero(predicted != labels)
    order = rows[np.argsort(-confidence[rows], kind="stable")]
    chosen = [
        Wrong(int(row), classes[labels[row]], classes[predicted[row]], float(confidence[row]))
        for row in order[:MOST]
    ]
    return chosen, len(rows)


def plot_wrong(strips: Sequence[np.ndarray], wrong: Sequence[Wrong], title: str, path: Path) -> None:
    """Draw a strip of frames (uint8 [t h w 3]) for each of `wrong`, with both classes and the probability below it."""
    columns = min(COLUMNS, len(wrong))
    lines = -(-len(wrong) // columns)
    pictures = [side_by_side(each) for each in strips]
    ratio = max(each.shape[0] / each.shape[1] for each in pictures)
    figure = Figure(figsize=(WIDTH * columns, (WIDTH * ratio + 0.4) * lines + 0.45), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    for number, (picture, each) in enumerate(zip(pictures, wrong, strict=True), start=1):
        axes = figure.add_subplot(lines, columns, number)
        axes.imshow(picture, interpolation="nearest" if picture.shape[0] < 100 else "auto")
        axes.set_axis_off()
        true = f"true: {shortened(each.true, NAME_LENGTH)}"
        predicted = f"predicted: {shortened(each.predicted, NAME_LENGTH)} {few_digits(each.probability)}"
        for across, side, words, color in ((0.0, "left", true, TRUE), (1.0, "right", predicted, PREDICTED)):
            axes.annotate(
                words,
                (across, 0.0),
                xycoords="axes fraction",
                xytext=(0, -4),
                textcoords="offset points",
                ha=side,
                va="top",
                fontsize=8.5,
                color=color,
            )
    save_png(figure, path)


def few_digits(probability: float) -> str:
    """With two decimals; less, which of thousands of classes even the most probable may have, as 0.002 or 5e-05."""
    return f"{probability:.2f}" if probability >= 0.01 else f"{probability:.1g}"


def side_by_side(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [t h w 3] as one picture, with a white line between them."""
    gap = max(1, frames.shape[2] // 40)
    framed = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)[:, :-gap]
