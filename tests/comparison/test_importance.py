"""Shares of variance, by hand."""

import numpy as np
import pytest

from vidtrain.comparison.importance import importance, spread


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
    rng = np.random.default_rng(0)
    lr = rng.uniform(0, 1, 40)
    found = {
        each.key: each
        for each in importance(np.round(lr), {"lr": lr.tolist(), "noise": rng.random(40).tolist()})
    }
    assert (found["lr"].binned, found["lr"].values) == (True, 4)
    assert found["lr"].adjusted > 0.7 > 0.2 > found["noise"].adjusted


def test_runs_that_are_all_alike():
    assert importance([0.5, 0.5], {"a": [1, 2]}) == []
    assert importance([], {}) == []


def test_spread():
    assert spread([0.2]) == (0.2, None)
    assert spread([0.1, 0.2, 0.3]) == (pytest.approx(0.2), pytest.approx(0.1))
