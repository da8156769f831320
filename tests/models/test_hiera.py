"""Hiera: its original's numbers, names and shapes of every published size, and sizes of clips."""

from functools import cache, partial
from pathlib import Path

import hiera
import hydra
import pytest
import torch
import torch.nn.functional as F
from composing import config_of
from hiera import hiera_mae
from noisy_models import noisy

from vidtrain.config.references import published_clips
from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.hiera import Hiera
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.loading import FORMATS, match
from vidtrain.models.weights.torchvision import HIERA

CONF = Path(__file__).parents[2] / "conf" / "model"
PUBLISHED = {"b": "base", "bplus": "base_plus", "l": "large", "h": "huge"}
SMALL = {"embed_dim": 16, "num_heads": 2}


@cache
def shipped(size: str, clip: str = "size=224") -> VideoClassifier:
    cfg = config_of(f"model/hiera_{size}_video", f"+clip.{clip}", "+clip.frames=16")
    with torch.device("meta"):
        return hydra.utils.instantiate(cfg.model)(num_classes=400).eval()


@pytest.fixture
def original(monkeypatch):
    """Builds the original's models without memory; it reads the numbers of drop path while it builds."""
    monkeypatch.setattr(torch, "linspace", partial(torch.linspace, device="cpu"))

    def build(name: str) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            return getattr(hiera_mae if name.startswith("mae_") else hiera, name)().state_dict()

    return build


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_have_our_names_and_shapes(size, original):
    theirs, ours = original(f"hiera_{PUBLISHED[size]}_16x224"), shipped(size)
    reverted = HIERA.revert(ours.state_dict())
    assert {key: each.shape for key, each in reverted.items()} == {key: each.shape for key, each in theirs.items()}
    for prefix in ("model_state.", ""):
        weights = Weights("", {prefix + key: each for key, each in theirs.items()})
        assert [each for each in FORMATS if each.recognizes(weights)] == [HIERA]
    converted = HIERA.convert(weights, ours)
    report, _ = match(ours, converted, "file", HIERA, min_match=1)
    assert len(report.loaded) == len(theirs)
    assert not (report.missing or report.unexpected or report.mismatched or report.left_out or report.resized)
    assert converted.seen == {"size": 224}


def test_a_pretrained_file_has_the_whole_encoder(original):
    theirs, ours = original("mae_hiera_base_16x224"), shipped("b")
    weights = Weights("", {f"model_state.{key}": each for key, each in theirs.items()})
    assert [each for each in FORMATS if each.recognizes(weights)] == [HIERA]
    report, _ = match(ours, HIERA.convert(weights, ours), "file", HIERA, min_match=1)
    assert len(report.loaded) == len(ours.encoder.state_dict())
    assert not (report.missing or report.unexpected or report.mismatched)
    assert set(report.left_out.values()) == {"only used in pretraining"}


def test_what_a_file_asks_for(original):
    theirs, model = original("hiera_large_16x224"), shipped("b")
    converted = HIERA.convert(Weights("", theirs), model)
    assert converted.requires == {
        "encoder.num_heads": 2,
        "encoder.depths": [2, 6, 36, 4],
        "head.norm_eps": 1e-6,
    }
    with pytest.raises(UserError, match=r"model\.encoder\.depths=\[2, 6, 36, 4\]"):
        match(model, converted, "hiera_large_16x224.pth", HIERA, min_match=1)
    with torch.device("meta"):
        attentive = VideoClassifier(Hiera(224, 16), partial(AttentiveClassifier, num_heads=4, depth=1), 400)
    left = HIERA.convert(Weights("", original("hiera_base_16x224")), attentive).left_out
    assert left.keys() == {f"{part}.{kind}" for part in ("norm", "head.projection") for kind in ("weight", "bias")}


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 64, 96), (1, 32, 32)])
@torch.no_grad()
def test_hiera_equals_its_original(frames, height, width):
    torch.manual_seed(0)
    theirs = hiera.Hiera(
        input_size=(max(frames, 2), height, width), num_classes=7, stages=(1, 2, 2, 1), q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4), patch_padding=(1, 3, 3),
        sep_pos_embed=True, **SMALL,
    ).eval()  # fmt: skip
    noisy(theirs)
    encoder = Hiera((height, width), frames, depths=(1, 2, 2, 1), **SMALL)
    ours = VideoClassifier(encoder, MeanPoolClassifier, 7).eval()
    ours.load_state_dict(HIERA.convert(Weights("", theirs.state_dict()), ours).tensors)
    video = torch.randn(2, 3, frames, height, width)
    probabilities, stages = theirs(video, return_intermediates=True)
    tokens, expected = encoder(video), stages[-1].flatten(1, 3)  # put back into the order of t, h and w
    assert expected.std() > 0.1
    assert float((tokens - expected).abs().max() / expected.abs().max()) <= 1e-6  # measured: 5e-7
    torch.testing.assert_close(ours(video[:, None])[:, 0].softmax(dim=-1), probabilities, rtol=1e-5, atol=1e-6)


