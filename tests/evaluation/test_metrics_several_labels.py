"""Metrics of several labels a video: by hand, and against scikit-learn's definitions written out."""

import csv
import json
import math

import pytest
import torch

from vidtrain.evaluation.metrics import (
    average_precision,
    count_labels,
    exact_match,
    from_label_counts,
    from_label_logits,
    per_label,
)
from vidtrain.evaluation.report import report, write_report
from vidtrain.evaluation.views import ViewTable, fuse, mean_sigmoids

# four videos of three classes; the third class has no video
LOGITS = torch.tensor([[2.0, -1.0, -3.0], [1.0, 2.0, -3.0], [-1.0, 1.0, 0.5], [-2.0, -2.0, -3.0]])
LABELS = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 1, 0]])


def plain_average_precision(scores, truth):
    """The sum over positives, by falling score, of precision there; no ties."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    hits, total = 0, 0.0
    for rank, i in enumerate(order, start=1):
        if truth[i]:
            hits += 1
            total += hits / rank
    return total / hits


def test_average_precision_by_hand():
    """Class 0: ranked yes no yes no, (1 + 2/3) / 2. Class 1: yes yes no yes, (1 + 1 + 3/4) / 3."""
    found = average_precision(LOGITS, LABELS)
    assert found[:2].tolist() == pytest.approx([5 / 6, 11 / 12])
    assert found[2].isnan()
    metrics = from_label_logits(LOGITS, LABELS)
    assert metrics["map"] == pytest.approx(7 / 8)
    # logits themselves, beyond what a probability in single precision tells apart
    assert average_precision(LOGITS + 30, LABELS)[:2].tolist() == pytest.approx([5 / 6, 11 / 12])


def test_against_the_definition():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 9, generator=generator)
    labels = (torch.rand(60, 9, generator=generator) < 0.2).float()
    metrics = from_label_logits(logits, labels)
    expected = [plain_average_precision(logits[:, k].tolist(), labels[:, k].tolist()) for k in range(9)]
    assert metrics["map"] == pytest.approx(sum(expected) / 9, abs=1e-6)
    micro = plain_average_precision(logits.flatten().tolist(), labels.flatten().tolist())
    assert metrics["map_micro"] == pytest.approx(micro, abs=1e-6)
    probabilities = logits.double().sigmoid()
    loss = -(labels * probabilities.log() + (1 - labels) * (1 - probabilities).log()).mean()
    assert metrics["loss"] == pytest.approx(loss.item(), abs=1e-9)


def test_counts_and_scores_by_hand():
    counts = count_labels(LOGITS, LABELS)
    assert counts.tolist() == [[[1, 1], [1, 1]], [[1, 0], [1, 2]], [[3, 1], [0, 0]]]
    assert from_label_counts(counts) == pytest.approx(
        {
            "precision_micro": 3 / 5,  # 3 hits of 5 predicted, 5 present
            "recall_micro": 3 / 5,
            "f1_micro": 3 / 5,
            "precision_macro": (1 / 2 + 1 + 0) / 3,
            "recall_macro": (1 / 2 + 2 / 3 + 0) / 3,
            "f1_macro": (1 / 2 + 4 / 5 + 0) / 3,
        }
    )
    # a class that is neither present nor predicted counts nowhere
    absent = torch.cat([counts, torch.tensor([[[4, 0], [0, 0]]])])
    assert from_label_counts(absent) == pytest.approx(from_label_counts(counts))
    assert exact_match(LOGITS, LABELS) == 1 / 4


def test_per_class():
    rows = per_label(LOGITS, LABELS)
    assert rows[0] == pytest.approx({"support": 2, "ap": 5 / 6, "precision": 0.5, "recall": 0.5, "f1": 0.5})
    assert rows[2] == {"support": 0, "ap": None, "precision": 0.0, "recall": None, "f1": 0.0}


def test_the_mean_of_sigmoids():
    clips = torch.tensor([[[math.log(3), 0.0], [0.0, -math.log(3)]]])  # 3/4, 1/2 and 1/2, 1/4
    torch.testing.assert_close(mean_sigmoids(clips).sigmoid(), torch.tensor([[0.625, 0.375]]))
    assert torch.equal(fuse(clips, "mean_probs", independent=True), mean_sigmoids(clips))
    torch.testing.assert_close(fuse(clips, "mean_logits", independent=True), clips.mean(dim=1))
    random = 10 * torch.randn(20, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(mean_sigmoids(random).sigmoid(), random.sigmoid().mean(dim=1))
    certain = mean_sigmoids(torch.tensor([[[90.0, -200.0], [90.0, -300.0]]]))
    assert certain.tolist() == [[90.0, pytest.approx(-200 - math.log(2))]]


def test_report_and_its_files(tmp_path):
    table = ViewTable(torch.tensor([0, 1, 3, 4]), LABELS, LOGITS[:, None], [("d.mp4", "cut")], 5)
    found = report(table, "mean_logits", "protocol", independent=True)
    assert found.confusion is None
    assert found.metrics["map"] == found.metrics["clip_map"] == pytest.approx(7 / 8)
    torch.testing.assert_close(found.probabilities, LOGITS.sigmoid())
    write_report(found, tmp_path, ["a.mp4", "b.mp4", "c.mp4", "d.mp4", "e.mp4"], ["jump", "run", "sit"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "logits.npz",
        "metrics.json",
        "per_class.csv",
        "predictions.csv",
    ]
    with open(tmp_path / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], row["label"], row["prediction"], row["correct"]) for row in rows] == [
        ("a.mp4", "jump", "jump", "1"),
        ("b.mp4", "run", "jump;run", "0"),
        ("d.mp4", "jump;run", "run;sit", "0"),
        ("e.mp4", "run", "", "0"),
    ]
    assert (rows[0]["top1"], rows[0]["p1"], rows[0]["top2"]) == ("jump", "0.880797", "run")
    header = (tmp_path / "per_class.csv").read_text().splitlines()[0]
    assert header == "class,support,ap,precision,recall,f1,ece"
    assert json.loads((tmp_path / "metrics.json").read_text())["coverage"] == "4/5"


def test_one_label_judged_by_sigmoids():
    """One-vs-rest: the best class is the same, probabilities and loss are those of sigmoids."""
    table = ViewTable(torch.arange(4), torch.tensor([0, 1, 2, 1]), LOGITS[:, None], [], 4)
    found, softmax = report(table, "mean_probs", "", independent=True), report(table, "mean_probs", "")
    assert found.metrics["top1"] == softmax.metrics["top1"] == 0.5
    answers = torch.nn.functional.one_hot(table.labels, 3).float()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(LOGITS, answers)
    assert found.metrics["loss"] == pytest.approx(loss.item(), abs=1e-6)
    torch.testing.assert_close(found.probabilities, LOGITS.sigmoid())
