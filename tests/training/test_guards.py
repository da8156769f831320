"""What ends a run before its time, and what it leaves of the epoch that it ends in."""

from functools import partial

import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.training.loop import check_faults
from vidtrain.training.losses import BinaryCrossEntropy, CrossEntropy, Focal
from vidtrain.training.run import TrainerSettings
from vidtrain.training.validation import check_overfit


def test_failed_reads_of_all_ranks_are_held_against_all_videos():
    settings = TrainerSettings(batch_size=6, max_unreadable_fraction=0.02)
    check_faults(2, settings, per_epoch=17)  # of 102
    with pytest.raises(
        UserError,
        match="3 .* 102 .*max_unreadable_fraction=0.02 allows",
    ):
        check_faults(3, settings, per_epoch=17)


@pytest.mark.parametrize("loss", [CrossEntropy(), BinaryCrossEntropy()])
def test_one_batch_must_be_known_by_heart(loss):
    check_overfit({"top1": 1.0, "loss": 0.04}, loss, 100)
    check_overfit({"exact_match": 1.0, "loss": 0.04}, loss, 100)
    with pytest.raises(UserError, match="100 steps 75% .* 0.3000 is above 0.05"):
        check_overfit({"top1": 0.75, "loss": 0.3}, loss, 100)
    with pytest.raises(UserError, match="9 steps its loss of 0.0600 .* 0.05;"):
        check_overfit({"top1": 1.0, "loss": 0.06}, loss, 9)
    with pytest.raises(UserError, match="its loss is not finite"):
        check_overfit({"top1": 1.0, "loss": float("nan")}, loss, 9)


@pytest.mark.parametrize("loss", [CrossEntropy(label_smoothing=0.1), BinaryCrossEntropy(label_smoothing=0.1), Focal()])
def test_a_loss_that_asks_for_no_certainty_need_not_vanish(loss):
    check_overfit({"top1": 1.0, "loss": 0.3}, loss, 100)
    with pytest.raises(UserError, match="100 steps 75% of its videos are right;"):
        check_overfit({"top1": 0.75, "loss": 0.01}, loss, 100)


def test_a_phase_that_ends_early_reports_the_epoch_that_it_ends_in(run_loop):
    """Nothing improves at a rate of 0, so the third of twelve steps, in the first epoch of four, is the last."""
    found = run_loop(optimizer=partial(torch.optim.SGD, lr=0.0), eval_every="1it", patience=2)
    assert found.state.total_step == 3
    (row,) = [row for row in found.rows if "train/top1" in row]
    assert (row["step"], row["epoch"], row["train/faults"]) == (3, 0.75, 0)
    losses = [row["train/step_loss"] for row in found.rows if "train/step_loss" in row]
    assert row["train/loss"] == pytest.approx(sum(losses) / 3)
