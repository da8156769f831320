"""Runs of pretraining in the layouts of others: what transformers and our own loader make of the written files."""

import json

import pytest
import torch
from composing import config_of
from noisy_models import noisy
from small_run import small
from transformers import VideoMAEForPreTraining, VideoMAEModel, VJEPA2Model

from vidtrain.build import parts as build
from vidtrain.errors import UserError
from vidtrain.export import export
from vidtrain.models.weights.loading import load_pretrained
from vidtrain.runs.export import model_spec
from vidtrain.training import checkpoint
from vidtrain.training.distributed import Ranks

BASE = small("trainer.batch_size=4", "clip.size=32", depth=2)
OBJECTIVES = {
    "videomae": ["objective=videomae", "objective.masks.ratio=0.5", "model.encoder.positions=sincos_1d"],
    "vjepa": ["objective=vjepa", "model.encoder.positions=rope"],
    "vjepa1": ["objective=vjepa", "model.encoder.positions=sincos"],
    "vjepa2_1": [
        "objective=vjepa2_1",
        "model.encoder.positions=rope_interleaved",
        "model.encoder.rope_base_grid=16",
        "model.encoder.norm_per_layer=true",
        "model.encoder.modality_embed=true",
        "model.encoder.depth=12",
        "model.encoder.patch_size=16",
        "clip.size=64",
    ],
}
PUBLISHED = [
    "clip.size=224",
    "clip.frames=16",
    "model.encoder.patch_size=16",
]  # tables of V-JEPA 1 are of such
SIZES = [f"objective.{head}_{size}" for head in ("decoder", "predictor") for size in ("dim=24", "depth=1", "heads=3")]


@torch.no_grad()
def written(folder, name, *overrides):
    """A checkpoint of a network with random weights, biases too, and that network."""
    head = "decoder" if name == "videomae" else "predictor"
    sizes = [text for text in SIZES if head in text]
    cfg = config_of("train", *BASE, *OBJECTIVES[name], *sizes, *overrides)
    model = noisy(build.trained_model(cfg, 1, Ranks(torch.device("cpu"))).eval())
    payload = {"model": model.state_dict(), "config": model_spec(cfg).config, "classes": ["all"]}
    checkpoint.save(payload, folder / "best.pt")
    return model, cfg


def exported(folder, *overrides):
    export(config_of("export", f"checkpoint={folder}/best.pt", f"out={folder}/export", *overrides))
    return folder / "export", json.loads((folder / "export/card.json").read_text())


def loaded(kind, folder):
    """By transformers, without a tensor too few or too many."""
    model, report = kind.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()


def clip(seed=1):
    return torch.randn(2, 3, 8, 32, 32, generator=torch.Generator().manual_seed(seed))


def relative(one, other):
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


@torch.no_grad()
def test_videomae_is_loaded_by_transformers_and_gives_the_same(tmp_path):
    model, _ = written(tmp_path, "videomae")
    out, card = exported(tmp_path)
    assert set(card["files"]) == {"pretraining.pth", "encoder.pth", "transformers", "transformers_encoder"}
    assert all(file["difference"] < 1e-5 for file in card["files"].values())
    tokens = model.encoder(clip())
    encoder = loaded(VideoMAEModel, out / "transformers_encoder")
    assert relative(encoder(clip().transpose(1, 2)).last_hidden_state, tokens) < 2e-6
    whole = loaded(VideoMAEForPreTraining, out / "transformers")
    masks = model.sample_masks(clip(), torch.tensor([1, 2]))
    hidden = torch.zeros(2, 64).scatter(1, masks[0].hidden, 1).bool()
    theirs = whole(clip().transpose(1, 2), bool_masked_pos=hidden)
    # the last norm of their decoder has an epsilon of 1e-5, ours 1e-6
    assert relative(theirs.logits, model._predict(clip(), masks[0])) < 2e-4
    assert theirs.loss.item() == pytest.approx(model.losses(clip(), masks).mean().item(), rel=1e-4)
    whole.decoder.norm.eps = 1e-6
    theirs = whole(clip().transpose(1, 2), bool_masked_pos=hidden)
    assert relative(theirs.logits, model._predict(clip(), masks[0])) < 2e-6


