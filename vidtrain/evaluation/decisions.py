"""What probabilities allow one to decide: from which one on an answer may stand, and which classes remain.

All of it holds for videos of the same kind as those that it was found on, and for groups of alike videos it holds less.
"""

import math
from dataclasses import dataclass

import numpy as np

from vidtrain.errors import UserError

UNSURE = "unsure"
BOUND = 0.95  # how sure the lower bounds of shares are


def lower_bound(hits: np.ndarray, n: np.ndarray) -> np.ndarray:
    """The least share that `hits` of `n` allow with 95% (one-sided; Clopper & Pearson, 1934); 0 where n is 0."""
    from scipy.special import betaincinv

    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, 1 - BOUND), 0.0)


# --- thresholds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """From which probability on each of k classes is answered, all [k]: inf where no probability will do.

    Of the `answers` with so much or more, `hits` were right, and there were `support` videos of the class; `bound` is
    the lower bound of the share that was wanted.
    """

    values: np.ndarray
    answers: np.ndarray
    hits: np.ndarray
    support: np.ndarray
    bound: np.ndarray


def thresholds(chances: np.ndarray, labels: np.ndarray, wanted: str, share: float) -> Thresholds:
    """Of each class the lowest threshold with a precision of `share` or more, or the highest with such a recall;
    `wanted` is precision or recall.

    `chances` are [v k]. With classes [v] only the first class of a video is answered, if its probability will do; with
    `labels` [v k] of 0 and 1 every class of which it does. The share is that of these videos, so it is on others
    somewhat lower: `bound` says how low it may be.

    Raises `UserError` for a wanted recall of a class that no video is of.
    """
    k = chances.shape[1]
    if labels.ndim == 1:
        firsts = chances.argmax(axis=1)
        order = np.lexsort((-chances[np.arange(len(firsts)), firsts], firsts))
        rows = np.split(order, np.searchsorted(firsts[order], np.arange(1, k)))
        support = np.bincount(labels, minlength=k)
    else:
        rows = list(np.argsort(-chances, axis=0, kind="stable").T)
        support = labels.sum(axis=0).astype(np.int64)
    absent = np.flatnonzero(support == 0)
    if wanted == "recall" and len(absent):
        raise UserError(
            f"min_recall={share:g}: there is no video of {len(absent)} of {k} classes, such as number {absent[0]}"
        )
    answers, correct = np.zeros(k, np.int64), np.zeros(k, np.int64)
    found = Thresholds(np.full(k, np.inf), answers, correct, support, np.zeros(k))
    for number, own in enumerate(rows):
        scores = chances[own, number]
        hits = np.cumsum(labels[own] == number if labels.ndim == 1 else labels[own, number] > 0)
        ends = np.flatnonzero(
            np.append(scores[1:] < scores[:-1], True)[: len(own)]
        )  # equal ones stand together
        shares = hits[ends] / ((ends + 1) if wanted == "precision" else support[number])
        enough = ends[shares >= share]
        if len(enough):
            last = enough[-1] if wanted == "precision" else enough[0]
            found.values[number], found.answers[number], found.hits[number] = (
                scores[last],
                last + 1,
                hits[last],
            )
    found.bound[:] = lower_bound(found.hits, found.answers if wanted == "precision" else support)
    return found


# --- risk and coverage -----------------------------------------------------------------------------------------


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """If only the n most confident of v answers are given, for n = 1 ... v: their share of all, the share of wrong ones
    among them, and the mean of the latter, AURC (Geifman et al., 2019). Of equally confident ones each comes first as
    often as any other."""
    order = np.argsort(-confidence, kind="stable")
    _, block, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = np.cumsum((np.bincount(block, 1 - right[order]) / sizes)[block])
    n = np.arange(1, len(order) + 1)
    risk = wrong / n
    return n / len(n), risk, float(risk.mean())


# --- prediction sets -------------------------------------------------------------------------------------------


def least_videos(coverage: float) -> int:
    """How many videos split conformal prediction takes: ceil(c / (1 - c))."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def least_probability(true_chances: np.ndarray, coverage: float) -> float:
    """From which probability on a class belongs to a video's set, so that a share of `coverage` or more of sets hold
    the true class: split conformal prediction by 1 - p (Vovk et al., 2005; Sadinle et al., 2019).

    `true_chances` [n] are those of the true classes of n videos that are exchangeable with those to come; over draws of
    all, the share is at most 1 / (n + 1) higher. Raises ValueError where n is below `least_videos`.
    """
    n = len(true_chances)
    rank = math.ceil((n + 1) * coverage - 1e-9)
    if rank > n:
        raise ValueError(
            f"{n} videos are fewer than the {least_videos(coverage)} that a coverage of {coverage:g} takes"
        )
    return float(np.partition(true_chances, n - rank)[n - rank])


def least_probabilities(
    chances: np.ndarray, labels: np.ndarray, coverage: float, by_class: bool
) -> list[float]:
    """`least_probability` of all classes together, one number, or of each class by itself (Vovk, 2012): then the share
    holds within every class. `chances` [v k], `labels` [v].

    Raises `UserError` for too few videos, saying how many it takes.
    """
    own = chances[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=chances.shape[1]) if by_class else np.array([len(labels)])
    few = int((counts < least_videos(coverage)).sum())
    if few:
        of = (
            f"of every class with by_class=true: {few} have fewer, down to"
            if by_class
            else "of val, which has"
        )
        raise UserError(
            f"set_coverage={coverage:g} takes {least_videos(coverage)} videos {of} {counts.min()}"
        )
    if not by_class:
        return [least_probability(own, coverage)]
    return [least_probability(own[labels == number], coverage) for number in range(chances.shape[1])]
