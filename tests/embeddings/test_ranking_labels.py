"""Label errors against cleanlab, what to label next, and literal cases of both."""

from dataclasses import replace

import numpy as np
import pytest
from made_embeddings import made, several

from vidtrain.embeddings import ranking
from vidtrain.embeddings.ranking import (
    choose_next,
    confident_joint,
    entropy_uncertainty,
    find_suspects,
    margin_uncertainty,
    normalized_margin,
    self_confidence,
)
from vidtrain.errors import UserError


def noisy(seed, count=500, classes=6):
    """Probabilities that say much of labels, some of which are wrong."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    logits = rng.normal(size=(count, classes)) + 3 * np.eye(classes)[np.where(rng.random(count) < 0.2, 0, labels)]
    probabilities = np.exp(logits)
    return probabilities / probabilities.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("seed", range(3))
def test_scores_and_joint_are_those_of_cleanlab(seed):
    rank = pytest.importorskip("cleanlab.rank")
    count = pytest.importorskip("cleanlab.count")
    probabilities, labels = noisy(seed)
    assert (
        np.abs(
            self_confidence(probabilities, labels) - rank.get_self_confidence_for_each_label(labels, probabilities)
        ).max()
        < 1e-12
    )
    theirs = rank.get_normalized_margin_for_each_label(labels, probabilities)
    assert np.abs((normalized_margin(probabilities, labels) + 1) / 2 - theirs).max() < 1e-12
    joint = confident_joint(probabilities, labels)
    assert np.array_equal(joint, count.compute_confident_joint(labels, probabilities, calibrate=False))


def test_literal_cases():
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([0, 1, 1, 0])
    assert self_confidence(probabilities, labels).tolist() == [0.9, 0.8, 0.4, 0.3]
    assert normalized_margin(probabilities, labels) == pytest.approx([0.8, 0.6, -0.2, -0.4])
    # both thresholds are 0.6: class 0 of (0.9 + 0.3) / 2, class 1 of (0.8 + 0.4) / 2
    assert confident_joint(probabilities, labels).tolist() == [[1, 1], [1, 1]]
    assert margin_uncertainty(probabilities) == pytest.approx([0.2, 0.4, 0.8, 0.6])
    assert entropy_uncertainty(np.array([[1.0, 0.0], [0.5, 0.5]])) == pytest.approx([0, np.log(2)])


def test_planted_errors_come_first():
    embeddings = made(240, apart=3.0)
    wrong = np.arange(0, 240, 12)
    labels = embeddings.labels.copy()
    labels[wrong] = (labels[wrong] + 1) % 3
    suspects, probabilities = find_suspects(replace(embeddings, labels=labels), 5, "self_confidence")
    assert np.isin(suspects.rows[: len(wrong)], wrong).mean() > 0.9
    right = (
        suspects.others[np.isin(suspects.rows, wrong)]
        == embeddings.labels[suspects.rows[np.isin(suspects.rows, wrong)]]
    )
    assert right.mean() > 0.9
    assert abs(suspects.estimate - len(wrong)) < 8 and np.allclose(probabilities.sum(axis=1), 1)
    assert (np.diff(suspects.score) >= 0).all() and suspects.likely[:10].all()
    assert suspects.accuracy == (probabilities.argmax(axis=1) == labels).mean()


def test_a_class_that_no_video_has_gets_nothing():
    embeddings = replace(made(), classes=np.array(["a", "unused", "b", "c"]), labels=np.array([0, 2, 3])[made().labels])
    suspects, probabilities = find_suspects(embeddings, 5, "normalized_margin")
    assert (probabilities[:, 1] == 0).all() and 1 not in suspects.others


def test_what_cannot_be_ranked_is_refused():
    embeddings = made()
    one = replace(embeddings, groups=np.where(embeddings.labels == 1, "one", embeddings.groups))
    few = embeddings.take(np.flatnonzero((embeddings.labels != 2) | (np.arange(60) < 6)))
    for wrong, words in (
        (several(embeddings), "several labels"),
        (replace(embeddings, labels=np.full(60, -1)), "60 of the videos have no label"),
        (replace(embeddings, labels=np.zeros(60, np.int64)), "two classes or more"),
        (few, "folds=5: the class class 2 has 2 videos.*set folds=2"),
        (one, "class 1 has 1 groups.*leave the class out"),
    ):
        with pytest.raises(UserError, match=words):
            find_suspects(wrong, 5, "self_confidence")


def test_no_video_is_judged_by_others_of_its_group(monkeypatch):
    embeddings, parted, judged = made(), [], []

    def watched(vectors, targets, folds):
        parted.extend(set(embeddings.groups[train]) & set(embeddings.groups[test]) for train, test in folds)
        judged.extend(row for _, test in folds for row in test.tolist())
        return np.full(targets.shape, 1 / targets.shape[1])

    monkeypatch.setattr(ranking, "out_of_fold", watched)
    find_suspects(embeddings, 5, "self_confidence")
    assert parted == [set()] * 5 and sorted(judged) == list(range(60))


@pytest.mark.parametrize("strategy", ["margin", "entropy", "k_center", "random"])
def test_as_many_as_asked_for_are_chosen_once(strategy):
    rows, doubts = choose_next(made(30), made(50, seed=1), strategy, 20, seed=0)
    assert len(set(rows.tolist())) == 20 and rows.max() < 50
    assert doubts is None or (np.diff(doubts) <= 0).all()
    assert len(choose_next(made(30), made(5, seed=1), strategy, 20, 0)[0]) == 5


def test_doubt_needs_labels_of_two_classes():
    alone = replace(made(30), labels=np.zeros(30, np.int64))
    for labeled, words in ((alone, "two classes or more"), (several(made(30)), "one label a video")):
        with pytest.raises(UserError, match=words):
            choose_next(labeled, made(9), "margin", 3, 0)
        assert len(choose_next(labeled, made(9), "k_center", 3, 0)[0]) == 3
