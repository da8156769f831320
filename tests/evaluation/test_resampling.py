"""Intervals and tests against exact results and an independent implementation."""

import math

import numpy as np
import pytest
import torch

from vidtrain.comparison.recipes import importance
from vidtrain.comparison.run import spread
from vidtrain.evaluation.calibration import calibration_error, equal_width, outcomes
from vidtrain.evaluation.metrics import (
    average_precision,
    count_labels,
    from_label_counts,
    from_label_logits,
    from_logits,
    from_predictions,
    percentile_interval,
    resampled_means,
)
from vidtrain.evaluation.resampling import (
    FROM_LOGITS,
    PRECISIONS,
    SCORES,
    Ranking,
    mcnemar,
    resampled_scores,
    sampled_logits,
    scores,
    seed_noise,
)


def rng(seed: int = 0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("both", "only_first", "only_second", "p"),
    [
        # scipy.stats.binomtest(min(b, c), b + c).pvalue
        (5, 0, 0, 1.0),
        (0, 1, 0, 1.0),
        (9, 5, 0, 0.0625),
        (3, 10, 2, 0.03857421875),
        (0, 20, 19, 1.0),
        (0, 51, 15, 1.009612735111035e-05),
        (0, 700, 900, 6.319484959450105e-07),
        (0, 0, 3000, 2.0**-2999),  # too small for a float: 0
    ],
)
def test_mcnemar_is_the_exact_binomial_test(both, only_first, only_second, p):
    first = np.array([True] * (both + only_first) + [False] * only_second + [False] * 4)
    second = np.array([True] * both + [False] * only_first + [True] * only_second + [False] * 4)
    found = mcnemar(first, second)
    assert found[:2] == (only_first, only_second)
    assert found[2] == pytest.approx(p, rel=1e-12, abs=0)


def test_means_have_the_spread_of_the_binomial_distribution():
    correct = np.arange(400) < 300  # 0.75
    means = resampled_means(correct[None], None, 100_000, rng())[:, 0]
    assert means.mean() == pytest.approx(0.75, abs=3e-4)
    assert means.std() == pytest.approx(math.sqrt(0.75 * 0.25 / 400), rel=0.01)
    # scipy.stats.bootstrap(..., method="percentile", n_resamples=100_000): (0.7075, 0.7925)
    assert percentile_interval(means, 0.95) == pytest.approx((0.7075, 0.7925), abs=0.0026)


def test_rows_are_drawn_together():
    easy = np.tile([1.0, 0.0], 50)
    harder = easy.copy()
    harder[0] = 0.0
    means = resampled_means(np.stack([easy, harder]), None, 5000, rng())
    difference = means[:, 0] - means[:, 1]
    # one video in a hundred differs: far less than two draws of a hundred coins each would
    assert difference.std() == pytest.approx(math.sqrt(0.01 * 0.99 / 100), rel=0.05)


def test_groups_are_drawn_whole():
    correct = np.repeat(np.arange(20) < 10, 10)  # 20 groups of 10 videos that are all right or all wrong
    groups = np.repeat(np.arange(20), 10)
    alone = resampled_means(correct[None], None, 20_000, rng())[:, 0].std()
    whole = resampled_means(correct[None], groups, 20_000, rng())[:, 0].std()
    assert alone == pytest.approx(math.sqrt(0.25 / 200), rel=0.02)
    assert whole == pytest.approx(math.sqrt(0.25 / 20), rel=0.02)


def test_groups_of_different_sizes_weigh_by_their_videos():
    values, groups = np.array([[1.0, 0.0, 0.0, 0.0]]), np.array([0, 1, 1, 1])
    found = np.unique(resampled_means(values, groups, 500, rng())[:, 0])
    assert found.tolist() == [0.0, 0.25, 1.0]  # group 1 twice, each once, group 0 twice


def marks(labels: np.ndarray, k: int) -> np.ndarray:
    return np.arange(len(labels)) * k + labels


