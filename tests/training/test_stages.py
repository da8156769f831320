"""Stages, parameter groups and the preflight, on a real encoder of two small blocks."""

from functools import partial

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.evaluation.views import fuse
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.training.optimizers import set_rates
from vidtrain.training.phases import check_gradients
from vidtrain.training.run import PhaseSettings
from vidtrain.training.schedules import Constant, Cosine, in_steps
from vidtrain.training.stages import apply_phase, parameter_groups, parameter_table, set_train_mode


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = ViT3D(image_size=16, num_frames=4, patch_size=8, embed_dim=24, depth=3, num_heads=2, drop_path=0.5)
    return VideoClassifier(encoder, partial(AttentiveClassifier, num_heads=2, depth=1), num_classes=3)


def trained(model):
    return {name.split(".")[1] + "." + name.split(".")[2] if "blocks" in name else name.split(".")[0]
            for name, parameter in model.named_parameters() if parameter.requires_grad}  # fmt: skip


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (0, {"head"}),
        (1, {"head", "blocks.2", "encoder"}),  # "encoder" is the final norm, which follows the block
        (2, {"head", "blocks.1", "blocks.2", "encoder"}),
    ],
)
def test_a_phase_trains_what_it_says(model, blocks, expected):
    apply_phase(model, PhaseSettings(encoder_blocks=blocks))
    assert trained(model) == expected
    assert not model.encoder.patch_embed.proj.weight.requires_grad
    apply_phase(model, PhaseSettings())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_more_blocks_than_there_are(model):
    with pytest.raises(UserError, match="encoder_blocks=4, .* 3 blocks"):
        apply_phase(model, PhaseSettings(encoder_blocks=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr_scale": 0.0}, "lr_scale=0 must be above 0"),
        ({"lr_scale": float("nan")}, "lr_scale=nan must be above 0"),
        ({"encoder_lr_scale": -1.0}, "encoder_lr_scale=-1 must be above 0; encoder_blocks=0 freezes"),
        ({"layer_decay": -0.5}, "layer_decay=-0.5 must be above 0, and 1 at most"),
        ({"layer_decay": 1.5}, "layer_decay=1.5 must be above 0, and 1 at most"),
    ],
)
def test_rates_that_are_none(model, settings, message):
    with pytest.raises(UserError, match=message):
        apply_phase(model, PhaseSettings(**settings))


def step(model, optimizer):
    set_train_mode(model)
    loss = model(torch.randn(4, 1, 3, 4, 16, 16)).square().mean()
    loss.backward()
    optimizer.step()


@pytest.mark.parametrize("blocks", [0, 2, None])
def test_frozen_tensors_stay_bit_for_bit_and_released_ones_change(model, blocks):
    apply_phase(model, PhaseSettings(encoder_blocks=blocks))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, PhaseSettings()), lr=1e-2, weight_decay=0.5)
    for _ in range(4):  # drop-path may skip a block once
        step(model, optimizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_frozen_parts_run_in_evaluation_mode(model):
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    set_train_mode(model)
    assert model.head.training
    assert model.encoder.blocks[2].training
    assert not model.encoder.blocks[0].training
    assert not model.encoder.blocks[0].attn.training
    apply_phase(model, PhaseSettings(encoder_blocks=0))
    set_train_mode(model)
    assert not model.encoder.training
    assert not any(module.training for module in model.encoder.modules())
    clips = torch.randn(2, 1, 3, 4, 16, 16)
    assert torch.equal(model(clips), model(clips))  # no drop-path


def test_groups_hold_every_trainable_parameter_once_with_its_scales(model):
    apply_phase(model, PhaseSettings())
    groups = parameter_groups(model, PhaseSettings(lr_scale=0.5, encoder_lr_scale=0.1))
    held = [parameter for group in groups for parameter in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))
    scales = {group["name"]: (group["lr_scale"], group["wd_scale"]) for group in groups}
    assert scales == {
        "head": (0.5, 1.0),
        "head.no_decay": (0.5, 0.0),
        "encoder": (0.05, 1.0),
        "encoder.no_decay": (0.05, 0.0),
    }
    names = {parameter: name for name, parameter in model.named_parameters()}
    undecayed = {names[p] for group in groups if not group["wd_scale"] for p in group["params"]}
    assert undecayed == {name for name, p in model.named_parameters() if p.ndim == 1}
    assert "head.pooler.query_tokens" not in undecayed


