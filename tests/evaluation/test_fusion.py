"""How clip logits become one prediction."""

import math

import pytest
import torch

from vidtrain.evaluation.fusion import FUSIONS, fuse, mean_logits, mean_probs
from vidtrain.models import classifier

# one video of two clips, whose probabilities are (3/4, 1/4) and (1/2, 1/2)
CLIPS = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])


def test_mean_logits():
    logits = torch.tensor([[[1.0, 2.0, -3.0], [3.0, -2.0, 0.0]], [[0.5, 0.0, 0.0], [0.5, 4.0, 1.0]]])
    assert mean_logits(logits).tolist() == [[2.0, 0.0, -1.5], [0.5, 2.0, 0.5]]
    # (ln 3 / 2, 0) is odds of sqrt(3)
    torch.testing.assert_close(mean_logits(CLIPS).softmax(-1), torch.tensor([[0.633975, 0.366025]]))


def test_mean_probs():
    torch.testing.assert_close(mean_probs(CLIPS), torch.tensor([[0.625, 0.375]]).log())


def test_softmax_of_mean_probs_is_the_mean_of_softmaxes():
    logits = 10 * torch.randn(50, 7, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = logits.softmax(dim=-1).mean(dim=1)
    torch.testing.assert_close(mean_probs(logits).softmax(dim=-1), expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(mean_probs(logits).exp(), expected, atol=1e-14, rtol=0)


def test_mean_probs_of_certain_clips_stays_finite():
    """Probabilities of 0 and 1 in float32 still have logarithms."""
    found = mean_probs(torch.tensor([[[500.0, 0.0], [0.0, 900.0]]]))
    torch.testing.assert_close(found, torch.tensor([[0.5, 0.5]]).log())
    assert mean_probs(torch.tensor([[[500.0, 0.0]]])).tolist() == [[0.0, -500.0]]


def test_the_two_can_disagree():
    """One certain clip outweighs two hesitant ones in logits, not in probabilities."""
    logits = torch.tensor([[[20.0, 0.0], [0.0, 3.0], [0.0, 3.0]]])
    assert (mean_logits(logits).argmax().item(), mean_probs(logits).argmax().item()) == (0, 1)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [("mean_logits", (0.633975, 0.366025)), ("mean_probs", (0.625, 0.375)), ("joint", (0.625, 0.375))],
)
def test_by_name(fusion, expected):
    torch.testing.assert_close(fuse(CLIPS, fusion).softmax(-1), torch.tensor([expected]))


def test_one_row_is_its_own_fusion():
    logits = torch.tensor([[[2.0, -1.0, 0.5]], [[0.0, 0.0, 9.0]]])
    for fusion in FUSIONS:
        torch.testing.assert_close(fuse(logits, fusion).softmax(-1), logits[:, 0].softmax(-1))


def test_half_precision_is_fused_in_float32():
    logits = torch.tensor([[[256.0], [1.0]]], dtype=torch.bfloat16)
    found = fuse(logits, "mean_logits")
    assert (found.dtype, found.item()) == (torch.float32, 128.5)  # 128 or 129 in bfloat16


def test_names_are_those_of_the_models():
    assert set(FUSIONS) == set(classifier.FUSIONS)
