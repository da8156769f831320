"""How clip logits become one prediction."""

import math

import pytest
import torch

from vidtrain.evaluation.views import FUSIONS, fuse, fusions_of, mean_logits, mean_probs
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


class TestVote:
    def shares(self, probabilities, independent=False):
        found = fuse(torch.tensor(probabilities).log(), "vote", independent)
        return found.sigmoid() if independent else found.softmax(-1)

    def test_the_mean_probability_counts_as_one_more_vote(self):
        """Two of three views say the second class: (1 + 0.4) / 4, (2 + 0.4) / 4 and (0 + 0.2) / 4."""
        clips = [[[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.2, 0.5, 0.3]]]
        torch.testing.assert_close(
            self.shares(clips), torch.tensor([[0.35, 0.6, 0.05]], dtype=torch.float64), atol=1e-6, rtol=0
        )

    def test_the_majority_wins_whatever_the_probabilities(self):
        """Mean probabilities and mean logits both say the first class."""
        clips = [[[0.98, 0.01, 0.01], [0.35, 0.4, 0.25], [0.35, 0.4, 0.25]]]
        assert self.shares(clips).argmax().item() == 1
        for fusion in ("mean_probs", "mean_logits"):
            assert fuse(torch.tensor(clips).log(), fusion).argmax().item() == 0

    def test_of_as_many_votes_the_higher_mean_probability_wins(self):
        clips = [[[0.5, 0.3, 0.2], [0.05, 0.9, 0.05]], [[0.9, 0.05, 0.05], [0.3, 0.5, 0.2]]]
        assert self.shares(clips).argmax(-1).tolist() == [1, 0]

    def test_of_equals_in_all_the_first_class_wins(self):
        clips = torch.tensor([[[2.0, 2.0, 0.0], [0.0, 2.0, 2.0], [2.0, 0.0, 2.0]], [[1.0, 1.0, 1.0]] * 3])
        ranked = fuse(clips, "vote").sort(dim=-1, descending=True, stable=True).indices
        assert ranked[:, 0].tolist() == [0, 0]

    def test_certain_views_have_finite_logits(self):
        certain = torch.tensor([[[500.0, -500.0], [900.0, -900.0]]])
        for independent in (False, True):
            assert fuse(certain, "vote", independent).isfinite().all()

    def test_where_classes_are_judged_independently(self):
        """Sigmoids 0.75 and 0.5, then 0.5 and 0.5: the first class has both votes."""
        clips = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
        expected = torch.tensor([[(2 + 0.625) / 3, 0.5 / 3]], dtype=torch.float64)
        torch.testing.assert_close(fuse(clips, "vote", independent=True).sigmoid(), expected)


def test_which_fusions_a_table_allows():
    assert fusions_of(joint=True, multi_label=False) == ("joint",)
    assert fusions_of(joint=False, multi_label=True) == ("mean_logits", "mean_probs")
    assert fusions_of(joint=False, multi_label=False) == ("mean_logits", "mean_probs", "vote")