def test_attention_is_of_four_dimensions_which_onnx_asks_for(monkeypatch):
    shapes = []

    def attention(q, k, v):
        shapes.append((q.shape, k.shape))
        return q

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    with torch.device("meta"):
        Hiera(64, 4, depths=(1, 1, 1, 1), **SMALL)(torch.zeros(3, 3, 4, 64, 64))
    # batch (in windows that of clips and mask units), heads, tokens, channels of a head; queries pooled before keys
    assert shapes == [
        ((24, 2, 64, 8), (24, 2, 64, 8)),
        ((24, 4, 16, 8), (24, 4, 64, 8)),
        ((24, 8, 4, 8), (24, 8, 16, 8)),
        ((3, 16, 8, 8), (3, 16, 32, 8)),
    ]


@torch.no_grad()
def test_clips_of_other_sizes_get_interpolated_positions():
    model = VideoClassifier(Hiera(64, 4, depths=(1, 1, 1, 1), **SMALL), MeanPoolClassifier, 3).eval()
    clip = torch.randn(2, 3, 7, 96, 32)
    stem = model.encoder.stem
    assert model.encoder.grid(7, 96, 32) == (4, 3, 1)
    table = (stem.pos_embed_temporal[0][:, None] + stem.pos_embed_spatial[0]).view(2, 16, 16, 16)
    added = F.interpolate(table.permute(3, 0, 1, 2)[None], size=(4, 24, 8), mode="trilinear")
    patches = stem.proj(clip) + added
    tokens = stem(clip)  # of the first and the last unit the last token
    assert torch.equal(tokens[:, -1, 0], patches[:, :, 0, 7, 7])
    assert torch.equal(tokens[:, -1, -1], patches[:, :, 3, 23, 7])

    made_for_it = VideoClassifier(Hiera((96, 32), 7, depths=(1, 1, 1, 1), **SMALL), MeanPoolClassifier, 3).eval()
    converted = HIERA.convert(Weights("", HIERA.revert(model.state_dict())), made_for_it)
    assert list(converted.resized.values()) == [
        "2 positions interpolated to 4, but with clip.frames=4",
        "256 positions interpolated to 192, but with clip.size=64",
    ]
    made_for_it.load_state_dict(converted.tensors)
    torch.testing.assert_close(made_for_it(clip[:, None]), model(clip[:, None]))


@pytest.mark.parametrize("size", PUBLISHED)
def test_shipped_files_are_as_published(size):
    """The README of facebookresearch/hiera: 16 frames of 224x224, 4 apart of 30 a second; its example's colors."""
    clips = published_clips(config_of("train", f"model=hiera_{size}_video"))
    assert (clips["frames"], clips["fps"], clips["size"]) == (16, 7.5, 224)
    assert (clips["mean"], clips["std"], clips["fusion"]) == ([0.45] * 3, [0.225] * 3, "mean_probs")
    model = shipped(size)
    counts = [sum(each.numel() for each in part.parameters()) / 1e6 for part in (model.encoder, model)]
    said = "{:.1f} M encoder parameters ({:.1f} M with 400 classes)".format(*counts)
    assert said in (CONF / f"hiera_{size}_video.yaml").read_text()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hiera(64, 4, **SMALL).grid(4, 64, 50), r"clip\.size=50 .* multiple of 32, .* fit: 32, 64"),
        (lambda: Hiera(64, 4, **SMALL)(torch.zeros(1, 3, 4, 16, 64)), r"clip\.size=16 .* fit: 32"),
        (lambda: Hiera(64, 4, depths=[2, 3, 16]), r"model\.encoder\.depths=\[2, 3, 16\] must be four"),
        (lambda: Hiera(64, 4, embed_dim=15, num_heads=2), r"model\.encoder\.embed_dim=15 .*num_heads=2"),
        (lambda: Hiera(64, 4, drop_path=1.0), r"model\.encoder\.drop_path=1"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with torch.device("meta"), pytest.raises(UserError, match=message):
        build()
