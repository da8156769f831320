"""Heat maps against the models' own outputs, and against Grad-CAM as it is usually written."""

import pytest
import torch
import torch.nn.functional as F
from composing import config_of
from torch import nn

from vidtrain.build import parts as build
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import (
    AttentiveClassifier,
    AttentivePooler,
    MeanPoolClassifier,
    attention_map,
    grad_cam,
    kinds_of,
    pooler_attention,
    tokens_and_logits,
)
from vidtrain.models.vit3d import ViT3D


def vit(head, fusion="mean_logits", **settings):
    torch.manual_seed(0)
    encoder = ViT3D(image_size=16, num_frames=4, embed_dim=24, depth=2, num_heads=2, patch_size=8, **settings)
    model = VideoClassifier(encoder, head, num_classes=5, fusion=fusion).eval()
    with torch.no_grad():  # initial weights hardly look at anything
        for parameter in model.head.parameters():
            parameter.normal_(std=0.5)
    return model


def attentive(**settings):
    return lambda embed_dim, num_classes: AttentiveClassifier(embed_dim, num_classes, num_heads=2, **settings)


def mean_pool(embed_dim, num_classes):
    return MeanPoolClassifier(embed_dim, num_classes)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("complete_block", [True, False])
def test_attention_is_what_the_pooler_weighs_its_values_by(depth, complete_block):
    torch.manual_seed(0)
    pooler = AttentivePooler(24, num_heads=1, depth=depth, complete_block=complete_block).eval()
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.normal_(std=0.3)
    tokens = torch.randn(3, 8, 24)
    weights = pooler_attention(pooler, tokens)
    assert weights.shape == (3, 8)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(3))
    for block in pooler.blocks:
        tokens = block(tokens, None)
    last, query = pooler.cross_attention_block, pooler.query_tokens.expand(3, 1, 24)
    cross = last.xattn if complete_block else last
    seen = last.norm1(tokens) if complete_block else tokens
    values = F.linear(seen, cross.kv.weight[24:], cross.kv.bias[24:])
    weighed = (weights[:, :, None] * values).sum(dim=1)
    torch.testing.assert_close(weighed, cross(query, seen)[:, 0], atol=1e-5, rtol=1e-4)


def test_heads_count_alike():
    torch.manual_seed(0)
    pooler = AttentivePooler(24, num_heads=2).eval()
    with torch.no_grad():
        for parameter in pooler.parameters():
            parameter.normal_(std=0.3)
    tokens = torch.randn(1, 8, 24)
    block = pooler.cross_attention_block
    q = block.xattn.q(pooler.query_tokens)[0, 0].view(2, 12)
    k = F.linear(block.norm1(tokens), block.xattn.kv.weight[:24], block.xattn.kv.bias[:24])[0].view(8, 2, 12)
    by_hand = [torch.tensor([float((q[h] @ k[n, h]).detach()) / 12**0.5 for n in range(8)]).softmax(0) for h in (0, 1)]
    torch.testing.assert_close(pooler_attention(pooler, tokens)[0], (by_hand[0] + by_hand[1]) / 2)


@torch.no_grad()
def test_attention_lies_on_the_grid_and_sums_to_one_over_what_is_judged_together():
    clips = torch.randn(2, 3, 3, 4, 16, 16)
    for fusion, sums in (("mean_logits", [1.0, 1.0, 1.0]), ("joint", None)):
        model = vit(attentive(), fusion)
        tokens, logits = tokens_and_logits(model, clips)
        assert torch.equal(logits, model(clips))
        heat = attention_map(model, tokens, model.encoder.grid(4, 16, 16))
        assert heat.shape == (2, 3, 2, 2, 2) and heat.dtype == torch.float32
        found = heat.sum(dim=(2, 3, 4))
        if sums is not None:
            torch.testing.assert_close(found, torch.tensor([sums, sums]))
        else:
            torch.testing.assert_close(found.sum(dim=1), torch.ones(2))


@torch.no_grad()
def test_the_tokens_of_several_layers_count_for_their_place():
    model = vit(attentive(), out_layers=[0, 1])
    clips = torch.randn(1, 1, 3, 4, 16, 16)
    tokens, _ = tokens_and_logits(model, clips)
    assert tokens.shape[2] == 16 and model.encoder.grid(4, 16, 16) == (4, 2, 2)
    heat = attention_map(model, tokens, (4, 2, 2))
    assert heat.shape == (1, 1, 2, 2, 2)
    flat = pooler_attention(model.head.pooler, tokens[:, 0])[0]
    torch.testing.assert_close(heat.flatten(), flat[:8] + flat[8:])


