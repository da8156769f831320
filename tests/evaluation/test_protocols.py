"""Which views stand for a protocol, and what it gives: literal numbers, and the frames that the sampler would read."""

import csv
import json

import numpy as np
import pytest
import torch

from vidtrain.data.augment.geometry import CenterCrops
from vidtrain.data.sampling.clips import ClipProtocol, clip_indices
from vidtrain.errors import UserError
from vidtrain.evaluation.protocols import (
    all_protocols,
    choose,
    clip_choice,
    crop_choice,
    curve,
    measured,
    probes,
    subsets,
    write_protocols,
)
from vidtrain.evaluation.view_store import StoredViews


@pytest.mark.parametrize(
    ("sampling", "overlap", "n", "c", "numbers", "same"),
    [
        ("dense", True, 4, 1, (2,), False),
        ("dense", True, 5, 1, (2,), True),
        ("dense", True, 4, 2, (0, 3), True),
        ("dense", True, 4, 3, (0, 2, 3), False),
        ("dense", True, 10, 4, (0, 3, 6, 9), True),
        ("dense", True, 10, 5, (0, 2, 5, 7, 9), False),
        ("uniform", True, 4, 1, (2,), True),
        ("uniform", True, 3, 1, (1,), False),
        ("uniform", True, 6, 3, (0, 2, 4), True),
        ("uniform", True, 4, 3, (0, 1, 2), False),
        ("dense", False, 4, 2, (1, 3), False),
        ("uniform", False, 3, 1, (1,), False),
        ("pyslowfast_offset", True, 5, 1, (2,), False),
        ("pyslowfast_offset", True, 5, 3, (0, 2, 4), False),
        ("vjepa2", True, 8, 2, (0, 4), False),
        ("vjepa2", False, 3, 3, (0, 1, 2), True),
    ],
)
def test_which_clips_stand_for_fewer(sampling, overlap, n, c, numbers, same):
    found = clip_choice(sampling, overlap, n, c)
    assert (found.numbers, found.same) == (numbers, same)


STRIDES = [
    {"frame_step": 3},
    {"frame_step": 3, "short_video_policy": "wrap"},
    {"fps": 7.0},
    {"duration": 1.5},
    {"sampling": "uniform"},
]


@pytest.mark.parametrize("stride", STRIDES, ids=str)
def test_the_same_clips_are_the_same_frames(stride):
    """Against the sampler itself, for videos of many lengths, shorter than a clip and of odd frame rates too."""
    sampling = stride.get("sampling", "dense")
    times = np.cumsum(np.random.default_rng(0).uniform(0.02, 0.06, 300))
    held = 0
    for n in range(1, 11):
        for c in range(1, n):
            found = clip_choice(sampling, True, n, c)
            assert len(set(found.numbers)) == c and max(found.numbers) < n
            for frames in (1, 5, 9, 24, 25, 40, 97, 256):
                of_table, afresh = (
                    clip_indices(frames, times[:frames], ClipProtocol(8, num_clips=each, **stride), None)
                    for each in (n, c)
                )
                if found.same:
                    assert np.array_equal(of_table[list(found.numbers)], afresh), (n, c, frames)
                    held += 1
    assert held > 100


@pytest.mark.parametrize("crops", [3, 5])
@pytest.mark.parametrize("frame", [(320, 240), (171, 128), (127, 300), (64, 64)])
def test_the_middle_crop_is_the_center_crop(crops, frame):
    [middle] = crop_choice(crops, 1).numbers
    assert CenterCrops(1.125, crops)(*frame, (56, 56))[middle] == CenterCrops(1.125, 1)(*frame, (56, 56))[0]


def test_crops_that_are_not_held():
    assert crop_choice(3, 3).numbers == (0, 1, 2)
    with pytest.raises(UserError, match="crops=2 is not in .* holds 1 or 3"):
        crop_choice(3, 2)
    with pytest.raises(UserError, match="crops=1 is not in .* holds 2: an even"):
        crop_choice(2, 1)


def stored(logits, labels, orders=("forward",), num_clips=None, joint=False, independent=False):
    """A table in memory; `logits` are [videos, orders, clips, crops, classes]."""
    logits = np.array(logits, dtype=np.float32)
    crops = ["left or top", "center", "right or bottom"] if logits.shape[3] == 3 else ["center"]
    about = {
        "orders": list(orders),
        "num_clips": num_clips or logits.shape[2],
        "crops": crops,
        "clip_names": [f"clip {i}" for i in range(logits.shape[2])],
        "classes": [str(k) for k in range(logits.shape[-1])],
        "sampling": "dense",
        "overlap": True,
        "joint": joint,
        "independent": independent,
        "missing": [],
        "total": len(logits),
        "coverage": f"{len(logits)}/{len(logits)}",
    }
    indices = torch.arange(len(logits))
    return StoredViews(None, about, logits, torch.tensor(labels), indices, {i: f"{i}.mp4" for i in range(len(logits))})


