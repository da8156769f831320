"""ResNeXt3D: Classy Vision's numbers, sizes, and what training asks of an encoder."""

from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from classy_vision.heads import build_head
from classy_vision.models import build_model
from composing import config_of
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, FullyConvolutionalClassifier
from vidtrain.models.residual3d import BASIC, POSTACTIVATED, PREACTIVATED, RESIDUALS, SHORTCUTS, ResNeXt3D
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.residual_networks import CLASSY_VISION_RESNEXT3D
from vidtrain.training.run import PhaseSettings
from vidtrain.training.stages import apply_phase, parameter_groups, set_train_mode

CONF = Path(__file__).parents[2] / "conf"
CLASSES = 7
# Largest difference of logits over the largest logit, float32 on a CPU with torch 2.15: exactly 0
TOLERANCE = 1e-6

# ResNet3D-18 of Classy Vision's tutorial, but narrower, and two bottleneck networks with every other setting used
NARROW = {"stem_planes": 8, "stage_planes": 8}
RESNET3D_18 = {"num_blocks": [2, 2, 2, 2], **NARROW}
RESNEXT3D = {
    "num_blocks": [3, 2, 2],
    "stem_planes": 6,
    "stem_temporal_kernel": 5,
    "stem_spatial_kernel": 5,
    "stem_maxpool": True,
    "stage_planes": 16,
    "stage_temporal_kernel_basis": [[3], [3, 1], [1, 3]],
    "temporal_conv_1x1": [True, False, True],
    "stage_temporal_stride": [1, 2, 1],
    "stage_spatial_stride": [1, 2, 2],
    "num_groups": 4,
    "width_per_group": 2,
}
SETTINGS = {BASIC: RESNET3D_18, POSTACTIVATED: RESNEXT3D, PREACTIVATED: RESNEXT3D}


def small(residual=BASIC, skip="postactivated_shortcut", **changed) -> ResNeXt3D:
    torch.manual_seed(0)
    options = {"residual_transformation_type": residual, "skip_transformation_type": skip}
    return ResNeXt3D(**SETTINGS[residual] | options | changed)


