"""Clips to logits: shapes, what each fusion sees, and the shipped sizes."""

from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from composing import config_of
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D

CONF = Path(__file__).parents[2] / "conf"
CLASSES = 7
HEADS = {
    "attentive": partial(AttentiveClassifier, num_heads=4, depth=2),
    "mean": MeanPoolClassifier,
}


def classifier(fusion: str, head: str = "attentive") -> VideoClassifier:
    torch.manual_seed(0)
    encoder = ViT3D(image_size=32, num_frames=4, embed_dim=48, depth=1, num_heads=4)
    return VideoClassifier(encoder, HEADS[head], num_classes=CLASSES, fusion=fusion)


def clips(videos=2, views=3) -> torch.Tensor:
    return torch.randn(videos, views, 3, 4, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("fusion", "rows"), [("mean_logits", 3), ("mean_probs", 3), ("joint", 1)])
@torch.no_grad()
def test_shapes(head, fusion, rows):
    model = classifier(fusion, head)
    assert model(clips()).shape == (2, rows, CLASSES)
    assert model(clips(videos=0)).shape == (0, rows, CLASSES)
    assert (model.fusion, model.num_classes) == (fusion, CLASSES)


@torch.no_grad()
def test_clips_are_judged_alone_unless_joint():
    model = classifier("mean_logits")
    logits = model(clips())
    for view in range(3):
        alone = model(clips()[:, view : view + 1])
        torch.testing.assert_close(logits[:, view : view + 1], alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_joint_attends_to_the_tokens_of_all_clips():
    model = classifier("joint")
    tokens = torch.cat([model.encoder(clips()[:, view]) for view in range(3)], dim=1)
    torch.testing.assert_close(model(clips())[:, 0], model.head(tokens), atol=1e-5, rtol=0)
    one_clip = clips()[:, :1]
    torch.testing.assert_close(model(one_clip), classifier("mean_logits")(one_clip), atol=1e-5, rtol=0)


@torch.no_grad()
def test_videos_do_not_mix():
    model, changed = classifier("joint"), clips()
    changed[1] += 1
    torch.testing.assert_close(model(changed)[0], model(clips())[0], atol=1e-5, rtol=0)
    assert not torch.allclose(model(changed)[1], model(clips())[1], atol=1e-3)


def test_unknown_fusion():
    with pytest.raises(UserError, match=r"model\.fusion='max' .*mean_logits, mean_probs, joint\."):
        classifier("max")


def build(name: str) -> nn.Module:
    """conf/model/<name>.yaml, as the training app builds it, but without memory for its weights."""
    with torch.device("meta"):
        config = config_of(f"model/{name}", "+clip.size=64", "+clip.frames=16")
        return hydra.utils.instantiate(config.model)(num_classes=174)


# Published: 86.2 M for ViT-B, 303.9 M for ViT-L, 631.6 M for ViT-H and 1012.2 M for V-JEPA 2's ViT-g
@pytest.mark.parametrize(
    ("name", "dim", "depth", "heads", "mlp_hidden", "millions"),
    [
        ("vit3d_micro", 96, 3, 4, 384, 0.4),
        ("vit3d_tiny", 192, 12, 3, 768, 5.6),
        ("vit3d_small", 384, 12, 6, 1536, 21.9),
        ("vit3d_base", 768, 12, 12, 3072, 86.2),
        ("vit3d_large", 1024, 24, 16, 4096, 303.9),
        ("vit3d_huge", 1280, 32, 16, 5120, 631.6),
        ("vit3d_giant", 1408, 40, 22, 6144, 1012.2),
        ("vjepa1_vitl", 1024, 24, 16, 4096, 303.9),
        ("vjepa1_vith", 1280, 32, 16, 5120, 631.6),
        ("vjepa2_vitl", 1024, 24, 16, 4096, 303.9),
        ("vjepa2_vith", 1280, 32, 16, 5120, 631.6),
        ("vjepa2_vitg", 1408, 40, 22, 6144, 1012.2),
        ("vjepa2_1_vitb", 768, 12, 12, 3072, 86.2),
        ("vjepa2_1_vitl", 1024, 24, 16, 4096, 303.9),
        ("vjepa2_1_vitg", 1408, 40, 22, 6144, 1012.2),
        ("vjepa2_1_vitgigantic", 1664, 48, 26, 8192, 1843.9),
        ("videomae_small", 384, 12, 6, 1536, 21.9),
        ("videomae_base", 768, 12, 12, 3072, 86.2),
        ("videomae_large", 1024, 24, 16, 4096, 303.9),
        ("videomae_huge", 1280, 32, 16, 5120, 631.6),
        ("videomae_giant", 1408, 40, 16, 6144, 1011.7),
    ],
)
def test_shipped_sizes(name, dim, depth, heads, mlp_hidden, millions):
    encoder = build(name).encoder
    block = encoder.blocks[0]
    sizes = (encoder.embed_dim, len(encoder.blocks), encoder.num_heads, block.mlp.fc1.out_features)
    assert sizes == (dim, depth, heads, mlp_hidden)
    assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 1) == millions
    assert f"{millions} M" in (CONF / "model" / f"{name}.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize(
    ("name", "positions", "encoder_eps", "heads", "layers", "head_eps", "millions"),
    [
        ("vjepa1_vitl", "sincos_uniform", 1e-6, 16, 1, 1e-5, 11.7),
        ("vjepa1_vith", "sincos_uniform", 1e-6, 16, 1, 1e-5, 18.3),
        ("vjepa2_vitl", "rope", 1e-6, 16, 4, 1e-5, 49.5),
        ("vjepa2_vith", "rope", 1e-6, 16, 4, 1e-5, 77.3),
        ("vjepa2_vitg", "rope", 1e-6, 16, 4, 1e-5, 93.5),
        ("vjepa2_1_vitb", "rope_interleaved", 1e-6, 16, 4, 1e-5, 27.9),
        ("vjepa2_1_vitl", "rope_interleaved", 1e-6, 16, 4, 1e-5, 49.5),
        ("vjepa2_1_vitg", "rope_interleaved", 1e-6, 16, 4, 1e-5, 93.5),
        ("vjepa2_1_vitgigantic", "rope_interleaved", 1e-6, 16, 4, 1e-5, 130.5),
    ],
)
def test_probes_of_vjepa(name, positions, encoder_eps, heads, layers, head_eps, millions):
    """Heads and epsilons of each family, which no shape shows; 49.5 M and 93.5 M are the published sizes."""
    model = build(name)
    pooler = model.head.pooler
    assert (model.encoder.positions, model.encoder.norm_eps) == (positions, encoder_eps)
    assert (pooler.num_heads, len(pooler.blocks) + 1, pooler.norm_eps) == (heads, layers, head_eps)
    assert round(sum(p.numel() for p in model.head.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("size", ["small", "base", "large", "huge", "giant"])
def test_heads_of_videomae(size):
    model = build(f"videomae_{size}")
    encoder, head = model.encoder, model.head
    assert (encoder.positions, encoder.norm_eps, encoder.final_norm) == ("sincos_1d", 1e-6, False)
    assert (encoder.image_size, encoder.num_frames) == (224, 16)
    assert (head.pool, head.fc_norm.eps, head.linear.out_features) == ("mean", 1e-6, 174)


@pytest.mark.parametrize("lacking", ["embed_dim", "grid", "layers", "blocks"])
def test_an_encoder_must_have_what_the_head_and_the_training_read(lacking: str) -> None:
    members = {"embed_dim": 8, "grid": lambda *shape: shape, "layers": [], "blocks": []}
    del members[lacking]
    incomplete = type("Incomplete", (nn.Module,), members)()
    with pytest.raises(UserError, match=f"Incomplete has no {lacking} "):
        VideoClassifier(incomplete, MeanPoolClassifier, num_classes=CLASSES)
