"""Calibration errors, and temperature and vector scaling.

Both scale the fused logits of a video, so a temperature keeps the order of classes. With mean_probs, fused logits are
logarithms of mean probabilities. Scaling each view before the mean could change the predicted class.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.evaluation.metrics import bootstrap_interval, count_units, parts, resampled_means

CELLS = 1 << 18  # logits that are processed at a time: they fit in a core's cache
BINS = 15  # as Guo et al. and torchmetrics have it
DRAWS, CONFIDENCE = 1000, 0.95  # of the bootstrap
COLDEST, HOTTEST = 0.01, 100.0  # bounds of temperatures
FOLDS = 5
FOLD_TOLERANCE = 0.03  # Newton's method squares its error: after a step of 3% a temperature is right within 0.1%
WARM_START = 2000  # number of videos for the first guess of a temperature
TEMPERATURE, VECTOR = "temperature", "vector"
LEAST, LEAST_OF_A_CLASS = 10, 20  # val videos that a fit needs: ten for each fitted number


# --- how good probabilities are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcomes:
    """Scores of probabilities, all float64: the costs `nll` and `brier` [v] of v videos, the probability `confidence`
    [m] of each answer, and whether it is `right` [m]. An answer is the most probable class of a video or, with several
    labels a video, each yes or no for a video and a class.
    """

    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def outcomes(logits: Tensor, labels: Tensor, independent: bool) -> Outcomes:
    """Scores fused `logits` [v k] against `labels`: classes [v], or 0 and 1 [v k].

    The negative log-likelihood uses natural logarithms. The Brier score is the sum of squares over classes, 0 to 2
    (Brier, 1950). If classes are judged independently, both are means over classes, as `loss` is.
    """
    rows = [
        _outcomes(logits[part].double(), labels[part], independent)
        for part in parts(len(logits), logits.shape[1], CELLS)
    ]
    return Outcomes(*(torch.cat(column).numpy() for column in zip(*rows, strict=True)))


def _outcomes(logits: Tensor, labels: Tensor, independent: bool) -> tuple[Tensor, ...]:
    multi_label = labels.ndim == 2
    if independent:
        answers = labels.double() if multi_label else F.one_hot(labels, logits.shape[1]).double()
        nll = F.binary_cross_entropy_with_logits(logits, answers, reduction="none").mean(dim=1)
        probabilities = logits.sigmoid()
        brier = (probabilities - answers).square().mean(dim=1)
    else:
        logs = logits.log_softmax(dim=1)
        nll = -logs.gather(1, labels[:, None])[:, 0]
        probabilities = logs.exp()
        brier = torch.linalg.vecdot(probabilities, probabilities) - 2 * (-nll).exp() + 1
    if multi_label:
        return nll, brier, probabilities.flatten(), labels.double().flatten()
    first = torch.from_numpy(logits.numpy().argmax(axis=1))  # the first of equal logits, as in `ranking`
    return nll, brier, probabilities.gather(1, first[:, None])[:, 0], (first == labels).double()


def equal_width(confidence: np.ndarray) -> np.ndarray:
    """The bin [m] of each answer. There are 15 bins of equal width, which include their lower ends, and a bin for 1, as
    in torchmetrics."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="right") - 1


def equal_mass(confidence: np.ndarray) -> np.ndarray:
    """The bin [m] of each answer. There are 15 bins with the same number of answers; equal probabilities share a
    bin."""
    ordered = np.sort(confidence)
    lower_ends = ordered[np.arange(BINS) * len(ordered) // BINS]
    return np.searchsorted(np.unique(lower_ends), confidence, side="right") - 1


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: np.ndarray) -> float:
    """The expected calibration error: the distance between mean probability and accuracy in each bin, weighted by the
    bin's number of answers (Naeini et al., 2015; Guo et al., 2017)."""
    return float(np.abs(np.bincount(bins, confidence - right)).sum() / len(bins))


