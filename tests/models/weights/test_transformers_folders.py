"""Folders as transformers' own `save_pretrained` writes them: read, converted, and given back equal."""

from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
    VJEPA2Model,
)

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.files import read
from vidtrain.models.weights.format import Converted, Weights
from vidtrain.models.weights.loading import check_settings
from vidtrain.models.weights.videomae import VIDEOMAE_TRANSFORMERS
from vidtrain.models.weights.vjepa import VJEPA_2_TRANSFORMERS

DIM, CLASSES = 48, 5
SIZES = {"hidden_size": DIM, "num_attention_heads": 4, "num_hidden_layers": 2, "num_labels": CLASSES}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
DECODER = {
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 48,
}


def vjepa2(**options) -> VJEPA2Config:
    return VJEPA2Config(crop_size=32, num_pooler_layers=2, **(SIZES | PREDICTOR | options))


def videomae(**options) -> VideoMAEConfig:
    sizes = {"image_size": 32, "num_frames": 4, "intermediate_size": 192}
    return VideoMAEConfig(**(SIZES | DECODER | sizes | options))


def saved(kind, config, folder) -> Weights:
    """The folder read back, every tensor random, as ones and zeros could hide a wrong place."""
    model = kind(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    model.save_pretrained(folder)
    return read(folder, "folder")


def vjepa2_model(heads=4, eps=1e-5, **options) -> VideoClassifier:
    encoder = ViT3D(32, 4, DIM, 2, **({"num_heads": 4, "positions": "rope"} | options))
    head = partial(AttentiveClassifier, num_heads=heads, depth=3, norm_eps=eps)
    return VideoClassifier(encoder, head, CLASSES)


def videomae_model(final_norm=False, **head) -> VideoClassifier:
    encoder = ViT3D(32, 4, DIM, 2, num_heads=4, positions="sincos_1d", final_norm=final_norm)
    return VideoClassifier(encoder, partial(MeanPoolClassifier, **head), CLASSES)


def loaded(weights: Weights, ours: VideoClassifier, format, part: str) -> Converted:
    both = (VJEPA_2_TRANSFORMERS, VIDEOMAE_TRANSFORMERS)
    assert [each for each in both if each.recognizes(weights)] == [format]
    converted = format.convert(weights, ours)
    check_settings(ours, converted.requires, "folder")
    assert converted.unexpected == []
    assert converted.tensors.keys() == {name for name in ours.state_dict() if name.startswith(part)}
    ours.load_state_dict(converted.tensors, strict=False)
    return converted


def back(ours: VideoClassifier, format, part: str) -> dict[str, Tensor]:
    return format.revert({name: each for name, each in ours.state_dict().items() if name.startswith(part)})


def equal_but(left_out: set[str], published: Weights, found: dict[str, Tensor]) -> bool:
    kept = {name: each for name, each in published.tensors.items() if name not in left_out}
    return kept.keys() == found.keys() and all(torch.equal(kept[name], found[name]) for name in kept)


# --- V-JEPA 2 ---


@pytest.mark.parametrize(("kind", "part"), [(VJEPA2Model, "encoder."), (VJEPA2ForVideoClassification, "")])
def test_vjepa2(tmp_path, kind, part):
    weights, ours = saved(kind, vjepa2(), tmp_path), vjepa2_model()
    converted = loaded(weights, ours, VJEPA_2_TRANSFORMERS, part)
    assert converted.changed["encoder.blocks.1.attn.qkv.bias"] == "queries, keys and values joined"
    predictor = {name for name in weights.tensors if "predictor." in name}
    assert converted.left_out.keys() == predictor
    assert equal_but(predictor, weights, back(ours, VJEPA_2_TRANSFORMERS, part))


def test_vjepa2_asks_for_what_its_config_says(tmp_path):
    weights = saved(VJEPA2ForVideoClassification, vjepa2(layer_norm_eps=1e-7), tmp_path)
    ours = vjepa2_model(heads=2, num_heads=2, positions="sincos")
    with pytest.raises(UserError) as error:
        check_settings(ours, VJEPA_2_TRANSFORMERS.convert(weights, ours).requires, "folder")
    assert {line.strip() for line in str(error.value).splitlines()[1:]} == {
        "model.encoder.num_heads=4 (it is 2)",
        "model.encoder.norm_eps=1e-07 (it is 1e-06)",
        "model.encoder.positions=rope (it is sincos)",
        "model.head.num_heads=4 (it is 2)",
    }


@pytest.mark.parametrize(("heads", "asked"), [(16, 16), (22, 22), (11, 16)])
def test_the_probe_of_vit_g_was_trained_with_16_heads_and_transformers_runs_it_with_22(heads, asked):
    with torch.device("meta"):
        config = vjepa2(hidden_size=1408, num_attention_heads=22)
        weights = Weights("folder", VJEPA2ForVideoClassification(config).state_dict(), config.to_dict())
        encoder = ViT3D(32, 4, 1408, 1, 22, positions="rope")
        ours = VideoClassifier(encoder, partial(AttentiveClassifier, num_heads=heads), CLASSES)
        requires = VJEPA_2_TRANSFORMERS.convert(weights, ours).requires
    assert (requires["encoder.num_heads"], requires["head.pooler.num_heads"]) == (22, asked)


@pytest.mark.parametrize(("eps", "asked"), [(1e-5, 1e-5), (1e-6, 1e-6), (1e-4, 1e-5)])
def test_the_probe_takes_the_eps_of_the_original_or_of_transformers(tmp_path, eps, asked):
    weights = saved(VJEPA2ForVideoClassification, vjepa2(), tmp_path)
    requires = VJEPA_2_TRANSFORMERS.convert(weights, vjepa2_model(eps=eps)).requires
    assert requires["head.pooler.norm_eps"] == asked


def test_vjepa2_without_a_config_goes_by_the_width(tmp_path):
    tensors = saved(VJEPA2Model, vjepa2(hidden_size=384, num_attention_heads=6), tmp_path).tensors
    requires = VJEPA_2_TRANSFORMERS.convert(Weights("model.safetensors", tensors), vjepa2_model()).requires
    assert requires["encoder.num_heads"] == 6


# --- VideoMAE ---


def test_videomae_for_classification(tmp_path):
    weights, ours = saved(VideoMAEForVideoClassification, videomae(), tmp_path), videomae_model()
    assert "videomae.encoder.layer.0.attention.attention.q_bias" in weights.tensors  # as on the hub
    converted = loaded(weights, ours, VIDEOMAE_TRANSFORMERS, "")
    assert "zeros for keys" in converted.changed["encoder.blocks.0.attn.qkv.bias"]
    assert not converted.tensors["encoder.blocks.0.attn.qkv.bias"][DIM : 2 * DIM].any()
    assert equal_but(set(), weights, back(ours, VIDEOMAE_TRANSFORMERS, ""))


def test_videomae_by_the_names_that_transformers_has_in_memory():
    model, ours = VideoMAEForVideoClassification(videomae()), videomae_model()
    weights = Weights("state", model.state_dict(), model.config.to_dict())
    loaded(weights, ours, VIDEOMAE_TRANSFORMERS, "")
    model.load_state_dict(weights.tensors)
    query = weights.tensors["videomae.encoder.layer.1.attention.attention.query.bias"]
    assert torch.equal(ours.encoder.blocks[1].attn.qkv.bias[:DIM], query)


@pytest.mark.parametrize("pooling", [True, False])
def test_videomae_of_pretraining(tmp_path, pooling):
    weights = saved(VideoMAEForPreTraining, videomae(use_mean_pooling=pooling), tmp_path)
    ours = videomae_model()
    converted = loaded(weights, ours, VIDEOMAE_TRANSFORMERS, "encoder.")
    norm = set() if pooling else {f"videomae.layernorm.{kind}" for kind in ("weight", "bias")}
    decoder = {name for name in weights.tensors if not name.startswith("videomae.")}
    assert converted.left_out.keys() == norm | decoder
    assert equal_but(norm | decoder, weights, back(ours, VIDEOMAE_TRANSFORMERS, "encoder."))


def test_videomae_base_model(tmp_path):
    weights, ours = saved(VideoMAEModel, videomae(), tmp_path), videomae_model()
    loaded(weights, ours, VIDEOMAE_TRANSFORMERS, "encoder.")
    named = Weights("", {f"videomae.{name}": each for name, each in weights.tensors.items()})
    assert equal_but(set(), named, back(ours, VIDEOMAE_TRANSFORMERS, "encoder."))


def test_videomae_over_the_first_token_asks_for_such_a_head(tmp_path):
    weights = saved(VideoMAEForVideoClassification, videomae(use_mean_pooling=False), tmp_path)
    ours = videomae_model()
    with pytest.raises(UserError) as error:
        check_settings(ours, VIDEOMAE_TRANSFORMERS.convert(weights, ours).requires, "folder")
    asked = ["final_norm=true (it is false)", "pool=first (it is mean)", "norm=false (it is true)"]
    assert [line.strip().split(".")[2] for line in str(error.value).splitlines()[1:]] == asked
    ours = videomae_model(final_norm=True, pool="first", norm=False)
    loaded(weights, ours, VIDEOMAE_TRANSFORMERS, "")
    assert equal_but(set(), weights, back(ours, VIDEOMAE_TRANSFORMERS, ""))


def test_videomae_pretrained_at_another_size(tmp_path):
    weights = saved(VideoMAEForPreTraining, videomae(image_size=64), tmp_path)
    ours = videomae_model()
    with pytest.raises(UserError, match=r"model\.encoder\.image_size=64 \(it is 32\)"):
        check_settings(ours, VIDEOMAE_TRANSFORMERS.convert(weights, ours).requires, "folder")
