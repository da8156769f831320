"""A run beside a baseline, by hand; what is kept is found again by what the splits hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.evaluation.predictions import Predictions, read_predictions
from vidtrain.evaluation.report import report, write_report
from vidtrain.evaluation.views import ViewTable
from vidtrain.evaluator.baselines import (
    MOTION,
    Baselines,
    compare_with,
    compare_with_all,
    compared_by,
    find_baselines,
    folder_for,
    open_baselines,
)

DIGESTS = {"train": "aa", "test": "bb"}
SETTINGS = {"clips": 8}


def answers(right: str, groups: list[str] | None = None) -> Predictions:
    """Videos of class a, taken for a where `right` has a 1."""
    paths = [f"/videos/{number}.mp4" for number in range(len(right))]
    labels, guesses = ["a"] * len(right), ["a" if mark == "1" else "b" for mark in right]
    return Predictions(paths, labels, guesses, np.ones(len(right), bool), groups, False)


def test_a_difference_and_its_interval():
    verdict = compare_with(answers("1" * 60 + "0" * 40), answers("0" * 100), "majority", "top1")
    assert (verdict.baseline, verdict.run, verdict.difference) == (0.0, 0.6, 0.6)
    # the binomial's: 0.6 +- 1.96 sqrt(0.24 / 100)
    assert verdict.low == pytest.approx(0.504, abs=0.011) and verdict.high == pytest.approx(0.696, abs=0.011)
    assert verdict.is_better and (verdict.videos, verdict.units) == (100, 100)


def test_whole_groups_are_drawn():
    groups = [str(number // 25) for number in range(100)]  # four recordings
    run, baseline = "1" * 75 + "0" * 25, "0" * 25 + "1" * 25 + "0" * 50
    alone = compare_with(answers(run), answers(baseline), "x", "top1")
    grouped = compare_with(answers(run, groups), answers(baseline, groups), "x", "top1")
    assert grouped.units == 4 and grouped.difference == alone.difference == 0.5
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)
    assert alone.is_better and not grouped.is_better


def test_several_labels_are_compared_by_mean_average_precision(tmp_path):
    labels = (torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.4).float()
    noise = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    paths, groups = [f"{number}.mp4" for number in range(40)], [str(number // 4) for number in range(40)]
    both = []
    for name, logits in (("baseline", noise), ("run", noise + 3 * labels)):
        table = ViewTable(torch.arange(40), labels, logits[:, None], [], 40)
        result = report(table, "mean_logits", "a protocol", independent=True)
        write_report(result, tmp_path / name, paths, ["a", "b", "c"], groups if name == "baseline" else None)
        both.append((read_predictions(tmp_path / name / "predictions.csv", several=True), result.metrics["map"]))
    (baseline, of_baseline), (run, of_run) = both
    verdict = compare_with(run, baseline, "x", compared_by(several=True, num_classes=3))
    assert (verdict.metric, verdict.units) == ("map", 10)
    assert (verdict.baseline, verdict.run) == (pytest.approx(of_baseline), pytest.approx(of_run))
    assert 0 < verdict.low < verdict.difference < verdict.high and verdict.is_better
    without = compare_with(replace(run, logits=None), baseline, "x", "map")  # of an earlier version
    assert without.metric == "exact_match" and without.run == run_right(run)


def run_right(run: Predictions) -> float:
    return float(np.mean([label == guess for label, guess in zip(run.labels, run.predictions, strict=True)]))


def test_one_group_has_no_interval():
    groups = ["anna"] * 4
    only = compare_with(answers("1111", groups), answers("0000", groups), "x", "top1")
    assert (only.difference, only.low, only.high, only.units) == (1.0, None, None, 1)
    assert not only.is_better and only.text == "+1.000 (one group)"


def test_nothing_in_common_is_no_verdict():
    other = answers("11")
    other.paths[:] = ["/elsewhere/x.avi", "/elsewhere/y.avi"]
    assert compare_with(answers("11"), other, "x", "top1") is None


@pytest.fixture
def kept(tmp_path):
    """Baselines that got 2 and 3 of 4 videos right."""
    folder = folder_for(tmp_path, DIGESTS, SETTINGS)
    results: dict = {"test": {}}
    made = Baselines(folder, "top1", results, 1.5)
    paths = [f"/videos/{number}.mp4" for number in range(4)]
    for name, right in ((MOTION, 2), ("majority", 3)):
        logits = torch.tensor([[1.0, 0.0]] * right + [[0.0, 1.0]] * (4 - right))[:, None]
        table = ViewTable(torch.arange(4), torch.zeros(4, dtype=torch.int64), logits, [], 4)
        result = report(table, "mean_logits", "a protocol")
        results["test"][name] = result.metrics
        write_report(result, made.place("test", name), paths, ["a", "b"], ["one", "one", "two", "two"])
    made.save(DIGESTS, SETTINGS)
    return tmp_path


def test_the_best_comes_first_and_then_the_motion_map(kept):
    known = find_baselines(kept, DIGESTS, "test")
    assert known is not None and known.best("test") == "majority" and known.seconds == 1.5
    best, motion = compare_with_all(answers("1111"), known, "test")
    assert (best.name, best.baseline, best.difference) == ("majority", 0.75, 0.25)
    assert (motion.name, motion.baseline, motion.difference) == (MOTION, 0.5, 0.5)
    assert best.units == motion.units == 2  # groups, which baselines have noted


@pytest.mark.parametrize("changed", ["train", "test"])
def test_other_videos_have_no_baselines(kept, changed):
    assert find_baselines(kept, {**DIGESTS, changed: "cc"}, "test") is None
    assert find_baselines(kept, DIGESTS, "val") is None


def test_what_is_damaged_is_named(kept):
    file = folder_for(kept, DIGESTS, SETTINGS) / "baselines.json"
    for damaged, named in (("{", "cannot be read"), ("{}", "has no format")):
        file.write_text(damaged)
        with pytest.raises(UserError, match=f"baselines.json {named}.* run vidtrain.baselines again"):
            find_baselines(kept, DIGESTS, "test")


def test_other_settings_lie_elsewhere(kept):
    assert open_baselines(folder_for(kept, DIGESTS, SETTINGS)) is not None
    assert open_baselines(folder_for(kept, DIGESTS, {"clips": 9})) is None