def clip(frames=8, height=32, width=32, batch=2) -> Tensor:
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def as_trained(model: nn.Module) -> nn.Module:
    """Batch statistics and scales as training leaves them, none at its start."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
    return model.eval()


def classy_vision(residual: str, skip: str, pool_size: list[int]) -> nn.Module:
    """Their model with its head attached to the last block. In evaluation the head gives the mean of
    probabilities; with the activation named identity, the mean of logits."""
    settings = SETTINGS[residual]
    fixed = {"name": "resnext3d", "input_planes": 3, "clip_crop_size": 112, "frames_per_clip": 8}
    kinds = {"residual_transformation_type": residual, "skip_transformation_type": skip}
    model = build_model(fixed | kinds | settings)
    stages = len(settings["num_blocks"])
    fork = f"pathway0-stage{stages}-block{settings['num_blocks'][-1] - 1}"
    head = {
        "name": "fully_convolutional_linear",
        "unique_id": "default_head",
        "pool_size": pool_size,
        "num_classes": CLASSES,
        "in_plane": settings["stage_planes"] * 2 ** (stages - 1),
        "activation_func": "identity",
    }
    model.set_heads({fork + ("-relu" if residual == PREACTIVATED else ""): [build_head(head)]})
    return as_trained(model)


def flat(state: dict, prefix: str = "") -> dict[str, Tensor]:
    found = {}
    for key, value in state.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


@pytest.mark.parametrize("skip", SHORTCUTS)
@pytest.mark.parametrize("residual", RESIDUALS)
@torch.no_grad()
def test_equals_classy_vision(residual, skip):
    theirs = classy_vision(residual, skip, pool_size=[1, 2, 2])
    head = partial(FullyConvolutionalClassifier, pool_size=(1, 2, 2))
    ours = VideoClassifier(small(residual, skip), head, CLASSES).eval()
    tensors = flat(theirs.get_classy_state())
    ours.load_state_dict(CLASSY_VISION_RESNEXT3D.convert(Weights("", tensors), ours).tensors)
    for video in (clip(8, 48, 48), clip(13, 57, 75)):
        expected = theirs(video)
        difference = (ours(video[:, None])[:, 0] - expected).abs().max() / expected.abs().max()
        assert float(difference) <= TOLERANCE


@torch.no_grad()
def test_the_dense_logits_of_the_tutorial():
    """A test clip of 8 x 128 x 173: features of 1 x 8 x 11, windows of 1 x 7 x 7, a 2 x 5 grid of predictions."""
    theirs = classy_vision(BASIC, "postactivated_shortcut", pool_size=[1, 7, 7])
    head = partial(FullyConvolutionalClassifier, pool_size=(1, 7, 7))
    ours = VideoClassifier(small(), head, CLASSES).eval()
    tensors = flat(theirs.get_classy_state())
    ours.load_state_dict(CLASSY_VISION_RESNEXT3D.convert(Weights("", tensors), ours).tensors)
    video = clip(8, 128, 173, batch=1)
    assert ours.encoder.grid(8, 128, 173) == (1, 8, 11)
    seen = []
    ours.head.dropout.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    expected = theirs(video)
    assert float((ours(video[:, None])[:, 0] - expected).abs().max() / expected.abs().max()) <= TOLERANCE
    assert seen == [(1, 2 * 5, 64)]


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("frames, height, width", [(8, 32, 32), (5, 50, 37), (1, 17, 16)])
@torch.no_grad()
def test_clips_of_other_sizes(residual, frames, height, width):
    encoder = as_trained(small(residual))
    t, h, w = encoder.grid(frames, height, width)
    tokens = encoder(clip(frames, height, width))
    assert tokens.shape == (2, t * h * w, encoder.embed_dim)
    assert tokens.isfinite().all()


def test_grids():
    assert small().grid(8, 112, 112) == (1, 7, 7)
    assert small().grid(9, 113, 112) == (2, 8, 7)
    assert small(stem_maxpool=True).grid(16, 224, 224) == (2, 7, 7)
    assert small(POSTACTIVATED).grid(7, 64, 65) == (4, 4, 5)


@torch.no_grad()
def test_tokens_run_over_time_then_height_then_width():
    encoder, features = as_trained(small()), []
    encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: features.append(output))
    tokens = encoder(clip(16, 32, 48)).reshape(2, 2, 2, 3, 64)
    assert torch.equal(tokens[1, 1, 0, 2], features[0][1, :, 1, 0, 2])


@pytest.mark.parametrize("fusion", ["mean_logits", "joint"])
@torch.no_grad()
def test_other_heads_take_its_tokens(fusion):
    model = VideoClassifier(small(), partial(AttentiveClassifier, num_heads=4), CLASSES, fusion).eval()
    clips = clip()[:, None].expand(2, 3, 3, 8, 32, 32)
    assert model(clips).shape == (2, 1 if fusion == "joint" else 3, CLASSES)


@pytest.mark.parametrize("residual", RESIDUALS)
@torch.no_grad()
def test_order_of_frames_matters(residual):
    encoder, video = as_trained(small(residual)), clip(8)
    assert not torch.allclose(encoder(video).mean(1), encoder(video.flip(2)).mean(1), rtol=1e-2)


@pytest.mark.parametrize("skip", SHORTCUTS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_layers_hold_every_parameter_once_and_in_order(residual, skip):
    encoder = small(residual, skip)
    assert encoder.layers == [encoder.stem, *encoder.blocks, encoder.norm]
    assert len(encoder.blocks) == (8 if residual == BASIC else 7)
    in_layers = [id(p) for layer in encoder.layers for p in layer.parameters()]
    assert [id(p) for p in encoder.parameters()] == in_layers


@pytest.mark.parametrize("residual", [BASIC, PREACTIVATED])
def test_the_last_blocks_are_unfrozen_with_what_follows(residual):
    model = VideoClassifier(small(residual), FullyConvolutionalClassifier, CLASSES)
    apply_phase(model, PhaseSettings(encoder_blocks=1))
    set_train_mode(model)
    last = len(SETTINGS[residual]["num_blocks"]) - 1
    trained = {".".join(name.split(".")[:4]) for name, p in model.named_parameters() if p.requires_grad}
    norm = {"encoder.norm.0.weight", "encoder.norm.0.bias"} if residual == PREACTIVATED else set()
    assert trained == {f"encoder.stages.{last}.1", "head.linear.weight", "head.linear.bias"} | norm
    assert not model.encoder.stages[last][0].training and model.encoder.stages[last][1].training


def test_layer_decay():
    model = VideoClassifier(small(PREACTIVATED), FullyConvolutionalClassifier, CLASSES)
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    expected = [0.5 ** (8 - depth) for depth in range(9)]  # stem, 7 blocks, norm
    assert [{scale[id(p)] for p in layer.parameters()} for layer in model.encoder.layers] == [
        {each} for each in expected
    ]


@pytest.mark.parametrize("residual", RESIDUALS)
def test_recomputed_activations_change_nothing(residual):
    plain, recomputed = small(residual), small(residual, activation_checkpointing=True)
    for encoder in (plain, recomputed):
        encoder(clip()).square().mean().backward()
    for ours, theirs in zip(plain.parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for ours, theirs in zip(plain.buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_every_parameter_gets_a_gradient(residual):
    model = VideoClassifier(small(residual), FullyConvolutionalClassifier, CLASSES)
    model(clip()[:, None]).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_half_precision():
    encoder, video = as_trained(small()), clip()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(video).float()
    full = encoder(video)
    assert float((half - full).abs().max() / full.abs().max()) <= 5e-2  # measured: 1.1e-2 of the largest token


@pytest.mark.parametrize(
    ("residual", "last", "value"),
    [(BASIC, "norm_b", 1), (POSTACTIVATED, "norm_c", 1), (PREACTIVATED, "conv_c", None)],
)
def test_branches_start_at_zero_when_asked(residual, last, value):
    zero = small(residual, zero_init_residual_transform=True).blocks[-1].branch.get_submodule(last).weight
    usual = small(residual).blocks[-1].branch.get_submodule(last).weight
    assert not zero.any()
    assert usual.std() > 0 if value is None else (usual == value).all()


def test_initialization_is_by_fan_out():
    encoder = small(stage_planes=32)
    weight = encoder.stages[0][1].branch.conv_a.weight  # 32 x 27 values come out of each place
    assert float(weight.detach().std()) == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.05)


def build(name: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        config = config_of(f"model/{name}")
        return hydra.utils.instantiate(config.model, _convert_="all")(num_classes=num_classes)


@pytest.mark.parametrize(
    ("name", "encoder", "dim"), [("resnext3d_18", 33_166_272, 512), ("resnext3d_101", 47_483_584, 2048)]
)
def test_shipped_sizes(name, encoder, dim):
    model = build(name, 101)
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.parameters()) == encoder + 101 * (dim + 1)
    assert model(torch.zeros(1, 1, 3, 8, 112, 112, device="meta")).shape == (1, 1, 101)
    described = (CONF / "model" / f"{name}.yaml").read_text().splitlines()[0]
    assert f"{encoder / 1e6:.1f} M encoder parameters" in described


def test_resnext3d_18_is_the_tutorials():
    """Name by name and shape by shape what Classy Vision builds with the tutorial's settings."""
    with torch.device("meta"):
        theirs = build_model(
            {
                "name": "resnext3d",
                "frames_per_clip": 8,
                "input_planes": 3,
                "clip_crop_size": 112,
                "skip_transformation_type": "postactivated_shortcut",
                "residual_transformation_type": "basic_transformation",
                "num_blocks": [2, 2, 2, 2],
                "input_key": "video",
                "stage_planes": 64,
                "num_classes": 101,
            }
        )
    model = build("resnext3d_18", 101)
    converted = CLASSY_VISION_RESNEXT3D.convert(Weights("", theirs.state_dict()), model)
    assert {name: each.shape for name, each in converted.tensors.items()} == {
        name: each.shape for name, each in model.state_dict().items() if name.startswith("encoder.")
    }
    assert not converted.unexpected and not converted.resized


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"residual": "basic_r2plus1d_transformation"},
            r"residual_transformation_type='basic_r2plus1d.*basic_trans",
        ),
        (
            {"skip": "none"},
            r"skip_transformation_type='none' .*postactivated_shortcut, preactivated_shortcut",
        ),
        ({"num_blocks": []}, r"num_blocks=\[\]"),
        ({"num_blocks": [2, 0, 2, 2]}, r"num_blocks=0 is too small"),
        (
            {"num_blocks": [2, 2, 2]},
            r"stage_temporal_kernel_basis has 4 values, .*num_blocks=\[2, 2, 2\] has 3 st",
        ),
        ({"stage_temporal_stride": [1, 2]}, r"stage_temporal_stride has 2 values"),
        ({"stage_spatial_stride": [1, 2, 2, 0]}, r"stage_spatial_stride=0"),
        (
            {"stage_temporal_kernel_basis": [[3], [2], [3], [3]]},
            r"stage_temporal_kernel_basis=2 must be odd; .*1, 3",
        ),
        ({"stage_temporal_kernel_basis": [[3], [], [3], [3]]}, r"must name a kernel for each stage"),
        ({"stem_temporal_kernel": 0}, r"stem_temporal_kernel=0 must be odd; .*1"),
        ({"stem_spatial_kernel": 6}, r"stem_spatial_kernel=6 must be odd; .*5, 7"),
        ({"num_groups": 3}, r"model\.encoder\.stem_planes=8 .*model\.encoder\.num_groups=3; .*6, 9"),
        ({"stage_planes": 0}, r"stage_planes=0"),
        ({"width_per_group": 0}, r"width_per_group=0"),
    ],
)
def test_what_does_not_fit_is_named(changed, message):
    names = {"residual": "residual_transformation_type", "skip": "skip_transformation_type"}
    with pytest.raises(UserError, match=message):
        small(**{names[key] if key in names else key: value for key, value in changed.items()})
