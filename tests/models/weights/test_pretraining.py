"""Pretraining files: what a masked model takes of them, and the way back, loaded by transformers and compared.

The code of facebookresearch/jepa, facebookresearch/vjepa2 and MCG-NJU/VideoMAE loads what is given back, strictly;
predictions then differ by 4e-7 of the largest, and V-JEPA 2's loss by 7e-8. A file that facebookresearch/jepa writes is
taken whole, and gives its predictions within 4e-7.
"""

import json
from pathlib import Path

import pytest
import torch
from noisy_models import built, noisy
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VJEPA2Config, VJEPA2Model

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.dense_joint_embedding import DenseJointEmbedding
from vidtrain.models.heads import MeanPoolClassifier
from vidtrain.models.masked_models import JointEmbedding, MaskedAutoencoder
from vidtrain.models.masks import BlockMasks, TubeMasks
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.loading import load_pretrained
from vidtrain.models.weights.pretraining import LAYOUTS

FRAMES, SIZE = 4, 64
COLORS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
VIDEO = torch.randn(2, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
VIDEOMAE = VideoMAEConfig(
    image_size=SIZE,
    num_frames=FRAMES,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=192,
    decoder_hidden_size=24,
    decoder_num_hidden_layers=1,
    decoder_num_attention_heads=3,
    decoder_intermediate_size=96,
    use_mean_pooling=False,
)
VJEPA2 = VJEPA2Config(
    crop_size=SIZE,
    frames_per_clip=FRAMES,
    hidden_size=48,
    num_attention_heads=4,
    num_hidden_layers=2,
    pred_hidden_size=24,
    pred_num_attention_heads=3,
    pred_num_hidden_layers=1,
    pred_num_mask_tokens=2,
)


def autoencoder(**options) -> MaskedAutoencoder:
    encoder = ViT3D(SIZE, FRAMES, 48, 2, 4, **({"positions": "sincos_1d", "norm_eps": 1e-12} | options))
    model = MaskedAutoencoder(encoder, TubeMasks(0.75), **COLORS, decoder_dim=24, decoder_depth=1, decoder_heads=3)
    model.head.norm.eps = 1e-5  # transformers' default, where the original has 1e-6
    return model.eval()


def joint(**objective) -> JointEmbedding:
    widths = {"predictor_dim": 24, "predictor_depth": 1, "predictor_heads": 3}
    encoder = ViT3D(SIZE, FRAMES, 48, 2, 4, positions="rope")
    return noisy(JointEmbedding(encoder, BlockMasks(), **(widths | objective))).eval()


def reconstruction_loss(theirs: VideoMAEForPreTraining, ours: MaskedAutoencoder) -> tuple[float, float]:
    masks = ours.sample_masks(VIDEO, torch.tensor([3, 4]))
    hidden = torch.zeros(2, 32).scatter(1, masks[0].hidden, 1).bool()
    with torch.no_grad():
        errors = masks[0].mean_of_hidden(ours.errors(VIDEO, masks)[0]).mean().item()
        return theirs(VIDEO.transpose(1, 2), bool_masked_pos=hidden).loss.item(), errors


def predictions(theirs: VJEPA2Model, ours: JointEmbedding, kind: int) -> tuple[Tensor, Tensor]:
    """From all tokens of the teacher, as transformers has no other encoder."""
    places = torch.arange(32).expand(2, -1)
    masks = ours.sample_masks(VIDEO, torch.tensor([3, 4]))[0]._replace(
        visible=places[:, :20], hidden=places[:, 20:], visible_valid=None, hidden_valid=None
    )
    theirs.predictor.embeddings.num_mask_tokens = kind + 1
    with torch.no_grad():
        output = theirs(VIDEO.transpose(1, 2), context_mask=[places[:, :20]], target_mask=[places[:, 20:]])
        tokens = ours.teacher(VIDEO)[:, :20]
        return output.predictor_output.last_hidden_state, ours.head(tokens, masks, kind, (2, 4, 4))


def written(folder: Path, tensors: dict[str, Tensor], config) -> Path:
    folder.mkdir()
    save_file({name: each.contiguous().clone() for name, each in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def test_videomae_of_transformers_there_and_back(tmp_path):
    theirs, ours = built(VideoMAEForPreTraining, VIDEOMAE), noisy(autoencoder())
    theirs.save_pretrained(tmp_path / "published")
    report = load_pretrained(ours, "published", tmp_path / "published", 1.0)
    assert report.format == "VideoMAE, transformers"
    assert set(report.loaded) == set(ours.state_dict()) and report.left_out == {}
    expected, loss = reconstruction_loss(theirs, ours)
    assert loss == pytest.approx(expected, rel=1e-5)
    again = noisy(autoencoder())
    tensors = LAYOUTS[report.format].revert(again.state_dict())
    loaded = VideoMAEForPreTraining.from_pretrained(written(tmp_path / "ours", tensors, VIDEOMAE)).eval()
    expected, loss = reconstruction_loss(loaded, again)
    assert loss == pytest.approx(expected, rel=1e-5)


def test_vjepa_of_transformers_there_and_back(tmp_path):
    theirs, ours = built(VJEPA2Model, VJEPA2), joint()
    theirs.save_pretrained(tmp_path / "published")
    report = load_pretrained(ours, "published", tmp_path / "published", 1.0)
    assert report.format == "V-JEPA 2, transformers" and report.left_out == {}
    assert {name.split(".")[0] for name in report.loaded} == {"encoder", "head"}
    ours.teacher.load_state_dict(ours.encoder.state_dict())
    again = joint()
    tensors = LAYOUTS[report.format].revert(again.state_dict())
    loaded = VJEPA2Model.from_pretrained(written(tmp_path / "ours", tensors, VJEPA2)).eval()
    for pair in ((theirs, ours), (loaded, again)):
        for kind in (0, 1):
            expected, predicted = predictions(*pair, kind)
            torch.testing.assert_close(predicted, expected, atol=1e-5, rtol=1e-5)


def nested(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """As the original saves it."""
    levels: dict[str, dict[str, Tensor]] = {"opt": {}, "epoch": 3}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        levels.setdefault(part, {})[rest] = tensor
    return levels


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_original_vjepa_file_has_encoder_average_and_predictor(tmp_path):
    source, ours = joint(), joint()
    tensors = LAYOUTS["V-JEPA 2, original"].revert(source.state_dict())
    tensors |= {f"predictor.module.backbone.mask_tokens.{n}": torch.zeros(1, 1, 24) for n in range(2, 10)}
    tensors["predictor.module.backbone.predictor_pos_embed"] = torch.zeros(1, 32, 24)
    assert tensors["predictor.module.backbone.predictor_blocks.0.attn.qkv.weight"].shape == (72, 24)
    assert tensors["target_encoder.module.backbone.blocks.1.mlp.fc1.bias"].shape == (192,)
    torch.save(nested(tensors), tmp_path / "latest.pt")
    report = load_pretrained(ours, "latest.pt", tmp_path / "latest.pt", 1.0)
    assert set(report.loaded) == set(ours.state_dict())
    assert equal(ours.encoder, source.encoder) and equal(ours.teacher, source.teacher)
    assert not equal(ours.teacher, ours.encoder)
    assert equal(ours.head.blocks, source.head.blocks) and equal(ours.head.proj, source.head.proj)
    # of ten mask tokens the first
    assert all(torch.equal(token, source.head.mask_tokens[0]) for token in ours.head.mask_tokens)
    assert report.changed["head.mask_tokens.1"].startswith("the first published mask token")
    assert report.left_out == {
        "predictor.module.backbone.predictor_pos_embed": "the position table follows from the configuration"
    }


def test_a_frozen_teacher_keeps_its_own_weights(tmp_path):
    source = joint()
    torch.save(nested(LAYOUTS["V-JEPA 2, original"].revert(source.state_dict())), tmp_path / "latest.pt")
    teacher = noisy(ViT3D(SIZE, FRAMES, 48, 1, 4, positions="rope"))
    before = {name: each.clone() for name, each in teacher.state_dict().items()}
    ours = joint(teacher=teacher, momentum=1.0)
    load_pretrained(ours, "latest.pt", tmp_path / "latest.pt", 1.0)
    assert equal(ours.encoder, source.teacher)  # the average, as everywhere
    assert all(name in before for name in ours.teacher.state_dict())
    assert ours.feature_encoder() is ours.encoder


def test_the_original_videomae_file_has_a_decoder(tmp_path):
    source, ours = noisy(autoencoder(norm_eps=1e-6)), noisy(autoencoder(norm_eps=1e-6))
    tensors = LAYOUTS["VideoMAE pretrained, original"].revert(source.state_dict())
    block = "decoder.blocks.0"
    assert [name for name in tensors if name.startswith(f"{block}.attn")] == [
        f"{block}.attn.qkv.weight",
        f"{block}.attn.proj.weight",
        f"{block}.attn.proj.bias",
        f"{block}.attn.q_bias",
        f"{block}.attn.v_bias",
    ]
    rest = {name for name in tensors if not name.startswith(("encoder.", "decoder.blocks."))}
    parts = {f"decoder.{part}.{kind}" for part in ("norm", "head") for kind in ("weight", "bias")}
    assert rest == {"mask_token", "encoder_to_decoder.weight"} | parts
    assert tensors["mask_token"].shape == (1, 1, 24)
    torch.save({"model": tensors}, tmp_path / "checkpoint.pth")
    report = load_pretrained(ours, "checkpoint.pth", tmp_path / "checkpoint.pth", 1.0)
    assert set(report.loaded) == set(ours.state_dict()) and report.left_out == {}
    masks = ours.sample_masks(VIDEO, torch.tensor([3, 4]))
    torch.testing.assert_close(ours.errors(VIDEO, masks), source.errors(VIDEO, masks), atol=1e-5, rtol=1e-5)
    classifier = VideoClassifier(
        ViT3D(SIZE, FRAMES, 48, 2, 4, positions="sincos_1d", final_norm=False), MeanPoolClassifier, 5
    )
    left_out = load_pretrained(classifier, "checkpoint.pth", tmp_path / "checkpoint.pth", 1.0).left_out
    assert left_out["model.mask_token"] == "the decoder, which only pretraining needs"


def test_the_last_norm_is_part_of_pretraining(tmp_path):
    torch.save(
        LAYOUTS["VideoMAE pretrained, original"].revert(autoencoder(norm_eps=1e-6).state_dict()),
        tmp_path / "a.pth",
    )
    with pytest.raises(UserError, match=r"model\.encoder\.final_norm=true \(it is false\)"):
        load_pretrained(autoencoder(norm_eps=1e-6, final_norm=False), "a.pth", tmp_path / "a.pth", 1.0)


def test_a_head_of_other_widths_or_another_objective_is_left_out_and_says_so(tmp_path):
    torch.save(nested(LAYOUTS["V-JEPA 2, original"].revert(joint().state_dict())), tmp_path / "latest.pt")
    for objective, sizes in (
        ({"predictor_dim": 48}, "of width 48, 1 blocks, 3 heads"),
        ({"predictor_depth": 2}, "of width 24, 2 blocks, 3 heads"),
    ):
        ours = joint(**objective)
        before = ours.head.norm.weight.clone()
        report = load_pretrained(ours, "latest.pt", tmp_path / "latest.pt", 1.0)
        reason = report.left_out["predictor.module.backbone.predictor_norm.weight"]
        assert reason.startswith(
            "a predictor of width 24, 1 blocks, ? heads and 48 outputs, but the model's is " + sizes
        )
        assert reason.endswith("see objective.predictor_*")
        assert torch.equal(ours.head.norm.weight, before)
        assert {name.split(".")[0] for name in report.loaded} == {"encoder", "teacher"}
    other = MaskedAutoencoder(ViT3D(SIZE, FRAMES, 48, 2, 4, positions="rope"), TubeMasks(0.75), **COLORS)
    report = load_pretrained(other, "latest.pt", tmp_path / "latest.pt", 1.0)
    assert report.left_out["predictor.module.backbone.predictor_norm.weight"] == (
        "another kind of head than MaskedAutoencoder has"
    )


def test_heads_that_show_in_no_shape_are_read_from_the_configuration(tmp_path):
    built(VJEPA2Model, VJEPA2).save_pretrained(tmp_path / "published")
    report = load_pretrained(joint(predictor_heads=2), "published", tmp_path / "published", 1.0)
    assert (
        "1 blocks, 3 heads and 48 outputs, but the model's is of width 24, 1 blocks, 2 heads"
        in (report.left_out["predictor.layernorm.weight"])
    )


def published_2_1(levels: int = 4, kind=DenseJointEmbedding, **objective) -> JointEmbedding:
    """Of twelve blocks, as there is none of fewer."""
    encoder = ViT3D(
        SIZE, FRAMES, 24, 12, 4, positions="rope_interleaved", rope_base_grid=16, norm_per_layer=True,
        modality_embed=True,
    )  # fmt: skip
    widths = {"predictor_dim": 16, "predictor_depth": 1, "predictor_heads": 2}
    widths |= {"levels": levels} if kind is DenseJointEmbedding else {}
    return noisy(kind(encoder, BlockMasks(), **(widths | objective))).eval()


def file_of_2_1(model: JointEmbedding, average: str = "target_encoder") -> dict[str, dict[str, Tensor]]:
    """The original's file, with what it has for images, and eight mask tokens."""
    levels = nested(LAYOUTS["V-JEPA 2.1, original"].revert(model.state_dict()))
    levels[average] = levels.pop("target_encoder")
    prefix = "module.backbone."
    for part, width in (("encoder", 24), (average, 24), ("predictor", 16)):
        levels[part][f"{prefix}img_mod_embed"] = torch.zeros(1, 1, width)
        if part != "predictor":
            levels[part][f"{prefix}patch_embed_img.proj.weight"] = torch.zeros(24, 3, 1, 16, 16)
            levels[part][f"{prefix}patch_embed_img.proj.bias"] = torch.zeros(24)
    for n in range(2, 8):
        levels["predictor"][f"{prefix}mask_tokens.{n}"] = torch.zeros(1, 1, 16)
    return levels


@pytest.mark.parametrize("average", ["target_encoder", "ema_encoder"])
@pytest.mark.parametrize("levels", [4, 1])
def test_the_original_file_of_vjepa_2_1_has_encoder_average_and_predictor(tmp_path, levels, average):
    source, ours = published_2_1(levels), published_2_1(levels)
    file = file_of_2_1(source, average)
    assert {name: list(file["predictor"][f"module.backbone.{name}"].shape) for name in (
        "predictor_proj.weight", "predictor_proj_context.bias", "video_mod_embed", "mask_tokens.0",
        *(["predictor_embed.0.weight", "predictor_embed.2.bias"] if levels > 1 else ["predictor_embed.weight"]),
    )} == {
        "predictor_proj.weight": [24 * levels, 16], "predictor_proj_context.bias": [24 * levels],
        "video_mod_embed": [1, 1, 16], "mask_tokens.0": [1, 1, 16],
        **({"predictor_embed.0.weight": [24, 96], "predictor_embed.2.bias": [16]} if levels > 1
           else {"predictor_embed.weight": [16, 24]}),
    }  # fmt: skip
    norms = [name for name in file[average] if "norms_block" in name]
    assert len(norms) == 2 * levels and "module.backbone.norms_block.3.weight" in norms
    torch.save(file, tmp_path / "latest.pt")
    report = load_pretrained(ours, "latest.pt", tmp_path / "latest.pt", 1.0)
    assert report.format == "V-JEPA 2.1, original"
    assert set(report.loaded) == ours.state_dict().keys() - {"steps"}
    ours.begin(report.loaded)
    changed = {"head.mask_tokens.1"}  # of eight mask tokens the first
    for name, tensor in source.state_dict().items():
        assert name in changed or torch.equal(ours.state_dict()[name], tensor), name
    assert not equal(ours.teacher, ours.encoder)
    assert set(report.left_out.values()) == {
        "the modality of single images, which are not supported",
        "patches of single images, which are not supported",
    }


def test_a_distilled_predictor_of_vjepa_2_1_predicts_another_width_and_is_left_out(tmp_path):
    """Its encoder and norms are taken."""
    source, ours = published_2_1(), published_2_1()
    file = file_of_2_1(published_2_1(1), "ema_encoder")
    file["encoder"] = file_of_2_1(source)["encoder"]
    file["ema_encoder"] = file_of_2_1(source)["target_encoder"]
    for name in ("predictor_proj", "predictor_proj_context"):
        file["predictor"][f"module.backbone.{name}.weight"] = torch.zeros(40, 16)
        file["predictor"][f"module.backbone.{name}.bias"] = torch.zeros(40)
    torch.save(file, tmp_path / "a.pt")
    report = load_pretrained(ours, "a.pt", tmp_path / "a.pt", 1.0)
    assert equal(ours.encoder, source.encoder) and equal(ours.teacher, source.teacher)
    assert equal(ours.head.norms, source.head.norms) and equal(ours.teacher_norms, source.teacher_norms)
    reason = report.left_out["predictor.module.backbone.predictor_norm.weight"]
    assert (
        "1 blocks, ? heads and 40 outputs, but the model's is of width 16, 1 blocks, 2 heads and 96 outputs" in reason
    )
    assert not any(name.startswith("head.") and ".norms." not in name for name in report.loaded)


def test_levels_without_published_norms_are_refused(tmp_path):
    torch.save(file_of_2_1(published_2_1()), tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"norms only for blocks 2, 5, 8, 11, but objective\.levels=3 needs those of 3"):
        load_pretrained(published_2_1(3), "a.pt", tmp_path / "a.pt", 1.0)
    shared = DenseJointEmbedding(ViT3D(SIZE, FRAMES, 24, 12, 4), BlockMasks(), 16, 1, 2)
    with pytest.raises(UserError, match=r"not encoder\.norm\..*model\.encoder\.norm_per_layer=true"):
        LAYOUTS["V-JEPA 2.1, original"].revert(shared.state_dict())


def test_the_other_objective_takes_the_encoder_of_vjepa_2_1_and_leaves_its_predictor_out(tmp_path):
    source, ours = published_2_1(), published_2_1(kind=JointEmbedding)
    torch.save(file_of_2_1(source), tmp_path / "a.pt")
    report = load_pretrained(ours, "a.pt", tmp_path / "a.pt", 1.0)
    assert equal(ours.teacher, source.teacher)
    assert report.left_out["predictor.module.backbone.predictor_norm.weight"].startswith(
        "a predictor of objective=vjepa2_1, from and of the features of several blocks"
    )
    assert not any(name.startswith("head.") for name in report.loaded)
    torch.save(nested(LAYOUTS["V-JEPA 2, original"].revert(joint().state_dict())), tmp_path / "b.pt")
    encoder = ViT3D(SIZE, FRAMES, 48, 2, 4, positions="rope")
    dense = DenseJointEmbedding(encoder, BlockMasks(), 24, 1, 3, levels=2)
    report = load_pretrained(dense, "b.pt", tmp_path / "b.pt", 1.0)
    assert set(report.left_out.values()) == {"another kind of head than DenseJointEmbedding has"}
    assert {name.split(".")[0] for name in report.loaded} == {"encoder", "teacher"}
