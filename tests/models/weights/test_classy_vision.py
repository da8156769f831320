"""Classy Vision's names: whole checkpoints, model states and plain state dicts; settings read from tensors."""

from functools import partial

import pytest
import torch
from classy_vision.heads import build_head
from classy_vision.models import build_model
from torch import Tensor, nn

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import FullyConvolutionalClassifier
from vidtrain.models.residual3d import BASIC, POSTACTIVATED, PREACTIVATED, RESIDUALS, SHORTCUTS, ResNeXt3D
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.residual_networks import CLASSY_VISION_RESNEXT3D as FORMAT

CLASSES = 7
SETTINGS = {
    "num_blocks": [2, 1],
    "stem_planes": 4,
    "stage_planes": 8,
    "stage_temporal_kernel_basis": [[3], [3]],
    "temporal_conv_1x1": [True, False],
    "stage_temporal_stride": [1, 2],
    "stage_spatial_stride": [1, 2],
    "num_groups": 2,
    "width_per_group": 3,
}


def kinds(residual: str, skip: str) -> dict[str, str]:
    return {"residual_transformation_type": residual, "skip_transformation_type": skip}


def theirs(residual=BASIC, skip="postactivated_shortcut", heads=("default_head",), **changed) -> nn.Module:
    """Their model with random numbers everywhere and heads on the last block."""
    torch.manual_seed(0)
    fixed = {"name": "resnext3d", "input_planes": 3, "clip_crop_size": 32, "frames_per_clip": 4}
    model = build_model(fixed | kinds(residual, skip) | SETTINGS | changed)
    fork = "pathway0-stage2-block0" + ("-relu" if residual == PREACTIVATED else "")
    head = {
        "name": "fully_convolutional_linear",
        "num_classes": CLASSES,
        "in_plane": 16,
        "pool_size": [1, 1, 1],
    }
    if heads:
        model.set_heads({fork: [build_head(head | {"unique_id": each}) for each in heads]})
    for tensor in model.state_dict().values():
        tensor.copy_(torch.rand(tensor.shape))
    return model.eval()


def ours(residual=BASIC, skip="postactivated_shortcut", **changed) -> VideoClassifier:
    encoder = ResNeXt3D(**SETTINGS | kinds(residual, skip) | changed)
    return VideoClassifier(encoder, FullyConvolutionalClassifier, CLASSES).eval()


def flat(node, prefix: str = "") -> dict[str, Tensor]:
    """As a file is read: dotted names of everything that is a tensor."""
    if isinstance(node, Tensor):
        return {prefix[:-1]: node}
    named = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return {name: each for key, value in named for name, each in flat(value, f"{prefix}{key}.").items()}


