"""Inflated image ViTs: a still clip gives the image's tokens; what ViT3D cannot compute is refused."""

import math
from functools import partial

import pytest
import torch
from einops import rearrange, repeat
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.image_models import TIMM_VIT

DIM, DEPTH, PATCH = 128, 2, 8
WITHOUT_TOKENS = {"class_token": False, "global_pool": "avg", "fc_norm": False}


def image_model(**options) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": PATCH, "embed_dim": DIM, "depth": DEPTH, "num_heads": DIM // 64}
    model = VisionTransformer(num_classes=5, **(sizes | options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.1)
    return model


def video_model(head=MeanPoolClassifier, num_frames=4, image_size=32, **options) -> VideoClassifier:
    encoder = ViT3D(
        image_size,
        num_frames,
        DIM,
        DEPTH,
        num_heads=DIM // 64,
        patch_size=PATCH,
        positions="learned",
        **options,
    )
    return VideoClassifier(encoder, head, num_classes=3).eval()


def published(model: nn.Module, source="image.pth", prefix="") -> Weights:
    return Weights(source, {prefix + name: each for name, each in model.state_dict().items()})


def loaded(theirs: nn.Module, ours: VideoClassifier):
    converted = TIMM_VIT.convert(published(theirs), ours)
    state = ours.state_dict()
    assert all(state[name].shape == tensor.shape for name, tensor in converted.tensors.items())
    missing, unexpected = ours.load_state_dict(converted.tensors, strict=False)
    assert unexpected == [] and all(name.startswith("head.") for name in missing)
    return converted


@torch.no_grad()
def still_difference(theirs: nn.Module, ours: VideoClassifier, size=32) -> float:
    """Largest difference between the tokens of a still clip and of the image, over the largest token."""
    image = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    tokens = ours.encoder(repeat(image, "b c h w -> b c t h w", t=4))
    expected = repeat(theirs.forward_features(image), "b n d -> b (t n) d", t=2)
    return float((tokens - expected).abs().max() / expected.abs().max())


def test_a_still_clip_gives_the_tokens_of_the_image():
    theirs, ours = image_model(**WITHOUT_TOKENS), video_model()
    converted = loaded(theirs, ours)
    assert still_difference(theirs, ours) <= 2e-6  # measured: 4e-7
    assert converted.resized == {
        "encoder.patch_embed.proj.weight": "image patches inflated to 2 frames",
        "encoder.patch_embed.pos_embed": "positions repeated over 2 steps of time",
    }
    assert converted.requires == {
        "encoder.positions": "learned",
        "encoder.activation": "gelu",
        "encoder.num_heads": 2,
        "encoder.norm_eps": 1e-6,
        "encoder.final_norm": True,
    }
    assert set(converted.left_out) == {"head.weight", "head.bias"}


def test_frames_that_differ_give_other_tokens():
    theirs, ours = image_model(**WITHOUT_TOKENS), video_model()
    loaded(theirs, ours)
    clip = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    first, second = rearrange(ours.encoder(clip), "b (t n) d -> t b n d", t=2)
    assert not torch.allclose(first, second, atol=1e-2)


def test_layer_scale_is_folded_into_the_layer_before_it():
    theirs, ours = image_model(**WITHOUT_TOKENS, init_values=0.1), video_model()
    converted = loaded(theirs, ours)
    assert still_difference(theirs, ours) <= 2e-6  # measured: 4e-7
    assert len(converted.changed) == 4 * DEPTH
    assert set(converted.changed) >= {f"encoder.blocks.1.{name}.bias" for name in ("attn.proj", "mlp.fc2")}


@pytest.mark.parametrize("options", [WITHOUT_TOKENS, {"reg_tokens": 4}, {"no_embed_class": True}])
def test_another_size_interpolates_positions(options):
    theirs, ours = image_model(**options), video_model(image_size=48)
    converted = loaded(theirs, ours)
    assert "4x4 positions interpolated to 6x6" in converted.resized["encoder.patch_embed.pos_embed"]
    if options is WITHOUT_TOKENS:
        theirs.set_input_size((48, 48))
        assert still_difference(theirs, ours, size=48) <= 2e-6  # measured: 5e-7


def test_the_norm_of_the_mean_is_the_heads():
    theirs = image_model(class_token=False, global_pool="avg")
    ours = video_model(final_norm=False)
    converted = loaded(theirs, ours)
    assert converted.requires["encoder.final_norm"] is False
    image = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pooled = ours.head.fc_norm(ours.encoder(repeat(image, "b c h w -> b c t h w", t=4)).mean(dim=1))
        expected = theirs.forward_head(theirs.forward_features(image), pre_logits=True)
    torch.testing.assert_close(pooled, expected, atol=1e-6, rtol=0)  # measured: 1e-7

    attentive = TIMM_VIT.convert(published(theirs), video_model(partial(AttentiveClassifier, num_heads=2)))
    assert "no such norm" in attentive.left_out["fc_norm.weight"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({}, {"cls_token"}),
        ({"reg_tokens": 4}, {"cls_token", "reg_token"}),
        ({"class_token": False, "reg_tokens": 4, "global_pool": "avg"}, {"reg_token"}),
    ],
)
def test_tokens_of_no_patch_are_left_out_with_the_reason(options, names):
    converted = TIMM_VIT.convert(published(image_model(**options)), video_model())
    found = {name: why for name, why in converted.left_out.items() if not name.startswith("head.")}
    assert set(found) == names
    assert all("similar to the image model's, not equal" in why for why in found.values())
    assert converted.tensors["encoder.patch_embed.pos_embed"].shape == (2, 4, 4, DIM)
    assert "of other tokens dropped" in converted.resized["encoder.patch_embed.pos_embed"]


