"""Costs of probabilities, calibration errors and scalings against hand counts, torchmetrics and scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize, minimize_scalar
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from vidtrain.errors import UserError
from vidtrain.evaluation.calibration import (
    COLDEST,
    HOTTEST,
    Scaling,
    calibration_error,
    equal_mass,
    equal_width,
    errors_by_class,
    fit,
    fit_temperature,
    fit_vector,
    mean_nll,
    outcomes,
    reliability,
)
from vidtrain.evaluation.metrics import first_classes, from_label_logits, from_logits
from vidtrain.evaluation.views import fuse, probabilities
from vidtrain.evaluator.report import with_interval


def drawn(seed, v=300, k=7, spread=3.0, several=False):
    """Logits float32 [v k] that tell something of the labels, with a sharpness of their own."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(v, k, generator=rng)
    if several:
        labels = (torch.rand(v, k, generator=rng) < 0.3).float()
        return spread * (z + 2 * labels - 1), labels
    labels = torch.randint(k, (v,), generator=rng)
    z[torch.arange(v), labels] += 1.5
    return spread * z, labels


def test_costs_by_hand():
    """Probabilities 1/2, 1/4, 1/4 of the first class, and 1/8, 3/4, 1/8 of the third."""
    logits = torch.tensor([[2.0, 1, 1], [1, 6, 1]]).log()
    costs = outcomes(logits, torch.tensor([0, 2]), independent=False)
    assert costs.nll == pytest.approx([np.log(2), np.log(8)])
    assert costs.brier == pytest.approx([1 / 4 + 2 / 16, 1 / 64 + 9 / 16 + 49 / 64])
    assert costs.confidence == pytest.approx([0.5, 0.75]) and costs.right.tolist() == [1, 0]
    assert calibration_error(costs.confidence, costs.right, equal_width(costs.confidence)) == pytest.approx(
        0.5 / 2 + 0.75 / 2
    )
    assert calibration_error(costs.confidence, costs.right, np.zeros(2, int)) == pytest.approx(0.25 / 2)


def test_costs_of_several_labels_by_hand():
    logits = torch.tensor([[0.0, np.log(3)]])  # probabilities 1/2 and 3/4
    costs = outcomes(logits, torch.tensor([[1.0, 0.0]]), independent=True)
    assert costs.nll == pytest.approx([(np.log(2) + np.log(4)) / 2])
    assert costs.brier == pytest.approx([(1 / 4 + 9 / 16) / 2])
    assert costs.confidence.tolist() == pytest.approx([0.5, 0.75]) and costs.right.tolist() == [1, 0]
    assert errors_by_class(logits, torch.tensor([[1.0, 0.0]])) == pytest.approx([0.5, 0.75])


def test_of_equal_logits_the_first_class_is_the_answer():
    costs = outcomes(torch.zeros(2, 3), torch.tensor([0, 1]), independent=False)
    assert costs.right.tolist() == [1, 0]


def test_the_loss_is_that_of_the_metrics():
    for independent in (False, True):
        logits, labels = drawn(0)
        expected = from_logits(logits, labels, independent)["loss"]
        assert mean_nll(logits, labels, independent) == pytest.approx(expected, rel=1e-12)
    logits, labels = drawn(0, several=True)
    assert mean_nll(logits, labels, True) == pytest.approx(from_label_logits(logits, labels)["loss"])


@pytest.mark.parametrize("seed", range(5))
def test_calibration_errors_are_those_of_torchmetrics(seed):
    logits, labels = drawn(seed, v=1000 + seed, k=3 + seed)
    costs = outcomes(logits, labels, independent=False)
    ours = calibration_error(costs.confidence, costs.right, equal_width(costs.confidence))
    probabilities = logits.double().softmax(dim=1)
    theirs = multiclass_calibration_error(probabilities, labels, num_classes=3 + seed, n_bins=15)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    logits, labels = drawn(seed, several=True)
    costs = outcomes(logits, labels, independent=True)
    ours = calibration_error(costs.confidence, costs.right, equal_width(costs.confidence))
    theirs = binary_calibration_error(logits.double().sigmoid().flatten(), labels.long().flatten(), n_bins=15)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_certain_answers_are_binned_as_torchmetrics_bins_them():
    logits, labels = torch.tensor([[100.0, 0], [2.9, 0], [0, 200.0]]), torch.tensor([0, 0, 0])
    costs = outcomes(logits, labels, independent=False)
    ours = calibration_error(costs.confidence, costs.right, equal_width(costs.confidence))
    theirs = multiclass_calibration_error(logits.double().softmax(dim=1), labels, num_classes=2, n_bins=15)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_bins_of_equal_mass():
    confidence = np.random.default_rng(0).random(1000)
    counts = np.bincount(equal_mass(confidence))
    assert len(counts) == 15 and counts.min() >= 66 and counts.max() <= 67
    assert set(equal_mass(np.full(40, 0.5))) == {0}  # equal ones stay together
    assert equal_mass(np.array([0.3])).tolist() == [0]


