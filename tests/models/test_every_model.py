"""What every option of conf/model must do alike: sizes, layers, stages, gradients, precision, copies, joint fusion."""

import copy
from collections import Counter
from functools import cache

import pytest
import torch
from composing import config_of
from torch import nn

from vidtrain.build import parts as build
from vidtrain.config.targets import options
from vidtrain.training.run import PhaseSettings
from vidtrain.training.stages import apply_phase, decays, parameter_groups

# Parameters of the encoder, and of all with 400 classes, for clips of 16x224x224. Published: torchvision's nine are
# its `num_params`; SlowFast 34.57 M, Slow 32.45 M, X3D 3.79 M and its L 6.15 M (PyTorchVideo's model zoo); ViT-S 22,
# B 86.2, L 303.9, H 631.6 M and g 1.01 B (VideoMAE and V-JEPA); ConvNeXt-T without its classifier 27.82 M (timm).
# ResNet3D-18 equals R3D-18. Hiera's are those of its code (test_hiera.py).
SIZES = {
    "efficientnet_lite0": (3_371_008, 3_883_408),
    "hiera_b_video": (50_783_424, 51_092_560),
    "hiera_bplus_video": (69_031_648, 69_392_240),
    "hiera_h_video": (670_803_968, 671_627_664),
    "hiera_l_video": (212_628_096, 213_091_600),
    "mc3_18": (11_490_240, 11_695_440),
    "mvit_v1_b": (36_303_072, 36_610_672),
    "mvit_v2_s": (34_230_144, 34_537_744),
    "r2plus1d_18": (31_300_125, 31_505_325),
    "r3d_18": (33_166_272, 33_371_472),
    "resnext3d_101": (47_483_584, 48_303_184),
    "resnext3d_18": (33_166_272, 33_371_472),
    "s3d": (7_910_048, 8_320_048),
    "slow_r50": (31_634_496, 32_454_096),
    "slowfast_r50": (33_644_488, 34_566_488),
    "swin3d_b": (87_638_984, 88_048_984),
    "swin3d_s": (49_509_078, 49_816_678),
    "swin3d_t": (27_850_470, 28_158_070),
    "timm_frames": (27_820_128, 28_127_728),
    "timm_frames_attentive": (27_820_128, 34_625_776),
    "timm_frames_motion": (27_820_128, 28_516_592),
    "timm_frames_temporal": (27_820_128, 34_724_848),
    "videomae_base": (86_234_880, 86_544_016),
    "videomae_giant": (1_011_664_256, 1_012_230_672),
    "videomae_huge": (631_645_440, 632_160_400),
    "videomae_large": (303_883_264, 304_295_312),
    "videomae_small": (21_883_776, 22_038_544),
    "vit3d_base": (86_236_416, 93_042_064),
    "vit3d_base_timm": (87_440_640, 94_246_288),
    "vit3d_giant": (1_012_173_952, 1_034_562_960),
    "vit3d_huge": (631_648_000, 650_199_440),
    "vit3d_large": (303_885_312, 315_842_960),
    "vit3d_micro": (372_672, 514_096),
    "vit3d_small": (21_884_544, 23_665_552),
    "vit3d_tiny": (5_633_856, 6_119_056),
    "vjepa1_vith": (631_648_000, 650_199_440),
    "vjepa1_vitl": (303_885_312, 315_842_960),
    "vjepa2_1_vitb": (86_237_184, 114_306_448),
    "vjepa2_1_vitg": (1_012_175_360, 1_105_987_984),
    "vjepa2_1_vitgigantic": (1_843_925_504, 1_974_816_144),
    "vjepa2_1_vitl": (303_886_336, 353_632_656),
    "vjepa2_vitg": (1_012_173_952, 1_105_986_576),
    "vjepa2_vith": (631_648_000, 709_231_760),
    "vjepa2_vitl": (303_885_312, 353_631_632),
    "x3d_l": (4_449_048, 6_153_384),
    "x3d_m": (2_089_938, 3_794_274),
    "x3d_s": (2_089_938, 3_794_274),
    "x3d_xs": (2_089_938, 3_794_274),
}
CONVOLUTIONAL = (
    "mc3_18",
    "r2plus1d_18",
    "r3d_18",
    "resnext3d_101",
    "resnext3d_18",
    "s3d",
    "slow_r50",
    "slowfast_r50",
    "x3d_m",
    "x3d_s",
    "x3d_xs",
)

