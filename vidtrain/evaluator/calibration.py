"""Calibrates a checkpoint on a view table: a scaling of logits, thresholds, risk and coverage, prediction sets.

All guarantees assume that new videos are exchangeable with those of the fit, which groups of similar videos are not.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.calibrated import FORMAT
from vidtrain.evaluation.calibration import Scaling, fit, outcomes, reliability
from vidtrain.evaluation.protocols import choose
from vidtrain.evaluation.report import group_numbers
from vidtrain.evaluation.view_store import StoredViews
from vidtrain.evaluation.views import ViewTable, fuse
from vidtrain.evaluator.report import check_protocol, protocol_text
from vidtrain.reports.charts import spread_evenly
from vidtrain.training.run import Console

CURVE_POINTS = 200


@dataclass(frozen=True)
class CalibrationTargets:
    """What to fit: a scaling by `method`; thresholds for a precision or recall of each class; prediction sets with a
    coverage over all classes or within each class."""

    method: str
    precision: float | None
    recall: float | None
    coverage: float | None
    by_class: bool

    @property
    def threshold(self) -> tuple[str, float] | None:
        shares = {"precision": self.precision, "recall": self.recall}
        return next(((name, share) for name, share in shares.items() if share is not None), None)


def calibrate_views(
    views: StoredViews,
    fusion: str,
    order: str | None,
    num_clips: int | None,
    num_crops: int | None,
    wanted: CalibrationTargets,
    console: Console,
) -> dict[str, Any]:
    """The record of a calibration (vidtrain.evaluation.calibrated) on the views of a protocol; None means the table's
    first order, all clips, all crops.

    Thresholds, sets and the curve use held-out probabilities: each fold is scaled by a fit to the other folds. Raises
    `UserError` for too few videos, naming the number needed, for logits that are not finite, and for prediction sets
    of videos with several labels.
    """
    about = views.about
    order = order or about["orders"][0]
    check_protocol(views, fusion, order)
    clips, crops = choose(views, num_clips or about["num_clips"], num_crops or len(about["crops"]))
    table = views.table(order, clips.numbers, crops.numbers)
    table.check_read()
    several, independent, classes = table.labels.ndim == 2, about["independent"], about["classes"]
    if several and wanted.coverage is not None:
        raise UserError("set_coverage= is for videos with one label, but these videos may have several; remove it")
    logits = _fused(table, fusion, independent)
    groups = group_numbers(table.indices.tolist(), views.groups)
    scaling, held_out = fit(wanted.method, logits, table.labels, independent, groups)
    if scaling is None:
        scaling = Scaling()
        console.warn(
            f"no temperature: the true classes of all {len(logits)} videos have the largest logits, so there is no "
            "best temperature, and probabilities do not change. A fit needs val videos with wrong predictions"
        )
    own, scaled = outcomes(logits, table.labels, independent), outcomes(held_out, table.labels, independent)
    before, after = reliability([own, scaled], groups)
    probabilities = (held_out.sigmoid() if independent else held_out.softmax(dim=1)).numpy()
    return {
        "format": FORMAT,
        **{key: about["identity"][key] for key in ("checkpoint", "weights")},
        "dataset": about["dataset"],
        "split": about["split"],
        "videos": len(logits),
        "coverage": table.coverage,
        "protocol": {
            "text": protocol_text(views, order, clips.numbers, clips.same, crops.numbers, fusion),
            "fusion": fusion,
        },
        "classes": list(classes),
        "method": wanted.method,
        "scaling": {"scale": list(scaling.scale), "bias": list(scaling.bias)},
        "fitted_nll": float(outcomes(scaling(logits), table.labels, independent).nll.mean()),
        "before": before,
        "after": after,
        "curve": None if several else _curve(scaled.confidence, scaled.right),
        "thresholds": _thresholds(probabilities, table.labels.numpy(), classes, wanted),
        "sets": _sets(probabilities, table.labels.numpy(), wanted),
    }


def _fused(table: ViewTable, fusion: str, independent: bool) -> Tensor:
    """Logits [v k]. Raises `UserError` if some are not finite."""
    logits = fuse(table.logits, fusion, independent)
    not_finite = int((~logits.isfinite().all(dim=1)).sum())
    if not_finite:
        raise UserError(f"the logits of {not_finite} of {len(logits)} videos in the table are not finite")
    return logits


def _curve(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    coverage, risk, aurc = risk_coverage(confidence, right)
    places = spread_evenly(len(risk), CURVE_POINTS)
    return {"aurc": aurc, "coverage": coverage[places].tolist(), "risk": risk[places].tolist()}


def _thresholds(
    probabilities: np.ndarray, labels: np.ndarray, classes: list[str], wanted: CalibrationTargets
) -> dict[str, Any] | None:
    if wanted.threshold is None:
        return None
    kind, share = wanted.threshold
    result = thresholds(probabilities, labels, kind, share)
    rows = [
        {
            "class": name,
            "threshold": None if np.isinf(result.values[number]) else float(result.values[number]),
            "videos": int(result.support[number]),
            "answers": int(result.answers[number]),
            "right": int(result.hits[number]),
            "bound": float(result.bound[number]),
        }
        for number, name in enumerate(classes)
    ]
    return {"wanted": kind, "share": share, "classes": rows}


def _sets(probabilities: np.ndarray, labels: np.ndarray, wanted: CalibrationTargets) -> dict[str, Any] | None:
    if wanted.coverage is None:
        return None
    least = set_thresholds(probabilities, labels, wanted.coverage, wanted.by_class)
    sizes = np.bincount((probabilities >= np.array(least)).sum(axis=1))
    return {"coverage": wanted.coverage, "by_class": wanted.by_class, "least": least, "sizes": sizes.tolist()}


# --- decisions from probabilities ----------------------------------------------------------------------------

BOUND = 0.95  # confidence of the lower bounds


def lower_bound(hits: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Lower 95% bound of the share `hits` / `n` (one-sided; Clopper & Pearson, 1934); 0 where n is 0."""
    from scipy.special import betaincinv

    return np.where(hits > 0, betaincinv(np.maximum(hits, 1), n - hits + 1, 1 - BOUND), 0.0)