def test_intervals_hold_the_costs_and_groups_make_them_wider():
    logits, labels = drawn(1, v=400)
    costs = outcomes(logits, labels, independent=False)
    groups = np.arange(400) // 8
    costs.right[:] = costs.right[::8].repeat(8)  # those of a group are alike
    alone, whole = (reliability([costs], of)[0] for of in (None, groups))
    assert (alone["units"], whole["units"]) == (400, 50)
    for name in ("nll", "brier"):
        assert alone[name]["low"] < alone[name]["value"] < alone[name]["high"]
    width = [row["ece"]["high"] - row["ece"]["low"] for row in (alone, whole)]
    assert width[1] > 1.5 * width[0]
    assert sum(count for count, _, _ in alone["bins"]) == 400
    error = sum(n * abs(p - share) for n, p, share in alone["bins"]) / 400
    assert error == pytest.approx(alone["ece"]["value"])


def test_one_group_has_no_interval():
    logits, labels = drawn(1, v=20)
    (row,) = reliability([outcomes(logits, labels, independent=False)], np.zeros(20, dtype=int))
    assert row["units"] == 1
    for name in ("nll", "brier", "ece", "ece_mass"):
        assert row[name]["value"] > 0 and row[name]["low"] is row[name]["high"] is None
        assert with_interval(row[name]) == f"{row[name]['value']:.4f}"


def test_chance_is_what_a_calibrated_model_has():
    rng = np.random.default_rng(0)
    logits, _ = drawn(2, v=500)
    probabilities = logits.double().softmax(dim=1)
    errors = []
    for _ in range(200):
        labels = torch.from_numpy((probabilities.cumsum(dim=1).numpy() < rng.random((500, 1))).sum(axis=1)).clamp(max=6)
        costs = outcomes(logits, labels, independent=False)
        errors.append(calibration_error(costs.confidence, costs.right, equal_width(costs.confidence)))
    assert reliability([costs], None)[0]["chance"] == pytest.approx(np.mean(errors), rel=0.1)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_temperature_keeps_answers_and_never_costs(seed, independent):
    rng = np.random.default_rng(seed)
    v, k = int(rng.integers(10, 200)), int(rng.integers(2, 9))
    logits, labels = drawn(seed, v, k, float(10 ** rng.uniform(-2, 2)), several=independent and seed % 2 == 0)
    fitted = fit_temperature(logits, labels, independent) or Scaling()
    assert 1 / HOTTEST <= 1 / fitted.temperature <= 1 / COLDEST
    assert mean_nll(fitted(logits), labels, independent) <= mean_nll(logits, labels, independent)
    assert torch.equal(first_classes(fitted(logits), 5), first_classes(logits, 5))


def test_neighboring_logits_stay_in_order():
    low = torch.tensor(1.0)
    logits = torch.stack([low, torch.nextafter(low, torch.tensor(2.0))])[None]
    for scale in np.random.default_rng(0).uniform(0.01, 1, 100).tolist():
        assert Scaling((scale,))(logits).argmax() == 1


