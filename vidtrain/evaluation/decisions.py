"""Decisions from probabilities: thresholds, risk and coverage, prediction sets.

All guarantees assume that new videos are exchangeable with those of the fit; groups of similar videos weaken them.
"""

import math
from dataclasses import dataclass

import numpy as np

from vidtrain.errors import UserError

UNSURE = "unsure"
BOUND = 0.95  # confidence of the lower bounds


def lower_bound(hits: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Lower 95% bound of the share `hits` / `n` (one-sided; Clopper & Pearson, 1934); 0 where n is 0."""
    from scipy.special import betaincinv

    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, 1 - BOUND), 0.0)


# --- thresholds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """The least probability at which each of k classes is answered, all [k]; inf where none reaches the share.

    `answers` reach the threshold, `hits` of them are right, `support` videos are of the class; `bound` is the lower
    bound of the wanted share.
    """

    values: np.ndarray
    answers: np.ndarray
    hits: np.ndarray
    support: np.ndarray
    bound: np.ndarray


def thresholds(chances: np.ndarray, labels: np.ndarray, wanted: str, share: float) -> Thresholds:
    """For each class the lowest threshold with a precision of at least `share`, or the highest with such a recall;
    `wanted` is precision or recall.

    `chances` are [v k]. With `labels` [v] only the first class of a video is answered, if it reaches its threshold;
    with `labels` [v k] of 0 and 1, every class that does. On other videos the share is lower; `bound` says how low.

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
    result = Thresholds(np.full(k, np.inf), answers, correct, support, np.zeros(k))
    for number, own in enumerate(rows):
        scores = chances[own, number]
        hits = np.cumsum(labels[own] == number if labels.ndim == 1 else labels[own, number] > 0)
        ends = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)[: len(own)])  # equal ones stand together
        shares = hits[ends] / ((ends + 1) if wanted == "precision" else support[number])
        enough = ends[shares >= share]
        if len(enough):
            last = enough[-1] if wanted == "precision" else enough[0]
            result.values[number], result.answers[number], result.hits[number] = (
                scores[last],
                last + 1,
                hits[last],
            )
    result.bound[:] = lower_bound(result.hits, result.answers if wanted == "precision" else support)
    return result


# --- risk and coverage -----------------------------------------------------------------------------------------


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Coverage [v] and risk [v] if only the n most confident of v answers are given, for n = 1 ... v, and their mean
    risk, AURC (Geifman et al., 2019). Ties are averaged over all their orders."""
    order = np.argsort(-confidence, kind="stable")
    _, block, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = np.cumsum((np.bincount(block, 1 - right[order]) / sizes)[block])
    n = np.arange(1, len(order) + 1)
    risk = wrong / n
    return n / len(n), risk, float(risk.mean())


# --- prediction sets -------------------------------------------------------------------------------------------


def least_videos(coverage: float) -> int:
    """The number of videos that split conformal prediction needs: ceil(c / (1 - c))."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def least_probability(true_chances: np.ndarray, coverage: float) -> float:
    """The least probability of classes in a prediction set, so that at least a share `coverage` of sets hold the true
    class: split conformal prediction by 1 - p (Vovk et al., 2005; Sadinle et al., 2019).

    `true_chances` [n] are probabilities of the true classes. The expected share is at most 1 / (n + 1) higher. Raises
    ValueError where n is below `least_videos`.
    """
    n = len(true_chances)
    rank = math.ceil((n + 1) * coverage - 1e-9)
    if rank > n:
        raise ValueError(
            f"{n} videos are fewer than the {least_videos(coverage)} that a coverage of {coverage:g} takes"
        )
    return float(np.partition(true_chances, n - rank)[n - rank])


def least_probabilities(chances: np.ndarray, labels: np.ndarray, coverage: float, by_class: bool) -> list[float]:
    """`least_probability` of all classes together, or of each class (Vovk, 2012), for a share that holds within every
    class. `chances` [v k], `labels` [v].

    Raises `UserError` for too few videos, with the number that it takes.
    """
    own = chances[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=chances.shape[1]) if by_class else np.array([len(labels)])
    few = int((counts < least_videos(coverage)).sum())
    if few:
        of = f"of every class with by_class=true: {few} have fewer, down to" if by_class else "of val, which has"
        raise UserError(f"set_coverage={coverage:g} takes {least_videos(coverage)} videos {of} {counts.min()}")
    if not by_class:
        return [least_probability(own, coverage)]
    return [least_probability(own[labels == number], coverage) for number in range(chances.shape[1])]
