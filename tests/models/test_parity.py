"""Equal outputs with transformers' V-JEPA 2 and VideoMAE on shared random weights.

No published checkpoint is needed: the independent implementation is filled with random numbers, its state
dict is renamed to ours, and both see the same video.
"""

import re

import pytest
import torch
from torch import nn
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VJEPA2Config,
    VJEPA2ForVideoClassification,
)
from transformers.models.videomae.modeling_videomae import get_sinusoid_encoding_table

from vidtrain.models.attentive import AttentiveClassifier
from vidtrain.models.linear_heads import MeanPoolClassifier
from vidtrain.models.positions import sincos_1d
from vidtrain.models.vit3d import ViT3D

FRAMES, SIZE, CLASSES = 8, 64, 5
# Measured with torch 2.15 on a CPU: exactly 0 for V-JEPA 2 (tokens up to 4.8, pooled 4.6, logits 2.0) and
# 2.7e-7 for VideoMAE (logits up to 1.3). The rest is room for other builds.
TOLERANCE = 1e-6

# From transformers' names to the original ones. Order matters: the first pattern that matches is used.
VJEPA2_NAMES = {
    r"vjepa2\.encoder\.embeddings\.patch_embeddings\.": "encoder.patch_embed.",
    r"vjepa2\.encoder\.layernorm\.": "encoder.norm.",
    r"vjepa2\.encoder\.layer\.(\d+)\.attention\.": r"encoder.blocks.\1.attn.",
    r"vjepa2\.encoder\.layer\.(\d+)\.": r"encoder.blocks.\1.",
    r"pooler\.cross_attention_layer\.layer_norm": "head.pooler.cross_attention_block.norm",
    r"pooler\.cross_attention_layer\.cross_attn\.q_proj": "head.pooler.cross_attention_block.xattn.q",
    r"pooler\.cross_attention_layer\.cross_attn\.(.)_proj": r"head.pooler.cross_attention_block.xattn.kv.\1",
    r"pooler\.cross_attention_layer\.": "head.pooler.cross_attention_block.",
    r"pooler\.self_attention_layers\.(\d+)\.layer_norm": r"head.pooler.blocks.\1.norm",
    r"pooler\.self_attention_layers\.(\d+)\.self_attn\.out_proj": r"head.pooler.blocks.\1.attn.proj",
    r"pooler\.self_attention_layers\.(\d+)\.self_attn\.(.)_proj": r"head.pooler.blocks.\1.attn.\2",
    r"pooler\.self_attention_layers\.(\d+)\.": r"head.pooler.blocks.\1.",
    r"pooler\.": "head.pooler.",
    r"classifier\.": "head.linear.",
}
VIDEOMAE_NAMES = {
    r"videomae\.embeddings\.patch_embeddings\.projection\.": "encoder.patch_embed.proj.",
    r"videomae\.encoder\.layer\.(\d+)\.attention\.attention\.": r"encoder.blocks.\1.attn.",
    r"videomae\.encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"encoder.blocks.\1.attn.proj.",
    r"videomae\.encoder\.layer\.(\d+)\.intermediate\.dense\.": r"encoder.blocks.\1.mlp.fc1.",
    r"videomae\.encoder\.layer\.(\d+)\.output\.dense\.": r"encoder.blocks.\1.mlp.fc2.",
    r"videomae\.encoder\.layer\.(\d+)\.layernorm_before\.": r"encoder.blocks.\1.norm1.",
    r"videomae\.encoder\.layer\.(\d+)\.layernorm_after\.": r"encoder.blocks.\1.norm2.",
    r"fc_norm\.": "head.fc_norm.",
    r"classifier\.": "head.linear.",
}


def rename(name: str, patterns: dict[str, str]) -> str:
    for pattern, ours in patterns.items():
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    raise KeyError(name)


def original_names(state: dict[str, torch.Tensor], patterns: dict[str, str]) -> dict[str, torch.Tensor]:
    """Under the original names, with query, key and value joined into qkv, the pooler's k and v into kv."""
    state = {rename(name, patterns): value for name, value in state.items()}
    for kind in ("weight", "bias"):
        state = {
            re.sub(r"\.attn\.(query|key|value)\.", lambda m: f".attn.{m[1][0]}.", k): v
            for k, v in state.items()
        }
        for query in [name for name in state if name.endswith(f".attn.q.{kind}")]:
            parts = [state.pop(query.replace(".q.", f".{part}.")) for part in "qkv"]
            state[query.replace(".q.", ".qkv.")] = torch.cat(parts)
        for key in [name for name in state if name.endswith(f".xattn.kv.k.{kind}")]:
            parts = [state.pop(key.replace(".kv.k.", f".kv.{part}.")) for part in "kv"]
            state[key.replace(".kv.k.", ".kv.")] = torch.cat(parts)
    return state


