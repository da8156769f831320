"""Adapters against peft's, on encoders of every kind; merged ones compute the same; what cannot be adapted is named."""

import copy
import math

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import recompute_activations
from vidtrain.models.lora import (
    LoRALinear,
    adapted_layers,
    adapter_parameters,
    add_adapters,
    merge_adapters,
    merge_tensors,
)
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.torchvision_video import TorchvisionMViT, TorchvisionResNet, TorchvisionSwin
from vidtrain.models.vit3d import ViT3D

SIZES = {"image_size": 16, "num_frames": 4, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
# name: what makes the encoder, its clips [b c t h w], how many layers of attention and MLP it has
ENCODERS = {
    "vit3d": (lambda: ViT3D(**SIZES), (2, 3, 4, 16, 16), 8),
    "swiglu": (lambda: ViT3D(**SIZES, activation="swiglu", positions="rope"), (2, 3, 4, 16, 16), 10),
    "timm_vit": (lambda: TimmFrames("test_vit", 32), (1, 3, 2, 32, 32), 24),
    # multiplies by the weight of qkv without calling it
    "timm_swin_v2": (lambda: TimmFrames("swinv2_tiny_window8_256", 64), (1, 3, 1, 64, 64), 48),
    # multiplies by the weights of qkv and proj without calling them
    "swin3d": (lambda: TorchvisionSwin("swin3d_t"), (1, 3, 4, 32, 32), 48),
    "mvit": (lambda: TorchvisionMViT(num_frames=4, image_size=64), (1, 3, 4, 64, 64), 64),
}


def encoder(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = ENCODERS[name][0]().eval()
    for module in model.modules():  # those of Swin V2 begin as zero, which hides what a block computes
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
    return model


class Reading(nn.Module):
    """An encoder that multiplies by a weight without calling its layer, as Swin does."""

    def __init__(self):
        super().__init__()
        self.proj, self.fc = nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x):
        return self.fc(nn.functional.linear(x, self.proj.weight, self.proj.bias).tanh())


def clips(name: str) -> torch.Tensor:
    return torch.randn(ENCODERS[name][1], generator=torch.Generator().manual_seed(1))


def randomize(model: nn.Module, seed: int = 2) -> None:
    """Adapters as training leaves them: B is zero no more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_step_0_is_the_base_to_the_bit_and_a_merged_encoder_is_the_adapted_one(name):
    base, x = encoder(name), clips(name)
    before, names = base(x), list(base.state_dict())
    layers = add_adapters(base, rank=4, alpha=8)
    assert len(layers) == ENCODERS[name][2]
    assert torch.equal(base(x), before)
    # the base's tensors keep their names, so weights that fitted fit
    assert [key for key in base.state_dict() if "lora_" not in key] == names
    randomize(base)
    adapted, state = base(x), base.state_dict()
    assert (adapted - before).abs().max() > 1e-3 * before.abs().max()
    merged = merge_tensors(state, scale=2.0)
    merge_adapters(base)
    assert list(base.state_dict()) == names and merged.keys() == set(names)
    assert all(torch.equal(tensor, merged[key]) for key, tensor in base.state_dict().items())
    # measured: 2e-6 of the largest token at most, in all these encoders
    assert (base(x) - adapted).abs().max() < 1e-5 * adapted.abs().max().clamp(min=1)
    assert not any(isinstance(module, LoRALinear) for module in base.modules())
    with pytest.raises(UserError, match="no adapters to merge"):
        merge_adapters(base)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit3d", "swiglu", "timm_vit", "mvit"])
def test_outputs_and_gradients_are_those_of_peft(name):
    from peft import LoraConfig, inject_adapter_in_model

    ours, x = encoder(name), clips(name)
    theirs = copy.deepcopy(ours)
    layers = add_adapters(ours, rank=4, alpha=12)
    config = LoraConfig(r=4, lora_alpha=12, lora_dropout=0.0, target_modules=layers, bias="none")
    theirs = inject_adapter_in_model(config, theirs).eval()
    # drawn alike: uniform, the same bound
    peers = {layer: theirs.get_submodule(layer) for layer in layers}
    for layer, peer in peers.items():
        own = ours.get_submodule(layer)
        drawn = peer.lora_A["default"].weight
        assert own.lora_A.shape == drawn.shape and not own.lora_B.any()
        bound = 1 / math.sqrt(own.in_features)
        assert 0.8 * bound < own.lora_A.abs().max() <= bound and drawn.abs().max() <= bound
    randomize(ours)
    with torch.no_grad():
        for layer, peer in peers.items():
            own = ours.get_submodule(layer)
            peer.lora_A["default"].weight.copy_(own.lora_A)
            peer.lora_B["default"].weight.copy_(own.lora_B)
    for parameter in ours.parameters():
        parameter.requires_grad_(False)
    for parameter in adapter_parameters(ours):
        parameter.requires_grad_(True)
    tokens, peer_tokens = ours(x), theirs(x)
    tokens.square().mean().backward()
    peer_tokens.square().mean().backward()
    # measured: outputs equal to the bit, gradients within 1e-12
    torch.testing.assert_close(tokens, peer_tokens, atol=1e-6, rtol=1e-6)
    for layer, peer in peers.items():
        own = ours.get_submodule(layer)
        for part, grad in (("lora_A", own.lora_A.grad), ("lora_B", own.lora_B.grad)):
            peer_grad = getattr(peer, part)["default"].weight.grad
            torch.testing.assert_close(grad, peer_grad, atol=1e-6, rtol=1e-6)
    assert all(parameter.grad is None for name, parameter in ours.named_parameters() if "lora_" not in name)


def test_gradients_reach_adapters_of_weights_that_are_read_without_a_call():
    swin = encoder("swin3d")
    add_adapters(swin, rank=2, alpha=4, targets=["*.attn.qkv", "*.attn.proj"])
    swin(clips("swin3d")).square().mean().backward()
    layers = list(adapted_layers(swin))
    assert len(layers) == 24 and all(layer.lora_B.grad.abs().sum() > 0 for layer in layers)
    assert add_adapters(encoder("swin3d"), 2, 4, dropout=0.1, targets=["*.mlp.0"])


def test_dropout_of_a_weight_that_is_read_without_a_call_is_refused():
    swin = encoder("swin3d")
    add_adapters(swin, rank=2, alpha=4, dropout=0.1)
    before = swin(clips("swin3d"))  # evaluation drops nothing out
    assert torch.isfinite(before).all()
    with pytest.raises(UserError, match=r"lora.dropout=0.1: .* without calling it.*set lora.dropout=0"):
        swin.train()(clips("swin3d"))


def test_dropout_is_of_the_input_of_the_adapter_in_training_alone():
    vit = encoder("vit3d")
    add_adapters(vit, rank=2, alpha=4, dropout=0.5)
    randomize(vit)
    x = clips("vit3d")
    evaluated = vit(x)
    assert torch.equal(vit(x), evaluated)
    layer = next(adapted_layers(vit))
    rows = torch.ones(1000, layer.in_features)
    torch.manual_seed(0)
    dropped = layer.train()(rows) - nn.functional.linear(rows, layer.base_weight, layer.bias)
    expected = layer.lora_scale * rows[:1] @ layer.lora_A.T @ layer.lora_B.T
    assert dropped.std(dim=0).min() > 0
    torch.testing.assert_close(dropped.mean(dim=0), expected[0], atol=0.02, rtol=0)


def test_adapters_depend_on_the_seed_alone():
    first, second, other = encoder("vit3d"), encoder("vit3d"), encoder("vit3d")
    torch.manual_seed(7)
    before = torch.get_rng_state()
    add_adapters(first, 2, 4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    add_adapters(second, 2, 4, seed=1)
    add_adapters(other, 2, 4, seed=2)
    pairs = zip(*map(adapter_parameters, (first, second)), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(adapter_parameters(first)[0], adapter_parameters(other)[0])


def test_a_copy_recomputed_activations_and_half_precision():
    vit, x = encoder("vit3d"), clips("vit3d")
    add_adapters(vit, 2, 4)
    randomize(vit)
    recomputed = copy.deepcopy(vit)
    recompute_activations(recomputed.blocks)
    for model in (vit, recomputed):
        model(x).square().mean().backward()
    pairs = zip(vit.parameters(), recomputed.parameters(), strict=True)
    assert all(torch.equal(one.grad, two.grad) for one, two in pairs)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = vit(x)
    torch.testing.assert_close(tokens.float(), vit(x), atol=0.05, rtol=0.05)
    assert vit.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit3d", "reading"])
def test_a_compiled_encoder_computes_the_same(name):
    """A whole graph: nothing of an adapter, called or read, breaks it."""
    model, x = (Reading(), torch.randn(5, 6)) if name == "reading" else (encoder(name), clips(name))
    add_adapters(model, 2, 4, targets=["proj", "fc"] if name == "reading" else None)
    randomize(model)
    expected = model(x)
    expected.square().mean().backward()
    grads = [parameter.grad.clone() for parameter in adapter_parameters(model)]
    model.zero_grad(set_to_none=True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    tokens = compiled(x)
    tokens.square().mean().backward()
    torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=1e-5)
    for parameter, grad in zip(adapter_parameters(model), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"rank": 0}, r"lora.rank=0 must be 1 or more"),
        ({"rank": 25}, r"lora.rank=25 is above the width 24 of blocks.0.attn.qkv \(24 to 72\)"),
        ({"alpha": 0.0}, r"lora.alpha=0 must be above 0"),
        ({"alpha": math.nan}, r"lora.alpha=nan must be above 0"),
        ({"dropout": 1.0}, r"lora.dropout=1 must be 0 or more, and below 1"),
        ({"dropout": -0.1}, r"lora.dropout=-0.1 must be 0 or more"),
        (
            {"targets": ["*.attn.qkv", "*.attn.query"]},
            r"lora.targets=\['\*.attn.qkv', '\*.attn.query'\]: no linear layer of ViT3D matches \*.attn.query; it "
            r"has blocks.\*.attn.qkv \(2\), blocks.\*.attn.proj \(2\), blocks.\*.mlp.fc1 \(2\), blocks.\*.mlp.fc2",
        ),
        ({"targets": []}, r"lora.targets=\[\]"),
    ],
)
def test_what_no_adapter_can_have(options, why):
    vit = encoder("vit3d")
    with pytest.raises(UserError, match=why):
        add_adapters(vit, **{"rank": 4, "alpha": 8.0, **options})
    assert not adapter_parameters(vit)


def test_networks_without_linear_layers_and_adapters_twice():
    with pytest.raises(UserError, match="TorchvisionResNet has no linear layers"):
        add_adapters(TorchvisionResNet("r3d_18"), 4, 8)
    vit = encoder("vit3d")
    add_adapters(vit, 4, 8)
    with pytest.raises(UserError, match="already has adapters"):
        add_adapters(vit, 4, 8)


def test_layers_of_another_kind_are_none_and_their_names_are_told():
    class Odd(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.odd, self.mix = Odd(4, 4), nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    with pytest.raises(UserError, match=r"lora.targets=null: .* it has mix.\d \(1\), mix.\d \(1\)"):
        add_adapters(Encoder(), 2, 4)
    assert add_adapters(Encoder(), 2, 4, targets=["mix.*"]) == ["mix.0", "mix.1"]


def test_tensors_of_adapters_that_do_not_fit():
    tensors = {"a.weight": torch.zeros(3, 4), "a.lora_A": torch.zeros(2, 4), "a.lora_B": torch.zeros(5, 2)}
    with pytest.raises(UserError, match=r"a: adapters of \[5, 2\] and \[2, 4\] do not fit a weight of \[3, 4\]"):
        merge_tensors(tensors, 1.0)
    alone = {"a.lora_A": torch.zeros(2, 4), "a.lora_B": torch.zeros(3, 2)}
    assert merge_tensors(alone, 1.0) == alone