def plain_grad_cam(model, clips, target):
    """Grad-CAM as Selvaraju et al. write it: weights are the gradients' mean over places; then a ReLU."""
    kept = {}
    model.encoder.register_forward_hook(lambda module, given, found: kept.update(tokens=found))
    model.zero_grad()
    score = model(clips)[0, :, target].sum()
    (gradient,) = torch.autograd.grad(score, kept["tokens"])
    weights = gradient.mean(dim=1, keepdim=True)
    return (weights * kept["tokens"]).sum(dim=-1).relu().detach()


@pytest.mark.parametrize("name", ["r3d_18", "vit"])
def test_grad_cam_is_grad_cam_where_all_places_are_alike(name):
    torch.manual_seed(0)
    if name == "vit":
        model, clips = vit(mean_pool), torch.randn(1, 2, 3, 4, 16, 16)
    else:
        cfg = config_of("train", "model=r3d_18")
        model, clips = (
            build.instantiate_component(cfg.model, num_classes=5).eval(),
            torch.randn(1, 2, 3, 8, 48, 32),
        )
        with torch.no_grad():
            model.head.linear.weight.normal_()
    expected = plain_grad_cam(model, clips, 3)
    grid = model.encoder.grid(*clips.shape[3:])
    tokens, _ = tokens_and_logits(model, clips)
    found = grad_cam(model, tokens.detach(), grid, torch.tensor([3]))
    assert found.shape == (1, 2, *grid) and float(found.max()) > 0
    torch.testing.assert_close(found.flatten(2)[0], expected, rtol=1e-4, atol=1e-7)


def test_grad_cam_is_of_the_class_that_is_asked_for():
    """A head of one linear layer over the mean: a class whose weights are one channel sees that channel alone."""
    model = vit(lambda embed_dim, num_classes: MeanPoolClassifier(embed_dim, num_classes, norm=False))
    with torch.no_grad():
        model.head.linear.weight.zero_()
        model.head.linear.weight[1, 7] = 8.0
        model.head.linear.weight[4, 9] = 16.0
    tokens = torch.randn(2, 1, 8, 24)
    heat = grad_cam(model, tokens, (2, 2, 2), torch.tensor([1, 4]))
    torch.testing.assert_close(heat[0].flatten(), tokens[0, 0, :, 7].relu())
    torch.testing.assert_close(heat[1].flatten(), 2 * tokens[1, 0, :, 9].relu())


KINDS = {
    "vit3d_micro": ("attention", "grad_cam"),
    "timm_frames_attentive": ("attention", "grad_cam"),
    "videomae_small": ("grad_cam",),
    "r3d_18": ("grad_cam",),
    "s3d": ("grad_cam",),
    "slowfast_r50": ("grad_cam",),
    "x3d_s": ("grad_cam",),
    "resnext3d_18": ("grad_cam",),
    "swin3d_t": ("grad_cam",),
    "hiera_b_video": ("grad_cam",),
    "timm_frames": ("grad_cam",),
    "timm_frames_temporal": ("grad_cam",),
    "mvit_v2_s": (),  # answers from its class token, which has no place
}
DRAWN = {"s3d", "slowfast_r50", "x3d_s", "resnext3d_18", "timm_frames_temporal"}  # small enough to run


@pytest.mark.parametrize("name", KINDS)
def test_models_say_what_can_be_drawn_of_them(name):
    overrides = [f"model={name}", "clip.frames=16", "clip.size=64"]
    if name.startswith("timm"):
        overrides.append("model.encoder.backbone=resnet10t")
    if name in ("resnext3d_18", "s3d", "slowfast_r50", "x3d_s"):
        overrides.append("model.head.pool_size=null")
    if name == "timm_frames_attentive":
        overrides.append("model.head.num_heads=8")
    cfg = config_of("train", *overrides)
    with torch.device("cpu" if name in DRAWN else "meta"):
        model = build.instantiate_component(cfg.model, num_classes=3).eval()
    assert kinds_of(model, 16, 64, 64) == KINDS[name]
    if name in DRAWN:
        clips = torch.randn(1, 1, 3, 16, 64, 64)
        with torch.no_grad():
            tokens, logits = tokens_and_logits(model, clips)
        grid = model.encoder.grid(16, 64, 64)
        heat = grad_cam(model, tokens, grid, logits.argmax(dim=-1)[:, 0])
        assert heat.shape == (1, 1, *grid) and bool(heat.isfinite().all())


def test_a_graph_shows_nothing():
    assert kinds_of(nn.Identity(), 16, 64, 64) == ()
