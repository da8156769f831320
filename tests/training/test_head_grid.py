"""Many heads on one encoder: each trains as if it were alone, and val selects one."""

from functools import partial

import pytest
import torch
from clock import TIMED

from vidtrain.errors import UserError
from vidtrain.runs.report import head_table
from vidtrain.training.losses import BinaryCrossEntropy
from vidtrain.training.run import HeadGridSettings, PhaseSettings, TrainerSettings
from vidtrain.training.stages import apply_phase, check_average, finite_mean

NAMES = ["lr0.1_wd0", "lr0.1_wd0.5", "lr0.01_wd0", "lr0.01_wd0.5"]


def grid(lr=(0.1, 0.01), weight_decay=(0.0, 0.5), **phase):
    return {"grid": PhaseSettings(encoder_blocks=0, heads=HeadGridSettings(list(lr), list(weight_decay)), **phase)}


@pytest.mark.parametrize("clip_grad", [1.0, 0.02])
def test_each_head_ends_with_the_bits_of_a_run_of_its_own(run_loop, clip_grad):
    found = run_loop("grid", phases=grid(), clip_grad=clip_grad)
    assert len(found.last["heads"]) == 4 * 4  # norm and linear layer, weight and bias each
    for place, (lr, decay) in ((1, (0.1, 0.5)), (2, (0.01, 0.0))):
        optimizer = partial(torch.optim.SGD, lr=lr, weight_decay=decay, momentum=0.9)
        alone = run_loop(
            NAMES[place],
            phases={"head": PhaseSettings(encoder_blocks=0)},
            optimizer=optimizer,
            clip_grad=clip_grad,
        )
        for name, tensor in alone.model.head.state_dict().items():
            assert torch.equal(found.last["heads"][f"{place}.{name}"], tensor), (place, name)
        values = [row["val/loss"] for row in alone.rows if "val/loss" in row]
        assert values == [
            row[f"val_heads/{NAMES[place]}/loss"] for row in found.rows if f"val_heads/{NAMES[place]}/loss" in row
        ]


def test_the_best_head_of_all_is_kept_as_an_ordinary_model(run_loop, small_model):
    found = run_loop(phases=grid(), monitor="loss")
    rows = [row for row in found.rows if "val/loss" in row]
    assert len(rows) == 3
    for row in rows:
        assert row["val/loss"] == min(row[f"val_heads/{name}/loss"] for name in NAMES)
    assert found.state.best == min(row["val/loss"] for row in rows) == found.best["metrics"]["loss"]
    assert (found.best["head"], found.best["weights"]) == (NAMES[0], "raw")
    small_model.load_state_dict(found.best["model"])  # names and shapes of a single head
    assert torch.equal(found.last["model"]["head.linear.weight"], found.last["heads"]["0.linear.weight"])
    assert any("4 heads train on one frozen encoder: 0.00 M parameters" in line for line in found.said)
    assert any("val, lr0.1_wd0 of 4 heads: loss" in line for line in found.said)


def test_what_follows_goes_on_from_the_best_head(run_loop):
    phases = grid(duration="2ep") | {"full": PhaseSettings(duration="1ep", lr_scale=1e-9)}
    found = run_loop(phases=phases, monitor="loss")
    before, after = [row for row in found.rows if "val/loss" in row][1:]
    assert (before["phase"], after["phase"]) == ("grid", "full")
    # batch norms have moved on, and so have not the weights
    assert after["val/loss"] == pytest.approx(before["val/loss"], abs=0.2)
    torch.testing.assert_close(
        found.last["model"]["head.linear.weight"],
        found.best["model"]["head.linear.weight"],
        atol=1e-6,
        rtol=0,
    )
    assert found.last["heads"] is None and not any("val_heads" in key for key in after)


@pytest.mark.parametrize("stop_after", [3, 7])
def test_resumed_it_is_the_same_bits(run_loop, stop_after):
    phases = grid(duration="2ep") | {"full": PhaseSettings(duration="1ep")}
    alone = run_loop("alone", phases=phases)
    assert run_loop("killed", phases=phases, stop_after=stop_after) is None
    resumed = run_loop("killed", phases=phases)
    for file in ("last", "best"):
        one, other = getattr(alone, file), getattr(resumed, file)
        assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    untimed = [
        [{key: value for key, value in row.items() if key not in TIMED} for row in run.rows] for run in (alone, resumed)
    ]
    assert untimed[0] == untimed[1]