VIT = ("model.encoder.embed_dim=48", "model.encoder.depth=3", "model.encoder.num_heads=2")
PROBE = (*VIT, "model.head.num_heads=2", "model.head.depth=2")
WINDOW = ("model.head.pool_size=null",)
TIMM = ("model.encoder.backbone=convnext_atto",)
# One of each kind of encoder and head, as small as its architecture allows
SMALL = {
    "vit3d_micro": (),
    "vit3d_base_timm": (*VIT, "model.head.num_heads=2"),
    "videomae_base": VIT,
    "vjepa2_1_vitb": PROBE,
    "mc3_18": (),
    "hiera_b_video": ("model.encoder.embed_dim=16", "model.encoder.depths=[1,2,2,1]"),
    "s3d": WINDOW,
    "mvit_v1_b": (),
    "mvit_v2_s": (),
    "swin3d_t": (),
    "slowfast_r50": ("model.encoder.width=8", *WINDOW),
    "slow_r50": ("model.encoder.width=8", *WINDOW),
    "x3d_xs": ("model.encoder.width=8", *WINDOW),
    "resnext3d_18": ("model.encoder.stem_planes=8", "model.encoder.stage_planes=8", *WINDOW),
    "timm_frames": TIMM,
    "timm_frames_attentive": (*TIMM, "model.head.num_heads=8"),
    "timm_frames_temporal": (*TIMM, "model.head.width=32"),
    "timm_frames_motion": (*TIMM, "model.head.width=32"),
}
# What differs at random from one forward pass to the next
STEADY = ("drop_path", "dropout", "attention_dropout")


def built(name: str, overrides: tuple[str, ...], classes: int) -> nn.Module:
    cfg = config_of("train", f"model={name}", *overrides)
    for part in (cfg.model.encoder, cfg.model.head):
        for key in STEADY:
            if key in part:
                part[key] = 0.0
    torch.manual_seed(0)
    return build.instantiate_component(cfg.model, num_classes=classes)


@cache
def shape_only(name: str) -> nn.Module:
    with torch.device("meta"):
        return built(name, ("clip.size=224", "clip.frames=16"), 400).eval()


def small(name: str, *overrides: str) -> nn.Module:
    return built(name, (*SMALL[name], *overrides), 4)


def video(frames: int = 8, size: int = 32, clips: int = 2) -> torch.Tensor:
    return torch.randn(2, clips, 3, frames, size, size, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, clips: torch.Tensor) -> dict[str, torch.Tensor]:
    model.train()
    torch.nn.functional.cross_entropy(model(clips).flatten(0, 1), torch.arange(4)[: 2 * clips.shape[1]]).backward()
    return {name: each.grad for name, each in model.named_parameters()}


@pytest.mark.slow
def test_every_option_is_listed():
    assert sorted([*SIZES, "module"]) == options("model")  # whose network the user names
    kinds = {(type(shape_only(name).encoder), type(shape_only(name).head)) for name in SIZES}
    assert kinds == {(type(shape_only(name).encoder), type(shape_only(name).head)) for name in SMALL}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_as_many_as_published(name):
    model = shape_only(name)
    found = [sum(each.numel() for each in part.parameters()) for part in (model.encoder, model)]
    assert found == list(SIZES[name])


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_the_shipped_window_fits_the_clips_that_the_weights_saw(name):
    with torch.no_grad():
        assert shape_only(name)(torch.empty(1, 2, 3, 32, 224, 224, device="meta")).shape == (1, 2, 400)


