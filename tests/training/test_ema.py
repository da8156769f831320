"""The average of the weights: its formula, and what becomes of it in a run."""

import pytest
import torch
from timm.utils import ModelEmaV2
from torch import nn

from vidtrain.errors import UserError
from vidtrain.training.validation import WeightAverage, decay_at, selecting_weights


def test_the_decay_warms_up():
    """(1 + step) / (10 + step)."""
    found = {step: decay_at(step, 0.99, True) for step in (1, 2, 8, 80, 890, 10**6)}
    expected = {1: 2 / 11, 2: 3 / 12, 8: 0.5, 80: 0.9, 890: 0.99, 10**6: 0.99}
    assert found == pytest.approx(expected)
    assert decay_at(1, 0.99, False) == 0.99


def test_it_is_timms(small_model):
    """ModelEmaV2 of timm with the same decay, batch norms' buffers among it; largest difference 3e-8."""
    theirs, mine = ModelEmaV2(small_model, decay=0.9), WeightAverage(small_model, 0.9, warmup=False)
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in small_model.parameters():
                parameter.add_(torch.randn_like(parameter))
        small_model.train()(torch.randn(2, 1, 3, 2, 8, 8))
        theirs.update(small_model)
        mine.update(step)
    state = theirs.module.state_dict()
    assert state.keys() == mine.tensors.keys()
    for name in state:
        # timm averages the counts of batches too, and cuts off what is no whole number
        if name.endswith("num_batches_tracked"):
            assert mine.tensors[name] == 5
        else:
            torch.testing.assert_close(mine.tensors[name], state[name], atol=1e-6, rtol=1e-6)


def test_swapping_in_place_leaves_every_bit(small_model):
    small_model.tied = small_model.head.linear  # a tensor under two names
    average = WeightAverage(small_model, 0.5, warmup=False)
    with torch.no_grad():
        for parameter in small_model.parameters():
            parameter.mul_(3)
    average.update(1)
    raw = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
    kept = {name: tensor.clone() for name, tensor in average.tensors.items()}
    with pytest.raises(KeyError), average.in_place():
        inside = {name: tensor.clone() for name, tensor in small_model.state_dict().items()}
        raise KeyError
    for name in raw:
        assert torch.equal(inside[name], kept[name])
        assert torch.equal(small_model.state_dict()[name], raw[name])
        assert torch.equal(average.tensors[name], kept[name])
    torch.testing.assert_close(kept["head.linear.weight"], raw["head.linear.weight"] * 2 / 3)


def test_both_are_validated_and_best_says_which_it_holds(run_loop):
    """A rate so high that the raw weights jump: the average is another, and better or worse."""
    found = run_loop(ema=0.9, monitor="loss")
    rows = [row for row in found.rows if "val/loss" in row]
    assert len(rows) == 3
    assert all(row["val/loss"] != row["val_ema/loss"] for row in rows)
    assert found.best["weights"] == "ema"
    assert found.state.best == min(row["val_ema/loss"] for row in rows)
    assert found.best["metrics"]["loss"] == found.state.best
    assert any("validated beside the raw ones; loss of the ema weights selects best.pt" in line for line in found.said)
    assert found.last["weights"] == "raw"
    assert not torch.equal(found.last["model"]["head.linear.weight"], found.last["ema"]["head.linear.weight"])
    # the batch norms' statistics are averaged too
    name = "encoder.blocks.0.1.running_mean"
    assert not torch.equal(found.last["model"][name], found.last["ema"][name])


def test_the_average_leaves_training_alone(run_loop):
    plain, averaged = run_loop("plain"), run_loop("averaged", ema=0.9, monitor_weights="raw")
    assert all(torch.equal(plain.last["model"][name], averaged.last["model"][name]) for name in plain.last["model"])
    assert plain.last["ema"] is None
    assert (plain.best["weights"], averaged.best["weights"]) == ("raw", "raw")
    assert all(torch.equal(plain.best["model"][name], averaged.best["model"][name]) for name in plain.best["model"])


@pytest.mark.parametrize("stop_after", [3, 7])
def test_resumed_it_is_the_same_bits(run_loop, stop_after):
    alone = run_loop("alone", ema=0.9)
    assert run_loop("killed", ema=0.9, stop_after=stop_after) is None
    resumed = run_loop("killed", ema=0.9)
    for part in ("model", "ema"):
        for name, tensor in alone.last[part].items():
            assert torch.equal(tensor, resumed.last[part][name]), name
    assert [row["val_ema/loss"] for row in alone.rows if "val_ema/loss" in row] == [
        row["val_ema/loss"] for row in resumed.rows if "val_ema/loss" in row
    ]


def test_which_weights_select():
    assert [selecting_weights(*each) for each in ((None, None), (None, 0.9), ("raw", 0.9), ("ema", 0.9))] == [
        "raw",
        "ema",
        "raw",
        "ema",
    ]
    with pytest.raises(UserError, match="trainer.monitor_weights=ema"):
        selecting_weights("ema", None)


def test_whole_numbers_are_copied():
    model = nn.BatchNorm1d(2)
    average = WeightAverage(model, 0.5, warmup=False)
    model.num_batches_tracked.fill_(7)
    average.update(1)
    assert average.tensors["num_batches_tracked"] == 7
