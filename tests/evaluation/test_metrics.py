"""Metrics against values by hand, and against a second computation that shares nothing with the first."""

import math
import random

import pytest
import torch

from vidtrain.evaluation import metrics
from vidtrain.evaluation.metrics import (
    class_counts,
    confusion_matrix,
    from_class_counts,
    from_logits,
    from_predictions,
    per_class,
)

# labels, predictions, and the metrics of three classes by hand
BY_HAND = {
    # precision 1, 1/2, 1/2; recall 2/3, 1/2, 1; f1 4/5, 1/2, 2/3; support 3, 2, 1
    "all_present": (
        [0, 0, 0, 1, 1, 2],
        [0, 0, 1, 1, 2, 2],
        {
            "top1": 2 / 3,
            "balanced_accuracy": 13 / 18,
            "precision_macro": 2 / 3,
            "precision_weighted": 3 / 4,
            "recall_macro": 13 / 18,
            "recall_weighted": 2 / 3,
            "f1_macro": 59 / 90,
            "f1_weighted": 61 / 90,
        },
    ),
    # class 1 counts nowhere; the others: precision 1, 2/3; recall 1/2, 1; f1 2/3, 4/5
    "neither_present_nor_predicted": (
        [0, 0, 2, 2],
        [0, 2, 2, 2],
        {
            "top1": 3 / 4,
            "balanced_accuracy": 3 / 4,
            "precision_macro": 5 / 6,
            "precision_weighted": 5 / 6,
            "recall_macro": 3 / 4,
            "recall_weighted": 3 / 4,
            "f1_macro": 11 / 15,
            "f1_weighted": 11 / 15,
        },
    ),
    # class 1 counts 0 in macro averages, but has no recall to balance; f1 2/3, 0, 1
    "predicted_but_absent": (
        [0, 0, 2, 2],
        [0, 1, 2, 2],
        {
            "top1": 3 / 4,
            "balanced_accuracy": 3 / 4,
            "precision_macro": 2 / 3,
            "precision_weighted": 1,
            "recall_macro": 1 / 2,
            "recall_weighted": 3 / 4,
            "f1_macro": 5 / 9,
            "f1_weighted": 5 / 6,
        },
    ),
    # precision 1/2, 0, 1; recall 1, 0, 1; f1 2/3, 0, 1; support 1, 1, 2
    "present_but_never_predicted": (
        [0, 1, 2, 2],
        [0, 0, 2, 2],
        {
            "top1": 3 / 4,
            "balanced_accuracy": 2 / 3,
            "precision_macro": 1 / 2,
            "precision_weighted": 5 / 8,
            "recall_macro": 2 / 3,
            "recall_weighted": 3 / 4,
            "f1_macro": 5 / 9,
            "f1_weighted": 2 / 3,
        },
    ),
}


def close(found: dict[str, float], expected: dict[str, float], difference: float = 1e-6) -> bool:
    assert found.keys() == expected.keys()
    return found == pytest.approx(expected, abs=difference, rel=0)


@pytest.mark.parametrize("case", BY_HAND)
def test_by_hand(case):
    labels, predictions, expected = BY_HAND[case]
    assert close(from_predictions(torch.tensor(predictions), torch.tensor(labels), 3), expected)


@pytest.mark.parametrize("case", BY_HAND)
def test_confusion_tells_the_same(case):
    labels, predictions, expected = BY_HAND[case]
    confusion = confusion_matrix(torch.tensor(predictions), torch.tensor(labels), 3)
    assert close(from_class_counts(confusion.by_class()), expected)


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def plain(predictions: list[int], labels: list[int], num_classes: int) -> dict[str, float]:
    """The definitions, one class and one pair at a time."""
    pairs = list(zip(predictions, labels, strict=True))
    scores, support = [], []
    for k in range(num_classes):
        hits = sum(p == k and y == k for p, y in pairs)
        predicted = sum(p == k for p in predictions)
        present = sum(y == k for y in labels)
        if predicted or present:
            support.append(present)
            precision, recall = ratio(hits, predicted), ratio(hits, present)
            scores.append((precision, recall, ratio(2 * hits, predicted + present)))
    metrics = {"top1": sum(p == y for p, y in pairs) / len(pairs)}
    for i, name in enumerate(("precision", "recall", "f1")):
        values = [score[i] for score in scores]
        metrics[f"{name}_macro"] = sum(values) / len(values)
        metrics[f"{name}_weighted"] = sum(v * n for v, n in zip(values, support, strict=True)) / len(pairs)
    recalls = [score[1] for score, n in zip(scores, support, strict=True) if n]
    metrics["balanced_accuracy"] = sum(recalls) / len(recalls)
    return metrics


