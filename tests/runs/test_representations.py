"""How much features tell apart."""

import pytest
import torch

from vidtrain.runs.pretraining import effective_rank, spread


def test_equal_directions_count_each():
    assert effective_rank(torch.eye(6)[:, :4]) == pytest.approx(4)


def test_features_that_are_all_alike_have_rank_one():
    assert effective_rank(torch.ones(8, 3)) == pytest.approx(1)
    assert spread(torch.ones(8, 3)) == pytest.approx(0, abs=1e-12)


def test_two_singular_values_by_hand():
    """Shares of 3/4 and 1/4: exp(-(3/4) ln(3/4) - (1/4) ln(1/4)) = 1.7548."""
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0]])) == pytest.approx(1.7548, abs=1e-4)


def test_spread_of_two_opposite_directions_is_one():
    assert spread(torch.tensor([[1.0, 0.0], [-5.0, 0.0]])) == pytest.approx(1)
