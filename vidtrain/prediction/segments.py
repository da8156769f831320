"""From the probabilities of windows to stretches of one class: what happens when."""

from typing import NamedTuple

import numpy as np


class Segment(NamedTuple):
    """A class from `start` to `end`, in seconds, with the mean `probability` of its windows."""

    start: float
    end: float
    class_index: int
    probability: float


def smoothed(chances: np.ndarray, width: int) -> np.ndarray:
    """The mean of each row of `chances` [w k] with up to `width` // 2 on either side; NaN rows stay, and count in
    none."""
    if width == 1:
        return chances
    known = ~np.isnan(chances[:, :1])
    filled = np.where(known, chances, 0.0)
    reach = min(width // 2, len(chances) - 1)
    sums, counts = np.zeros_like(filled), np.zeros_like(filled[:, :1])
    for shift in range(-reach, reach + 1):
        into = slice(max(0, -shift), len(filled) - max(0, shift))
        of = slice(max(0, shift), len(filled) - max(0, -shift))
        sums[into] += filled[of]
        counts[into] += known[of]
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def window_edges(starts: np.ndarray, ends: np.ndarray, seconds: float) -> np.ndarray:
    """Windows may overlap, or leave gaps: window i has the time from edge i to edge i + 1, halfway to the centers of
    its neighbors; float64 [w + 1], from 0 to the video's end."""
    centers = (starts + ends) / 2
    return np.concatenate([[0.0], (centers[1:] + centers[:-1]) / 2, [seconds]])


def segments(chances: np.ndarray, edges: np.ndarray, threshold: float, independent: bool) -> list[Segment]:
    """Adjacent windows with the same answer as one, in order of time.

    The answer of a window is its most probable class, if that has the probability `threshold` or more; where classes
    are judged independently, every class that has. Windows of NaN have none.
    """
    answers = np.nan_to_num(chances, nan=-1.0) >= threshold
    if not independent:
        best = np.nan_to_num(chances, nan=-1.0).argmax(axis=1)
        answers &= best[:, None] == np.arange(chances.shape[1])
    answers &= ~np.isnan(chances)
    found = []
    for index in np.flatnonzero(answers.any(axis=0)).tolist():
        steps = np.diff(np.concatenate([[0], answers[:, index].astype(np.int8), [0]]))
        runs = zip(np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True)
        for first, stop in runs:
            mean = float(chances[first:stop, index].mean())
            found.append(Segment(float(edges[first]), float(edges[stop]), index, mean))
    return sorted(found, key=lambda segment: (segment.start, segment.class_index))