@pytest.mark.parametrize("independent", [False, True])
def test_the_temperature_is_the_one_that_scipy_finds(independent):
    logits, labels = drawn(3)
    best = minimize_scalar(
        lambda log: mean_nll(logits.double() / np.exp(log), labels, independent), bounds=(-3, 3), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    assert fit_temperature(logits, labels, independent).temperature == pytest.approx(np.exp(best.x), rel=1e-6)


def test_a_first_guess_does_not_change_the_temperature():
    logits, labels = drawn(4, v=9000)
    whole, doubled = (fit_temperature(z, labels, False).temperature for z in (logits, 2 * logits))
    assert doubled == pytest.approx(2 * whole, rel=1e-7)


def test_logits_that_tell_nothing_get_the_hottest_and_perfect_ones_none():
    logits, labels = drawn(5)
    away = -logits
    away[torch.arange(300), labels] -= 10
    assert fit_temperature(away, labels, False).temperature == pytest.approx(HOTTEST)
    logits[torch.arange(300), labels] += 100
    assert fit_temperature(logits, labels, False) is None
    scaling, scaled = fit("temperature", logits, labels, False, None)
    assert scaling is None and torch.equal(scaled, logits.double())


@pytest.mark.parametrize("independent", [False, True])
def test_vector_scaling_is_what_scipy_finds(independent):
    logits, labels = drawn(6, v=500, k=4)
    logits = logits * torch.tensor([1.0, 0.5, 2, 1]) + torch.tensor([0.0, 1, 0, -1])
    start = fit_temperature(logits, labels, independent)
    z, answers = logits.double().numpy(), F.one_hot(labels, 4).numpy()

    def cost(numbers):
        factor, bias = numbers[:4], numbers[4:]
        scaled = z * start.scale[0] * (1 + factor) + bias
        if independent:
            nll = np.mean(np.logaddexp(0, scaled) - answers * scaled)
        else:
            nll = np.mean(np.log(np.exp(scaled).sum(axis=1)) - (scaled * answers).sum(axis=1))
        return nll + (numbers**2).sum() / (2 * len(z))

    best = minimize(cost, np.zeros(8), method="BFGS", options={"gtol": 1e-8}).x
    found = fit_vector(logits, labels, independent, start)
    assert np.array(found.scale) == pytest.approx(start.scale[0] * (1 + best[:4]), abs=1e-4)
    assert np.array(found.bias) == pytest.approx(best[4:], abs=1e-4)
    assert found.temperature is None
    assert mean_nll(found(logits), labels, independent) < mean_nll(start(logits), labels, independent)


def test_held_out_logits_are_scaled_by_what_did_not_see_them():
    logits, labels = drawn(7, v=100)
    groups = np.arange(100) // 5
    scaling, scaled = fit("temperature", logits, labels, False, groups)
    ratio = (scaled / logits.double()).median(dim=1).values.numpy()
    by_group = ratio.reshape(20, 5)
    assert by_group.max(axis=1) == pytest.approx(by_group.min(axis=1))
    assert len(np.unique(ratio.round(9))) == 5
    held = np.isclose(ratio, ratio[0])
    alone = fit_temperature(logits[~held], labels[~held], False)
    assert ratio[0] == pytest.approx(alone.scale[0], rel=2e-3)
    assert scaling.scale[0] == pytest.approx(ratio.mean(), rel=0.05)


def test_too_few_videos():
    logits, labels = drawn(8, v=9)
    with pytest.raises(UserError, match="needs 10 val videos or more.* there are 9 in 9"):
        fit("temperature", logits, labels, False, None)
    logits, labels = drawn(8, v=100, k=7)
    with pytest.raises(UserError, match="there are 100 in 1"):
        fit("temperature", logits, labels, False, np.zeros(100, int))
    with pytest.raises(UserError, match="method=vector needs 20 val videos of each class"):
        fit("vector", logits, labels, False, None)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("fusion", ["mean_logits", "mean_probs", "joint"])
def test_exported_probabilities_are_those_of_scaled_fused_logits(fusion, independent):
    views = drawn(9, v=12, k=5)[0].view(4, 3, 5)
    for scale, bias in (((0.4,), (0.0,)), ((0.4, 1, 2, 0.5, 1), (0.0, 1, -1, 0, 0.5))):
        fused = Scaling(scale, bias)(fuse(views, fusion, independent))
        expected = fused.sigmoid() if independent else fused.softmax(dim=1)
        scaling = torch.tensor(scale), torch.tensor(bias)
        found = probabilities(views, fusion, independent, scaling)
        torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=0)