def randomize(model: nn.Module) -> None:
    """Every parameter, biases and norms too: what is zero or one at the start could hide a wrong name."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def largest_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape
    assert theirs.std() > 0.1, "outputs that hardly vary prove nothing"
    return float((ours - theirs).abs().max())


@pytest.fixture(scope="module")
def video() -> torch.Tensor:
    return torch.randn(2, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


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
    model = VJEPA2ForVideoClassification(config).eval()
    randomize(model)
    return model


@pytest.fixture(scope="module")
def ours_as_vjepa2(vjepa2) -> nn.ModuleDict:
    encoder = ViT3D(SIZE, FRAMES, embed_dim=104, depth=3, num_heads=4, positions="rope")
    # transformers gives the pooler the encoder's 1e-6; the reference, like our default, has 1e-5
    head = AttentiveClassifier(104, CLASSES, num_heads=4, depth=4, norm_eps=1e-6)
    model = nn.ModuleDict({"encoder": encoder, "head": head}).eval()
    state = {k: v for k, v in vjepa2.state_dict().items() if not k.startswith("vjepa2.predictor.")}
    model.load_state_dict(original_names(state, VJEPA2_NAMES), strict=True)
    return model


@torch.no_grad()
def test_vjepa2_encoder(video, vjepa2, ours_as_vjepa2):
    theirs = vjepa2.vjepa2(video.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert largest_difference(ours_as_vjepa2["encoder"](video), theirs) <= TOLERANCE


@torch.no_grad()
def test_vjepa2_encoder_with_more_frames(vjepa2, ours_as_vjepa2):
    video = torch.randn(1, 3, 2 * FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    theirs = vjepa2.vjepa2(video.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert largest_difference(ours_as_vjepa2["encoder"](video), theirs) <= TOLERANCE


@torch.no_grad()
def test_vjepa2_parity_would_notice_the_other_rotation(video, vjepa2, ours_as_vjepa2):
    other = ViT3D(SIZE, FRAMES, embed_dim=104, depth=3, num_heads=4, positions="rope_interleaved").eval()
    other.load_state_dict(ours_as_vjepa2["encoder"].state_dict())
    theirs = vjepa2.vjepa2(video.transpose(1, 2), skip_predictor=True).last_hidden_state
    assert largest_difference(other(video), theirs) > 1e-3


@torch.no_grad()
def test_vjepa2_pooler(vjepa2, ours_as_vjepa2):
    tokens = torch.randn(2, 40, 104, generator=torch.Generator().manual_seed(3))
    theirs = vjepa2.pooler(tokens)
    assert largest_difference(ours_as_vjepa2["head"].pooler(tokens), theirs) <= TOLERANCE


@torch.no_grad()
def test_vjepa2_logits(video, vjepa2, ours_as_vjepa2):
    theirs = vjepa2(video.transpose(1, 2)).logits
    logits = ours_as_vjepa2["head"](ours_as_vjepa2["encoder"](video))
    assert largest_difference(logits, theirs) <= TOLERANCE


@torch.no_grad()
def test_videomae_logits(video):
    config = VideoMAEConfig(
        image_size=SIZE,
        num_frames=FRAMES,
        hidden_size=96,
        num_attention_heads=4,
        num_hidden_layers=3,
        intermediate_size=384,
        num_labels=CLASSES,
    )
    theirs = VideoMAEForVideoClassification(config).eval()
    randomize(theirs)
    encoder = ViT3D(
        SIZE,
        FRAMES,
        embed_dim=96,
        depth=3,
        num_heads=4,
        positions="sincos_1d",
        norm_eps=1e-12,
        final_norm=False,
    )
    ours = nn.ModuleDict({"encoder": encoder, "head": MeanPoolClassifier(96, CLASSES, norm_eps=1e-5)}).eval()

    state = theirs.state_dict()
    for index in range(3):  # VideoMAE has biases for queries and values only
        attention = f"videomae.encoder.layer.{index}.attention.attention"
        state[f"{attention}.key.bias"] = torch.zeros_like(state[f"{attention}.query.bias"])
    ours.load_state_dict(original_names(state, VIDEOMAE_NAMES), strict=True)

    logits = ours["head"](ours["encoder"](video))
    assert largest_difference(logits, theirs(video.transpose(1, 2)).logits) <= TOLERANCE


def test_videomae_position_table():
    theirs = get_sinusoid_encoding_table(8 * 14 * 14, 384)[0]
    assert float((sincos_1d((8, 14, 14), 384).flatten(0, 2) - theirs).abs().max()) <= 6e-8  # measured: 4e-9
