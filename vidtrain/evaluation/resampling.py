"""How sure a number is: the bootstrap (Efron, 1979).

It draws as many videos as there are, with replacement, again and again; what the numbers do from one draw to the next
is what they would do on other videos of the same kind. It is paired: every run is scored on the same draw, so what
makes a video hard for all of them cancels out. Where videos come in groups (one person, one long recording) whole
groups are drawn, as the videos of a group are no independent witnesses.
"""

from collections.abc import Iterator

import numpy as np

CELLS = 1 << 22  # of the weights that are held at a time


def resampled_means(
    values: np.ndarray, groups: np.ndarray | None, draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Means [draws r] of `values` [r v] over videos drawn with replacement, the same for all r rows.

    Videos on which all rows are the same are exchangeable, so it draws how often each distinct column comes, which is
    the same distribution and far fewer numbers than there are videos. `groups` [v] numbers what is drawn whole. Means
    of float32 are computed in it, which takes half the time; of all else in float64.
    """
    kind = np.float32 if values.dtype == np.float32 else np.float64
    sums, sizes = values.astype(kind), np.ones(values.shape[1])
    if groups is not None:
        sums = np.stack([np.bincount(groups, row) for row in sums])
        sizes = np.bincount(groups).astype(np.float64)
    columns, counts = np.unique(np.vstack([sums, sizes]).astype(kind), axis=1, return_counts=True)
    products = [weights.astype(kind) @ columns.T for weights in draw_weights(counts, draws, len(counts), rng)]
    means = [rows[:, :-1] / rows[:, -1:] for rows in products]
    return np.concatenate(means)


def draw_weights(
    counts: np.ndarray, draws: int, width: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """How often each kind of unit is drawn [b m], where `counts` [m] are the numbers of units. b draws come at a time:
    as many as there is memory for in rows of `width`."""
    total, step, m = int(counts.sum()), max(1, CELLS // width), len(counts)
    alone = total == m  # each kind is of one unit: then drawing units one by one takes a third of the time
    for start in range(0, draws, step):
        size = min(step, draws - start)
        if alone:
            yield np.stack([np.bincount(rng.integers(m, size=m), minlength=m) for _ in range(size)])
        else:
            yield rng.multinomial(total, counts / total, size=size)


def percentile_interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle `confidence` of `samples`, without what rounding leaves of a 0."""
    low, high = np.quantile(samples, [(1 - confidence) / 2, (1 + confidence) / 2])
    return round(float(low), 12) + 0.0, round(float(high), 12) + 0.0