def test_layer_decay_falls_with_the_distance_from_the_head(model):
    apply_phase(model, PhaseSettings())
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.5))
    scales = {group["name"]: group["lr_scale"] for group in groups}
    assert {name: scale for name, scale in scales.items() if not name.endswith("no_decay")} == {
        "head": 1.0,
        "encoder.layer00": 0.0625,  # patch embedding, below three blocks
        "encoder.layer01": 0.125,
        "encoder.layer02": 0.25,
        "encoder.layer03": 0.5,
    }
    assert scales["encoder.layer04.no_decay"] == 1  # the final norm


def test_rates_are_peak_times_scale_times_factor(model):
    apply_phase(model, PhaseSettings())
    optimizer = torch.optim.AdamW(
        parameter_groups(model, PhaseSettings(encoder_lr_scale=0.1)), lr=2e-3, weight_decay=0.04
    )
    lr = in_steps(Constant(warmup="4it"), 10, 10)
    weight_decay = in_steps(Cosine(warmup="0it", final=10.0), 10, 10)
    found = set_rates(optimizer, lr, weight_decay, 1, 10)
    assert found == pytest.approx({"lr/head": 5e-4, "lr/encoder": 5e-5, "weight_decay": 0.0488}, rel=1e-3)
    set_rates(optimizer, lr, weight_decay, 10, 10)
    by_name = {group["name"]: group for group in optimizer.param_groups}
    assert by_name["encoder"]["lr"] == pytest.approx(2e-4)
    assert by_name["encoder"]["weight_decay"] == pytest.approx(0.4)
    assert by_name["encoder.no_decay"]["weight_decay"] == 0


def test_the_table_counts_what_is_trained(model):
    apply_phase(model, PhaseSettings(encoder_blocks=0))
    groups = parameter_groups(model, PhaseSettings())
    peak_lrs = {parameter: 1e-3 * group["lr_scale"] for group in groups for parameter in group["params"]}
    rows = parameter_table(model, peak_lrs)
    by_part = {row[0]: row[1:] for row in rows}
    assert by_part["encoder.patch_embed"] == ("9,240", "0", "frozen")
    head = sum(parameter.numel() for parameter in model.head.parameters())
    assert by_part["head"] == (f"{head:,}", f"{head:,}", "0.001")
    assert by_part["total"][1] == f"{head:,}"


def preflight(model):
    from contextlib import nullcontext

    clips, labels = torch.randn(2, 2, 3, 4, 16, 16), torch.tensor([0, 2])

    def loss_of(clip_logits, targets):
        return nn.functional.cross_entropy(fuse(clip_logits, model.fusion), targets)

    return check_gradients(model, clips, labels, loss_of, nullcontext())


def test_preflight_leaves_no_trace(model):
    model.head.linear = nn.Sequential(model.head.linear, nn.BatchNorm1d(3))
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert preflight(model) > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_preflight_names_what_the_loss_does_not_reach(model):
    model.head.unused = nn.Linear(2, 2)
    with pytest.raises(UserError, match="head.unused.weight, head.unused.bias"):
        preflight(model)
    model.head.unused.requires_grad_(False)
    preflight(model)


def test_preflight_names_gradients_that_are_not_finite(model):
    with torch.no_grad():
        model.head.linear.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="finite .*: encoder.patch_embed.* 47 more"):
        preflight(model)
