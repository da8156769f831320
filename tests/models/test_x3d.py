"""X3D: PyTorchVideo's numbers, names and shapes of every published size, and sizes of clips."""

from functools import cache, partial
from pathlib import Path

import hydra
import pytest
import torch
from composing import config_of
from pytorchvideo.models.hub import x3d_l, x3d_m, x3d_s, x3d_xs
from pytorchvideo.models.x3d import create_x3d
from torch import nn

from vidtrain.config.references import published_clips
from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import FullyConvolutionalClassifier
from vidtrain.models.residual3d import X3D, squeezed_width
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.loading import FORMATS, match
from vidtrain.models.weights.residual_networks import PYSLOWFAST_X3D, PYTORCHVIDEO_X3D

CONF = Path(__file__).parents[2] / "conf" / "model"
HUB = {"x3d_xs": x3d_xs, "x3d_s": x3d_s, "x3d_m": x3d_m, "x3d_l": x3d_l}
# PySlowFast's configs/Kinetics/X3D_*.yaml: frames, stride of 30 a second, size of one crop and the sides it is cut from
PUBLISHED = {
    "x3d_xs": (4, 12, 160, 182),
    "x3d_s": (13, 6, 160, 182),
    "x3d_m": (16, 5, 224, 256),
    "x3d_l": (16, 5, 312, 356),
}


@cache
def shipped(name: str, *overrides: str) -> VideoClassifier:
    with torch.device("meta"):
        return hydra.utils.instantiate(config_of(f"model/{name}", *overrides).model)(num_classes=400).eval()


@cache
def published(name: str) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return HUB[name]().state_dict()


@pytest.mark.parametrize("name", HUB)
def test_published_sizes_have_our_names_and_shapes(name):
    theirs, ours = published(name), shipped(name)
    reverted = PYTORCHVIDEO_X3D.revert(ours.state_dict())
    assert {key: each.shape for key, each in reverted.items()} == {key: each.shape for key, each in theirs.items()}
    weights = Weights("", {f"model_state.{key}": each for key, each in theirs.items()})
    assert [each for each in FORMATS if each.recognizes(weights)] == [PYTORCHVIDEO_X3D]
    converted = PYTORCHVIDEO_X3D.convert(weights, ours)
    report, _ = match(ours, converted, "file", PYTORCHVIDEO_X3D, min_match=1)
    assert len(report.loaded) == len(theirs)
    assert not (report.missing or report.unexpected or report.mismatched or report.left_out or report.resized)


# Its names, from slowfast/models: stem_helper.py, resnet_helper.py, operators.py, head_helper.py; and ours
PYSLOWFAST_NAMES = {
    "s1.pathway0_stem.conv_xy.weight": "encoder.stem.conv_xy.weight",
    "s1.pathway0_stem.conv.weight": "encoder.stem.conv_t.weight",
    "s1.pathway0_stem.bn.running_mean": "encoder.stem.norm.running_mean",
    "s2.pathway0_res0.branch1.weight": "encoder.stages.0.0.shortcut.conv.weight",
    "s2.pathway0_res0.branch1_bn.weight": "encoder.stages.0.0.shortcut.norm.weight",
    "s3.pathway0_res4.branch2.a_bn.bias": "encoder.stages.1.4.branch.norm_a.bias",
    "s3.pathway0_res4.branch2.b.weight": "encoder.stages.1.4.branch.conv_b.weight",
    "s3.pathway0_res4.branch2.b_bn.running_var": "encoder.stages.1.4.branch.norm_b.running_var",
    "s4.pathway0_res10.branch2.se.fc1.bias": "encoder.stages.2.10.branch.squeeze.fc1.bias",
    "s5.pathway0_res6.branch2.se.fc2.weight": "encoder.stages.3.6.branch.squeeze.fc2.weight",
    "s5.pathway0_res6.branch2.c_bn.weight": "encoder.stages.3.6.branch.norm_c.weight",
    "head.conv_5.weight": "encoder.conv5.conv.weight",
    "head.conv_5_bn.running_mean": "encoder.conv5.norm.running_mean",
    "head.projection.bias": "head.linear.bias",
}


