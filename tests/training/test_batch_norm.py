"""Batch norms in fine-tuning: what moves, what trains, what is refused."""

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.slowfast import SlowOnly
from vidtrain.training.distributed import Ranks
from vidtrain.training.run import PhaseSettings, TrainerSettings
from vidtrain.training.stages import batch_norms, prepare_batch_norm
from vidtrain.training.validation import settings_lines

NORM = "encoder.blocks.0.1"


@pytest.mark.parametrize(
    ("mode", "statistics_move", "affine_trains"),
    [
        ("train", True, True),
        ("sync", True, True),
        ("frozen_statistics", False, True),
        ("frozen", False, False),
    ],
)
def test_what_moves(run_loop, small_model, mode, statistics_move, affine_trains):
    """`sync` with one rank is `train`."""
    found, before = run_loop(mode, batch_norm=mode), small_model.state_dict()
    after = found.last["model"]
    for name, moves in (
        (f"{NORM}.running_mean", statistics_move),
        (f"{NORM}.running_var", statistics_move),
        (f"{NORM}.num_batches_tracked", statistics_move),
        (f"{NORM}.weight", affine_trains),
        (f"{NORM}.bias", affine_trains),
        ("encoder.blocks.0.0.weight", True),
        ("encoder.blocks.1.0.weight", True),
    ):
        assert torch.equal(before[name], after[name]) != moves, name
    said = [line for line in found.said if line.startswith(f"trainer.batch_norm={mode}: the model's 2 batch norms")]
    assert len(said) == 1


def test_one_rank_syncs_as_it_trains(run_loop):
    one, other = run_loop("one"), run_loop("other", batch_norm="sync")
    assert all(torch.equal(one.last["model"][name], other.last["model"][name]) for name in one.last["model"])


def test_resumed_they_are_the_same_bits(run_loop):
    alone = run_loop("alone", batch_norm="frozen_statistics")
    run_loop("killed", batch_norm="frozen_statistics", stop_after=7)
    resumed = run_loop("killed", batch_norm="frozen_statistics")
    assert all(torch.equal(tensor, resumed.last["model"][name]) for name, tensor in alone.last["model"].items())


def test_several_ranks_sync_on_gpus_only(small_model):
    with pytest.raises(UserError, match="trainer.batch_norm=sync .* 2 ranks"):
        prepare_batch_norm(small_model, "sync", Ranks(torch.device("cpu"), world_size=2))
    before = {name: parameter for name, parameter in small_model.named_parameters()}
    synced = prepare_batch_norm(small_model, "sync", Ranks(torch.device("cuda", 0), world_size=2))
    assert [type(norm) for norm in batch_norms(synced)] == [nn.SyncBatchNorm] * 2
    # the same parameters, so that what freezes and groups them goes on
    assert all(before[name] is parameter for name, parameter in synced.named_parameters())
    assert synced.encoder.layers[0][1] is batch_norms(synced)[0]
    assert batch_norms(prepare_batch_norm(nn.Linear(2, 2), "sync", Ranks(torch.device("cpu"), world_size=2))) == []


def test_nothing_is_said_of_batch_norms_that_are_frozen_in_every_phase():
    model = VideoClassifier(SlowOnly(width=8), MeanPoolClassifier, 3)
    frozen, tuned = PhaseSettings(encoder_blocks=0), PhaseSettings()
    assert settings_lines(model, TrainerSettings(), {"head": frozen}) == []
    (line,) = settings_lines(model, TrainerSettings(), {"head": frozen, "full": tuned})
    assert line.endswith("53 batch norms normalize by the batch of each rank")
