"""MViT by PySlowFast's and PyTorchVideo's names: every tensor, and PyTorchVideo's numbers."""

from functools import partial

import pytest
import torch
from pytorchvideo.models.hub.vision_transformers import mvit_video_base_32x3_config, mvit_video_base_config
from pytorchvideo.models.vision_transformers import create_multiscale_vision_transformers

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.torchvision_video import TorchvisionMViT
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.loading import FORMATS, match
from vidtrain.models.weights.torchvision import PYSLOWFAST_MVIT, PYTORCHVIDEO_MVIT

HEAD = partial(MeanPoolClassifier, norm=False, dropout=0.5)
# PySlowFast's names, from its video_model_builder.py and attention.py, and ours
NAMES = {
    "patch_embed.proj.bias": "stem.conv_proj.bias",
    "cls_token": "stem.pos_encoding.class_token",
    "pos_embed_spatial": "stem.pos_encoding.spatial_pos",
    "pos_embed_class": "stem.pos_encoding.class_pos",
    "blocks.0.attn.qkv.bias": "blocks.0.attn.qkv.bias",
    "blocks.0.attn.pool_k.weight": "blocks.0.attn.pool_k.pool.weight",
    "blocks.14.attn.norm_q.bias": "blocks.14.attn.pool_q.norm_act.0.bias",
    "blocks.15.attn.proj.weight": "blocks.15.attn.project.0.weight",
    "blocks.15.mlp.fc2.weight": "blocks.15.mlp.3.weight",
    "blocks.13.proj.weight": "blocks.13.project.weight",
    "norm.weight": "norm.weight",
}


def model(name="mvit_v1_b", size=224, frames=16, classes=400) -> VideoClassifier:
    with torch.device("meta"):
        return VideoClassifier(TorchvisionMViT(size, frames, name=name), HEAD, classes).eval()


def random(tensors):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(each.shape, generator=generator) * max(1, each[0].numel()) ** -0.5
        for name, each in tensors.items()
    }


@pytest.mark.parametrize(("config", "frames"), [(mvit_video_base_config, 16), (mvit_video_base_32x3_config, 32)])
def test_pytorchvideos_published_sizes_have_our_names_and_shapes(config, frames, monkeypatch):
    for name in ("linspace", "ones"):  # whose numbers it reads while it builds
        monkeypatch.setattr(torch, name, partial(getattr(torch, name), device="cpu"))
    with torch.device("meta"):
        theirs = create_multiscale_vision_transformers(**config).state_dict()
    ours = model(frames=frames)
    reverted = PYTORCHVIDEO_MVIT.revert(ours.state_dict())
    assert {name: each.shape for name, each in reverted.items()} == {name: each.shape for name, each in theirs.items()}
    weights = Weights("", {f"model_state.{name}": each for name, each in theirs.items()})
    assert [each for each in FORMATS if each.recognizes(weights)] == [PYTORCHVIDEO_MVIT]
    converted = PYTORCHVIDEO_MVIT.convert(weights, ours)
    report, _ = match(ours, converted, "file", PYTORCHVIDEO_MVIT, min_match=1)
    assert not (report.missing or report.unexpected or report.mismatched or report.resized or report.left_out)
    assert converted.changed["encoder.blocks.3.attn.qkv.weight"] == "queries, keys and values joined"
    assert (converted.requires, converted.seen) == ({"encoder.name": "mvit_v1_b"}, {"size": 224})


@pytest.mark.slow
@torch.no_grad()
def test_the_same_logits_as_pytorchvideo():
    config = mvit_video_base_config | {"spatial_size": 32, "temporal_size": 4, "head_num_classes": 7}
    theirs = create_multiscale_vision_transformers(**config).eval()
    theirs.load_state_dict(random(theirs.state_dict()))
    ours = model(size=32, frames=4, classes=7)
    converted = PYTORCHVIDEO_MVIT.convert(Weights("", theirs.state_dict()), ours)
    ours.load_state_dict(converted.tensors, assign=True)
    clip = torch.randn(2, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = theirs(clip)
    difference = (ours(clip[:, None])[:, 0] - expected).abs().max() / expected.abs().max()
    assert expected.std() > 0.1 and float(difference) <= 1e-5  # measured: 4.4e-6


@pytest.mark.parametrize("name", ["mvit_v1_b", "mvit_v2_s"])
def test_every_tensor_of_pyslowfast_has_its_place(name):
    ours = model(name)
    own = ours.state_dict()
    published = PYSLOWFAST_MVIT.revert(own)
    if name == "mvit_v1_b":
        assert all(published[theirs].numel() == own[f"encoder.{mine}"].numel() for theirs, mine in NAMES.items())
        assert published["cls_token"].shape == published["pos_embed_class"].shape == (1, 1, 96)
        assert published["pos_embed_spatial"].shape == (1, 3136, 96)
        assert published["head.projection.weight"].shape == (400, 768)
    weights = Weights("", {f"model_state.{key}": each for key, each in published.items()})
    assert [each for each in FORMATS if each.recognizes(weights)] == [PYSLOWFAST_MVIT]
    converted = PYSLOWFAST_MVIT.convert(weights, ours)
    report, _ = match(ours, converted, "file", PYSLOWFAST_MVIT, min_match=1)
    assert not (report.missing or report.unexpected or report.mismatched or report.resized or converted.changed)
    assert converted.requires == {"encoder.name": name}


def test_positions_are_fitted_to_other_clips():
    small = {key: torch.randn(each.shape) for key, each in model(size=64).encoder.stem.state_dict().items()}
    published = PYSLOWFAST_MVIT.revert({f"encoder.stem.{key}": each for key, each in small.items()})
    published |= {f"blocks.1.attn.{part}_q.weight": torch.zeros(96, 1) for part in ("pool", "norm")}
    converted = PYSLOWFAST_MVIT.convert(Weights("", published), model(size=(32, 96), frames=32))
    assert list(converted.resized.values()) == [
        "8 positions interpolated to 16, but with clip.frames=16",
        "256 positions interpolated to 192, but with clip.size=64",
    ]
    assert converted.tensors["encoder.stem.pos_encoding.spatial_pos"].shape == (192, 96)
    table = small["pos_encoding.temporal_pos"]
    found = converted.tensors["encoder.stem.pos_encoding.temporal_pos"]
    torch.testing.assert_close(found[1], 0.75 * table[0] + 0.25 * table[1])


def test_another_version_asks_for_its_name():
    published = PYSLOWFAST_MVIT.revert(model("mvit_v1_b").state_dict())
    converted = PYSLOWFAST_MVIT.convert(Weights("", published), model("mvit_v2_s"))
    assert converted.requires == {"encoder.name": "mvit_v1_b"}
