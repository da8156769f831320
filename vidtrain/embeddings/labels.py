"""Label errors, by out-of-fold probabilities, and the choice of videos to label next.

Source: Northcutt, Jiang and Chuang 2021, Confident Learning (the joint and its thresholds; cleanlab is their code).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from vidtrain.embeddings.search import k_center, unit
from vidtrain.embeddings.store import UNLABELED, Embeddings
from vidtrain.errors import UserError
from vidtrain.evaluator.classifiers import logistic_regression, out_of_fold, stratified_folds

ROUNDING = 1e-6  # a probability so little below its threshold reaches it


@dataclass(frozen=True)
class Suspects:
    """All labeled videos, the most suspect first: `rows` int64 [v] of the embeddings, label, most probable other
    class, and the probabilities of both. `likely` bool [v]: the confident joint counts the label as wrong. `score`
    float64 [v] gives the order; less is more suspect.

    `estimate` is the number of wrong labels by the calibrated joint, `accuracy` the share of labels that are the most
    probable class; a classifier of low accuracy cannot doubt labels.
    """

    rows: np.ndarray
    labels: np.ndarray
    others: np.ndarray
    label_probabilities: np.ndarray
    other_probabilities: np.ndarray
    likely: np.ndarray
    score: np.ndarray
    estimate: float
    accuracy: float


def self_confidence(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of each video's label, float64 [v]."""
    return probabilities[np.arange(len(labels)), labels]


def normalized_margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much the probability of each video's label exceeds the greatest of the others, float64 [v]."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return self_confidence(probabilities, labels) - others.max(axis=1)


SCORES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "self_confidence": self_confidence,
    "normalized_margin": normalized_margin,
}


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The confident class of each video [v]: the most probable that reaches its threshold, the mean probability
    of the class in videos labeled with it; -1 where none does."""
    classes = range(probabilities.shape[1])
    thresholds = np.array([probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in classes])
    reached = np.where(probabilities >= thresholds - ROUNDING, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of videos with label i and confident class j, int64 [k k]."""
    confident, count = confident_classes(probabilities, labels), probabilities.shape[1]
    pairs = labels[confident >= 0] * count + confident[confident >= 0]
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def find_suspects(embeddings: Embeddings, folds: int, rank_by: str) -> tuple[Suspects, np.ndarray]:
    """Ranks the labels of all videos; also returns the probabilities [v k], by row of the embeddings.

    Raises `UserError` for several labels a video, for videos without any, and for a class with fewer videos, or groups
    of them, than `folds`.
    """
    labels, classes = embeddings.labels, embeddings.classes
    if embeddings.multi_label:
        raise UserError(
            "the videos have several labels each, and a ranking of label errors is for one label a video, as wrong and "
            "missing ones would have to be told apart"
        )
    if (labels == UNLABELED).any():
        raise UserError(
            f"{int((labels == UNLABELED).sum())} of the videos have no label: name labeled ones with split="
        )
    present, numbers = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise UserError(f"all videos are labeled {classes[labels[0]]}: it takes two classes or more to doubt a label")
    names = [str(classes[label]) for label in present]
    check_folds(numbers, embeddings.groups, folds, names)
    plan = stratified_folds(numbers, np.unique(embeddings.groups, return_inverse=True)[1], folds)
    for train, test in plan:
        alone = np.setdiff1d(numbers[test], numbers[train])
        if len(alone):
            raise UserError(
                f"all videos of {names[alone[0]]} would lie in one fold, as groups are kept whole: say another number "
                "with folds="
            )
    known = out_of_fold(embeddings.vectors, np.eye(len(present))[numbers], plan)
    score = SCORES[rank_by](known, numbers)
    order = np.argsort(score, kind="stable")
    others = known.copy()
    others[np.arange(len(labels)), numbers] = -1.0
    confident = confident_classes(known, numbers)
    joint = confident_joint(known, numbers).astype(np.float64)
    sums = joint.sum(axis=1)
    shares = np.divide(joint.diagonal(), sums, out=np.ones(len(joint)), where=sums > 0)
    probabilities = np.zeros((len(labels), len(classes)))
    probabilities[:, present] = known
    suspects = Suspects(
        rows=order,
        labels=labels[order],
        others=present[others.argmax(axis=1)][order],
        label_probabilities=self_confidence(known, numbers)[order],
        other_probabilities=others.max(axis=1)[order],
        likely=((confident >= 0) & (confident != numbers))[order],
        score=score[order],
        estimate=float(((1 - shares) * np.bincount(numbers)).sum()),
        accuracy=float((known.argmax(axis=1) == numbers).mean()),
    )
    return suspects, probabilities


def check_folds(labels: np.ndarray, groups: np.ndarray, folds: int, names: list[str]) -> None:
    """Raises `UserError` naming the class that `folds` are too many for: `labels` int64 [v] are numbers of `names`."""
    for what, counts in (
        ("videos", np.bincount(labels)),
        ("groups of videos, which are kept whole,", _group_counts(labels, groups)),
    ):
        if counts.min() < folds:
            name, count = names[int(counts.argmin())], int(counts.min())
            hint = f"say folds={count}" if count > 1 else "add videos to it, or leave the class out"
            raise UserError(f"folds={folds}: the class {name} has {count} {what} and every fold needs one; {hint}")


def _group_counts(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    pairs = {(int(label), str(group)) for label, group in zip(labels, groups, strict=True)}
    counts = Counter(label for label, _ in pairs)
    return np.array([counts[label] for label in range(int(labels.max()) + 1)])


# --- what to label next -----------------------------------------------------------------------------------


def choose_next(
    labeled: Embeddings, pool: Embeddings, strategy: str, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows int64 [count] of `pool` to label, the best first, and their doubts, where the strategy ranks by them.

    `margin` and `entropy` are of a classifier that learned from `labeled`; `k_center` covers both.

    Raises `UserError` for several labels a video, and for labels of fewer than two classes.
    """
    if strategy == "random":
        return np.random.default_rng(seed).permutation(len(pool))[:count], None
    if strategy == "k_center":
        return k_center(unit(pool.vectors), count, unit(labeled.vectors)), None
    if labeled.multi_label:
        raise UserError(f"strategy={strategy} is for one label a video; k_center looks at no labels")
    known = labeled.take(np.flatnonzero(labeled.labels != UNLABELED))
    present, numbers = np.unique(known.labels, return_inverse=True)
    if len(present) < 2:
        raise UserError(f"strategy={strategy} takes labels of two classes or more; k_center looks at no labels")
    groups = np.unique(known.groups, return_inverse=True)[1]
    targets = np.eye(len(present))[numbers]
    probabilities = logistic_regression(known.vectors, targets, groups, False)(pool.vectors)
    doubt = DOUBTS[strategy](probabilities)
    order = np.argsort(-doubt, kind="stable")[:count]
    return order, doubt[order]


def doubt_by_margin(probabilities: np.ndarray) -> np.ndarray:
    """One less the difference of the two greatest probabilities, float64 [v]."""
    two = np.sort(probabilities, axis=1)[:, -2:]
    return 1 - (two[:, 1] - two[:, 0])


def doubt_by_entropy(probabilities: np.ndarray) -> np.ndarray:
    """The entropy of probabilities [v k] in nats, float64 [v]."""
    return -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(axis=1)


DOUBTS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"margin": doubt_by_margin, "entropy": doubt_by_entropy}