@pytest.mark.parametrize(("num_classes", "videos"), [(2, 40), (7, 300), (60, 90)])
def test_random_predictions_against_the_definitions(num_classes, videos):
    """With 60 classes and 90 videos some are absent, some never predicted, some both."""
    draw = random.Random(0)
    labels = [draw.randrange(num_classes) for _ in range(videos)]
    predictions = [y if draw.random() < 0.5 else draw.randrange(num_classes) for y in labels]
    expected = plain(predictions, labels, num_classes)
    predictions, labels = torch.tensor(predictions), torch.tensor(labels)
    assert close(from_predictions(predictions, labels, num_classes), expected)
    confusion = confusion_matrix(predictions, labels, num_classes)
    assert close(from_class_counts(confusion.by_class()), expected)
    assert torch.equal(confusion.by_class(), class_counts(predictions, labels, num_classes))
    assert torch.tensor(confusion.tolist()).sum(dim=0).tolist() == confusion.by_class()[2].tolist()


def test_metrics_are_those_of_torchmetrics():
    from torchmetrics.functional import classification as tm

    draw = torch.Generator().manual_seed(3)
    labels, other = (torch.randint(40, (200,), generator=draw) for _ in range(2))
    predictions = torch.where(torch.rand(200, generator=draw) < 0.6, labels, other)
    found = from_predictions(predictions, labels, 50)
    for name, of in {
        "precision": tm.multiclass_precision,
        "recall": tm.multiclass_recall,
        "f1": tm.multiclass_f1_score,
    }.items():
        for average in ("macro", "weighted"):
            expected = of(predictions, labels, num_classes=50, average=average).item()
            assert found[f"{name}_{average}"] == pytest.approx(expected, abs=1e-6)
    assert found["top1"] == pytest.approx((predictions == labels).double().mean().item(), abs=1e-12)


def test_a_table_in_parts_gives_the_same(monkeypatch):
    logits = torch.randn(23, 9, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(23) % 9
    whole = [from_logits(logits, labels, independent) for independent in (False, True)]
    first = metrics.first_classes(logits, 5)
    monkeypatch.setattr(metrics, "CELLS", 4 * 9)
    assert [from_logits(logits, labels, independent) for independent in (False, True)] == [
        pytest.approx(each, abs=1e-12) for each in whole
    ]
    assert torch.equal(metrics.first_classes(logits, 5), first)
    assert torch.equal(first, metrics.ranking(logits)[:, :5])


def test_loss_is_the_mean_in_natural_logarithms():
    """Probabilities of the true class: 1/3 and 1/2."""
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(2), 0.0, 0.0]])
    found = from_logits(logits, torch.tensor([2, 0]))
    assert found["loss"] == pytest.approx((math.log(3) + math.log(2)) / 2, abs=1e-7)


@pytest.mark.parametrize(
    ("num_classes", "names"),
    [(2, ["loss", "top1"]), (5, ["loss", "top1"]), (6, ["loss", "top1", "top5"])],
)
def test_top5_only_above_five_classes(num_classes, names):
    found = from_logits(torch.randn(4, num_classes), torch.zeros(4, dtype=torch.int64))
    assert list(found) == names


def test_top1_and_top5_by_hand():
    """Six classes ranked 0..5 for every video: class 0 is found first, class 5 is not among five."""
    logits = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]).repeat(8, 1)
    found = from_logits(logits, torch.tensor([0, 0, 1, 2, 3, 4, 5, 5]))
    assert (found["top1"], found["top5"]) == (0.25, 0.75)


def test_top5_against_sorting():
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(30, (200,), generator=torch.Generator().manual_seed(1))
    hits = [
        y in sorted(range(30), key=row.__getitem__)[-5:]
        for row, y in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    assert from_logits(logits, labels)["top5"] == pytest.approx(sum(hits) / 200, abs=1e-7)


def test_confusion_has_labels_as_rows():
    found = confusion_matrix(torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 1, 1, 2]), 4)
    assert found.counts.dtype == torch.int64
    assert found.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_per_class():
    """Precision needs a prediction, recall a video, f1 either of them."""
    labels, predictions = torch.tensor([0, 0, 0, 0, 1, 1, 3]), torch.tensor([0, 0, 0, 1, 0, 0, 1])
    assert per_class(confusion_matrix(predictions, labels, 4)) == [
        {"support": 4, "precision": 0.6, "recall": 0.75, "f1": 6 / 9},
        {"support": 2, "precision": 0.0, "recall": 0.0, "f1": 0.0},
        {"support": 0, "precision": None, "recall": None, "f1": None},
        {"support": 1, "precision": None, "recall": 0.0, "f1": 0.0},
    ]


def test_equal_logits_are_ranked_alike_everywhere():
    logits, labels = torch.zeros(3, 10), torch.tensor([0, 4, 5])
    found = from_logits(logits, labels)
    assert (found["top1"], found["top5"]) == pytest.approx((1 / 3, 2 / 3))
    assert logits.argmax(dim=-1).tolist() == [0, 0, 0]