def errors_by_class(logits: Tensor, labels: Tensor) -> list[float]:
    """The calibration error of each class as a yes-or-no question, in bins of equal width; `labels` [v k] are 0 and
    1."""
    columns = zip(logits.double().sigmoid().T.numpy(), labels.double().T.numpy(), strict=True)
    return [calibration_error(probabilities, truth, equal_width(probabilities)) for probabilities, truth in columns]


BINNINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"ece": equal_width, "ece_mass": equal_mass}


def reliability(results: Sequence[Outcomes], groups: np.ndarray | None) -> list[dict[str, Any]]:
    """For each of `results`, which are outcomes of the same videos: nll, brier, ece and ece_mass as value, low and
    high; `chance`, the approximate ece that perfectly calibrated probabilities would have; `units`, the number of
    videos or groups that a bootstrap draw has; `bins` of equal width as [answers, mean probability, accuracy].

    Intervals have 95% confidence; with a single unit, low and high are None. They come from 1,000 bootstrap draws of
    videos, or of whole `groups` [v], with fixed bins. Drawing with replacement raises calibration errors, so their
    draws are mirrored at the value, which may lie outside of the interval (the basic bootstrap, Davison & Hinkley,
    1997).
    """
    columns: list[np.ndarray] = []
    for result in results:
        columns += [result.nll[None], result.brier[None]]
        columns += [gaps(result, binning(result.confidence)) for binning in BINNINGS.values()]
    costs = np.concatenate(columns, dtype=np.float32)  # float32 suffices: the variance of draws is far larger
    means = resampled_means(costs, groups, DRAWS, np.random.default_rng(0))
    sampled = iter(np.split(means, np.cumsum([len(column) for column in columns])[:-1], axis=1))
    units = count_units(len(results[0].nll), groups)
    rows = []
    for result in results:
        row: dict[str, Any] = {"units": units, "chance": _chance(result), "bins": _diagram(result)}
        for name, costs in (("nll", result.nll), ("brier", result.brier)):
            low, high = bootstrap_interval(next(sampled)[:, 0], CONFIDENCE, units) or (None, None)
            row[name] = {"value": float(costs.mean()), "low": low, "high": high}
        for name, binning in BINNINGS.items():
            value = calibration_error(result.confidence, result.right, binning(result.confidence))
            mirrored = 2 * value - np.abs(next(sampled)).sum(axis=1)
            low, high = bootstrap_interval(np.maximum(mirrored, 0), CONFIDENCE, units) or (None, None)
            row[name] = {"value": value, "low": low, "high": high}
        rows.append(row)
    return rows


def _chance(result: Outcomes) -> float:
    """The ece that perfectly calibrated probabilities would have by chance. It is a sum over bins: the mean of |x| is s
    * sqrt(2 / pi) for a normal x with deviation s."""
    variances = np.bincount(equal_width(result.confidence), result.confidence * (1 - result.confidence))
    return float(np.sqrt(2 / np.pi * variances).sum() / len(result.confidence))


def gaps(result: Outcomes, bins: np.ndarray) -> np.ndarray:
    """Each video's contribution [b v] to the difference between mean probability and accuracy in each bin."""
    v = len(result.nll)
    answers = len(bins) // v
    cells = bins * v + np.repeat(np.arange(v), answers)
    gaps = np.bincount(cells, result.confidence - result.right, minlength=(int(bins.max()) + 1) * v)
    return gaps.reshape(-1, v) / answers


def _diagram(result: Outcomes) -> list[list[float]]:
    bins = equal_width(result.confidence)
    counts, sums, right = (np.bincount(bins, column) for column in (None, result.confidence, result.right))
    return [
        [int(counts[b]), float(sums[b] / counts[b]), float(right[b] / counts[b])]
        for b in np.flatnonzero(counts).tolist()
    ]


