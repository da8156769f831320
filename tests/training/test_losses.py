"""Losses against PyTorch's and timm's, and against values by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy as TimmBCE

from vidtrain.errors import UserError
from vidtrain.training.losses import BinaryCrossEntropy, CrossEntropy, Focal, describe_loss

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(8, 3, generator=GENERATOR)
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 1])
SOFT = torch.rand(8, 3, generator=GENERATOR).softmax(-1)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_pytorchs(targets, smoothing):
    expected = F.cross_entropy(LOGITS, targets, label_smoothing=smoothing)
    torch.testing.assert_close(CrossEntropy(smoothing)(LOGITS, targets, None), expected)


def test_balanced_weights_by_hand():
    """10 videos of 3 classes, 5, 3 and 2 of each: 10 / (3 * 5), 10 / (3 * 3), 10 / (3 * 2)."""
    weights = CrossEntropy(class_weights="balanced").weights(SHARES)
    assert weights.tolist() == pytest.approx([2 / 3, 10 / 9, 5 / 3])
    assert (weights * SHARES).sum().item() == pytest.approx(1)
    # a class without videos takes no part
    weights = CrossEntropy(class_weights="balanced").weights(torch.tensor([0.8, 0.0, 0.2]))
    assert weights.tolist() == pytest.approx([0.625, 1, 2.5])


def test_of_listed_weights_the_proportions_count():
    for listed in ([1, 2, 4], [10.0, 20.0, 40.0]):
        weights = CrossEntropy(class_weights=listed).weights(SHARES)
        assert weights.tolist() == pytest.approx([1 / 1.9, 2 / 1.9, 4 / 1.9])
    assert CrossEntropy().weights(SHARES) is None


def test_weighted_cross_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # probabilities 1/2 and 3/4 of class 0
    weights = torch.tensor([0.5, 2.0])
    found = CrossEntropy(class_weights="balanced")(logits, torch.tensor([1, 0]), weights)
    assert found.item() == pytest.approx((2 * math.log(2) + 0.5 * math.log(4 / 3)) / 2)
    soft = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    found = CrossEntropy()(logits, soft, weights)
    assert found.item() == pytest.approx((1.625 * math.log(2) + 0.5 * math.log(4 / 3)) / 2)


@pytest.mark.parametrize(
    "loss",
    [
        CrossEntropy(0.1, "balanced"),
        CrossEntropy(0.0, [1, 2, 3]),
        BinaryCrossEntropy(0.1, "balanced"),
        BinaryCrossEntropy(sum_classes=True),
        Focal(),
    ],
    ids=str,
)
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["hard", "soft"])
def test_parts_of_a_batch_come_to_the_whole(loss, targets):
    """As with ranks and accumulation; PyTorch's own weighted mean does not. The first half is all of one class."""
    weights = loss.weights(SHARES)
    whole = loss(LOGITS, targets, weights)
    halves = [loss(LOGITS[half], targets[half], weights) for half in (slice(4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, whole)


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("targets", [LABELS, SOFT], ids=["hard", "soft"])
def test_binary_cross_entropy_is_timms(targets, sum_classes):
    weight = torch.tensor([1.0, 2.0, 0.5])
    expected = TimmBCE(smoothing=0, pos_weight=weight, sum_classes=sum_classes)(LOGITS, targets)
    torch.testing.assert_close(BinaryCrossEntropy(sum_classes=sum_classes)(LOGITS, targets, weight), expected)


def test_binary_weights_and_smoothing_by_hand():
    """Negatives / positives; a class that all or no videos have has only one side."""
    weights = BinaryCrossEntropy(pos_weight="balanced").weights(torch.tensor([0.5, 0.2, 0.0, 1.0]))
    assert weights.tolist() == pytest.approx([1, 4, 1, 1])
    assert BinaryCrossEntropy(pos_weight=[3, 1]).weights(torch.ones(2)).tolist() == [3, 1]
    found = BinaryCrossEntropy(label_smoothing=0.2)(torch.tensor([[math.log(3)]]), torch.tensor([[1.0]]), None)
    assert found.item() == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_focal_by_hand():
    """A yes of probability 3/4 and a no of probability 1/4: (1 - p)^2 of each, weighed 1/4 and 3/4."""
    logits, targets = torch.tensor([[math.log(3), math.log(3)]]), torch.tensor([[1.0, 0.0]])
    expected = (0.25 * 0.25**2 * math.log(4 / 3) + 0.75 * 0.75**2 * math.log(4)) / 2
    assert Focal()(logits, targets, None).item() == pytest.approx(expected)
    plain = Focal(gamma=0, alpha=None, sum_classes=True)(logits, targets, None)
    torch.testing.assert_close(plain, BinaryCrossEntropy(sum_classes=True)(logits, targets, None))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: CrossEntropy(label_smoothing=1.5), "label_smoothing=1.5: must lie between 0 and 1"),
        (
            lambda: CrossEntropy(class_weights="ballanced"),
            "class_weights=ballanced: write balanced, a number",
        ),
        (lambda: CrossEntropy(class_weights=[1, -1]), "every weight must be a number of 0 or more"),
        (lambda: BinaryCrossEntropy(pos_weight="all"), "pos_weight=all: write balanced"),
        (lambda: Focal(gamma=-1), "gamma=-1: must be 0 or more"),
        (
            lambda: CrossEntropy(class_weights=[1, 2]).weights(SHARES),
            "has 2 numbers, and the dataset 3 classes",
        ),
        (lambda: CrossEntropy(class_weights=[0, 0, 0]).weights(SHARES), "are 0 for every class"),
    ],
)
def test_faults(make, why):
    with pytest.raises(UserError, match=why):
        make()


def test_the_log_says_what_is_made_smaller():
    loss = CrossEntropy(0.1, "balanced")
    assert describe_loss(loss, loss.weights(SHARES)) == (
        "loss CrossEntropy(label_smoothing=0.1, class_weights='balanced'), weights of classes 0.667 to 1.67"
    )