@pytest.mark.parametrize("skip", SHORTCUTS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_round_trip(residual, skip):
    tensors = flat(theirs(residual, skip).get_classy_state()["model"])
    model, weights = ours(residual, skip), Weights("", tensors)
    assert FORMAT.recognizes(weights)
    converted = FORMAT.convert(weights, model)
    assert not (converted.unexpected or converted.left_out or converted.changed or converted.resized)
    model.load_state_dict(converted.tensors, strict=True)
    reverted = FORMAT.revert(model.state_dict())
    assert reverted.keys() == tensors.keys()
    assert all(torch.equal(reverted[name], tensors[name]) for name in tensors)


def wrapped(container: str, model: nn.Module) -> dict[str, Tensor]:
    """What a file holds, for each way to save a model."""
    match container:
        case "get_classy_state":
            return flat(model.get_classy_state())
        case "state_dict":
            return flat(model.state_dict())
        case "checkpoint":
            task = {"train": True, "base_model": model.get_classy_state(), "losses": [1.0], "phase_idx": 3}
            task["optimizer"] = {"optim": {"state": {0: {"momentum_buffer": torch.zeros(3)}}}}
            return flat({"input_args": {"config": {"name": "resnext3d"}}, "classy_state_dict": task})
    raise ValueError(container)


@pytest.mark.parametrize("container", ["get_classy_state", "state_dict", "checkpoint"])
@pytest.mark.parametrize("residual", RESIDUALS)
def test_every_container(residual, container):
    trained, model = theirs(residual), ours(residual)
    weights = Weights("", wrapped(container, trained))
    assert FORMAT.recognizes(weights)
    converted = FORMAT.convert(weights, model)
    model.load_state_dict(converted.tensors, strict=True)
    optimizer = "classy_state_dict.optimizer.optim.state.0.momentum_buffer"
    assert list(converted.left_out) == ([optimizer] if container == "checkpoint" else [])
    assert not converted.unexpected
    expected = flat(trained.get_classy_state()["model"])
    reverted = FORMAT.revert(model.state_dict())
    assert reverted.keys() == expected.keys()
    assert all(torch.equal(reverted[name], expected[name]) for name in expected)


@pytest.mark.parametrize("skip", SHORTCUTS)
@pytest.mark.parametrize("residual", RESIDUALS)
def test_settings_that_the_tensors_tell(residual, skip):
    model = ours(residual, skip)
    requires = FORMAT.convert(Weights("", flat(theirs(residual, skip).get_classy_state())), model).requires
    expected = kinds(residual, skip) | {
        "num_blocks": [2, 1],
        "stem_planes": 4,
        "stage_planes": 8,
        "num_groups": 2,
    }
    if residual != BASIC:
        expected["width_per_group"] = 3
    assert requires == {f"encoder.{key}": value for key, value in expected.items()}
    assert all(getattr(model.encoder, key) == value for key, value in expected.items())


def test_kernels_of_pictures_are_inflated():
    """A still video gives at its middle frame what the picture gave; edges see padding."""
    flat_kernels = {"stage_temporal_kernel_basis": [[1], [1]], "stem_temporal_kernel": 1}
    strides = {"stage_temporal_stride": [1, 1]}
    trained = theirs(POSTACTIVATED, temporal_conv_1x1=[True, True], **flat_kernels, **strides)
    model = ours(POSTACTIVATED, temporal_conv_1x1=[True, True], **strides)
    converted = FORMAT.convert(Weights("", flat(trained.get_classy_state())), model)
    assert converted.resized == {
        "encoder.stem.conv.weight": "a kernel of 1 frame inflated to 3",
        **{
            f"encoder.stages.{block}.branch.conv_a.weight": "a kernel of 1 frame inflated to 3"
            for block in ("0.0", "0.1", "1.0")
        },
    }
    model.load_state_dict(converted.tensors, strict=True)
    picture = torch.randn(2, 3, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        trained.clear_heads()
        expected = trained(picture)[0][:, :, 0]
        tokens = model.encoder(picture.expand(2, 3, 9, 32, 32))
    middle = tokens.reshape(2, 9, 8, 8, 16)[:, 4].movedim(-1, 1)
    torch.testing.assert_close(middle, expected)


@pytest.mark.parametrize("residual", RESIDUALS)
def test_without_a_head(residual):
    model = ours(residual)
    converted = FORMAT.convert(Weights("", flat(theirs(residual, heads=()).get_classy_state())), model)
    assert {name for name in model.state_dict() if name.startswith("encoder.")} == converted.tensors.keys()


def test_a_head_of_another_name_and_number_of_classes():
    tensors = flat(theirs(heads=("kinetics",)).get_classy_state())
    name = "model.heads.pathway0-stage2-block0.kinetics.head_fcl.projection.weight"
    tensors[name] = torch.zeros(400, 16)
    converted = FORMAT.convert(Weights("", tensors), ours())
    assert converted.tensors["head.linear.weight"].shape == (400, 16)
    assert not converted.unexpected


def test_of_several_heads_none_is_taken():
    converted = FORMAT.convert(Weights("", flat(theirs(heads=("one", "two")).get_classy_state())), ours())
    assert set(converted.left_out.values()) == {"one of several heads; the model has one"}
    assert len(converted.left_out) == 4 and not any(name.startswith("head.") for name in converted.tensors)


def test_heads_and_blocks_of_other_kinds_are_unexpected():
    tensors = flat(theirs(heads=()).get_classy_state())
    extra = {
        "model.heads.pathway0-stage2-block0.default_head.fc.weight": torch.zeros(1),
        "model.trunk.stages.0.pathway1.pathway1-stage1-block0.residual.transform.0.weight": torch.zeros(1),
    }
    assert FORMAT.convert(Weights("", tensors | extra), ours()).unexpected == [
        "trunk.stages.0.pathway1.pathway1-stage1-block0.residual.transform.0.weight",
        "heads.pathway0-stage2-block0.default_head.fc.weight",
    ]


@pytest.mark.parametrize(
    "build",
    [
        partial(nn.Linear, 3, 3),
        partial(
            build_model,
            {"name": "resnet", "num_blocks": [1], "small_input": True, "zero_init_bn_residuals": True},
        ),
    ],
    ids=["linear", "resnet"],
)
def test_other_networks_are_not_recognized(build):
    assert not FORMAT.recognizes(Weights("", build().state_dict()))