# --- scaling --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """Maps fused logits [.. k] to `scale` * logits + `bias`, each with one number or k. A single scale is a temperature
    of 1 / scale. The result is float64: it keeps neighboring float32 logits apart, so ranks stay.
    """

    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)

    def __call__(self, logits: Tensor) -> Tensor:
        scale, bias = (logits.new_tensor(values, dtype=torch.float64) for values in (self.scale, self.bias))
        return logits.to(torch.float64, copy=True).mul_(scale).add_(bias)

    @property
    def temperature(self) -> float | None:
        """None if every class has its own scale."""
        return 1 / self.scale[0] if len(self.scale) == 1 else None

    def __str__(self) -> str:
        if self == Scaling():
            return "no temperature"
        return "vector scaling" if self.temperature is None else f"temperature {self.temperature:.4g}"


def mean_nll(logits: Tensor, labels: Tensor, independent: bool) -> float:
    """The mean of the negative log-likelihood that `outcomes` computes for fused logits [v k]."""
    if independent:
        return float(outcomes(logits, labels, independent).nll.mean())
    costs = [
        F.cross_entropy(logits[part].double(), labels[part], reduction="sum")
        for part in parts(len(logits), logits.shape[1], CELLS)
    ]
    return float(sum(costs)) / len(logits)


def fit_temperature(logits: Tensor, labels: Tensor, independent: bool) -> Scaling | None:
    """The temperature with the least negative log-likelihood on fused logits [v k] (Guo et al., 2017).

    The cost is convex in 1 / temperature, so Newton's method within a bracket finds the minimum. The result is None if
    every true class has the highest logit, as the lowest temperature would be best, and the highest temperature if
    logits carry no information. The fit never raises the cost.
    """
    slopes = partial(_slopes, logits, labels, independent)
    subset = torch.arange(0, len(logits), max(1, len(logits) // WARM_START))  # for a cheap first guess
    guess = _newton(lambda scale: slopes(scale, subset).sum(dim=1), 1.0, 1e-3)
    scale = _newton(lambda scale: slopes(scale).sum(dim=1), guess, 1e-6)
    if scale >= 1 / COLDEST:
        return None
    fitted, before = Scaling((scale,)), mean_nll(logits, labels, independent)
    return fitted if mean_nll(fitted(logits), labels, independent) <= before else Scaling()


def _newton(slopes: Callable[[float], Tensor], start: float, tolerance: float) -> float:
    """The scale at which the first derivative is 0; `slopes` returns the first and second derivative at a scale. If
    there is none within the bounds of scales, the nearer bound. Ends when a relative step is below `tolerance`."""
    low, high = 1 / HOTTEST, 1 / COLDEST
    scale = min(max(start, low), high)
    while high / low > 1 + 1e-6:
        first, second = slopes(scale).tolist()
        low, high = (low, scale) if first > 0 else (scale, high)
        after = scale - first / second if second > 0 else math.inf
        inside = low <= after <= high
        after = after if inside else math.sqrt(low * high)
        if inside and abs(after - scale) <= tolerance * scale:
            return after
        scale = after
    return low if low == 1 / HOTTEST else high


def _slopes(logits: Tensor, labels: Tensor, independent: bool, scale: float, rows: Tensor | None = None) -> Tensor:
    """First and second derivatives of each video's cost by the scale, float64 [2 v], for all videos or for `rows`. They
    are computed in float32, which makes a temperature exact to 1e-6."""
    if rows is not None:
        logits, labels = logits[rows], labels[rows]
    columns = []
    for part in parts(len(logits), logits.shape[1], CELLS):
        z = logits[part].float()
        if independent:
            answers = labels[part] if labels.ndim == 2 else F.one_hot(labels[part], z.shape[1])
            probabilities = (z * scale).sigmoid()
            first = ((probabilities - answers) * z).mean(dim=1)
            second = (probabilities * (1 - probabilities) * z * z).mean(dim=1)
        else:
            z = z - z.gather(1, labels[part][:, None])
            probabilities = (z * scale).softmax(dim=1)
            first = torch.linalg.vecdot(probabilities, z)
            second = torch.linalg.vecdot(probabilities, z.square_()) - first * first
        columns.append(torch.stack([first, second]))
    return torch.cat(columns, dim=1).double()


def fit_vector(logits: Tensor, labels: Tensor, independent: bool, start: Scaling) -> Scaling:
    """A scale and a bias for each class (vector scaling, Guo et al., 2017), starting from the temperature `start`.

    They maximize the posterior. Each bias, and the relative distance of each scale from the temperature's, has a unit
    normal prior: the likelihood alone would leave a bias common to all classes undetermined.
    """
    z, k, around = logits.double(), logits.shape[1], start.scale[0]
    numbers = torch.zeros(2, k, dtype=torch.float64, requires_grad=True)
    answers = labels.double() if labels.ndim == 2 else F.one_hot(labels, k).double()
    optimizer = torch.optim.LBFGS(
        [numbers], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def cost() -> Tensor:
        optimizer.zero_grad()
        scaled = z * (around * (1 + numbers[0])) + numbers[1]
        likelihood = F.binary_cross_entropy_with_logits if independent else F.cross_entropy
        nll = likelihood(scaled, answers)
        total = nll + numbers.square().sum() / (2 * len(z))
        total.backward()
        return total

    optimizer.step(cost)
    scale, bias = numbers.detach()
    return Scaling(tuple((around * (1 + scale)).tolist()), tuple(bias.tolist()))


def fit(
    method: str, logits: Tensor, labels: Tensor, independent: bool, groups: np.ndarray | None
) -> tuple[Scaling | None, Tensor]:
    """Fits a scaling by `method`, temperature or vector. Returns it with held-out scaled logits [v k]: each fifth of
    the videos is scaled by a fit on the other four, and groups stay together. The scaling is None if no temperature is
    the best (see `fit_temperature`).

    Raises `UserError` naming the number of videos needed if there are fewer.
    """
    _check_enough(method, labels, logits.shape[1], groups)
    fitted = fit_temperature(logits, labels, independent)
    if fitted is None:
        return None, logits.double()
    slopes = partial(_slopes, logits, labels, independent)
    shared = slopes(fitted.scale[0])

    def fit_without(held: Tensor) -> Scaling:
        rows = (~held).nonzero()[:, 0]

        def slopes_of_rows(scale: float) -> Tensor:
            by_video = shared[:, rows] if scale == fitted.scale[0] else slopes(scale, rows)
            return by_video.sum(dim=1)

        scale = _newton(slopes_of_rows, fitted.scale[0], FOLD_TOLERANCE)
        temperature = Scaling() if scale >= 1 / COLDEST else Scaling((scale,))
        if method == TEMPERATURE:
            return temperature
        return fit_vector(logits[rows], labels[rows], independent, temperature)

    scaled = logits.double()
    folds = _folds(len(logits), groups)
    for fold in folds.unique():
        held = folds == fold
        scaled[held] = fit_without(held)(logits[held])
    return fitted if method == TEMPERATURE else fit_vector(logits, labels, independent, fitted), scaled


def _folds(v: int, groups: np.ndarray | None) -> Tensor:
    """The fold [v] of each video, drawn with a fixed seed."""
    units = np.arange(v) if groups is None else groups
    shuffled = np.random.default_rng(0).permutation(int(units.max()) + 1)
    return torch.from_numpy(shuffled[units] % FOLDS)


def _check_enough(method: str, labels: Tensor, k: int, groups: np.ndarray | None) -> None:
    units = count_units(len(labels), groups)
    if len(labels) < LEAST or units < 2:
        raise UserError(
            f"a temperature needs {LEAST} val videos or more, in two groups or more; there are {len(labels)} in {units}"
        )
    counts = labels.sum(dim=0) if labels.ndim == 2 else torch.bincount(labels, minlength=k)
    if labels.ndim == 2:  # a fit needs videos with the label and videos without it
        counts = torch.minimum(counts, len(labels) - counts)
    few = int((counts < LEAST_OF_A_CLASS).sum())
    if method == VECTOR and few:
        raise UserError(
            f"method=vector needs {LEAST_OF_A_CLASS} val videos of each class, ten for each of its two numbers: {few} "
            f"of {k} classes have fewer, down to {int(counts.min())}; method=temperature needs {LEAST} in all"
        )
