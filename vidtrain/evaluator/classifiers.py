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

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # C of scikit-learn: a larger one means less regularization
DEFAULT_PENALTY = 1e-2
NEIGHBORS = (15, 9, 5, 3, 1)
DEFAULT_NEIGHBORS = 5
MAX_COMPONENTS = 256
FOLDS = 5
ITERATIONS = 1000
MIN_PROBABILITY = 1e-6  # replaces zero, which has no logarithm

Classifier = Callable[[np.ndarray, np.ndarray, np.ndarray, bool], "Predict"]
Predict = Callable[[np.ndarray], np.ndarray]
"""Vectors [v d] to probabilities [v k]."""


def majority(vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray, multi_label: bool) -> Predict:
    """Predicts for every video the shares of the classes in training."""
    return lambda others: np.tile(targets.mean(axis=0), (len(others), 1))


def nearest_neighbors(vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray, multi_label: bool) -> Predict:
    """The share of each class among the nearest training videos and one more video that counts equally for all classes.
    Nearness is the cosine similarity of the vectors after subtracting the training mean."""
    center = vectors.mean(axis=0)

    def fit(vectors: np.ndarray, targets: np.ndarray, count: int) -> Predict:
        count = min(count, len(vectors))
        model = KNeighborsRegressor(count, metric="cosine").fit(vectors - center, targets)
        prior = 0.5 if multi_label else 1 / targets.shape[1]
        return lambda others: (model.predict(others - center) * count + prior) / (count + 1)

    count = select(fit, vectors, targets, groups, NEIGHBORS, DEFAULT_NEIGHBORS, multi_label)
    return fit(vectors, targets, count)


def logistic_regression(vectors: np.ndarray, targets: np.ndarray, groups: np.ndarray, multi_label: bool) -> Predict:
    """Multinomial regression with a quadratic penalty; with `multi_label`, one regression for each class.
    Vectors are standardized, then projected onto at most 256 principal components, without loss for fewer videos."""
    project = _components(vectors)
    projected = project(vectors)
    fit = partial(_fit_logistic, multi_label)
    penalty = select(fit, projected, targets, groups, PENALTIES, DEFAULT_PENALTY, multi_label)
    predict = fit(projected, targets, penalty)
    return lambda others: predict(project(others))


def _components(vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The projection of `logistic_regression`, fitted to these vectors [v d]."""
    scaler = StandardScaler().fit(vectors)
    components = PCA(min(MAX_COMPONENTS, *vectors.shape), svd_solver="full").fit(scaler.transform(vectors))
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
        project = _components(vectors[train])
        projected, others = project(vectors[train]), project(vectors[test])
        for number, penalty in enumerate(PENALTIES):
            probabilities[number, test] = _fit_logistic(False, projected, targets[train], penalty)(others)
    return probabilities[int(np.argmin([log_loss(candidate, targets, False) for candidate in probabilities]))]


def _fit_logistic(multi_label: bool, vectors: np.ndarray, targets: np.ndarray, penalty: float) -> Predict:
    if multi_label:
        binary = [_fit_logistic(False, vectors, np.stack([1 - own, own], axis=1), penalty) for own in targets.T]
        return lambda others: np.stack([predict(others)[:, 1] for predict in binary], axis=1)
    labels = targets.argmax(axis=1)
    classes = np.unique(labels)
    if len(classes) == 1:
        return majority(vectors, targets, labels, multi_label)
    with warnings.catch_warnings():
        # after a thousand steps the model is good enough as a baseline
        warnings.simplefilter("ignore", ConvergenceWarning)
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
    default: Any,
    multi_label: bool,
) -> Any:
    """The one of `choices` with the least log loss on videos of other groups, the first of equal ones; `default` if
    there is only one group."""
    count = min(FOLDS, len(np.unique(groups)))
    if count < 2:
        return default
    folds = list(GroupKFold(count).split(vectors, groups=groups))
    losses = [
        sum(
            log_loss(fit(vectors[train], targets[train], choice)(vectors[test]), targets[test], multi_label)
            for train, test in folds
        )
        for choice in choices
    ]
    return choices[int(np.argmin(losses))]


def log_loss(probabilities: np.ndarray, targets: np.ndarray, multi_label: bool) -> float:
    """The sum over videos of the negative log probability of their labels."""
    probabilities = np.clip(probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    loss = -(targets * np.log(probabilities)).sum()
    return float(loss - ((1 - targets) * np.log(1 - probabilities)).sum()) if multi_label else float(loss)


def logits(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    """Logits float32 whose softmax, or with `multi_label` sigmoid, is the probabilities [v k]."""
    probabilities = np.clip(probabilities, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return (np.log(probabilities) - (np.log(1 - probabilities) if multi_label else 0.0)).astype(np.float32)