def test_every_tensor_of_pyslowfast_has_its_place():
    ours = shipped("x3d_s", "model.encoder.norm_first_shortcut=true")
    own = ours.state_dict()
    theirs = PYSLOWFAST_X3D.revert(own)
    assert all(theirs[name] is own[mine] for name, mine in PYSLOWFAST_NAMES.items())
    assert theirs["head.lin_5.weight"].shape == (2048, 432, 1, 1, 1)
    assert len(theirs) == len(published("x3d_s")) + 5  # that one batch norm
    weights = Weights("", {f"model_state.{key}": each for key, each in theirs.items()})
    assert [each for each in FORMATS if each.recognizes(weights)] == [PYSLOWFAST_X3D]
    converted = PYSLOWFAST_X3D.convert(weights, ours)
    report, _ = match(ours, converted, "file", PYSLOWFAST_X3D, min_match=1)
    assert not (report.missing or report.unexpected or report.mismatched or report.left_out)
    asked = {"num_blocks": [3, 5, 11, 7], "width": 24, "norm_first_shortcut": True}
    assert converted.requires == {f"encoder.{key}": value for key, value in asked.items()}
    with pytest.raises(
        UserError, match=r"(?s)x3d_s\.pyth fits .*model\.encoder\.norm_first_shortcut=true \(it is false\)"
    ):
        match(shipped("x3d_s"), converted, "x3d_s.pyth", PYSLOWFAST_X3D, min_match=1)


def test_a_larger_one_asks_for_its_blocks():
    model = shipped("x3d_m")
    converted = PYTORCHVIDEO_X3D.convert(Weights("", published("x3d_l")), model)
    with pytest.raises(UserError, match=r"model\.encoder\.num_blocks=\[5, 10, 25, 15\]"):
        match(model, converted, "X3D_L.pyth", PYTORCHVIDEO_X3D, min_match=1)


# A third of the width; the clip of training, a larger one with several windows, and one that no stride divides
@pytest.mark.parametrize(("height", "width", "window"), [(64, 64, 2), (96, 64, 2), (50, 68, 2)])
@torch.no_grad()
def test_x3d_equals_pytorchvideo(height, width, window):
    torch.manual_seed(0)
    theirs = create_x3d(
        input_clip_length=4, input_crop_size=32 * window, model_num_class=7, width_factor=1,
        stem_dim_in=8, head_dim_out=64, head_activation=None,
    ).eval()  # fmt: skip
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
    head = partial(FullyConvolutionalClassifier, pool_size=(4, window, window), dropout=0.5, hidden=64)
    ours = VideoClassifier(X3D(width=8), head, 7).eval()
    ours.load_state_dict(PYTORCHVIDEO_X3D.convert(Weights("", theirs.state_dict()), ours).tensors)
    video = torch.randn(2, 3, 4, height, width)
    expected = theirs(video)
    difference = (ours(video[:, None])[:, 0] - expected).abs().max() / expected.abs().max()
    assert float(difference) <= 1e-6  # measured: 2e-7 at most
    tokens = ours.encoder(video)
    assert tokens.shape == (2, 4 * -(-height // 32) * -(-width // 32), 144)


def test_widths_of_squeezed_channels():
    assert [squeezed_width(channels) for channels in (54, 108, 216, 432)] == [8, 8, 16, 32]


@pytest.mark.parametrize("name", PUBLISHED)
def test_shipped_files_are_as_published(name):
    frames, stride, size, side = PUBLISHED[name]
    clips = published_clips(config_of("train", f"model={name}"))
    assert (clips["frames"], clips["fps"], clips["size"], clips["short_side"]) == (
        frames,
        30 / stride,
        size,
        side,
    )
    assert (clips["mean"], clips["std"], clips["fusion"]) == ([0.45] * 3, [0.225] * 3, "mean_probs")
    model = shipped(name)
    assert model.head.pool_size == (frames, -(-size // 32), -(-size // 32))
    counts = [sum(each.numel() for each in part.parameters()) / 1e6 for part in (model.encoder, model)]
    said = "{:.1f} M encoder parameters ({:.1f} M with 400 classes)".format(*counts)
    assert said in (CONF / f"{name}.yaml").read_text()
    smallest = 32 * (-(-size // 32) - 1) + 1
    assert f" {smallest} pixels or more" in (CONF / f"{name}.yaml").read_text()
    assert model.encoder.grid(frames, smallest, smallest) == model.head.pool_size
    assert model.encoder.grid(frames, smallest - 1, smallest)[1] < model.head.pool_size[1]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: X3D(num_blocks=[3, 5, 11]), r"model\.encoder\.num_blocks=\[3, 5, 11\] must be four"),
        (lambda: X3D(num_blocks=[3, 5, 0, 7]), r"model\.encoder\.num_blocks=0"),
        (lambda: X3D(width=0), r"model\.encoder\.width=0"),
        (lambda: FullyConvolutionalClassifier(4, 2, hidden=0), r"model\.head\.hidden=0"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(UserError, match=message):
        build()
