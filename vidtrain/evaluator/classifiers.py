"""Simple classifiers of vectors, with scikit-learn.

Targets are float64 [v k] of 0 and 1; if videos have one label, each row has a single 1. A classifier has one setting.
It is chosen on the training videos alone, by the log loss under cross-validation that keeps groups whole.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn: the larger, the freer
USUAL_PENALTY = 1e-2
NEIGHBORS = (15, 9, 5, 3, 1)
USUAL_NEIGHBORS = 5
MOST_COMPONENTS = 256
FOLDS = 5
ITERATIONS = 1000
LEAST_CHANCE = 1e-6  # in place of zero, which has no logarithm

Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], "Predict"]
Predict = Callable[[np.ndarray], np.ndarray]
"""Vectors [v d] to probabilities [v k]."""


def majority(vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray, several: bool) -> Predict:
    """Predicts for every video the shares of the classes in training."""
    return lambda others: np.tile(targets.mean(axis=0), (len(others), 1))


def nearest_neighbors(vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray, several: bool) -> Predict:
    """The share of each class among the nearest training videos, to which one video of all classes alike is added.
    Nearness is the cosine of the vectors after the mean of training is subtracted."""
    center = vectors.mean(axis=0)

    def fit(vectors: np.ndarray, targets: np.ndarray, count: int) -> Predict:
        count = min(count, len(vectors))
        model = KNeighborsRegressor(count, metric="cosine").fit(vectors - center, targets)
        usual = 0.5 if several else 1 / targets.shape[1]
        return lambda others: (model.predict(others - center) * count + usual) / (count + 1)

    count = select(fit, vectors, targets, groups, NEIGHBORS, USUAL_NEIGHBORS, several)
    return fit(vectors, targets, count)


def logistic_regression(vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray, several: bool) -> Predict:
    """Multinomial regression with a quadratic penalty; with `several` labels a video, one regression for each class.
    Vectors are standardized, then projected onto at most 256 principal components, which is lossless for fewer
    videos."""
    turned = _components(vectors)
    known = turned(vectors)
    penalty = select(partial(_fit_logistic, several), known, targets, groups, PENALTIES, USUAL_PENALTY, several)
    predict = _fit_logistic(several, known, targets, penalty)
    return lambda others: predict(turned(others))


def _components(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The projection of `logistic_regression`, fitted to these vectors [v d]."""
    scaler = StandardScaler().fit(vectors)
    components = PCA(min(MOST_COMPONENTS, *vectors.shape), svd_solver="full").fit(scaler.transform(vectors))
    return lambda others: components.transform(scaler.transform(others))


def stratified_folds(labels: np.ndarray, groups: np.ndarray, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The rows to train on and to test on, for `count` folds. Each row [v] is tested once. Groups stay whole, and
    classes are as even as that allows."""
    return list(StratifiedGroupKFold(count).split(labels, labels, groups))


def out_of_fold(vectors: np.ndarray, targets: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Probabilities [v k] of every video, by logistic regression on the videos of other folds (`stratified_folds`).
    The penalty is the one with the least log loss over all videos."""
    probabilities = np.zeros((len(PENALTIES), *targets.shape))
    for train, test in folds:
        turned = _components(vectors[train])
        known, others = turned(vectors[train]), turned(vectors[test])
        for number, penalty in enumerate(PENALTIES):
            probabilities[number, test] = _fit_logistic(False, known, targets[train], penalty)(others)
    return probabilities[int(np.argmin([log_loss(of_penalty, targets, False) for of_penalty in probabilities]))]


def _fit_logistic(several: bool, vectors: np.ndarray, targets: np.ndarray, penalty: float) -> Predict:
    if several:
        ones = [_fit_logistic(False, vectors, np.stack([1 - own, own], axis=1), penalty) for own in targets.T]
        return lambda others: np.stack([predict(others)[:, 1] for predict in ones], axis=1)
    labels = targets.argmax(axis=1)
    classes = np.unique(labels)
    if len(classes) == 1:
        return majority(vectors, targets, labels, several)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a thousand steps of it are a baseline, too
        model = LogisticRegression(C=penalty, max_iter=ITERATIONS).fit(vectors, labels)

    def predict(others: np.ndarray) -> np.ndarray:
        probabilities = np.zeros((len(others), targets.shape[1]))
        probabilities[:, classes] = model.predict_proba(others)
        return probabilities

    return predict


def select(
    fit: Callable[[np.ndarray, np.ndarray, Any], Predict],
    vectors: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray,
    choices: tuple[Any, ...],
    usual: Any,
    several: bool,
) -> Any:
    """The one of `choices` with the least log loss on videos of other groups, the first of equals; `usual` if there is
    only one group."""
    count = min(FOLDS, len(np.unique(groups)))
    if count < 2:
        return usual
    folds = list(GroupKFold(count).split(vectors, groups=groups))
    losses = [
        sum(
            log_loss(fit(vectors[train], targets[train], choice)(vectors[test]), targets[test], several)
            for train, test in folds
        )
        for choice in choices
    ]
    return choices[int(np.argmin(losses))]


def log_loss(probabilities: np.ndarray, targets: np.ndarray, several: bool) -> float:
    """The sum over videos of the negative log probability of their labels."""
    probabilities = np.clip(probabilities, LEAST_CHANCE, 1 - LEAST_CHANCE)
    loss = -(targets * np.log(probabilities)).sum()
    return float(loss - ((1 - targets) * np.log(1 - probabilities)).sum()) if several else float(loss)


def logits(probabilities: np.ndarray, several: bool) -> np.ndarray:
    """Logits float32 whose softmax, or with `several` labels sigmoid, gives the probabilities [v k] again."""
    probabilities = np.clip(probabilities, LEAST_CHANCE, 1 - LEAST_CHANCE)
    return (np.log(probabilities) - (np.log(1 - probabilities) if several else 0.0)).astype(np.float32)