def test_a_head_that_diverges_ends_no_other_and_is_never_selected(run_loop):
    found = run_loop("grid", phases=grid(lr=(1e38, 0.1), weight_decay=(0.0,)), clip_grad=None)
    good = run_loop("good", phases=grid(lr=(0.1,), weight_decay=(0.0,)), clip_grad=None)
    assert found.best["head"] == good.best["head"] == "lr0.1_wd0"
    assert torch.equal(found.best["model"]["head.linear.weight"], good.best["model"]["head.linear.weight"])
    last = [row for row in found.rows if "val/loss" in row][-1]
    assert last["val_heads/lr1e+38_wd0/loss"] is None
    with pytest.raises(UserError, match="the loss is nan at step"):
        run_loop("none", phases=grid(lr=(1e38,), weight_decay=(0.0, 1.0)), clip_grad=None)


def test_videos_of_several_labels(run_loop):
    found = run_loop(phases=grid(), loss=BinaryCrossEntropy(), multi_label=True, monitor="map")
    assert found.state.best > 0.5


@pytest.mark.parametrize(
    ("phase", "why"),
    [
        (
            PhaseSettings(heads=HeadGridSettings([0.1], [0.0])),
            "heads needs a frozen encoder, and encoder_blocks=null",
        ),
        (PhaseSettings(encoder_blocks=1, heads=HeadGridSettings([0.1], [0.0])), "encoder_blocks=1 trains it"),
        (
            PhaseSettings(encoder_blocks=0, heads=HeadGridSettings([], [0.0])),
            r"heads.lr=\[\] must hold at least one number",
        ),
        (
            PhaseSettings(encoder_blocks=0, heads=HeadGridSettings([0.1], [-1.0])),
            "every number must be 0 or more",
        ),
        (
            PhaseSettings(encoder_blocks=0, heads=HeadGridSettings([0.0], [0.0])),
            "every number must be above 0",
        ),
        (PhaseSettings(encoder_blocks=0, heads=HeadGridSettings([0.1, 0.1], [0.0])), "holds a number twice"),
    ],
)
def test_what_is_no_grid_is_refused(small_model, phase, why):
    with pytest.raises(UserError, match=why):
        apply_phase(small_model, phase)


def test_a_grid_has_no_average():
    with pytest.raises(UserError, match="averaged: trainer.ema=0.9"):
        check_average(grid()["grid"], TrainerSettings(ema=0.9))
    check_average(PhaseSettings(encoder_blocks=0), TrainerSettings(ema=0.9))


def test_the_table_has_each_head_at_its_best():
    rows = [
        {"step": 4, "phase": "grid", "val_heads/lr0.1_wd0/top1": 0.5, "val_heads/lr0.1_wd0/loss": 1.0,
         "val_heads/lr0.01_wd0/top1": 0.7, "val_heads/lr0.01_wd0/loss": 0.9},
        {"step": 5, "phase": "grid", "train/loss": 1.0},
        {"step": 8, "phase": "grid", "val_heads/lr0.1_wd0/top1": 0.7, "val_heads/lr0.1_wd0/loss": 0.5,
         "val_heads/lr0.01_wd0/top1": 0.9, "val_heads/lr0.01_wd0/loss": None},
    ]  # fmt: skip
    phases = grid(weight_decay=(0.0,)) | {"full": PhaseSettings()}
    found = head_table(rows, phases, "top1", "max")
    assert found == [
        {
            "phase": "grid",
            "head": "lr0.01_wd0",
            "lr": 0.01,
            "weight_decay": 0.0,
            "step": 4,
            "top1": 0.7,
            "loss": 0.9,
        },
        {
            "phase": "grid",
            "head": "lr0.1_wd0",
            "lr": 0.1,
            "weight_decay": 0.0,
            "step": 8,
            "top1": 0.7,
            "loss": 0.5,
        },
    ]
    assert [row["head"] for row in head_table(rows, phases, "loss", "min")] == ["lr0.1_wd0", "lr0.01_wd0"]
    assert head_table(rows, {"full": PhaseSettings()}, "top1", "max") == []


def test_means_leave_out_what_is_not_finite():
    assert finite_mean([1.0, float("nan"), 3.0, float("inf")]) == 2.0
    assert finite_mean([0.1]) == 0.1
    assert finite_mean([float("nan")]) != finite_mean([float("nan")])
