"""torchvision's weights: by name and as tensors; what was published comes back."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, FullyConvolutionalClassifier, MeanPoolClassifier
from vidtrain.models.torchvision_video import (
    TorchvisionMViT,
    TorchvisionResNet,
    TorchvisionS3D,
    TorchvisionSwin,
)
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.torchvision import (
    MODELS,
    TORCHVISION_MVIT,
    TORCHVISION_RESNET,
    TORCHVISION_S3D,
    TORCHVISION_SWIN,
    enum_weights,
    is_enum_name,
)

FORMATS = (TORCHVISION_RESNET, TORCHVISION_S3D, TORCHVISION_MVIT, TORCHVISION_SWIN)
MEAN = partial(MeanPoolClassifier, norm=False)
KINDS = {
    "r3d_18": (TORCHVISION_RESNET, lambda: TorchvisionResNet("r3d_18")),
    "r2plus1d_18": (TORCHVISION_RESNET, lambda: TorchvisionResNet("r2plus1d_18")),
    "mc3_18": (TORCHVISION_RESNET, lambda: TorchvisionResNet("mc3_18")),
    "s3d": (TORCHVISION_S3D, TorchvisionS3D),
    "mvit_v1_b": (
        TORCHVISION_MVIT,
        lambda: TorchvisionMViT(image_size=224, num_frames=16, name="mvit_v1_b"),
    ),
    "mvit_v2_s": (TORCHVISION_MVIT, lambda: TorchvisionMViT(image_size=224, num_frames=16)),
    "swin3d_t": (TORCHVISION_SWIN, lambda: TorchvisionSwin("swin3d_t")),
    "swin3d_s": (TORCHVISION_SWIN, lambda: TorchvisionSwin("swin3d_s")),
    "swin3d_b": (TORCHVISION_SWIN, lambda: TorchvisionSwin("swin3d_b")),
}


def published(name: str) -> dict[str, Tensor]:
    """A state dict as torchvision would save it, of views into one row of random numbers."""
    with torch.device("meta"):
        layout = get_model(name, weights=None).state_dict()
    numbers = torch.randn(max(each.numel() for each in layout.values()) + len(layout))
    return {
        key: numbers[start : start + each.numel()].view(each.shape).to(each.dtype)
        for start, (key, each) in enumerate(layout.items())
    }


def model_for(name: str, head=MEAN, num_classes: int = 400) -> VideoClassifier:
    with torch.device("meta"):
        return VideoClassifier(KINDS[name][1](), head, num_classes)


@pytest.mark.parametrize("name", KINDS)
def test_what_was_published_comes_back(name):
    tensors, model = published(name), model_for(name)
    weights = Weights(f"{name}.pth", tensors)
    format = KINDS[name][0]
    assert [each for each in FORMATS if each.recognizes(weights)] == [format]
    assert isinstance(model.encoder, format.encoder) and f"{name}" in format.models
    found = format.convert(weights, model)
    assert not found.unexpected and not found.left_out and not found.resized
    assert found.requires == ({} if name == "s3d" else {"encoder.name": name})
    state = model.state_dict()
    assert {key: each.shape for key, each in found.tensors.items()} == {key: each.shape for key, each in state.items()}
    model.load_state_dict(found.tensors, assign=True)
    again = format.revert(model.state_dict())
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


def test_the_convolution_of_s3d_becomes_its_linear_layer():
    tensors = published("s3d")
    found = TORCHVISION_S3D.convert(Weights("s3d.pth", tensors), model_for("s3d"))
    assert torch.equal(found.tensors["head.linear.weight"], tensors["classifier.1.weight"].flatten(1))
    assert found.changed == {"head.linear.weight": "a 1x1x1 convolution, as a linear layer"}


@pytest.mark.parametrize("prefix", ["model.", "module."])
def test_a_training_checkpoint_is_unwrapped(prefix):
    tensors = published("mc3_18")
    wrapped = {prefix + key: each for key, each in tensors.items()} | {"model_ema.n_averaged": torch.zeros(())}
    found = TORCHVISION_RESNET.convert(Weights("checkpoint.pth", wrapped), model_for("mc3_18"))
    assert found.left_out == {"model_ema.n_averaged": "not of the model"}
    assert found.tensors.keys() == model_for("mc3_18").state_dict().keys()


def test_tensors_without_a_place_are_unexpected():
    tensors = published("r3d_18") | {"layer5.0.weight": torch.zeros(1), "neck.weight": torch.zeros(1)}
    model = model_for("r3d_18")
    found = TORCHVISION_RESNET.convert(Weights("r3d_18.pth", tensors), model)
    lost = [*found.unexpected, *(key for key in found.tensors if key not in model.state_dict())]
    assert lost == ["neck.weight", "encoder.layer5.0.weight"]


def test_other_weights_are_not_recognized():
    vit = {
        "patch_embed.proj.weight": torch.zeros(8, 3, 2, 16, 16),
        "blocks.0.attn.qkv.weight": torch.zeros(24, 8),
    }
    for tensors in (vit, {"fc.weight": torch.zeros(3, 4)}):
        assert not any(format.recognizes(Weights("other.pth", tensors)) for format in FORMATS)


@pytest.mark.parametrize(
    ("name", "head", "kept"),
    [
        ("r3d_18", MEAN, True),
        ("s3d", partial(FullyConvolutionalClassifier, pool_size=(2, 7, 7)), True),
        ("r3d_18", MeanPoolClassifier, False),  # with a norm
        ("r3d_18", partial(MEAN, pool="first"), False),
        ("r3d_18", partial(AttentiveClassifier, num_heads=4, depth=1), False),
    ],
)
def test_the_head_goes_to_heads_that_compute_the_same(name, head, kept):
    format, tensors = KINDS[name][0], published(name)
    found = format.convert(Weights("file.pth", tensors), model_for(name, head))
    theirs = {"r3d_18": "fc", "s3d": "classifier.1"}[name]
    assert ("head.linear.weight" in found.tensors) == kept
    reason = "the model's head pools in another way"
    assert found.left_out == ({} if kept else {f"{theirs}.weight": reason, f"{theirs}.bias": reason})


def test_the_head_of_mvit_is_the_class_tokens():
    tensors = published("mvit_v2_s")
    model = model_for("mvit_v2_s")
    model.encoder.tokens = "patches"
    found = TORCHVISION_MVIT.convert(Weights("mvit.pth", tensors), model)
    assert found.left_out.keys() == {"head.1.weight", "head.1.bias"}


def test_relative_positions_are_fitted_to_another_clip():
    tensors = published("mvit_v2_s")
    with torch.device("meta"):
        model = VideoClassifier(TorchvisionMViT(image_size=112, num_frames=32), MEAN, num_classes=400)
    found = TORCHVISION_MVIT.convert(Weights("mvit.pth", tensors), model)
    shapes = {key: each.shape for key, each in model.state_dict().items()}
    assert {key: each.shape for key, each in found.tensors.items()} == shapes
    name = "encoder.blocks.0.attn.rel_pos_h"
    assert found.resized[name] == "111 relative positions interpolated to 55"
    assert found.resized["encoder.blocks.3.attn.rel_pos_t"] == "15 relative positions interpolated to 31"
    assert len(found.resized) == 3 * 16
    published_table = tensors["blocks.0.attn.rel_pos_h"]
    expected = F.interpolate(published_table.T[None], size=55, mode="linear")[0].T
    assert torch.equal(found.tensors[name], expected)


@torch.no_grad()
def test_fitted_positions_answer_as_interpolated_ones():
    """A model made for the clip, and one made for another that interpolates on the way: to the last bit."""
    torch.manual_seed(0)
    made_for_another = VideoClassifier(TorchvisionMViT(image_size=64, num_frames=8), MEAN, num_classes=3).eval()
    with torch.device("meta"):
        made_for_it = VideoClassifier(TorchvisionMViT(image_size=32, num_frames=4), MEAN, num_classes=3).eval()
    tensors = TORCHVISION_MVIT.revert(made_for_another.state_dict())
    found = TORCHVISION_MVIT.convert(Weights("mvit.pth", tensors), made_for_it)
    assert found.resized
    made_for_it.load_state_dict(found.tensors, assign=True)
    clips = torch.randn(2, 1, 3, 4, 32, 32)
    assert torch.equal(made_for_it(clips), made_for_another(clips))


@pytest.mark.parametrize(
    ("text", "is_name"),
    [
        ("R2Plus1D_18_Weights.KINETICS400_V1", True),
        ("R3D_18_Weights.DEFAULT", True),
        ("r3d_18_weights.kinetics400_v1", True),
        ("R3D_18_Weight.KINETICS400_V1", True),
        ("R3D_18_Weights", False),
        ("my_weights.pth", False),
        ("my_weights.safetensors", False),
        ("runs/my_weights.best", False),
        ("facebook/vjepa2-vitl-fpc64-256", False),
        ("timm:vit_base_patch16_224.augreg_in21k", False),
    ],
)
def test_what_a_name_looks_like(text, is_name):
    assert is_enum_name(text) == is_name


def test_names_of_weights():
    assert enum_weights("S3D_Weights.DEFAULT") is get_model_weights("s3d").DEFAULT
    for name in MODELS:
        for member in get_model_weights(name):
            spelt = f"{type(member).__name__}.{member.name}"
            assert is_enum_name(spelt) and enum_weights(spelt) is member


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("R3D_18_Weights.KINETICS400_V2", r"pretrained=R3D_18_Weights\.KINETICS400_V2 is not among .* did you mean "
         r"R3D_18_Weights\.KINETICS400_V1"),
        ("r3d_18_weight.kinetics400_v1", r"did you mean R3D_18_Weights\.KINETICS400_V1"),
        ("MViT_V1_S_Weights.KINETICS400_V1", r"did you mean .*MViT_V2_S_Weights\.KINETICS400_V1"),
        ("X_Weights.Y", r"choose one of R3D_18_Weights\.KINETICS400_V1, .*Swin3D_B_Weights\.DEFAULT\."),
    ],
)  # fmt: skip
def test_names_that_do_not_exist(name, message):
    with pytest.raises(UserError, match=message):
        enum_weights(name)


def test_formats_say_which_models_to_choose():
    named = " ".join(format.models for format in FORMATS)
    assert all(name in named for name in MODELS)
    assert all(issubclass(format.encoder, nn.Module) for format in FORMATS)