def test_scores_are_those_of_the_evaluation():
    generator = rng(1)
    labels = generator.integers(0, 6, 200)
    predictions = np.where(generator.random((2, 200)) < 0.6, labels, generator.integers(0, 8, (2, 200)))
    coded = [marks(row, 9) for row in predictions]  # class 8 is neither labeled nor predicted
    once = np.ones((1, 200))
    for run, row in enumerate(predictions):
        expected = from_predictions(torch.tensor(row), torch.tensor(labels), 9)
        for name in expected.keys() & set(SCORES):
            found = scores(name, marks(labels, 9), coded, 9, once)[0, run]
            assert found == pytest.approx(expected[name], rel=1e-5), name  # torchmetrics counts in float32
    assert len(expected.keys() & set(SCORES)) == 7


def test_scores_of_several_labels_are_those_of_the_evaluation():
    generator = rng(2)
    labels, predictions = generator.random((2, 50, 7)) < 0.3
    predictions |= labels & (generator.random((50, 7)) < 0.5)
    expected = from_label_counts(count_labels(torch.tensor(predictions).float() - 0.5, torch.tensor(labels)))
    coded = [np.flatnonzero(each) for each in (labels, predictions)]
    for name, value in expected.items():
        found = scores(name, coded[0], coded[1:], 7, np.ones((1, 50)))[0, 0]
        assert found == pytest.approx(value, rel=1e-12), name


