"""Thresholds, curves and sets by hand, and coverage over many splits of the same videos."""

import numpy as np
import pytest
from scipy.stats import betabinom, binomtest

from vidtrain.errors import UserError
from vidtrain.evaluator.calibration import (
    lower_bound,
    min_videos,
    risk_coverage,
    set_threshold,
    set_thresholds,
    thresholds,
)


def test_thresholds_by_hand():
    """Answers for class 0, the surest first: right, right, wrong, right; of 5 videos one went to class 1."""
    first = np.array([0.9, 0.8, 0.7, 0.6, 0.2])
    probabilities, labels = np.stack([first, 1 - first], axis=1), np.array([0, 0, 1, 0, 0])
    found = thresholds(probabilities, labels, "precision", 0.75)
    assert found.values.tolist() == [0.6, np.inf]  # 3 of 4 are 0.75, though 2 of 3 are not
    assert (found.answers[0], found.hits[0], found.support[0]) == (4, 3, 4)
    assert found.bound[0] == pytest.approx(binomtest(3, 4).proportion_ci(0.9).low) and found.bound[1] == 0
    assert thresholds(probabilities, labels, "precision", 0.8).values[0] == 0.8
    recall = thresholds(probabilities, labels, "recall", 0.5)
    assert recall.values.tolist() == [0.8, np.inf] and recall.answers[0] == 2
    assert recall.bound[0] == pytest.approx(binomtest(2, 4).proportion_ci(0.9).low)
    assert thresholds(probabilities, labels, "recall", 0.9).values[0] == np.inf  # 3 of 4 is all there is


def test_equal_probabilities_stand_together():
    probabilities, labels = np.array([[0.9, 0.1], [0.8, 0.2], [0.8, 0.2]]), np.array([0, 0, 1])
    assert thresholds(probabilities, labels, "precision", 0.9).values[0] == 0.9
    assert thresholds(probabilities, labels[[0, 2, 1]], "precision", 0.9).values[0] == 0.9


def test_thresholds_of_several_labels():
    probabilities = np.array([[0.9, 0.4], [0.6, 0.6], [0.3, 0.8]])
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    found = thresholds(probabilities, labels, "recall", 1.0 - 1e-9)
    assert found.values.tolist() == [0.3, 0.6] and found.hits.tolist() == [2, 2]
    assert thresholds(probabilities, labels, "precision", 0.6).values.tolist() == [0.3, 0.4]


def test_a_class_without_videos():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.2, 0.8, 0.0]])
    with pytest.raises(UserError, match="min_recall=0.9: there is no video of 1 of 3 classes, such as number 2"):
        thresholds(probabilities, np.array([0, 1]), "recall", 0.9)
    found = thresholds(probabilities, np.array([0, 1]), "precision", 0.9)
    assert found.values.tolist() == [0.9, 0.8, np.inf]
    with pytest.raises(
        UserError, match="set_coverage=0.5 needs 1 videos of every class with by_class=true: 1 have fewer"
    ):
        set_thresholds(probabilities, np.array([0, 1]), 0.5, by_class=True)


def test_the_lower_bound_is_scipys():
    for hits, n in ((0, 5), (5, 5), (17, 20), (1, 100)):
        assert lower_bound(np.array([hits]), np.array([n]))[0] == pytest.approx(
            binomtest(hits, n).proportion_ci(0.9).low, abs=1e-12
        )
    assert lower_bound(np.array([0]), np.array([0]))[0] == 0


def test_risk_and_coverage_by_hand():
    coverage, risk, aurc = risk_coverage(np.array([0.5, 0.9, 0.7]), np.array([0.0, 1, 0]))
    assert coverage == pytest.approx([1 / 3, 2 / 3, 1]) and risk == pytest.approx([0, 1 / 2, 2 / 3])
    assert aurc == pytest.approx((0 + 1 / 2 + 2 / 3) / 3)


def test_equally_confident_answers_come_in_any_order():
    right = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    _, risk, aurc = risk_coverage(np.full(50, 0.4), right)
    assert risk == pytest.approx(np.full(50, 1 - right.mean())) and aurc == pytest.approx(1 - right.mean())
    confidence = np.random.default_rng(1).integers(0, 5, 50) / 5
    orders = [np.random.default_rng(seed).permutation(50) for seed in range(400)]
    means = [risk_coverage(confidence[order] - 1e-9 * np.arange(50), right[order])[2] for order in orders]
    assert risk_coverage(confidence, right)[2] == pytest.approx(np.mean(means), abs=0.005)


def test_how_many_videos_sets_take():
    assert [min_videos(coverage) for coverage in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    probabilities = np.linspace(0.1, 0.9, 9)
    assert set_threshold(probabilities, 0.9) == 0.1 and set_threshold(probabilities, 0.5) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="8 videos are fewer than the 9 that a coverage of 0.9 needs"):
        set_threshold(probabilities[:8], 0.9)
    with pytest.raises(UserError, match="set_coverage=0.9 needs 9 videos of val, which has 8"):
        set_thresholds(np.eye(8), np.arange(8), 0.9, by_class=False)


@pytest.mark.parametrize("by_class", [False, True])
def test_sets_cover_as_often_as_they_are_to(by_class):
    """1,000 splits into 200 videos to calibrate on and 100 to try: the number that is covered is beta-binomial."""
    rng, k, wanted, n, m = np.random.default_rng(0), 3, 0.9, 200, 100
    covered = []
    for _ in range(1000):
        labels = rng.integers(k, size=n + m)
        logits = rng.normal(size=(n + m, k)) * 1.5
        logits[np.arange(n + m), labels] += 1.0 + labels  # classes are not equally hard
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        least = np.array(set_thresholds(probabilities[:n], labels[:n], wanted, by_class))
        sets = probabilities[n:] >= least
        held = sets[np.arange(m), labels[n:]]
        own = labels[n:] == 0 if by_class else slice(None)
        covered.append((held[own].sum(), len(held[own]), (labels[:n] == 0).sum() if by_class else n))
    inside = []
    for hits, tried, fitted in covered:
        rank = int(np.ceil((fitted + 1) * wanted))
        low, high = betabinom.interval(0.95, tried, rank, fitted + 1 - rank)
        inside.append(low <= hits <= high)
    share = sum(hits for hits, _, _ in covered) / sum(tried for _, tried, _ in covered)
    assert wanted - 0.01 < share < wanted + 1 / (min(fitted for _, _, fitted in covered) + 1) + 0.01
    assert binomtest(sum(inside), 1000, 0.95, alternative="less").pvalue > 0.001
