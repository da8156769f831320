"""Equal outputs with transformers' V-JEPA 2 and VideoMAE on shared random weights, which come by way of the formats.

No published checkpoint is needed: the independent implementation is filled with random numbers, and both see the same
video. Figures were measured with torch 2.15 on a CPU. With the original code of facebookresearch/vjepa2,
facebookresearch/jepa and MCG-NJU/VideoMAE in place of transformers, they are 0, 0 and 2e-6.
"""

from functools import partial

import pytest
import torch
from noisy_models import built
from torch import Tensor, nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.positions import sincos_1d
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Format, Weights
from vidtrain.models.weights.loading import check_settings
from vidtrain.models.weights.videomae import VIDEOMAE_TRANSFORMERS
from vidtrain.models.weights.vjepa import VJEPA_2_TRANSFORMERS

FRAMES, SIZE, CLASSES = 8, 64, 5
TOLERANCE = 1e-6  # relative to the largest value; measured: 0 for V-JEPA 2, 2e-7 for VideoMAE


def filled(ours: VideoClassifier, theirs: nn.Module, format: Format) -> VideoClassifier:
    """Ours with their weights, all of which must find their place."""
    weights = Weights("random", theirs.state_dict(), theirs.config.to_dict())
    assert format.recognizes(weights)
    converted = format.convert(weights, ours)
    assert converted.unexpected == []
    check_settings(ours, converted.requires, "random")
    ours.load_state_dict(converted.tensors, strict=True)
    return ours.eval()


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest, relative to the largest value."""
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "outputs that hardly vary prove nothing"
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


@pytest.fixture(scope="module")
def video() -> Tensor:
    return torch.randn(2, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


# --- V-JEPA 2 ---


@pytest.fixture(scope="module")
def vjepa2() -> VJEPA2ForVideoClassification:
    config = VJEPA2Config(
        crop_size=SIZE,
        frames_per_clip=FRAMES,
        hidden_size=104,
        num_attention_heads=4,  # 26 channels a head: 8 for each axis, 2 not rotated
        num_hidden_layers=3,
        num_pooler_layers=3,
        pred_hidden_size=48,
        pred_num_attention_heads=4,
        pred_num_hidden_layers=1,
        num_labels=CLASSES,
    )
    return built(VJEPA2ForVideoClassification, config)


def as_vjepa2(theirs: nn.Module, **options) -> VideoClassifier:
    encoder = ViT3D(SIZE, FRAMES, embed_dim=104, depth=3, num_heads=4, positions="rope", **options)
    # transformers gives the pooler the encoder's 1e-6; the original, like our default, has 1e-5
    head = partial(AttentiveClassifier, num_heads=4, depth=4, norm_eps=1e-6)
    return filled(VideoClassifier(encoder, head, CLASSES), theirs, VJEPA_2_TRANSFORMERS)


def tokens_of(vjepa2: nn.Module, video: Tensor) -> Tensor:
    return vjepa2.vjepa2(video.transpose(1, 2), skip_predictor=True).last_hidden_state


@torch.no_grad()
def test_vjepa2(video, vjepa2):
    ours = as_vjepa2(vjepa2)
    assert difference(ours.encoder(video), tokens_of(vjepa2, video)) <= TOLERANCE
    assert difference(ours(video[:, None])[:, 0], vjepa2(video.transpose(1, 2)).logits) <= TOLERANCE


@torch.no_grad()
def test_vjepa2_with_more_frames(vjepa2):
    longer = torch.randn(1, 3, 2 * FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    assert difference(as_vjepa2(vjepa2).encoder(longer), tokens_of(vjepa2, longer)) <= TOLERANCE


@torch.no_grad()
def test_vjepa2_tokens_of_several_layers(video, vjepa2):
    states = vjepa2.vjepa2(video.transpose(1, 2), skip_predictor=True, output_hidden_states=True).hidden_states
    middle = vjepa2.vjepa2.encoder.layernorm(states[2])  # [0] is what enters the first block
    expected = torch.cat((middle, tokens_of(vjepa2, video)), dim=1)
    ours = as_vjepa2(vjepa2, out_layers=[1, 2])
    assert difference(ours.encoder(video), expected) <= TOLERANCE
    assert difference(ours(video[:, None])[:, 0], vjepa2.classifier(vjepa2.pooler(expected))) <= TOLERANCE


@torch.no_grad()
def test_parity_would_notice_the_other_rotation_and_other_heads(video, vjepa2):
    ours, theirs = as_vjepa2(vjepa2), tokens_of(vjepa2, video)
    for options in ({"positions": "rope_interleaved"}, {"num_heads": 2}):
        other = ViT3D(SIZE, FRAMES, 104, 3, **({"num_heads": 4, "positions": "rope"} | options)).eval()
        other.load_state_dict(ours.encoder.state_dict())
        assert difference(other(video), theirs) > 1e-3


@pytest.mark.slow
@torch.no_grad()
def test_vjepa2_giant_as_it_is_published(video):
    """One block of the real width: 22 heads, an MLP of 6144; the probe with its own 16 heads."""
    config = VJEPA2Config(
        crop_size=SIZE,
        hidden_size=1408,
        num_attention_heads=22,
        num_hidden_layers=1,
        mlp_ratio=48 / 11,
        num_pooler_layers=0,
        pred_num_hidden_layers=1,
        num_labels=CLASSES,
    )
    theirs = built(VJEPA2ForVideoClassification, config)
    encoder = ViT3D(SIZE, FRAMES, 1408, 1, 22, mlp_hidden=6144, positions="rope")
    ours = VideoClassifier(encoder, partial(AttentiveClassifier, num_heads=16), CLASSES)
    weights = Weights("random", theirs.state_dict(), config.to_dict())
    converted = VJEPA_2_TRANSFORMERS.convert(weights, ours)
    settings = ("encoder.num_heads", "head.pooler.num_heads", "head.pooler.norm_eps")
    assert [converted.requires[name] for name in settings] == [22, 16, 1e-5]
    ours.encoder.load_state_dict(
        {name.removeprefix("encoder."): each for name, each in converted.tensors.items() if name[0] == "e"}
    )
    assert difference(ours.encoder(video[:1]), tokens_of(theirs, video[:1])) <= TOLERANCE  # measured: 0


@torch.no_grad()
def test_vjepa2_in_bfloat16(video, vjepa2):
    """Rounding and no more. Measured, relative to the largest value: ours 0.009 from float32, 0.008 from theirs, which
    takes angles in bfloat16 too.
    """
    exact = tokens_of(vjepa2, video)
    ours = as_vjepa2(vjepa2).bfloat16().encoder(video.bfloat16())
    theirs = tokens_of(as_bfloat16(vjepa2), video.bfloat16())
    assert difference(ours, exact) <= 0.02
    assert difference(ours, theirs) <= 0.02


def as_bfloat16(model: nn.Module) -> nn.Module:
    """A copy, so that the one shared by the tests stays in float32."""
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy.bfloat16()


# --- VideoMAE ---


def videomae_config(**options) -> VideoMAEConfig:
    sizes = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 384}
    return VideoMAEConfig(image_size=SIZE, num_frames=FRAMES, num_labels=CLASSES, **(sizes | options))


def as_videomae(theirs: nn.Module, final_norm=False, **head) -> VideoClassifier:
    sizes = {"embed_dim": 96, "depth": 3, "num_heads": 4, "positions": "sincos_1d", "norm_eps": 1e-12}
    encoder = ViT3D(SIZE, FRAMES, final_norm=final_norm, **sizes)
    return filled(VideoClassifier(encoder, partial(MeanPoolClassifier, **head), CLASSES), theirs, VIDEOMAE_TRANSFORMERS)


@torch.no_grad()
def test_videomae(video):
    theirs = built(VideoMAEForVideoClassification, videomae_config())
    logits = as_videomae(theirs, norm_eps=1e-5)(video[:, None])[:, 0]
    assert difference(logits, theirs(video.transpose(1, 2)).logits) <= TOLERANCE


@torch.no_grad()
def test_videomae_of_the_first_token(video):
    """What fine-tuning a pretrained folder with transformers gives."""
    theirs = built(VideoMAEForVideoClassification, videomae_config(use_mean_pooling=False))
    ours = as_videomae(theirs, final_norm=True, pool="first", norm=False)
    assert difference(ours(video[:, None])[:, 0], theirs(video.transpose(1, 2)).logits) <= TOLERANCE


@torch.no_grad()
def test_videomae_in_bfloat16(video):
    """Measured, relative to the largest logit: ours 0.008 from float32, 0 from theirs."""
    theirs = built(VideoMAEForVideoClassification, videomae_config())
    exact = theirs(video.transpose(1, 2)).logits
    ours = as_videomae(theirs, norm_eps=1e-5).bfloat16()(video[:, None].bfloat16())[:, 0]
    rounded = theirs.bfloat16()(video.transpose(1, 2).bfloat16()).logits
    assert difference(ours, exact) <= 0.015
    assert difference(ours, rounded) <= 0.015


@torch.no_grad()
def test_videomae_base_as_it_is_published(video):
    """One block of the real width, with the settings of conf/model/videomae_base.yaml but for eps."""
    sizes = {"hidden_size": 768, "num_attention_heads": 12, "num_hidden_layers": 1, "intermediate_size": 3072}
    theirs = built(VideoMAEModel, videomae_config(**sizes))
    encoder = ViT3D(SIZE, FRAMES, 768, 1, 12, positions="sincos_1d", norm_eps=1e-6, final_norm=False)
    ours = VideoClassifier(encoder, MeanPoolClassifier, CLASSES).eval()
    converted = VIDEOMAE_TRANSFORMERS.convert(Weights("random", theirs.state_dict(), theirs.config.to_dict()), ours)
    check_settings(ours, converted.requires, "random")
    ours.load_state_dict(converted.tensors, strict=False)
    expected = theirs(video.transpose(1, 2)).last_hidden_state
    assert difference(ours.encoder(video), expected) <= 1e-5  # measured: 1e-6, of which eps 1e-6 for 1e-12 is most


def test_videomae_position_table():
    theirs = get_sinusoid_encoding_table(8 * 14 * 14, 384)[0]
    assert float((sincos_1d((8, 14, 14), 384).flatten(0, 2) - theirs).abs().max()) <= 6e-8  # measured: 4e-9