@pytest.mark.parametrize("prefix", ["", "model.", "state_dict."])
@pytest.mark.parametrize("options", [WITHOUT_TOKENS, {"class_token": False, "global_pool": "avg"}])
def test_round_trip(prefix, options):
    theirs = image_model(**options)
    weights = published(theirs, prefix=prefix)
    assert TIMM_VIT.recognizes(weights)
    reverted = TIMM_VIT.revert(TIMM_VIT.convert(weights, video_model()).tensors)
    expected = {name: each for name, each in theirs.state_dict().items() if not name.startswith("head.")}
    assert set(reverted) == set(expected)
    assert all(torch.equal(reverted[name], each) for name, each in expected.items())


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"qk_norm": True}, "blocks.0.attn.q_norm.weight"),
        ({"pre_norm": True}, "norm_pre.weight"),
        ({"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}, r"blocks.0.mlp \(gated\)"),
        ({"norm_layer": "rmsnorm"}, r"blocks.0.norm1 \(not a LayerNorm\)"),
        ({"embed_norm_layer": nn.LayerNorm}, "patch_embed.norm.weight"),
    ],
)
def test_parts_that_the_encoder_has_not(options, part):
    with pytest.raises(UserError, match=rf"image\.pth: .*ViT3D does not have: .*{part}.*model=timm_frames"):
        TIMM_VIT.convert(published(image_model(**options)), video_model())


def test_positions_of_an_oblong_image():
    with pytest.raises(UserError, match="is not that of a square image"):
        TIMM_VIT.convert(published(image_model(img_size=(32, 64), **WITHOUT_TOKENS)), video_model())


@pytest.mark.parametrize(
    ("source", "config", "heads", "norm_eps"),
    [
        ("timm:test_vit3.r160_in1k", None, 3, 1e-6),
        ("folder", {"architecture": "vit_tiny_patch16_224"}, 3, 1e-6),
        ("file.pth", None, 1, 1e-6),  # by its width, 96 / 64
    ],
)
def test_heads_are_those_of_the_named_model(source, config, heads, norm_eps):
    tensors = image_model(embed_dim=96, num_heads=3).state_dict()
    ours = ViT3D(32, 4, 96, 2, 3, patch_size=PATCH, positions="learned")
    converted = TIMM_VIT.convert(Weights(source, tensors, config), VideoClassifier(ours, MeanPoolClassifier, 3))
    assert (converted.requires["encoder.num_heads"], converted.requires["encoder.norm_eps"]) == (
        heads,
        norm_eps,
    )


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vit_base_patch16_rpn_224", "block ResPostBlock"),
        ("vit_base_patch32_siglip_256", "activation GELUTanh"),
    ],
)
def test_a_named_model_that_computes_otherwise(name, part):
    weights = Weights(f"timm:{name}.webli", image_model().state_dict())
    with pytest.raises(UserError, match=rf"ViT3D does not have: {part}; .*model\.encoder\.backbone={name}"):
        TIMM_VIT.convert(weights, video_model())


def test_other_weights_are_not_recognized():
    tensors = image_model().state_dict()
    video = tensors | {"patch_embed.proj.weight": torch.zeros(DIM, 3, 2, PATCH, PATCH)}
    stages = tensors | {"blocks.1.attn.qkv.weight": torch.zeros(6 * DIM, 2 * DIM)}
    without = {name: each for name, each in tensors.items() if name != "pos_embed"}
    for others in (video, stages, without, {"fc.weight": torch.zeros(2, 2)}):
        assert not TIMM_VIT.recognizes(Weights("other.pth", others))


def test_positions_other_than_learned_are_named():
    encoder = ViT3D(32, 4, DIM, DEPTH, 2, patch_size=PATCH)
    converted = TIMM_VIT.convert(published(image_model()), VideoClassifier(encoder, MeanPoolClassifier, 3))
    assert converted.requires["encoder.positions"] == "learned" != encoder.positions
    assert math.prod(converted.tensors["encoder.patch_embed.proj.weight"].shape) > 0
