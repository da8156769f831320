"""Hue, and that it changes nothing where it is off; the other three are tested with the device transform."""

import colorsys

import numpy as np
import pytest
import torch

from vidtrain.data.augment.device import ColorJitter
from vidtrain.errors import UserError

SEEDS = torch.tensor([0, 7, 2**63 - 2])


def noise() -> torch.Tensor:
    return torch.rand(3, 3, 2, 6, 5, generator=torch.Generator().manual_seed(0))


def test_hue_against_colorsys():
    clips = noise()
    found = ColorJitter(hue=0.3)(clips, SEEDS)
    for view, seed in enumerate(SEEDS.tolist()):
        turn = 0.3 * np.random.default_rng(seed).uniform(-1, 1, 4)[3]
        for before, after in zip(clips[view].flatten(1).T.tolist(), found[view].flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*before)
            assert after == pytest.approx(colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value), abs=1e-5)


def test_hue_comes_last_and_moves_no_other_draw():
    clips = noise()
    jittered = ColorJitter(0.4, 0.4, 0.4)(clips, SEEDS)
    expected = ColorJitter(hue=0.2)(jittered, SEEDS)
    torch.testing.assert_close(ColorJitter(0.4, 0.4, 0.4, 0.2)(clips, SEEDS), expected, atol=0, rtol=0)


def test_draws_stay_as_they_are():
    """Runs are repeated by their seed, so other numbers are another result. The reds of two
    pixels, then their greens and blues."""
    pixels = torch.tensor([[0.2, 0.5, 0.6], [0.7, 0.4, 0.1]])
    found = ColorJitter(0.4, 0.4, 0.4)(pixels.T.reshape(1, 3, 1, 1, 2).expand(3, -1, -1, -1, -1), SEEDS)
    expected = [
        [0.3443, 0.6420, 0.5162, 0.4701, 0.5735, 0.2983],
        [0.0657, 0.9394, 0.5966, 0.4086, 0.7735, 0.0],
        [0.3170, 0.6893, 0.5377, 0.4687, 0.6113, 0.2480],
    ]
    for view, values in zip(found, expected, strict=True):
        assert view.flatten().tolist() == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("strengths", [(-0.1, 0, 0, 0), (0, 0, 0, 0.6), (0, 0, 0, -0.1)])
def test_refuses(strengths):
    with pytest.raises(UserError, match="hue may be 0.5 at most"):
        ColorJitter(*strengths)