def answers(several: bool, v: int = 60, k: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [v k], of which many are equal, and labels; no video has class 3."""
    generator = torch.Generator().manual_seed(int(several))
    logits = (torch.randn(v, k, generator=generator) * 2).round() / 2
    labels = (torch.rand(v, k, generator=generator) < 0.3).float()
    labels[:, 3] = 0
    return (logits + labels, labels) if several else (logits, torch.randint(0, 3, (v,), generator=generator))


@pytest.mark.parametrize(
    ("metric", "several"),
    [(metric, several) for metric in FROM_LOGITS for several in (False, True) if several or metric not in PRECISIONS],
)
def test_metrics_from_logits_are_those_of_the_evaluation(metric, several):
    logits, labels = answers(several)
    cost = outcomes(logits, labels, several)
    known = (from_label_logits if several else from_logits)(logits, labels) | {"brier": cost.brier.mean()}
    known["ece"] = calibration_error(cost.confidence, cost.right, equal_width(cost.confidence))
    observed, sampled = sampled_logits(metric, [(logits, labels, several)] * 2, None, 800, rng())
    assert observed[0] == observed[1] and sampled.shape == (800, 2)
    np.testing.assert_allclose(sampled[:, 0], sampled[:, 1], atol=1e-12)  # runs are resampled alike
    if metric in known:
        assert observed[0] == pytest.approx(known[metric], rel=1e-6)  # torchmetrics adds up in float32
    # of few videos calibration errors are too large by chance, which mirroring takes away twice
    assert sampled.mean() == pytest.approx(observed[0], rel=0.5 if "ece" in metric else 0.1) and sampled.std() > 0
    # 12 groups of videos that are all alike: their draws differ more, by the square root of 5
    repeated = [rows[:12].repeat_interleave(5, dim=0) for rows in (logits, labels)]
    alone, whole = (
        sampled_logits(metric, [(*repeated, several)], groups, 800, rng())[1].std()
        for groups in (None, np.repeat(np.arange(12), 5))
    )
    assert whole > 1.5 * alone


def test_average_precision_of_weighted_videos_is_that_of_repeated_ones():
    logits, labels = answers(several=True)
    weights = rng().integers(0, 4, (5, 60))
    for column in (0, 1, 2):
        ranking = Ranking.of(logits[:, column].double().sigmoid(), labels[:, column], np.arange(60))
        found = ranking.average_precision(weights.T.astype(np.int32))
        for draw, counts in enumerate(weights):
            rows = torch.from_numpy(np.repeat(np.arange(60), counts))
            assert found[draw] == pytest.approx(average_precision(logits[rows], labels[rows])[column].item(), rel=1e-6)
    nobody = (labels[:, :1] == 0).numpy().astype(np.int32)  # none of the videos that have class 0
    assert np.isnan(Ranking.of(logits[:, 0], labels[:, 0], np.arange(60)).average_precision(nobody)).all()


def test_weights_count_videos_several_times():
    labels, predictions = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    weights = np.array([[1.0, 1, 1, 1], [0, 3, 1, 0]])
    found = scores("f1_macro", marks(labels, 2), [marks(predictions, 2)], 2, weights)[:, 0]
    # second: class 0 has no hit; class 1 has 1 hit, 1 label, 4 predictions: 2 / 5
    assert found == pytest.approx([(2 / 3 + 4 / 5) / 2, 0.2])


def test_resampled_scores_spread_around_the_observed_one():
    labels = np.arange(300) % 3
    predictions = np.where(np.arange(300) % 10 < 7, labels, (labels + 1) % 3)
    coded, units = [marks(predictions, 3)], np.arange(300)
    balanced = resampled_scores("balanced_accuracy", marks(labels, 3), coded, 3, units, 4000, rng())[:, 0]
    assert balanced.mean() == pytest.approx(0.7, abs=0.003)
    # the mean of three recalls of 0.7 over about 100 videos each
    assert balanced.std() == pytest.approx(math.sqrt(0.21 / 100 / 3), rel=0.05)


def test_seed_noise_is_students_t():
    runs = np.array([0.50, 0.52, 0.57])  # standard error 0.0208167
    noise = seed_noise(runs, 200_000, rng())
    # scipy.stats.t(2).ppf(0.975) = 4.302653
    assert percentile_interval(noise, 0.95) == pytest.approx((-0.089567, 0.089567), rel=0.03)
    assert not seed_noise(np.array([0.5, 0.5]), 10, rng()).any()


def test_intervals_drop_what_rounding_leaves():
    low, high = percentile_interval(np.array([-5e-17, 0.0, 5e-17]), 0.9)
    assert (low, high) == (0.0, 0.0) and math.copysign(1, low) == 1


# --- what a setting accounts for --------------------------------------------------------------------------


def test_a_setting_that_explains_everything_and_one_that_explains_nothing():
    first, second = importance([1.0, 1.0, 3.0, 3.0], {"b": ["x", "y", "x", "y"], "a": [1, 1, 2, 2]})
    assert (first.key, first.values, first.runs, first.binned) == ("a", 2, 4, False)
    assert (first.share, first.adjusted) == (1.0, 1.0)
    assert (second.key, second.share, second.adjusted) == ("b", 0.0, 0.0)


def test_the_part_that_chance_explains_is_taken_away():
    (found,) = importance([1.0, 2.0, 2.0, 5.0], {"a": [1, 1, 2, 2]})
    # total 9, within 0.5 + 4.5, between 4; less one times 5 / 2
    assert found.share == pytest.approx(4 / 9) and found.adjusted == pytest.approx(1.5 / 9)


def test_values_that_were_run_once_tell_nothing():
    (found,) = importance([1.0, 2.0, 4.0], {"a": ["x", "y", "z"]})
    assert found.share == 1.0 and found.adjusted is None


def test_numbers_that_hardly_repeat_are_binned():
    generator = rng()
    lr = generator.uniform(0, 1, 40)
    found = {
        each.key: each for each in importance(np.round(lr), {"lr": lr.tolist(), "noise": generator.random(40).tolist()})
    }
    assert (found["lr"].binned, found["lr"].values) == (True, 4)
    assert found["lr"].adjusted > 0.7 > 0.2 > found["noise"].adjusted


def test_runs_that_are_all_alike():
    assert importance([0.5, 0.5], {"a": [1, 2]}) == []
    assert importance([], {}) == []


def test_spread():
    assert spread([0.2]) == (0.2, None)
    assert spread([0.1, 0.2, 0.3]) == (pytest.approx(0.2), pytest.approx(0.1))
