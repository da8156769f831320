"""How much of the differences between runs a setting accounts for, taken alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_BINS = 4
PER_BIN = 3  # runs


@dataclass(frozen=True)
class Importance:
    """One setting. `share` is eta squared, the part of the variance between runs that lies between the setting's
    values; `adjusted` is epsilon squared (Kelley, 1935), which takes away what as many values explain by chance, and
    is cut at 0. `adjusted` is None where no value was run twice.

    Settings are taken one at a time: what two do only together is credited to neither, and where settings were not
    varied independently one gets credit for another.
    """

    key: str
    values: int  # or bins of values, where numbers hardly repeat
    runs: int
    binned: bool
    share: float
    adjusted: float | None


def importance(metric: Sequence[float], settings: Mapping[str, Sequence[Any]]) -> list[Importance]:
    """The importance of every setting, the greatest first; empty where the runs do not differ in `metric`."""
    values = np.array(metric, dtype=np.float64)
    total = ((values - values.mean()) ** 2).sum() if len(values) else 0.0
    if total <= 0:
        return []
    found = [_of(key, values, total, row) for key, row in settings.items()]
    return sorted(found, key=lambda each: -1.0 if each.adjusted is None else each.adjusted, reverse=True)


def _of(key: str, metric: np.ndarray, total: float, row: Sequence[Any]) -> Importance:
    codes, binned = _groups(row)
    counts = np.bincount(codes)
    means = np.bincount(codes, metric) / counts
    within = float(((metric - means[codes]) ** 2).sum())
    share, adjusted = 1 - within / total, None
    if len(metric) > len(counts):
        between = total - within - (len(counts) - 1) * within / (len(metric) - len(counts))
        adjusted = max(0.0, float(between / total))
    return Importance(key, len(counts), len(metric), binned, float(share), adjusted)


def _groups(row: Sequence[Any]) -> tuple[np.ndarray, bool]:
    """The group of each run: its value, or for numbers that hardly repeat one of up to four bins of equal size."""
    names = sorted(set(map(str, row)))
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in row)
    if numbers and 2 * len(names) > len(row) and len(row) >= 2 * PER_BIN:
        bins = min(MOST_BINS, len(row) // PER_BIN)
        column = np.array(row, dtype=np.float64)
        edges = np.quantile(column, np.arange(1, bins) / bins)
        return np.unique(np.searchsorted(edges, column), return_inverse=True)[1], True
    return np.array([names.index(str(value)) for value in row]), False


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation of runs; of a single one there is no deviation."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
