"""Calibration errors, and temperature and vector scaling.

Both scale the fused logits of a video, so a temperature keeps the order of classes. Under mean_probs fused logits are
logarithms of mean probabilities. A temperature of each view, before the mean, could change the first class.
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
from vidtrain.evaluation.metrics import parts
from vidtrain.evaluation.predictions import percentile_interval, resampled_means

CELLS = 1 << 18  # logits at a time, which fit in a core's cache
BINS = 15  # as Guo et al. and torchmetrics have it
DRAWS, CONFIDENCE = 1000, 0.95  # of the bootstrap
COLDEST, HOTTEST = 0.01, 100.0  # bounds of temperatures
FOLDS = 5
FOLD_TOLERANCE = 0.03  # Newton's steps are squared by the next: from here on a temperature is right within 0.1%
WARM_START = 2000  # videos of the first guess of a temperature
TEMPERATURE, VECTOR = "temperature", "vector"
LEAST, LEAST_OF_A_CLASS = 10, 20  # val videos: ten for each fitted number


# --- how good probabilities are -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcomes:
    """Costs `nll` and `brier` [v] of the probabilities of v videos; probabilities `confidence` [m] of answers, and
    whether they are `right` [m]; all float64. Answers are the first class of each video or, with several labels a
    video, the yes or no of every video and class.
    """

    nll: np.ndarray
    brier: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


def outcomes(logits: Tensor, labels: Tensor, independent: bool) -> Outcomes:
    """Of fused logits [v k] and classes [v], or `labels` [v k] of 0 and 1.

    The negative log-likelihood is in natural logarithms. The Brier score is the sum of squares over classes, 0 to 2
    (Brier, 1950). Where classes are judged independently both are means over classes, as `loss` is.
    """
    rows = [
        _outcomes(logits[part].double(), labels[part], independent)
        for part in parts(len(logits), logits.shape[1], CELLS)
    ]
    return Outcomes(*(torch.cat(column).numpy() for column in zip(*rows, strict=True)))


def _outcomes(logits: Tensor, labels: Tensor, independent: bool) -> tuple[Tensor, ...]:
    several = labels.ndim == 2
    if independent:
        answers = labels.double() if several else F.one_hot(labels, logits.shape[1]).double()
        nll = F.binary_cross_entropy_with_logits(logits, answers, reduction="none").mean(dim=1)
        chances = logits.sigmoid()
        brier = (chances - answers).square().mean(dim=1)
    else:
        logs = logits.log_softmax(dim=1)
        nll = -logs.gather(1, labels[:, None])[:, 0]
        chances = logs.exp()
        brier = torch.linalg.vecdot(chances, chances) - 2 * (-nll).exp() + 1
    if several:
        return nll, brier, chances.flatten(), labels.double().flatten()
    first = torch.from_numpy(logits.numpy().argmax(axis=1))  # of equal ones the first, as everywhere
    return nll, brier, chances.gather(1, first[:, None])[:, 0], (first == labels).double()


def equal_width(confidence: np.ndarray) -> np.ndarray:
    """The bin [m] of each answer: 15 of equal width with closed lower ends and, as in torchmetrics, one for 1."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1), confidence, side="right") - 1


def equal_mass(confidence: np.ndarray) -> np.ndarray:
    """The bin [m] of each answer: 15 of equally many answers; equal probabilities share a bin."""
    ordered = np.sort(confidence)
    firsts = ordered[np.arange(BINS) * len(ordered) // BINS]
    return np.searchsorted(np.unique(firsts), confidence, side="right") - 1


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: np.ndarray) -> float:
    """The expected calibration error: the distance of mean probability and share of right answers in each bin, weighted
    by its answers (Naeini et al., 2015; Guo et al., 2017)."""
    return float(np.abs(np.bincount(bins, confidence - right)).sum() / len(bins))


def errors_by_class(logits: Tensor, labels: Tensor) -> list[float]:
    """The calibration error, in bins of equal width, of the yes and no of each class; `labels` [v k] of 0 and 1."""
    columns = zip(logits.double().sigmoid().T.numpy(), labels.double().T.numpy(), strict=True)
    return [calibration_error(chances, truth, equal_width(chances)) for chances, truth in columns]


BINNINGS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"ece": equal_width, "ece_mass": equal_mass}