@torch.no_grad()
def test_vjepa_is_loaded_by_transformers_and_gives_the_same(tmp_path):
    """Its one encoder is the teacher; its predictor takes the mask token of the second kind."""
    model, _ = written(tmp_path, "vjepa")
    out, card = exported(tmp_path)
    assert set(card["files"]) == {"pretraining.pth", "encoder.pth", "transformers"}
    places = torch.arange(64).expand(2, -1)
    theirs = loaded(VJEPA2Model, out / "transformers")(
        clip().transpose(1, 2), context_mask=[places[:, :40]], target_mask=[places[:, 40:]]
    )
    tokens = model.teacher(clip())
    assert relative(theirs.last_hidden_state, tokens) < 2e-6
    masks = model.sample_masks(clip(), torch.tensor([1, 2]))[1]
    masks = masks._replace(
        visible=places[:, :40], hidden=places[:, 40:], visible_valid=None, hidden_valid=None, groups=None
    )
    predicted = model.head(tokens[:, :40], masks, 1, (4, 4, 4))
    assert relative(theirs.predictor_output.last_hidden_state, predicted) < 2e-6
    assert "AutoModel" in (out / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_originals_layouts_load_again_to_the_bit(tmp_path, name):
    more = [*PUBLISHED, "objective.predictor_heads=4"] if name == "vjepa1" else []  # as many as the encoder has
    model, cfg = written(tmp_path, name, *more)
    out, card = exported(tmp_path, "formats=[original]")
    layout = {"videomae": "VideoMAE pretrained", "vjepa": "V-JEPA 2", "vjepa1": "V-JEPA 1", "vjepa2_1": "V-JEPA 2.1"}
    layout = layout[name]
    assert {file["layout"] for file in card["files"].values()} == {f"{layout}, original"}
    levels = torch.load(out / "pretraining.pth")
    assert set(levels) == ({"model"} if name == "videomae" else {"encoder", "predictor", "target_encoder"})
    again = build.trained_model(cfg, 1, Ranks(torch.device("cpu"))).eval()
    report = load_pretrained(again, "pretraining.pth", out / "pretraining.pth", 1.0)
    assert report.format == f"{layout}, original"
    assert set(report.loaded) == model.state_dict().keys() - {"steps"}
    wrong = [key for key, each in again.state_dict().items() if not torch.equal(each, model.state_dict()[key])]
    assert all(name == "videomae" and key.endswith("attn.qkv.bias") for key in wrong)  # keys have none there


def test_of_a_frozen_teacher_there_is_the_encoder_alone(tmp_path):
    teacher = tmp_path / "teacher"
    written(teacher, "vjepa")
    model, _ = written(tmp_path, "vjepa", "objective.momentum=1", f"objective.teacher={teacher}/best.pt")
    (teacher / "best.pt").unlink()
    out, card = exported(tmp_path, "formats=[original]")
    assert set(card["files"]) == {"encoder.pth"}
    levels = torch.load(out / "encoder.pth")
    name = "blocks.1.mlp.fc1.weight"
    found = levels["target_encoder"][f"module.backbone.{name}"]
    assert torch.equal(found, model.encoder.state_dict()[name])
    with pytest.raises(UserError, match=r"V-JEPA 2, transformers .*formats=\[original\]"):
        exported(tmp_path)


def test_of_a_frozen_teacher_the_norms_of_levels_are_the_trained_encoders(tmp_path):
    teacher = tmp_path / "teacher"
    written(teacher, "vjepa2_1")
    model, _ = written(tmp_path, "vjepa2_1", "objective.momentum=1", f"objective.teacher={teacher}/best.pt")
    out, card = exported(tmp_path, "formats=[original]")
    assert set(card["files"]) == {"encoder.pth"}
    norms = torch.load(out / "encoder.pth")["target_encoder"]
    for level, block in enumerate((2, 5, 8)):
        weight = model.get_parameter(f"head.norms.{block}.weight")
        assert torch.equal(norms[f"module.backbone.norms_block.{level}.weight"], weight)


@pytest.mark.parametrize(
    "name, overrides, options, words",
    [
        (
            "videomae",
            ["model.encoder.positions=sincos"],
            [],
            r"model.encoder.positions=sincos_1d \(it is sincos\)",
        ),
        (
            "vjepa",
            ["model.encoder.activation=swiglu"],
            ["formats=[transformers]"],
            "no place in V-JEPA 2, transf",
        ),
        ("vjepa", ["clip.size=[32,16]"], ["formats=[transformers]"], r"clip.size is \[32, 16\]"),
        (
            "vjepa1",
            PUBLISHED,
            [],
            "1 blocks, 4 heads and 24 outputs, but the model's is of width 24, 1 blocks, 3 heads",
        ),
        ("vjepa2_1", [], [], r"transformers has no layout for V-JEPA 2\.1.*formats=\[original\]"),
        ("vjepa2_1", ["model.encoder.norm_per_layer=false"], ["formats=[original]"], "norm_per_layer=true"),
        ("videomae", [], ["formats=[onnx]"], "formats: onnx is not for a pretrained network"),
        ("videomae", [], ["precision=fp16"], "precision=fp16"),
        ("videomae", [], ["calibrated=true"], "calibrated=true"),
    ],
)
def test_what_a_layout_has_no_place_for_is_refused(tmp_path, name, overrides, options, words):
    written(tmp_path, name, *overrides)
    with pytest.raises(UserError, match=words):
        exported(tmp_path, *options)
    assert not any((tmp_path / "export").glob("transformers*"))  # none that was not checked
