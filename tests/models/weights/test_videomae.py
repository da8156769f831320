"""VideoMAE's own files, fine-tuned and pretrained: what is taken, what they ask of the model, and the way back."""

from functools import partial

import pytest
import torch
from converted_weights import converted_by, equal, there_and_back
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.format import Converted, Format, Weights
from vidtrain.models.weights.loading import check_settings, place
from vidtrain.models.weights.videomae import VIDEOMAE, VIDEOMAE_PRETRAINED
from vidtrain.models.weights.vjepa import VJEPA_2

FORMATS = (VIDEOMAE, VIDEOMAE_PRETRAINED, VJEPA_2)
DIM, HIDDEN, DEPTH, CLASSES = 48, 192, 2, 5


def both(name: str, *shape: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(*shape), f"{name}.bias": torch.randn(shape[0])}


def blocks(prefix: str = "") -> dict[str, Tensor]:
    found = both(f"{prefix}patch_embed.proj", DIM, 3, 2, 16, 16)
    for index in range(DEPTH):
        name = f"{prefix}blocks.{index}"
        found |= both(f"{name}.norm1", DIM) | both(f"{name}.norm2", DIM) | both(f"{name}.attn.proj", DIM, DIM)
        found |= {f"{name}.attn.{kind}_bias": torch.randn(DIM) for kind in "qv"}
        found |= {f"{name}.attn.qkv.weight": torch.randn(3 * DIM, DIM)}
        found |= both(f"{name}.mlp.fc1", HIDDEN, DIM) | both(f"{name}.mlp.fc2", DIM, HIDDEN)
    return found


def finetuned() -> dict[str, Tensor]:
    return blocks() | both("fc_norm", DIM) | both("head", CLASSES, DIM)


def pretrained() -> dict[str, Tensor]:
    return blocks("encoder.") | both("encoder.norm", DIM)


def decoder() -> dict[str, Tensor]:
    found = {"mask_token": torch.zeros(1, 1, 24), "encoder_to_decoder.weight": torch.zeros(24, DIM)}
    return found | both("decoder.norm", 24) | {"decoder.blocks.0.attn.q_bias": torch.zeros(24)}


def model(head=MeanPoolClassifier, **options) -> VideoClassifier:
    settings = {"positions": "sincos_1d", "final_norm": False} | options
    return VideoClassifier(ViT3D(64, 16, DIM, DEPTH, 4, **settings), head, CLASSES)


def loaded(weights: Weights, format: Format, ours: VideoClassifier, part: str = "") -> Converted:
    return converted_by(format, FORMATS, weights, ours, part)


@pytest.mark.parametrize("container", ["module.", "model.", ""])
def test_finetuned(container):
    published, ours = finetuned(), model()
    weights = Weights("ckpt.pth", {container + name: each for name, each in published.items()})
    converted = loaded(weights, VIDEOMAE, ours)
    bias = converted.tensors["encoder.blocks.1.attn.qkv.bias"].chunk(3)
    assert torch.equal(bias[0], published["blocks.1.attn.q_bias"]) and not bias[1].any()
    assert "zeros for keys" in converted.changed["encoder.blocks.1.attn.qkv.bias"]
    assert equal(there_and_back(converted, VIDEOMAE, ours), published)


@torch.no_grad()
def test_the_bias_of_keys_that_is_dropped_on_the_way_back_changes_nothing():
    ours, video = model().eval(), torch.randn(1, 3, 4, 32, 32)
    before = ours.encoder(video)
    ours.encoder.blocks[0].attn.qkv.bias[DIM : 2 * DIM] = torch.randn(DIM)
    torch.testing.assert_close(ours.encoder(video), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("container", ["module.", "model.", ""])
def test_pretrained(container):
    published, ours = pretrained(), model()
    weights = Weights("ckpt.pth", {container + name: each for name, each in (published | decoder()).items()})
    converted = loaded(weights, VIDEOMAE_PRETRAINED, ours, "encoder.")
    last_norm = {"encoder.norm.weight", "encoder.norm.bias"}
    assert converted.left_out.keys() == last_norm | {container + name for name in decoder()}
    assert "a fresh one after the mean" in converted.left_out["encoder.norm.weight"]
    kept = {name: each for name, each in published.items() if name not in last_norm}
    assert equal(there_and_back(converted, VIDEOMAE_PRETRAINED, ours), kept)


def test_an_encoder_with_a_last_norm_gets_that_of_pretraining():
    published, ours = pretrained(), model(partial(AttentiveClassifier, num_heads=4), final_norm=True)
    converted = loaded(Weights("ckpt.pth", published), VIDEOMAE_PRETRAINED, ours, "encoder.")
    assert equal(there_and_back(converted, VIDEOMAE_PRETRAINED, ours), published)


def test_what_fine_tuned_weights_ask_for():
    ours = model(partial(MeanPoolClassifier, pool="first"), positions="sincos", final_norm=True)
    with pytest.raises(UserError) as error:
        check_settings(ours, VIDEOMAE.convert(Weights("ckpt.pth", finetuned()), ours).requires, "ckpt.pth")
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        "model.encoder.positions=sincos_1d (it is sincos)",
        "model.encoder.final_norm=false (it is true)",
        "model.head.pool=mean (it is first)",
    ]


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16)])
def test_heads_follow_from_the_width(width, heads):
    wide = {"patch_embed.proj.weight": torch.zeros(width, 3, 2, 16, 16)}
    converted = VIDEOMAE.convert(Weights("ckpt.pth", finetuned() | wide), model())
    assert converted.requires["encoder.num_heads"] == heads


