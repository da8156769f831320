"""Phases that train adapters: what trains and what stays, rates, the average, resuming."""

from functools import partial

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.lora import adapter_parameters, add_adapters
from vidtrain.models.vit3d import ViT3D
from vidtrain.training.optimizers import set_rates
from vidtrain.training.run import HeadGridSettings, LoraSettings, PhaseSettings
from vidtrain.training.schedules import Constant, in_steps
from vidtrain.training.stages import apply_phase, lora_of, never_trained, parameter_groups, set_train_mode
from vidtrain.training.validation import WeightAverage

LORA = LoraSettings(rank=2, alpha=4.0)
ADAPTED = PhaseSettings(encoder_blocks=0, lora=LORA)


class Head(nn.Module):
    def __init__(self, embed_dim: int, num_classes: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, num_classes)

    def forward(self, tokens, grid=None):
        return self.linear(tokens.mean(dim=1))


def plain() -> VideoClassifier:
    torch.manual_seed(0)
    encoder = ViT3D(image_size=16, num_frames=4, patch_size=8, embed_dim=24, depth=3, num_heads=2, drop_path=0.5)
    return VideoClassifier(encoder, Head, num_classes=3)


@pytest.fixture
def model():
    model = plain()
    add_adapters(model.encoder, LORA.rank, LORA.alpha)
    return model


def trained(model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_adapters_and_head_train_and_nothing_else(model):
    apply_phase(model, ADAPTED)
    adapters = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert len(adapters) == 2 * 4 * 3
    assert trained(model) == adapters | {"head.linear.weight", "head.linear.bias"}
    set_train_mode(model)
    assert model.encoder.blocks[0].training and not model.encoder.patch_embed.training
    assert not model.encoder.norm.training


def test_phases_compose(model):
    """The head, then adapters beside the last block, then everything with the adapters."""
    phases = {
        "head": PhaseSettings(encoder_blocks=0),
        "lora": PhaseSettings(encoder_blocks=1, lora=LORA),
        "full": PhaseSettings(),
    }
    names = []
    for phase in phases.values():
        apply_phase(model, phase)
        names.append(trained(model))
    head, lora, full = names
    assert head == {"head.linear.weight", "head.linear.bias"}
    assert "encoder.blocks.0.attn.qkv.lora_A" in lora and "encoder.blocks.2.attn.qkv.weight" in lora
    assert "encoder.blocks.1.attn.qkv.weight" not in lora and "encoder.norm.weight" in lora
    assert full == dict(model.named_parameters()).keys()
    assert never_trained(model, phases) == set()
    del phases["full"]
    frozen = never_trained(model, phases)
    assert frozen == dict(model.named_parameters()).keys() - lora and lora_of(phases) == LORA


def test_a_layer_that_trains_trains_its_adapters_too(model):
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    assert {name.split(".")[2] for name in trained(model) if "lora_" in name} == {"2"}


@pytest.mark.parametrize(
    ("phase", "why"),
    [
        (PhaseSettings(lora=LORA), "lora trains adapters .* encoder_blocks=null trains all layers; set enc"),
        (
            PhaseSettings(encoder_blocks=0, lora=LORA, cache_features=True),
            "cache_features needs a frozen enc",
        ),
        (
            PhaseSettings(encoder_blocks=0, lora=LORA, heads=HeadGridSettings([0.1], [0.1])),
            "heads needs a frozen encoder, .* lora trains adapters in it",
        ),
    ],
)
def test_what_does_not_go_with_adapters(model, phase, why):
    with pytest.raises(UserError, match=why):
        apply_phase(model, phase)


def test_a_model_without_adapters_and_phases_that_disagree():
    with pytest.raises(UserError, match="ViT3D has no adapters"):
        apply_phase(plain(), ADAPTED)
    other = PhaseSettings(encoder_blocks=0, lora=LoraSettings(rank=3, alpha=4.0))
    with pytest.raises(UserError, match=r"stage.second.lora is .*rank=3.* stage.first.lora is .*rank=2"):
        lora_of({"first": ADAPTED, "second": other})
    assert lora_of({"head": PhaseSettings(encoder_blocks=0)}) is None


def test_layer_decay_scales_adapters_and_weight_decay_spares_them(model):
    """The powers of the decay are those of the layers: block 0 at 0.5^3, block 2 at 0.5, the head at 1."""
    phase = PhaseSettings(encoder_blocks=0, lora=LORA, layer_decay=0.5, encoder_lr_scale=2.0)
    apply_phase(model, phase)
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {
        names[parameter]: (group["lr_scale"], group["wd_scale"])
        for group in parameter_groups(model, phase)
        for parameter in group["params"]
    }
    assert scales.keys() == trained(model)
    assert scales["encoder.blocks.0.attn.qkv.lora_A"] == (2 * 0.5**3, 0.0)
    assert scales["encoder.blocks.2.mlp.fc2.lora_B"] == (2 * 0.5, 0.0)
    assert scales["head.linear.weight"] == (1.0, 1.0)


def test_the_log_names_the_rate_of_adapters(model):
    apply_phase(model, ADAPTED)
    optimizer = torch.optim.AdamW(parameter_groups(model, ADAPTED), lr=0.1, weight_decay=0.1)
    constant = in_steps(Constant(), 10, 10)
    rates = set_rates(optimizer, constant, constant, 1, 10)
    assert rates == {"lr/head": 0.1, "lr/encoder": 0.1, "weight_decay": 0.1}


@pytest.mark.parametrize("optimizer", [partial(torch.optim.AdamW, lr=0.1), partial(torch.optim.SGD, lr=0.1)])
def test_the_base_stays_to_the_bit_and_so_does_its_average(model, optimizer):
    apply_phase(model, ADAPTED)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = WeightAverage(model, 0.5, warmup=False, frozen=never_trained(model, {"lora": ADAPTED}))
    whole = WeightAverage(model, 0.5, warmup=False)
    updates = optimizer(parameter_groups(model, ADAPTED))
    for step in range(3):
        set_train_mode(model)
        model(torch.randn(4, 1, 3, 4, 16, 16)).square().mean().backward()
        updates.step()
        updates.zero_grad()
        average.update(step + 1)
        whole.update(step + 1)
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == trained(model)
    assert all(torch.equal(average.tensors[name], before[name]) for name in before.keys() - moved)
    # the average has no second base, and the bits of one that has
    state = model.state_dict()
    assert {name for name in state if average.tensors[name].data_ptr() == state[name].data_ptr()} == {
        name for name, parameter in model.named_parameters() if not parameter.requires_grad
    }
    assert average.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in average.tensors.items())
    with average.in_place():
        assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before.keys() - moved)
    assert len(adapter_parameters(model)) == 24