def reliability(results: Sequence[Outcomes], groups: np.ndarray | None) -> list[dict[str, Any]]:
    """For each of several outcomes of the same videos: nll, brier, ece and ece_mass as value, low and high; `chance`,
    the approximate ece of true probabilities; `units`, how many are drawn; `bins` of equal width as [answers, mean
    probability, share that is right].

    Intervals are of 95%, from 1,000 bootstrap draws of videos, or of `groups` [v] of them, with fixed bins. Drawing
    with replacement raises calibration errors, so their intervals are draws mirrored at the value, which may lie
    outside (the basic bootstrap, Davison & Hinkley, 1997).
    """
    columns: list[np.ndarray] = []
    for own in results:
        columns += [own.nll[None], own.brier[None]]
        columns += [_gaps(own, binning(own.confidence)) for binning in BINNINGS.values()]
    costs = np.concatenate(columns, dtype=np.float32)  # draws are far less exact
    means = resampled_means(costs, groups, DRAWS, np.random.default_rng(0))
    sampled = iter(np.split(means, np.cumsum([len(column) for column in columns])[:-1], axis=1))
    units = len(results[0].nll) if groups is None else int(groups.max()) + 1
    rows = []
    for own in results:
        row: dict[str, Any] = {"units": units, "chance": _chance(own), "bins": _diagram(own)}
        for name, costs in (("nll", own.nll), ("brier", own.brier)):
            low, high = percentile_interval(next(sampled)[:, 0], CONFIDENCE)
            row[name] = {"value": float(costs.mean()), "low": low, "high": high}
        for name, binning in BINNINGS.items():
            value = calibration_error(own.confidence, own.right, binning(own.confidence))
            mirrored = 2 * value - np.abs(next(sampled)).sum(axis=1)
            low, high = percentile_interval(np.maximum(mirrored, 0), CONFIDENCE)
            row[name] = {"value": value, "low": low, "high": high}
        rows.append(row)
    return rows


def _chance(own: Outcomes) -> float:
    """The mean of |x| is s * sqrt(2 / pi) for a normal x of deviation s; summed over bins."""
    variances = np.bincount(equal_width(own.confidence), own.confidence * (1 - own.confidence))
    return float(np.sqrt(2 / np.pi * variances).sum() / len(own.confidence))


def _gaps(own: Outcomes, bins: np.ndarray) -> np.ndarray:
    """Each video's part [b v] in the difference of mean probability and share of right answers of each bin."""
    v = len(own.nll)
    answers = len(bins) // v
    cells = bins * v + np.repeat(np.arange(v), answers)
    gaps = np.bincount(cells, own.confidence - own.right, minlength=(int(bins.max()) + 1) * v)
    return gaps.reshape(-1, v) / answers


def _diagram(own: Outcomes) -> list[list[float]]:
    bins = equal_width(own.confidence)
    counts, sums, right = (np.bincount(bins, column) for column in (None, own.confidence, own.right))
    return [
        [int(counts[b]), float(sums[b] / counts[b]), float(right[b] / counts[b])]
        for b in np.flatnonzero(counts).tolist()
    ]


# --- scaling --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scaling:
    """Maps fused logits [.. k] to `scale` * logits + `bias`, of one number or k each. One scale is a temperature,
    1 / scale. Float64 keeps neighboring float32 logits apart, so ranks stay.
    """

    scale: tuple[float, ...] = (1.0,)
    bias: tuple[float, ...] = (0.0,)

    def __call__(self, logits: Tensor) -> Tensor:
        scale, bias = (logits.new_tensor(values, dtype=torch.float64) for values in (self.scale, self.bias))
        return logits.to(torch.float64, copy=True).mul_(scale).add_(bias)

    @property
    def temperature(self) -> float | None:
        """None where classes are scaled each by itself."""
        return 1 / self.scale[0] if len(self.scale) == 1 else None

    def __str__(self) -> str:
        if self == Scaling():
            return "no temperature"
        return "vector scaling" if self.temperature is None else f"temperature {self.temperature:.4g}"


def mean_nll(logits: Tensor, labels: Tensor, independent: bool) -> float:
    """The mean negative log-likelihood of fused logits [v k], as of `outcomes`."""
    if independent:
        return float(outcomes(logits, labels, independent).nll.mean())
    costs = [
        F.cross_entropy(logits[part].double(), labels[part], reduction="sum")
        for part in parts(len(logits), logits.shape[1], CELLS)
    ]
    return float(sum(costs)) / len(logits)