@pytest.mark.parametrize("name", SIZES)
def test_layers_hold_every_parameter_once_and_stages_and_groups_cover_them(name):
    model = copy.deepcopy(shape_only(name))
    layers, blocks = list(model.encoder.layers), list(model.encoder.blocks)
    held = Counter(parameter for layer in layers for parameter in layer.parameters())
    assert set(held.values()) == {1}
    assert held.keys() == set(model.encoder.parameters())
    places = [next(i for i, layer in enumerate(layers) if layer is block) for block in blocks]
    assert places == sorted(set(places))

    apply_phase(model, PhaseSettings(encoder_blocks=0))
    assert {each for each in model.parameters() if each.requires_grad} == set(model.head.parameters())
    apply_phase(model, PhaseSettings(encoder_blocks=2))
    trained = {each for each in model.encoder.parameters() if each.requires_grad}
    assert trained == {each for layer in layers[places[-2] :] for each in layer.parameters()}
    assert trained < held.keys()

    apply_phase(model, PhaseSettings())
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.75))
    grouped = Counter(parameter for group in groups for parameter in group["params"])
    assert set(grouped.values()) == {1}
    assert grouped.keys() == set(model.parameters())
    scales = {group["lr_scale"] for group in groups}
    assert scales == {0.75**k for k in range(len(blocks) + 2)}


def test_positions_and_tokens_are_not_decayed():
    names = {
        name: each
        for option in ("mvit_v1_b", "mvit_v2_s", "swin3d_t", "vit3d_base_timm")
        for name, each in shape_only(option).named_parameters()
        if each.ndim > 1 and not decays(name, each)
    }
    assert {name.rpartition(".")[2] for name in names} == {
        "rel_pos_h",
        "rel_pos_w",
        "rel_pos_t",
        "relative_position_bias_table",
        "pos_embed",
        "spatial_pos",
        "temporal_pos",
    }
    token = nn.Parameter(torch.zeros(1, 1, 4))
    for name in ("network.cls_token", "network.reg_token", "stem.pos_encoding.class_token"):
        assert not decays(name, token)
    for name in ("pooler.query_tokens", "network.token_mixer.weight", "rel_pos_mlp.fc1.weight"):
        assert decays(name, token)  # the query does in V-JEPA


# The other encoders have tests of their own for this, which take longer
@pytest.mark.parametrize(
    "name", ["vit3d_micro", "videomae_base", "vjepa2_1_vitb", "hiera_b_video", "timm_frames_attentive"]
)
def test_every_parameter_gets_a_gradient_with_and_without_recomputation(name):
    """So distributed training finds no parameter unused."""
    expected = gradients(small(name), video(clips=1))
    assert not [name for name, each in expected.items() if each is None or not each.isfinite().all()]
    found = gradients(small(name, "model.encoder.activation_checkpointing=true"), video(clips=1))
    assert found.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    # Measured: equal
    assert all(torch.allclose(found[key], expected[key], rtol=0, atol=1e-6 * largest) for key in expected)


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_clips_of_other_sizes_joint_fusion_half_precision_and_copies(name):
    model = small(name, "model.fusion=mean_logits").eval()
    clips = video()
    expected = model(clips)
    assert (expected.shape, expected.dtype) == ((2, 2, 4), torch.float32)
    other = 64 if name == "hiera_b_video" else 48  # which takes multiples of 32
    assert model(video(size=other, clips=1)[:1]).shape == (1, 1, 4)

    with torch.autocast("cpu", torch.bfloat16):
        halved = model(clips[:1, :1])
    assert (halved - expected[:1, :1]).abs().max() <= 0.05 * max(1.0, float(expected.abs().max()))

    twin = copy.deepcopy(model)  # as the average of the weights is kept
    for parameter in model.parameters():
        parameter.zero_()
    twin.fusion = "joint"
    # two equal clips together are judged as one, but where their order in time counts
    repeated = clips[:, :1].expand(-1, 2, -1, -1, -1, -1)
    assert twin(repeated).shape == (2, 1, 4)
    if name not in ("timm_frames_temporal", "timm_frames_motion"):
        assert torch.allclose(twin(repeated), expected[:, :1], atol=1e-5)
