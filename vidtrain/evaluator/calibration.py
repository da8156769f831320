"""From a view table to the calibration of its checkpoint."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation import decisions
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
class Wanted:
    """What to fit: a scaling by `method`; thresholds for a precision or recall of each class; prediction sets of a
    coverage, over all classes or within each."""

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
    wanted: Wanted,
    console: Console,
) -> dict[str, Any]:
    """The record of a calibration (vidtrain.evaluation.calibrated) on the views of a protocol; None means the table's
    first order, all clips, all crops.

    Thresholds, sets and the curve use held-out probabilities: each fold is scaled by the other folds. Raises
    `UserError` for too few videos, with the number that it takes, for logits that are not finite, and for sets with
    several labels.
    """
    about = views.about
    order = order or about["orders"][0]
    check_protocol(views, fusion, order)
    clips, crops = choose(views, num_clips or about["num_clips"], num_crops or len(about["crops"]))
    table = views.table(order, clips.numbers, crops.numbers)
    table.check_read()
    several, independent, classes = table.labels.ndim == 2, about["independent"], about["classes"]
    if several and wanted.coverage is not None:
        raise UserError(
            "set_coverage= is of sets that hold the one class of a video, and videos have several labels here"
        )
    logits = _fused(table, fusion, independent)
    groups = group_numbers(table.indices.tolist(), views.groups)
    scaling, held_out = fit(wanted.method, logits, table.labels, independent, groups)
    if scaling is None:
        scaling = Scaling()
        console.warn(
            f"no temperature: each of the {len(logits)} videos has its true classes first, so the coldest fits best; "
            "probabilities stay as they are. It takes val videos that are answered wrongly"
        )
    own, scaled = outcomes(logits, table.labels, independent), outcomes(held_out, table.labels, independent)
    before, after = reliability([own, scaled], groups)
    chances = (held_out.sigmoid() if independent else held_out.softmax(dim=1)).numpy()
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
        "thresholds": _thresholds(chances, table.labels.numpy(), classes, wanted),
        "sets": _sets(chances, table.labels.numpy(), wanted),
    }


def _fused(table: ViewTable, fusion: str, independent: bool) -> Tensor:
    """Logits [v k]. Raises `UserError` where some are not finite."""
    logits = fuse(table.logits, fusion, independent)
    wild = int((~logits.isfinite().all(dim=1)).sum())
    if wild:
        raise UserError(f"the logits of {wild} of {len(logits)} videos in the table are not finite")
    return logits


def _curve(confidence: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    coverage, risk, aurc = decisions.risk_coverage(confidence, right)
    places = spread_evenly(len(risk), CURVE_POINTS)
    return {"aurc": aurc, "coverage": coverage[places].tolist(), "risk": risk[places].tolist()}


def _thresholds(chances: np.ndarray, labels: np.ndarray, classes: list[str], wanted: Wanted) -> dict[str, Any] | None:
    if wanted.threshold is None:
        return None
    kind, share = wanted.threshold
    result = decisions.thresholds(chances, labels, kind, share)
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


def _sets(chances: np.ndarray, labels: np.ndarray, wanted: Wanted) -> dict[str, Any] | None:
    if wanted.coverage is None:
        return None
    least = decisions.least_probabilities(chances, labels, wanted.coverage, wanted.by_class)
    sizes = np.bincount((chances >= np.array(least)).sum(axis=1))
    return {"coverage": wanted.coverage, "by_class": wanted.by_class, "least": least, "sizes": sizes.tolist()}
