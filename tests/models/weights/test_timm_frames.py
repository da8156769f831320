"""Weights of timm's image models, by their own names, for the encoder that takes them frame by frame."""

from functools import partial

import pytest
import timm
import torch
from timm.models import swin_transformer, vision_transformer
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.timm_frames import TimmFrames
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.image_models import TIMM_FRAMES

OURS = "encoder.network."


def video_model(name: str, size=32, features="pooled") -> VideoClassifier:
    return VideoClassifier(
        TimmFrames(name, size, features), partial(MeanPoolClassifier, norm=False), num_classes=3
    ).eval()


def published(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=7, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize(
    ("name", "classifier"),
    [
        ("test_resnet", {"fc"}),
        ("test_convnext", {"head.fc"}),
        ("test_vit", {"head"}),
        ("test_efficientnet", {"classifier"}),
        ("vit_tiny_patch16_224", {"head"}),
    ],
)
@pytest.mark.parametrize("prefix", ["", "state_dict."])
@torch.no_grad()
def test_round_trip_and_equal_features(name, classifier, prefix):
    size = timm.get_pretrained_cfg(name).input_size[-1]
    theirs, ours = published(name), video_model(name, size)
    weights = Weights("f.pth", {prefix + key: each for key, each in theirs.state_dict().items()})
    assert TIMM_FRAMES.recognizes(weights)
    converted = TIMM_FRAMES.convert(weights, ours)
    assert {key.removeprefix(prefix).rpartition(".")[0] for key in converted.left_out} == classifier
    assert (converted.unexpected, converted.resized, converted.requires) == ([], {}, {})
    missing, unexpected = ours.load_state_dict(converted.tensors, strict=False)
    assert unexpected == [] and set(missing) == {"head.linear.weight", "head.linear.bias"}
    image = torch.randn(1, 3, size, size)
    expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
    tokens = ours.encoder(image[:, :, None])[:, 0]
    assert float((tokens - expected).abs().max() / expected.abs().max()) <= 1e-6  # measured: 0
    reverted = TIMM_FRAMES.revert(ours.state_dict())
    kept = {key: each for key, each in theirs.state_dict().items() if prefix + key not in converted.left_out}
    assert set(reverted) == set(kept) and all(torch.equal(reverted[key], kept[key]) for key in kept)


@pytest.mark.parametrize(
    ("name", "fit", "size", "tensor", "note"),
    [
        (
            "test_vit",
            vision_transformer.checkpoint_filter_fn,
            64,
            "pos_embed",
            "positions [1, 101, 64] resized to [1, 17, 64]",
        ),
        (
            "test_vit",
            vision_transformer.checkpoint_filter_fn,
            (32, 64),
            "pos_embed",
            "positions [1, 101, 64] resized to [1, 9, 64]",
        ),
        (
            "swin_tiny_patch4_window7_224",
            swin_transformer.checkpoint_filter_fn,
            32,
            "layers.2.blocks.0.attn.relative_position_bias_table",
            "relative positions [169, 12] resized to [9, 12]",
        ),
    ],
)
@torch.no_grad()
def test_positions_of_another_image_size_as_timm_resizes_them(name, fit, size, tensor, note):
    theirs, ours = published(name), video_model(name, size)
    converted = TIMM_FRAMES.convert(Weights("f.pth", theirs.state_dict()), ours)
    assert converted.resized[OURS + tensor] == note
    ours.load_state_dict(converted.tensors, strict=False)
    resized = timm.create_model(name, num_classes=7, img_size=size).eval()
    resized.load_state_dict(fit(theirs.state_dict(), resized))
    own = ours.encoder.network.state_dict()
    assert all(torch.equal(own[key], each) for key, each in resized.state_dict().items() if key in own)


def test_parts_of_the_head_that_spatial_features_do_not_use():
    theirs = published("vit_base_patch16_siglip_224", img_size=32, depth=1)
    ours = video_model("test_resnet")
    ours.encoder = TimmFrames.__new__(TimmFrames)
    nn.Module.__init__(ours.encoder)
    ours.encoder.features, ours.encoder.backbone = "spatial", "vit_base_patch16_siglip_224"
    ours.encoder.network = timm.create_model("vit_base_patch16_siglip_224", num_classes=0, img_size=32, depth=1)
    ours.encoder.network.reset_classifier(0, "")
    converted = TIMM_FRAMES.convert(Weights("f.pth", theirs.state_dict()), ours)
    assert converted.left_out["attn_pool.latent"] == "not in the features that are used (spatial)"
    assert converted.unexpected == []


@torch.no_grad()
def test_dinov2_with_registers_by_the_names_of_its_publisher():
    """As its code computes: registers get no positions, the class token the first one, the features are its norm."""
    torch.manual_seed(0)
    size, width = 28, 48
    tiny = {"img_size": size, "embed_dim": width, "depth": 2, "num_heads": 3, "num_classes": 0}
    ours = video_model("test_resnet")
    ours.encoder = TimmFrames.__new__(TimmFrames)
    nn.Module.__init__(ours.encoder)
    ours.encoder.features, ours.encoder.backbone = "pooled", "vit_small_patch14_reg4_dinov2"
    network = timm.create_model("vit_small_patch14_reg4_dinov2", **tiny).eval()
    ours.encoder.network = network
    theirs = {name: torch.randn_like(each) * 0.1 for name, each in network.state_dict().items()}
    theirs["register_tokens"] = theirs.pop("reg_token")
    theirs["pos_embed"] = torch.randn(1, 1 + 4, width)
    theirs["mask_token"] = torch.zeros(1, width)
    converted = TIMM_FRAMES.convert(Weights("dinov2_vits14_reg4_pretrain.pth", theirs), ours)
    assert converted.unexpected == []
    assert list(converted.left_out) == ["mask_token"]
    assert set(converted.changed) == {OURS + "cls_token", OURS + "pos_embed"}
    assert ours.load_state_dict(converted.tensors, strict=False).missing_keys == [
        "head.linear.weight",
        "head.linear.bias",
    ]
    image = torch.randn(1, 3, size, size)
    tokens = torch.cat((theirs["cls_token"], network.patch_embed(image)), dim=1) + theirs["pos_embed"]
    tokens = torch.cat((tokens[:, :1], theirs["register_tokens"], tokens[:, 1:]), dim=1)
    expected = network.norm(network.blocks(tokens))[:, 0]
    torch.testing.assert_close(network(image), expected)


def test_weights_that_timm_cannot_convert_are_an_error():
    ours, tensors = video_model("test_vit", 64), published("test_vit").state_dict()
    converted = TIMM_FRAMES.convert(Weights("f.pth", tensors | {"pos_embed": torch.zeros(1, 8, 64)}), ours)
    assert converted.tensors[OURS + "pos_embed"].shape == (1, 8, 64)  # which is reported as of another shape
    del tensors["cls_token"]
    foreign = tensors | {"mask_token": torch.zeros(1), "register_tokens": torch.zeros(1, 4, 64)}
    with pytest.raises(UserError, match="check that model.encoder.backbone is the model of the weights"):
        TIMM_FRAMES.convert(Weights("f.pth", foreign), ours)


def test_the_model_must_be_the_one_that_is_named():
    tensors = published("test_resnet").state_dict()
    converted = TIMM_FRAMES.convert(Weights("timm:test_resnet.r160_in1k", tensors), video_model("test_resnet"))
    assert converted.requires == {"encoder.backbone": "test_resnet"}
    converted = TIMM_FRAMES.convert(
        Weights("folder", tensors, {"architecture": "test_resnet"}), video_model("test_resnet")
    )
    assert converted.requires == {"encoder.backbone": "test_resnet"}


def test_what_the_model_has_not_is_unexpected():
    tensors = {**published("test_resnet").state_dict(), "layer9.0.conv.weight": torch.zeros(1, 1, 1, 1)}
    converted = TIMM_FRAMES.convert(Weights("f.pth", tensors), video_model("test_resnet"))
    assert converted.unexpected == ["layer9.0.conv.weight"]


def test_video_models_are_not_recognized():
    assert not TIMM_FRAMES.recognizes(Weights("f.pth", {"stem.weight": torch.zeros(1, 1, 1, 1, 1)}))
    assert not TIMM_FRAMES.recognizes(Weights("f.pth", {"linear.weight": torch.zeros(1, 1)}))
    assert TIMM_FRAMES.recognizes(Weights("timm:mixer_b16_224.goog_in21k", {"stem.weight": torch.zeros(1, 1)}))


def test_colors_are_those_of_the_named_model():
    half, imagenet = [0.5] * 3, ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])

    def seen(name: str, source: str = "f.pth", config: dict | None = None) -> dict:
        tensors = {"state_dict." + key: each for key, each in published(name).state_dict().items()}
        return TIMM_FRAMES.convert(Weights(source, tensors, config), video_model(name, 224)).seen

    # of a plain file, by the backbone that the user chose
    assert seen("vit_tiny_patch16_224") == {"mean": half, "std": half}
    assert seen("resnet18") == dict(zip(("mean", "std"), imagenet, strict=True))
    # by the name of the weights, and by what timm's folder says
    assert seen("vit_tiny_patch16_224", "timm:vit_tiny_patch16_224.augreg_in21k") == {
        "size": 224, "mean": half, "std": half
    }  # fmt: skip
    stated = {"input_size": [3, 288, 288], "mean": [0.1] * 3, "std": [0.2] * 3}
    assert seen("resnet18", config={"architecture": "resnet18", "pretrained_cfg": stated}) == {
        "size": 288, "mean": [0.1] * 3, "std": [0.2] * 3
    }  # fmt: skip


def test_positions_of_another_size_say_which_size_the_weights_have_seen():
    tensors = dict(published("vit_tiny_patch16_224").state_dict())
    assert TIMM_FRAMES.convert(Weights("f.pth", tensors), video_model("vit_tiny_patch16_224", 96)).seen["size"] == 224
