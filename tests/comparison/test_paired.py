"""Two recipes, with numbers that can be counted by hand."""

import numpy as np
import pytest

from vidtrain.comparison.paired import compare
from vidtrain.evaluation.predictions import Predictions

LABELS = ["run", "sit"] * 10


def outcome(right: set[int], top5: bool = True, groups: list[str] | None = None) -> Predictions:
    """20 videos in two classes, of which those numbered in `right` are told."""
    other = {"run": "sit", "sit": "run"}
    predicted = [label if video in right else other[label] for video, label in enumerate(LABELS)]
    paths = [f"{video}.mp4" for video in range(20)]
    return Predictions(paths, LABELS, predicted, np.full(20, top5), groups, several=False)


def held(baseline, other, metric="top1", pairs=((0, 0),), confidence=0.95):
    return compare(baseline, other, pairs, metric, draws=4000, confidence=confidence, seed=0)


def test_single_runs():
    found = held([outcome({0, 1, 2, 3})], [outcome({2, 3, 4, 5, 6, 7})])
    assert (found.of_baseline, found.of_other) == ([0.2], [0.3])
    assert found.difference == pytest.approx(0.1)
    # of 20 videos 4 are gained and 2 are lost: a standard deviation of sqrt((6 - 4/20)/20/20) = 0.12
    assert found.interval == (-0.15, 0.35)
    assert found.interval_with_seeds is None and found.widest == found.interval
    (pair,) = found.pairs
    assert (pair.only_baseline, pair.only_other, pair.p) == (2, 4, pytest.approx(0.6875))
    assert (found.shared, found.units) == (20, 20)


def test_a_narrower_confidence_is_narrower():
    runs = [outcome(set(range(8)))], [outcome(set(range(4, 14)))]
    wide, narrow = held(*runs), held(*runs, confidence=0.5)
    assert wide.interval[0] < narrow.interval[0] < narrow.interval[1] < wide.interval[1]


def test_seeds_are_averaged_and_their_spread_counts():
    steady = held([outcome(set(range(8)))] * 3, [outcome(set(range(12)))] * 3, pairs=())
    assert steady.interval_with_seeds == steady.interval  # seeds that do not differ add nothing
    wild = held([outcome(set(range(n))) for n in (4, 8, 12)], [outcome(set(range(n))) for n in (8, 12, 16)], pairs=())
    assert wild.difference == pytest.approx(0.2)
    assert wild.of_other == [0.4, 0.6, 0.8]
    # two standard errors of 0.2 / sqrt(3), by Student's t of 2 degrees of freedom: wider than -0.4 to 0.8
    low, high = wild.interval_with_seeds
    assert low < -0.3 and high > 0.7 and wild.interval[0] > 0
    assert held([outcome({1})] * 2, [outcome({2})]).interval_with_seeds is None


def test_one_group_tells_nothing_apart():
    groups = ["anna"] * 20
    runs = [outcome(set(), groups=groups)] * 2, [outcome(set(range(20)), groups=groups)] * 2
    found = held(*runs, pairs=())
    assert found.difference == 1 and found.units == 1
    assert found.interval is None and found.interval_with_seeds is None and found.verdict == "not told apart"
    assert [change.interval for change in found.classes] == [None, None]


def test_a_class_of_one_group_has_no_interval():
    groups = [["anna", "ben"][video % 2] for video in range(20)]  # a class each
    found = held([outcome(set(), groups=groups)], [outcome({0, 2}, groups=groups)])
    assert found.units == 2 and found.interval is not None
    assert [change.interval for change in found.classes] == [None, None]


def test_classes():
    found = held([outcome({0, 2, 1})], [outcome({0, 2, 4, 6})])
    run, sit = found.classes
    assert (run.name, run.support, run.recall_baseline, run.recall_other) == ("run", 10, 0.2, 0.4)
    assert run.recall_difference == pytest.approx(0.2) and run.interval == (0.0, 0.5)
    # baseline: 2 hits, 10 labels, 2 + 9 predictions; other: 4 hits, 4 + 10 predictions
    assert (run.f1_baseline, run.f1_other) == (pytest.approx(4 / 21), pytest.approx(8 / 24))
    assert (sit.recall_difference, sit.interval) == (pytest.approx(-0.1), (-0.3, 0.0))


def test_a_class_that_one_seed_of_several_loses_is_not_told_apart():
    """All of its videos change alike, so other videos would tell nothing; other seeds do."""
    whole = outcome({0, 2, 4, 6, 8, 10, 12, 14, 16, 18})
    run, _ = held([whole] * 3, [whole, whole, outcome(set())], pairs=()).classes
    assert run.recall_difference == pytest.approx(-1 / 3)
    assert run.interval[0] < -0.9 and run.interval[1] > 0.2
    alone, _ = held([whole], [outcome(set())]).classes
    assert alone.interval == (-1.0, -1.0)


def test_videos_that_changed_most_come_first():
    found = held([outcome({0, 1}), outcome({0}), outcome({0})], [outcome({0, 3}), outcome({3}), outcome({3, 1})])
    first, second, third = found.videos[:3]
    assert (first.path, first.baseline, first.other, first.flipped) == ("3.mp4", 0.0, 1.0, True)
    assert (first.label, first.prediction_baseline, first.prediction_other) == ("sit", "run", "sit")
    assert (second.path, second.baseline, second.other) == ("0.mp4", 1.0, pytest.approx(1 / 3))
    assert second.flipped and second.prediction_other == "sit"
    assert (third.path, third.baseline, third.other, third.flipped) == (
        "1.mp4", pytest.approx(1 / 3), pytest.approx(1 / 3), False,
    )  # fmt: skip


def test_other_metrics():
    a, b = outcome({0, 2, 1}, top5=False), outcome({0, 2, 4, 6})
    assert held([a], [b], "top5").difference == 1.0
    f1 = held([a], [b], "f1_macro")
    assert f1.of_baseline == [pytest.approx((4 / 21 + 2 / 19) / 2)]
    assert f1.interval[0] < f1.difference < f1.interval[1]
    assert held([a], [b], "recall_weighted").difference == pytest.approx(held([a], [b]).difference)


def test_groups_make_intervals_wider():
    groups = [f"g{video // 5}" for video in range(20)]
    alone = held([outcome(set())], [outcome(set(range(5, 15)))])
    whole = held([outcome(set(), groups=groups)], [outcome(set(range(5, 15)), groups=groups)])
    assert (alone.units, whole.units) == (20, 4)
    assert whole.interval[0] < alone.interval[0] and whole.interval[1] > alone.interval[1]


def test_no_shared_video():
    other = outcome({1})
    moved = Predictions([f"{n}.avi" for n in range(20)], *list(vars(other).values())[1:])
    assert held([outcome({1})], [moved]) is None
