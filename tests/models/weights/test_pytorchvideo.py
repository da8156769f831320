"""PyTorchVideo's published names: known, converted, reverted; what is not theirs is told apart."""

from functools import partial

import pytest
import torch
from pytorchvideo.models.csn import create_csn
from pytorchvideo.models.hub import c2d_r50, i3d_r50, slow_r50, slowfast_r50, slowfast_r101
from pytorchvideo.models.r2plus1d import create_r2plus1d
from pytorchvideo.models.resnet import create_resnet
from pytorchvideo.models.slowfast import create_slowfast
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor, nn

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import FullyConvolutionalClassifier
from vidtrain.models.slowfast import SlowFast, SlowOnly
from vidtrain.models.weights.format import Format, Weights
from vidtrain.models.weights.residual_networks import PYTORCHVIDEO_SLOW, PYTORCHVIDEO_SLOWFAST

CLASSES = 7
FORMATS = {"slowfast": PYTORCHVIDEO_SLOWFAST, "slow": PYTORCHVIDEO_SLOW}


def published(name: str) -> dict[str, Tensor]:
    """A state dict of random numbers by the published names, at an eighth of the width."""
    torch.manual_seed(0)
    if name == "slowfast":
        model = create_slowfast(model_num_class=CLASSES, stem_dim_outs=(8, 1))
    else:
        model = create_resnet(model_num_class=CLASSES, stem_dim_out=8, stem_conv_kernel_size=(1, 7, 7))
    return {key: torch.rand(each.shape).to(each.dtype) for key, each in model.state_dict().items()}


def ours(name: str) -> VideoClassifier:
    encoder = SlowFast(width=8) if name == "slowfast" else SlowOnly(width=8)
    return VideoClassifier(encoder, FullyConvolutionalClassifier, CLASSES)


def meta(build) -> Weights:
    with torch.device("meta"):
        return Weights("", build().state_dict())


@pytest.mark.parametrize("wrapping", ["", "model_state.", "state_dict.model.", "module."])
@pytest.mark.parametrize("name", FORMATS)
def test_round_trip(name, wrapping):
    tensors, model, format = published(name), ours(name), FORMATS[name]
    weights = Weights("", {wrapping + key: each for key, each in tensors.items()})
    assert format.recognizes(weights)
    converted = format.convert(weights, model)
    assert not (converted.unexpected or converted.left_out or converted.changed or converted.resized)
    model.load_state_dict(converted.tensors, strict=True)
    reverted = format.revert(model.state_dict())
    assert reverted.keys() == tensors.keys()
    assert all(torch.equal(reverted[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (
            slowfast_r50,
            {"width": 64, "beta_inv": 8, "fusion_ratio": 2, "fusion_kernel": 7, "depth": 50, "alpha": 4},
        ),
        (  # SLOWFAST_4x16_R50
            partial(create_slowfast, slowfast_fusion_conv_kernel_size=(5, 1, 1)),
            {"width": 64, "beta_inv": 8, "fusion_ratio": 2, "fusion_kernel": 5, "depth": 50, "alpha": 8},
        ),
        (
            slowfast_r101,
            {"width": 64, "beta_inv": 8, "fusion_ratio": 2, "fusion_kernel": 5, "depth": 101, "alpha": 4},
        ),
        (  # nobody published these, so alpha is not known
            partial(create_slowfast, model_depth=18, slowfast_fusion_conv_kernel_size=(3, 1, 1)),
            {"width": 64, "beta_inv": 8, "fusion_ratio": 2, "fusion_kernel": 3},
        ),
    ],
    ids=["8x8_R50", "4x16_R50", "8x8_R101", "own"],
)
def test_settings_of_slowfast(build, expected):
    model = ours("slowfast")
    requires = PYTORCHVIDEO_SLOWFAST.convert(meta(build), model).requires
    assert requires == {f"encoder.{key}": value for key, value in expected.items()}
    assert all(hasattr(model.encoder, key) for key in expected)


def test_settings_of_slow():
    model = ours("slow")
    assert PYTORCHVIDEO_SLOW.convert(meta(slow_r50), model).requires == {
        "encoder.width": 64,
        "encoder.depth": 50,
    }
    assert hasattr(model.encoder, "width") and hasattr(model.encoder, "depth")


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (slowfast_r50, [PYTORCHVIDEO_SLOWFAST]),
        (slow_r50, [PYTORCHVIDEO_SLOW]),
        (i3d_r50, []),
        (c2d_r50, []),
        (partial(create_csn, model_depth=50), []),
        (create_r2plus1d, []),
        (partial(create_x3d, input_clip_length=4, input_crop_size=160), []),
        (partial(nn.Linear, 3, 3), []),
    ],
    ids=["slowfast", "slow", "i3d", "c2d", "csn", "r2plus1d", "x3d", "linear"],
)
def test_each_network_is_told_apart(build, expected: list[Format]):
    weights = meta(build)
    assert [format for format in FORMATS.values() if format.recognizes(weights)] == expected


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_checkpoint_holds_besides_is_left_out(name):
    tensors = {f"model_state.{key}": each for key, each in published(name).items()}
    weights = Weights("", tensors | {"optimizer_state.state.0.momentum_buffer": torch.zeros(1)})
    converted = FORMATS[name].convert(weights, ours(name))
    assert converted.left_out == {"optimizer_state.state.0.momentum_buffer": "not part of the network"}
    assert not converted.unexpected


@pytest.mark.parametrize("name", FORMATS)
def test_unknown_tensors_of_the_network_are_unexpected(name):
    weights = Weights("", published(name) | {"blocks.9.extra.weight": torch.zeros(1)})
    assert FORMATS[name].convert(weights, ours(name)).unexpected == ["blocks.9.extra.weight"]


@pytest.mark.parametrize("name", FORMATS)
def test_a_head_of_other_classes_keeps_its_shape(name):
    tensors = published(name)
    head = next(key for key in tensors if key.endswith("proj.weight"))
    tensors[head] = torch.zeros(400, tensors[head].shape[1])
    assert FORMATS[name].convert(Weights("", tensors), ours(name)).tensors["head.linear.weight"].shape[0] == 400


@pytest.mark.parametrize("name", FORMATS)
def test_without_a_head(name):
    tensors = {key: each for key, each in published(name).items() if ".proj." not in key}
    assert FORMATS[name].recognizes(Weights("", tensors))
    converted = FORMATS[name].convert(Weights("", tensors), ours(name))
    assert not converted.unexpected and not any(key.startswith("head.") for key in converted.tensors)