def test_with_use_cls_the_tokens_are_normed_and_the_first_is_taken():
    """`x = norm(x)`, then `head(x[:, 0])`, in modeling_finetune.py without mean pooling."""
    published = blocks() | both("norm", DIM) | both("head", CLASSES, DIM)
    ours = model(partial(MeanPoolClassifier, pool="first", norm=False), final_norm=True)
    converted = loaded(Weights("ckpt.pth", published), VIDEOMAE, ours)
    assert equal(there_and_back(converted, VIDEOMAE, ours), published)
    video = torch.randn(1, 3, 16, 64, 64)
    tokens = ours.encoder(video)
    expected = tokens[:, 0] @ published["head.weight"].T + published["head.bias"]
    torch.testing.assert_close(ours(video[:, None])[:, 0], expected)
    with pytest.raises(UserError) as error:
        place(model(), VIDEOMAE.convert(Weights("ckpt.pth", published), model()), "ckpt.pth", VIDEOMAE, 1.0)
    lines = [line.strip() for line in str(error.value).splitlines()]
    assert lines[1] == (
        "it needs model.encoder.final_norm=true (it is false), model.head.pool=first (it is mean), "
        "model.head.norm=false (it is true)"
    )
    assert "unexpected 2 that only the file has: encoder.norm.weight, encoder.norm.bias" in lines


def test_learned_positions_are_laid_out_over_the_clip():
    """Of `use_learnable_pos_emb`: one row for each token, which run over time, then height, then width."""
    rows = torch.arange(128.0).repeat(DIM, 1).T[None]
    published, ours = finetuned() | {"pos_embed": rows}, model(positions="learned")
    converted = loaded(Weights("ckpt.pth", published), VIDEOMAE, ours)
    assert converted.tensors["encoder.patch_embed.pos_embed"][7, 2, 3, 0] == 7 * 16 + 2 * 4 + 3
    assert equal(there_and_back(converted, VIDEOMAE, ours), published)
    # its modeling_finetune.py adds them with .detach(); in ours they train
    assert "in the original they do not" in converted.changed["encoder.patch_embed.pos_embed"]
    fixed = model()
    with pytest.raises(UserError) as error:
        place(fixed, VIDEOMAE.convert(Weights("x", published), fixed), "x", VIDEOMAE, 1.0)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("x fits the model's encoder by only 96.3%, below init_match=1: ")
    assert lines[1] == "  it needs model.encoder.positions=learned (it is sincos_1d)"
    short = VideoClassifier(ViT3D(64, 12, DIM, DEPTH, 4, positions="learned"), MeanPoolClassifier, CLASSES)
    with pytest.raises(UserError, match=r"its 128 learned positions do not fit 12 square frames"):
        VIDEOMAE.convert(Weights("x", published), short)


def test_cosine_attention_is_refused_by_name():
    scales = {f"blocks.{index}.attn.scale": torch.ones(4, 1, 1) for index in range(DEPTH)}
    with pytest.raises(UserError, match=r"ckpt\.pth has the cosine attention of VideoMAE V2 \(--cos_attn\)"):
        VIDEOMAE.convert(Weights("ckpt.pth", finetuned() | scales), model())


def test_another_head_stays_as_it_is():
    ours = model(partial(AttentiveClassifier, num_heads=4))
    converted = loaded(Weights("ckpt.pth", finetuned()), VIDEOMAE, ours, "encoder.")
    assert converted.left_out.keys() == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert "the model's head is AttentiveClassifier" in converted.left_out["head.weight"]