# --- thresholds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thresholds:
    """The threshold of each of k classes, all [k]: the least probability at which the class is predicted, or inf if no
    threshold reaches the share.

    `answers` predictions reach the threshold, `hits` of them are right, `support` videos have the class; `bound` is the
    lower bound of the wanted share.
    """

    values: np.ndarray
    answers: np.ndarray
    hits: np.ndarray
    support: np.ndarray
    bound: np.ndarray


def thresholds(probabilities: np.ndarray, labels: np.ndarray, wanted: str, share: float) -> Thresholds:
    """For each class the lowest threshold with a precision of at least `share`, or the highest with such a recall;
    `wanted` is precision or recall.

    `probabilities` are [v k]. With `labels` [v] only the most probable class of a video is predicted, if it reaches its
    threshold; with `labels` [v k] of 0 and 1, every class that does. On new videos the share may be lower; `bound` is
    its lower bound.

    Raises `UserError` for a wanted recall of a class without videos.
    """
    k = probabilities.shape[1]
    if labels.ndim == 1:
        firsts = probabilities.argmax(axis=1)
        order = np.lexsort((-probabilities[np.arange(len(firsts)), firsts], firsts))
        rows = np.split(order, np.searchsorted(firsts[order], np.arange(1, k)))
        support = np.bincount(labels, minlength=k)
    else:
        rows = list(np.argsort(-probabilities, axis=0, kind="stable").T)
        support = labels.sum(axis=0).astype(np.int64)
    absent = np.flatnonzero(support == 0)
    if wanted == "recall" and len(absent):
        raise UserError(
            f"min_recall={share:g}: there is no video of {len(absent)} of {k} classes, such as number {absent[0]}"
        )
    answers, correct = np.zeros(k, np.int64), np.zeros(k, np.int64)
    result = Thresholds(np.full(k, np.inf), answers, correct, support, np.zeros(k))
    for number, own in enumerate(rows):
        scores = probabilities[own, number]
        hits = np.cumsum(labels[own] == number if labels.ndim == 1 else labels[own, number] > 0)
        ends = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)[: len(own)])  # equal scores are not divided
        shares = hits[ends] / ((ends + 1) if wanted == "precision" else support[number])
        enough = ends[shares >= share]
        if len(enough):
            last = enough[-1] if wanted == "precision" else enough[0]
            result.values[number], result.answers[number], result.hits[number] = (scores[last], last + 1, hits[last])
    result.bound[:] = lower_bound(result.hits, result.answers if wanted == "precision" else support)
    return result


# --- risk and coverage -----------------------------------------------------------------------------------------


def risk_coverage(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Coverage [v] and risk [v] of the n most confident of v predictions, for n = 1 ... v, and their mean risk, AURC
    (Geifman et al., 2019). Ties are averaged over all their orders."""
    order = np.argsort(-confidence, kind="stable")
    _, block, sizes = np.unique(-confidence[order], return_inverse=True, return_counts=True)
    wrong = np.cumsum((np.bincount(block, 1 - right[order]) / sizes)[block])
    n = np.arange(1, len(order) + 1)
    risk = wrong / n
    return n / len(n), risk, float(risk.mean())


# --- prediction sets -------------------------------------------------------------------------------------------


def min_videos(coverage: float) -> int:
    """The least number of videos that split conformal prediction needs: ceil(c / (1 - c))."""
    return math.ceil(coverage / (1 - coverage) - 1e-9)


def set_threshold(true_probabilities: np.ndarray, coverage: float) -> float:
    """The least probability of the classes in a prediction set at which at least a share `coverage` of sets holds the
    true class: split conformal prediction by 1 - p (Vovk et al., 2005; Sadinle et al., 2019).

    `true_probabilities` [n] are probabilities of the true classes. The expected share is at most 1 / (n + 1) higher.
    Raises ValueError where n is below `min_videos`.
    """
    n = len(true_probabilities)
    rank = math.ceil((n + 1) * coverage - 1e-9)
    if rank > n:
        raise ValueError(f"{n} videos are fewer than the {min_videos(coverage)} that a coverage of {coverage:g} needs")
    return float(np.partition(true_probabilities, n - rank)[n - rank])


def set_thresholds(probabilities: np.ndarray, labels: np.ndarray, coverage: float, by_class: bool) -> list[float]:
    """`set_threshold` of all classes together, or of each class (Vovk, 2012), for a share that holds within every
    class. `probabilities` [v k], `labels` [v].

    Raises `UserError` for too few videos, naming the number needed.
    """
    own = probabilities[np.arange(len(labels)), labels]
    counts = np.bincount(labels, minlength=probabilities.shape[1]) if by_class else np.array([len(labels)])
    few = int((counts < min_videos(coverage)).sum())
    if few:
        of = f"of every class with by_class=true: {few} have fewer, down to" if by_class else "of val, which has"
        raise UserError(f"set_coverage={coverage:g} needs {min_videos(coverage)} videos {of} {counts.min()}")
    if not by_class:
        return [set_threshold(own, coverage)]
    return [set_threshold(own[labels == number], coverage) for number in range(probabilities.shape[1])]
