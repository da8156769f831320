"""Layer-wise learning rates against the originals: VideoMAE's rule, SlowFast's for MViT, and timm's for its models."""

import math
from types import SimpleNamespace

import pytest
import timm
import torch
from composing import config_of
from timm.optim import param_groups_layer_decay

from vidtrain.build import parts as build
from vidtrain.models.timm_frames import layers_and_blocks
from vidtrain.training.optimizers import OptimizerSet
from vidtrain.training.run import PhaseSettings
from vidtrain.training.stages import layer_powers, parameter_groups

# Powers of the decay, by the beginning of a parameter's name.
# ViT: VideoMAE's get_num_layer_for_vit, of `blocks` n: patch_embed and positions n + 1, block i n - i, all else 0.
# MViT: SlowFast's _get_layer_decay, the same. Swin: timm's swin_tiny_patch4_window7_224, where a patch merging goes
# with the block after it, but with the norm at the head's rate as SimMIM has it. ResNets: timm's resnet18 and 50.
POWERS = {
    "videomae_base": {
        "patch_embed": 13, "blocks.0.": 12, "blocks.1.": 11, "blocks.5.": 7, "blocks.10.": 2, "blocks.11.": 1,
    },
    "videomae_large": {"patch_embed": 25, "blocks.0.": 24, "blocks.22.": 2, "blocks.23.": 1},
    "vit3d_base_timm": {
        "patch_embed.proj": 13, "patch_embed.pos_embed": 13, "blocks.0.": 12, "blocks.11.": 1, "norm": 0,
    },
    "vjepa2_vitl": {"patch_embed": 25, "blocks.0.": 24, "blocks.23.": 1, "norm": 0},
    "vjepa2_1_vitb": {"patch_embed": 13, "blocks.0.": 12, "blocks.11.": 1, "norm": 0},
    "mvit_v1_b": {"stem": 17, "blocks.0.": 16, "blocks.14.": 2, "blocks.15.": 1, "norm": 0},
    "mvit_v2_s": {"stem": 17, "blocks.0.": 16, "blocks.1.": 15, "blocks.14.": 2, "blocks.15.": 1, "norm": 0},
    "swin3d_t": {
        "patch_embed": 13, "features.0.0.": 12, "features.0.1.": 11, "features.1.": 10, "features.2.0.": 10,
        "features.2.1.": 9, "features.3.": 8, "features.4.0.": 8, "features.4.5.": 3, "features.5.": 2,
        "features.6.0.": 2, "features.6.1.": 1, "norm": 0,
    },
    "r3d_18": {"stem": 9, "layer1.0.": 8, "layer1.1.": 7, "layer4.0.": 2, "layer4.1.": 1},
    "s3d": {"features.0.": 10, "features.2.": 10, "features.3.": 10, "features.5.": 9, "features.15.": 1},
    "resnext3d_18": {"stem": 9, "stages.0.0.": 8, "stages.3.0.": 2, "stages.3.1.": 1},
    "resnext3d_101": {"stem": 34, "stages.0.0.": 33, "stages.3.1.": 2, "stages.3.2.": 1},
    "slowfast_r50": {"stem": 17, "stages.0.0.": 16, "stages.3.1.": 2, "stages.3.2.": 1},
    "x3d_s": {"stem": 27, "stages.0.0.": 26, "stages.3.5.": 2, "stages.3.6.": 1, "conv5": 0},
    "hiera_b_video": {"stem": 25, "blocks.0.": 24, "blocks.22.": 2, "blocks.23.": 1},
    "timm_frames": {  # convnext_tiny
        "network.stem": 19, "network.stages.0.blocks.0.": 18, "network.stages.3.blocks.2.": 1, "network.head.norm": 0,
    },
}  # fmt: skip


def shape_only(option: str) -> torch.nn.Module:
    with torch.device("meta"):
        return build.instantiate_component(config_of("train", option).model, num_classes=7)


def scales(model, decay: float) -> dict[str, float]:
    """The factor of the learning rate by the parameter's name."""
    by_parameter = {
        parameter: group["lr_scale"]
        for group in parameter_groups(model, PhaseSettings(layer_decay=decay))
        for parameter in group["params"]
    }
    return {name: by_parameter[parameter] for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", POWERS)
def test_powers_of_every_kind_of_encoder(name):
    model = shape_only(f"model={name}")
    powers = {name: round(-math.log2(scale)) for name, scale in scales(model, 0.5).items()}
    assert {power for key, power in powers.items() if key.startswith("head.")} == {0}
    for beginning, expected in POWERS[name].items():
        found = {power for key, power in powers.items() if key.startswith(f"encoder.{beginning}")}
        assert found == {expected}, beginning
    assert set(powers.values()) == set(range(max(POWERS[name].values()) + 1))


def test_rates_of_videomae_base_as_published():
    """Layer decay 0.75 of its Kinetics-400 recipe: 0.75^13 for patches, 0.75 for the last block, 1 for what follows."""
    model = shape_only("model=videomae_base")
    found = scales(model, 0.75)
    assert found["encoder.patch_embed.proj.weight"] == pytest.approx(0.023757264018058777)
    assert found["encoder.blocks.0.attn.qkv.weight"] == pytest.approx(0.03167635202407837)
    assert found["encoder.blocks.10.mlp.fc1.bias"] == pytest.approx(0.5625)
    assert found["encoder.blocks.11.norm1.weight"] == pytest.approx(0.75)
    assert found["head.fc_norm.weight"] == found["head.linear.weight"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "convnext_atto",
        "deit_tiny_distilled_patch16_224",
        "efficientnet_b0",
        "eva02_tiny_patch14_224",
        "levit_128s",
        "mobilenetv3_small_050",
        "mvitv2_tiny",
        "resnet18",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "test_vit",
        "vit_tiny_patch16_224",
    ],
)
def test_image_models_of_timm_as_timm_has_it(name):
    with torch.device("meta"):
        theirs = timm.create_model(name, num_classes=7)
        network = timm.create_model(name, num_classes=0)
    expected = {
        parameter: group["lr_scale"]
        for group in param_groups_layer_decay(theirs, layer_decay=0.5)
        for parameter in group["params"]
    }
    expected = {name: expected[parameter] for name, parameter in theirs.named_parameters()}
    layers, blocks = layers_and_blocks(network)
    powers = layer_powers(SimpleNamespace(layers=layers, blocks=blocks))
    found = {each: 0.5**power for layer, power in zip(layers, powers, strict=True) for each in layer.parameters()}
    for key, parameter in network.named_parameters():
        assert found[parameter] == expected[key], key
    assert set(found.values()) | {1} == set(expected.values())


def test_a_phase_of_an_earlier_version_goes_on_with_the_rates_that_it_began_with():
    model = shape_only("model=vit3d_micro")
    phase = PhaseSettings(layer_decay=0.5)
    before, after = (OptimizerSet.make(torch.optim.AdamW, model, phase, "cpu", "fp16") for _ in range(2))
    for group in before.groups:
        group["lr_scale"] *= 0.5
    after.load(**before.state_dicts())
    assert [group["lr_scale"] for group in after.groups] == [group["lr_scale"] for group in before.groups]