def fit_temperature(logits: Tensor, labels: Tensor, independent: bool) -> Scaling | None:
    """The temperature of least negative log-likelihood on fused logits [v k] (Guo et al., 2017).

    The cost is convex in 1 / temperature: Newton's method within a bracket finds the minimum. None where every true
    class has the highest logit, as the coldest temperature would be best; the hottest where logits tell nothing. Never
    raises the cost.
    """
    slopes = partial(_slopes, logits, labels, independent)
    some = torch.arange(0, len(logits), max(1, len(logits) // WARM_START))  # a first guess, which costs little
    guess = _newton(lambda scale: slopes(scale, some).sum(dim=1), 1.0, 1e-3)
    scale = _newton(lambda scale: slopes(scale).sum(dim=1), guess, 1e-6)
    if scale >= 1 / COLDEST:
        return None
    fitted, before = Scaling((scale,)), mean_nll(logits, labels, independent)
    return fitted if mean_nll(fitted(logits), labels, independent) <= before else Scaling()


def _newton(slopes: Callable[[float], Tensor], start: float, tolerance: float) -> float:
    """The root of the first of two `slopes`, the first and second derivative, within the bounds of scales; the nearer
    bound where there is none. Ends when a relative step is below `tolerance`."""
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
    """First and second derivatives [2 v], float64, of each video's cost by the scale; of some `rows` if given. Float32
    arithmetic is exact to 1e-6, and so is a temperature."""
    if rows is not None:
        logits, labels = logits[rows], labels[rows]
    columns = []
    for part in parts(len(logits), logits.shape[1], CELLS):
        z = logits[part].float()
        if independent:
            answers = labels[part] if labels.ndim == 2 else F.one_hot(labels[part], z.shape[1])
            chances = (z * scale).sigmoid()
            first = ((chances - answers) * z).mean(dim=1)
            second = (chances * (1 - chances) * z * z).mean(dim=1)
        else:
            z = z - z.gather(1, labels[part][:, None])
            chances = (z * scale).softmax(dim=1)
            first = torch.linalg.vecdot(chances, z)
            second = torch.linalg.vecdot(chances, z.square_()) - first * first
        columns.append(torch.stack([first, second]))
    return torch.cat(columns, dim=1).double()


def fit_vector(logits: Tensor, labels: Tensor, independent: bool, start: Scaling) -> Scaling:
    """A scale and a bias for each class (vector scaling, Guo et al., 2017), starting from the temperature `start`.

    They maximize the posterior under unit normal priors of each bias and of each scale's relative distance from the
    temperature's; the likelihood alone leaves a common bias undetermined.
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
    """A scaling by `method`, temperature or vector, and held-out logits [v k]: a fit on four fifths of the videos
    scales the last fifth, with groups kept whole. None where no temperature is the best.

    Raises `UserError` for too few videos, with the number that it takes.
    """
    _check_enough(method, labels, logits.shape[1], groups)
    fitted = fit_temperature(logits, labels, independent)
    if fitted is None:
        return None, logits.double()
    slopes = partial(_slopes, logits, labels, independent)
    shared = slopes(fitted.scale[0])

    def without(held: Tensor) -> Scaling:
        rows = (~held).nonzero()[:, 0]

        def of_rows(scale: float) -> Tensor:
            known = shared[:, rows] if scale == fitted.scale[0] else slopes(scale, rows)
            return known.sum(dim=1)

        scale = _newton(of_rows, fitted.scale[0], FOLD_TOLERANCE)
        own = Scaling() if scale >= 1 / COLDEST else Scaling((scale,))
        return own if method == TEMPERATURE else fit_vector(logits[rows], labels[rows], independent, own)

    scaled = logits.double()
    folds = _folds(len(logits), groups)
    for fold in folds.unique():
        held = folds == fold
        scaled[held] = without(held)(logits[held])
    return fitted if method == TEMPERATURE else fit_vector(logits, labels, independent, fitted), scaled


def _folds(v: int, groups: np.ndarray | None) -> Tensor:
    """The fold [v] of each video, drawn with a fixed seed."""
    units = np.arange(v) if groups is None else groups
    shuffled = np.random.default_rng(0).permutation(int(units.max()) + 1)
    return torch.from_numpy(shuffled[units] % FOLDS)


def _check_enough(method: str, labels: Tensor, k: int, groups: np.ndarray | None) -> None:
    units = len(labels) if groups is None else int(groups.max()) + 1
    if len(labels) < LEAST or units < 2:
        raise UserError(
            f"a temperature takes {LEAST} val videos or more, in two groups or more; there are {len(labels)} in {units}"
        )
    counts = labels.sum(dim=0) if labels.ndim == 2 else torch.bincount(labels, minlength=k)
    if labels.ndim == 2:  # a no is an answer too
        counts = torch.minimum(counts, len(labels) - counts)
    few = int((counts < LEAST_OF_A_CLASS).sum())
    if method == VECTOR and few:
        raise UserError(
            f"method=vector takes {LEAST_OF_A_CLASS} val videos of each class, ten for each of its two numbers: {few} "
            f"of {k} classes have fewer, down to {int(counts.min())}; method=temperature takes {LEAST} in all"
        )