# three clips, one crop; logits of the second class less the first, both orders
FORWARD = [[9.0, -1.0, -1.0], [1.0, -2.0, 4.0], [-3.0, 1.0, 1.0]]
REVERSED = [[-9.0, 1.0, 1.0], [1.0, 2.0, 4.0], [-3.0, -1.0, 1.0]]
LABELS = [1, 1, 0]


@pytest.fixture
def views():
    logits = [[[[[0.0, value]] for value in order[video]] for order in (FORWARD, REVERSED)] for video in range(3)]
    return stored(logits, LABELS, ("forward", "reversed"))


def test_every_protocol_and_fusion(views):
    found = {
        (each.order, each.num_clips, each.fusion): each.metrics["top1"]
        for each in all_protocols(views, ("mean_logits", "mean_probs", "vote"))
    }
    assert len(found) == 2 * 3 * 3
    # all clips: sums 7, 3, -1 are right; votes 0 1 1 are right for the second video alone
    assert found["forward", 3, "mean_logits"] == 1
    assert found["forward", 3, "vote"] == pytest.approx(1 / 3)
    # sigmoids .9999 .27 .27, .73 .12 .98, .05 .73 .73: means .513, .610 and .503
    assert found["forward", 3, "mean_probs"] == pytest.approx(2 / 3)
    assert {found["forward", 1, fusion] for fusion in ("mean_logits", "mean_probs", "vote")} == {0.0}
    assert found["forward", 2, "mean_logits"] == 1  # the first and the last: 8, 5, -2
    [whole] = measured(views, "forward", *choose(views, 3, 1), ["vote"])
    assert whole.metrics["clip_top1"] == pytest.approx(4 / 9)
    assert (whole.name, whole.same) == ("3x1", True)


def test_the_curve_is_the_mean_over_choices(views):
    """Of one clip: the first is right for all, the second for none, the third for the second video."""
    points = curve(views, "mean_logits")
    assert [(each.clips, each.crops, each.subsets) for each in points] == [(1, 1, 3), (2, 1, 3), (3, 1, 1)]
    assert (points[0].mean, points[0].lowest, points[0].highest) == pytest.approx((4 / 9, 0, 1))
    assert points[2].mean == points[2].lowest == points[2].highest == 1
    assert len(subsets(10, 5)) == len(set(subsets(10, 5))) == 20
    assert subsets(10, 5) == subsets(10, 5)


def test_probes_are_held_against_the_first_order(views):
    forward, backwards = probes(views, *choose(views, 3, 1), "mean_logits")
    assert (forward.change, forward.same_class) == (0, 1)
    # sums -7, 7, -3: wrong, right, right
    assert backwards.protocol.metrics["top1"] == pytest.approx(2 / 3)
    assert (backwards.change, backwards.same_class) == pytest.approx((-1 / 3, 2 / 3))


def test_views_that_were_attended_jointly_cannot_be_taken_apart():
    joint = stored([[[[[2.0, 0.0], [0.0, 1.0], [0.0, 9.0]]]]], [1], num_clips=4, joint=True)
    found = all_protocols(joint, ("joint",))
    assert [(each.name, each.metrics["top1"]) for each in found] == [("4x1", 1), ("4x3", 1)]
    assert curve(joint, "joint") == []
    with pytest.raises(UserError, match="all 4 clips jointly"):
        choose(joint, 2, 3)


def test_several_labels():
    logits = np.random.default_rng(0).normal(size=(6, 1, 2, 1, 3))
    several = stored(logits, np.eye(3, dtype=np.float32)[[0, 1, 2, 0, 1, 2]].tolist(), independent=True)
    found = all_protocols(several, ("mean_logits", "mean_probs"))
    assert {"map", "clip_map"} <= found[0].metrics.keys() and len(found) == 4
    assert all(0 < point.mean <= 1 for point in curve(several, "mean_probs"))


def test_files(views, tmp_path):
    protocols = all_protocols(views, ("mean_logits", "vote"))
    compared = probes(views, *choose(views, 3, 1), "vote")
    write_protocols(tmp_path, views.about, protocols, compared, curve(views, "vote"), "vote", "top1")
    with open(tmp_path / "protocols.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    assert [rows[0][key] for key in ("order", "clips", "crops", "fusion", "table_clips", "same_as_afresh")] == [
        "forward", "1", "1", "mean_logits", "2", "1",
    ]  # fmt: skip
    with open(tmp_path / "views_curve.csv", newline="") as file:
        point = next(csv.DictReader(file))
    assert [point[key] for key in ("order", "fusion", "metric", "clips", "crops")] == [
        "forward", "vote", "top1", "1", "1",
    ]  # fmt: skip
    whole = json.loads((tmp_path / "protocols.json").read_text())
    assert len(whole["protocols"]) == 12 and len(whole["probes"]) == 2 and len(whole["views_curve"]) == 3
    assert whole["notes"][0].startswith("c of n clips: clip round(i (n - 1) / (c - 1))")
    write_protocols(tmp_path, views.about, protocols, [], [], "vote", "top1")
    assert not (tmp_path / "probes.csv").exists()  # that of another evaluation
