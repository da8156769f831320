"""V-JEPA's own files: of which generation they are, what is taken, what they ask of the model, and the way back."""

from functools import partial

import pytest
import torch
from converted_weights import converted_by, equal, there_and_back
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, MeanPoolClassifier
from vidtrain.models.positions import sincos, sincos_uniform
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.files import check_source, locate
from vidtrain.models.weights.format import Converted, Format, Weights
from vidtrain.models.weights.loading import check_settings
from vidtrain.models.weights.vjepa import VJEPA_1, VJEPA_2, VJEPA_2_1, VJEPA_PROBE

FORMATS = (VJEPA_1, VJEPA_2, VJEPA_2_1, VJEPA_PROBE)
DIM, HIDDEN, CLASSES = 48, 192, 5


def linear(name: str, rows: int, columns: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(rows, columns), f"{name}.bias": torch.randn(rows)}


def norm(name: str) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(DIM), f"{name}.bias": torch.randn(DIM)}


def block(name: str) -> dict[str, Tensor]:
    found = norm(f"{name}.norm1") | norm(f"{name}.norm2")
    found |= linear(f"{name}.attn.qkv", 3 * DIM, DIM) | linear(f"{name}.attn.proj", DIM, DIM)
    return found | linear(f"{name}.mlp.fc1", HIDDEN, DIM) | linear(f"{name}.mlp.fc2", DIM, HIDDEN)


def encoder(depth: int = 2, last_norm: bool = True) -> dict[str, Tensor]:
    """An encoder by its published names."""
    found = {
        "patch_embed.proj.weight": torch.randn(DIM, 3, 2, 16, 16),
        "patch_embed.proj.bias": torch.randn(DIM),
    }
    for index in range(depth):
        found |= block(f"blocks.{index}")
    return found | (norm("norm") if last_norm else {})


def encoder_2_1() -> dict[str, Tensor]:
    found = encoder(depth=12, last_norm=False)
    for index in range(4):
        found |= norm(f"norms_block.{index}")
    found |= {"img_mod_embed": torch.randn(1, 1, DIM), "video_mod_embed": torch.randn(1, 1, DIM)}
    images = {"patch_embed_img.proj.weight": torch.randn(DIM, 3, 1, 16, 16)}
    return found | images | {"patch_embed_img.proj.bias": torch.randn(DIM)}


def probe(blocks: int = 2, unused: bool = False) -> dict[str, Tensor]:
    cross = "pooler.cross_attention_block"
    found = {"pooler.query_tokens": torch.randn(1, 1, DIM)}
    found |= norm(f"{cross}.norm1") | norm(f"{cross}.norm2")
    found |= linear(f"{cross}.xattn.q", DIM, DIM) | linear(f"{cross}.xattn.kv", 2 * DIM, DIM)
    found |= linear(f"{cross}.mlp.fc1", HIDDEN, DIM) | linear(f"{cross}.mlp.fc2", DIM, HIDDEN)
    for index in range(blocks):
        found |= block(f"pooler.blocks.{index}")
    found |= linear(f"{cross}.xattn.proj", DIM, DIM) if unused else {}
    return found | linear("linear", CLASSES, DIM)


def model(depth=2, head_depth=3, **options) -> VideoClassifier:
    encoder = ViT3D(64, 16, DIM, depth, 4, **({"positions": "rope"} | options))
    return VideoClassifier(encoder, partial(AttentiveClassifier, num_heads=4, depth=head_depth), CLASSES)


def model_2_1(**options) -> VideoClassifier:
    return model(
        12,
        positions="rope_interleaved",
        rope_base_grid=16,
        norm_per_layer=True,
        modality_embed=True,
        **options,
    )


def file(mask_tokens: int, **parts: dict[str, Tensor]) -> Weights:
    """As vitl.pt: `part.module.backbone.name`, and a predictor."""
    tensors = {f"{part}.module.backbone.{name}": each for part, held in parts.items() for name, each in held.items()}
    tensors |= {f"predictor.module.backbone.mask_tokens.{n}": torch.zeros(1, 1, 8) for n in range(mask_tokens)}
    return Weights("vit.pt", tensors)


def loaded(weights: Weights, format: Format, ours: VideoClassifier, part: str) -> Converted:
    return converted_by(format, FORMATS, weights, ours, part)


# --- encoders ---


@pytest.mark.parametrize("average", ["target_encoder", "ema_encoder"])
def test_the_average_is_taken_and_the_rest_explained(average):
    published = encoder()
    weights = file(10, encoder=encoder(), **{average: published | {"pos_embed": torch.zeros(1, 2048, DIM)}})
    ours = model()
    converted = loaded(weights, VJEPA_2, ours, "encoder.")
    assert converted.requires["encoder.positions"] == "rope"
    assert converted.left_out["pos_embed"] == "a table that rotary positions do not use"
    assert "moving average" in converted.left_out["encoder.module.backbone.norm.weight"]
    assert "predictor" in converted.left_out["predictor.module.backbone.mask_tokens.0"]
    assert len(converted.left_out) == len(encoder()) + 10 + 1
    assert equal(there_and_back(converted, VJEPA_2, ours), published)


@pytest.mark.parametrize("prefix", ["", "module.", "module.backbone.", "encoder.module."])
def test_a_bare_encoder(prefix):
    published, ours = encoder(), model()
    weights = Weights("vit.pt", {prefix + name: each for name, each in published.items()})
    assert equal(there_and_back(loaded(weights, VJEPA_2, ours, "encoder."), VJEPA_2, ours), published)


@pytest.mark.parametrize(("table", "kind"), [(sincos_uniform, "sincos_uniform"), (sincos, "sincos")])
def test_the_first_generation_has_a_table_that_says_which(table, kind):
    published, ours = encoder(), model(positions=kind)
    table = table((8, 4, 4), DIM).reshape(1, 128, DIM)
    weights = file(2, target_encoder=published | {"pos_embed": table}, encoder=encoder())
    converted = loaded(weights, VJEPA_1, ours, "encoder.")
    named = ("encoder.positions", "encoder.num_frames", "encoder.image_size")
    assert [converted.requires[name] for name in named] == [kind, 16, 64]
    assert equal(there_and_back(converted, VJEPA_1, ours), published)


def test_the_first_generation_at_another_size_is_refused():
    table = sincos_uniform((8, 6, 6), DIM).reshape(1, 288, DIM)
    weights = file(2, target_encoder=encoder() | {"pos_embed": table})
    ours = model(positions="sincos_uniform")
    with pytest.raises(UserError, match=r"model\.encoder\.image_size=96 \(it is 64\)"):
        check_settings(ours, VJEPA_1.convert(weights, ours).requires, "vit.pt")
    strange = file(2, target_encoder=encoder() | {"pos_embed": torch.randn(1, 288, DIM)})
    with pytest.raises(UserError, match=r"vit\.pt: its pos_embed \[288, 48\] is not the sin-cos table"):
        VJEPA_1.convert(strange, ours)


@pytest.mark.parametrize(("tokens", "format"), [(1568, VJEPA_1), (4608, VJEPA_1), (2048, VJEPA_2), (8192, VJEPA_2)])
def test_without_a_predictor_the_size_of_the_table_tells_the_generation(tokens, format):
    weights = Weights("vit.pt", encoder() | {"pos_embed": torch.zeros(1, tokens, DIM)})
    assert [each for each in FORMATS if each.recognizes(weights)] == [format]


def test_2_1_gives_the_last_norm_and_marks_video():
    published, ours = encoder_2_1(), model_2_1()
    weights = file(8, ema_encoder=published, target_encoder={"patch_embed.proj.bias": torch.zeros(1664)})
    converted = loaded(weights, VJEPA_2_1, ours, "encoder.")
    assert torch.equal(converted.tensors["encoder.norm.11.weight"], published["norms_block.3.weight"])
    assert "norm of block 5" in converted.left_out["norms_block.1.bias"]
    assert "single images" in converted.left_out["patch_embed_img.proj.weight"]
    names = {"img_mod_embed", "patch_embed_img.proj.weight", "patch_embed_img.proj.bias"}
    left = names | {f"norms_block.{index}.{kind}" for index in range(3) for kind in ("weight", "bias")}
    kept = {name: each for name, each in published.items() if name not in left}
    assert equal(there_and_back(converted, VJEPA_2_1, ours), kept)


def test_2_1_gives_every_norm_that_the_model_uses():
    published, ours = encoder_2_1(), model_2_1(out_layers=[2, 5, 8, 11])
    converted = loaded(Weights("vit.pt", published), VJEPA_2_1, ours, "encoder.")
    kept = {name: each for name, each in published.items() if "img" not in name}
    assert equal(there_and_back(converted, VJEPA_2_1, ours), kept)


def test_2_1_has_no_norms_of_other_blocks():
    with pytest.raises(UserError, match=r"has norms only for blocks 2, 5, 8, 11, .*out_layers=\[3, 11\]"):
        VJEPA_2_1.convert(Weights("vit.pt", encoder_2_1()), model_2_1(out_layers=[3, 11]))


def test_2_1_of_a_depth_that_is_not_published():
    odd = {name: each for name, each in encoder_2_1().items() if not name.startswith("blocks.11.")}
    with pytest.raises(UserError, match=r"vit\.pt has 11 blocks; V-JEPA 2\.1 has 12, 24, 40, 48"):
        VJEPA_2_1.convert(Weights("vit.pt", odd), model_2_1())


def test_another_model_than_the_weights_are_of():
    """What would load cleanly and compute something else; all of it at once."""
    ours = model(positions="sincos", norm_eps=1e-5)
    with pytest.raises(UserError) as error:
        check_settings(ours, VJEPA_2.convert(Weights("vit.pt", encoder()), ours).requires, "vit.pt")
    asked = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert asked == [
        "model.encoder.norm_eps=1e-06 (it is 1e-05)",
        "model.encoder.positions=rope (it is sincos)",
    ]


# As each generation's code builds its encoders; 2.1's are those of 2
@pytest.mark.parametrize(("width", "first", "second"), [(1024, 16, 16), (1280, 16, 16), (1408, 16, 22), (1664, 16, 26)])
def test_heads_follow_from_generation_and_width(width, first, second):
    table = {"pos_embed": sincos_uniform((8, 4, 4), DIM).reshape(1, 128, DIM)}
    published = {VJEPA_1: encoder() | table, VJEPA_2: encoder(), VJEPA_2_1: encoder_2_1()}
    heads = []
    for format, tensors in published.items():
        wide = {"patch_embed.proj.weight": torch.zeros(width, 3, 2, 16, 16)}
        converted = format.convert(Weights("vit.pt", tensors | wide), model())
        heads.append(converted.requires["encoder.num_heads"])
    assert heads == [first, second, second]


def test_patches_of_another_size_are_resized():
    ours = VideoClassifier(ViT3D(64, 16, DIM, 2, 4, patch_size=8, positions="rope"), MeanPoolClassifier, CLASSES)
    converted = VJEPA_2.convert(Weights("vit.pt", encoder()), ours)
    assert converted.tensors["encoder.patch_embed.proj.weight"].shape == (DIM, 3, 2, 8, 8)
    assert converted.resized == {"encoder.patch_embed.proj.weight": "patch size 16x16 resized to 8x8"}


def test_what_is_no_vjepa_is_not_taken_for_it():
    image = encoder() | {"patch_embed.proj.weight": torch.randn(DIM, 3, 16, 16)}
    for tensors in (
        image,
        encoder() | {"cls_token": torch.zeros(1, 1, DIM)},
        {"fc.weight": torch.zeros(2, 2)},
    ):
        assert not any(format.recognizes(Weights("vit.pt", tensors)) for format in FORMATS)


# --- probes ---


@pytest.mark.parametrize("prefix", ["classifiers.0.module.", "classifier.module.", "classifier.", ""])
def test_probe(prefix):
    published, ours = probe(), model()
    weights = Weights("ssv2.pt", {prefix + name: each for name, each in published.items()})
    converted = loaded(weights, VJEPA_PROBE, ours, "head.")
    assert converted.requires == {"head.pooler.norm_eps": 1e-5}
    assert equal(there_and_back(converted, VJEPA_PROBE, ours), published)


@pytest.mark.parametrize("width", [1024, 1280, 1408])
def test_published_probes_have_16_heads(width):
    wide = {"pooler.cross_attention_block.xattn.q.weight": torch.zeros(width, 1)}
    weights = Weights("ssv2.pt", probe() | wide)
    ours = model()
    with pytest.raises(UserError, match=r"\n  model\.head\.num_heads=16 \(it is 4\)$"):
        check_settings(ours, VJEPA_PROBE.convert(weights, ours).requires, "ssv2.pt")


def test_of_several_probes_the_first_or_the_one_that_is_named(tmp_path):
    tensors = {
        f"classifiers.{index}.module.{name}": torch.full_like(each, index)
        for index in range(3)
        for name, each in probe().items()
    }
    file = tmp_path / "heads.pt"
    torch.save({"classifiers": [{"module.linear.bias": torch.zeros(1)}]}, file)
    for source, index in ((str(file), 0), (f"{file}:2", 2)):
        converted = VJEPA_PROBE.convert(Weights(source, tensors), model())
        assert converted.tensors["head.linear.bias"].tolist() == [index] * 5
        assert len(converted.left_out) == 2 * len(probe())
        reason = converted.left_out["classifiers.1.module.linear.bias"]
        assert reason == f"another probe; number {index} is used, and {file}:1 would be the second"
        check_source(source)
        assert locate(source) == file
    with pytest.raises(UserError, match=r"heads\.pt:3: .*heads\.pt holds probes 0 to 2"):
        VJEPA_PROBE.convert(Weights(f"{file}:3", tensors), model())


def test_the_first_generation_has_a_projection_that_it_does_not_use():
    published, ours = probe(blocks=0, unused=True), model(head_depth=1)
    weights = Weights("k400.pth.tar", {f"classifier.module.{name}": each for name, each in published.items()})
    converted = loaded(weights, VJEPA_PROBE, ours, "head.")
    unused = {f"pooler.cross_attention_block.xattn.proj.{kind}" for kind in ("weight", "bias")}
    assert converted.left_out.keys() == {f"classifier.module.{name}" for name in unused}
    kept = {name: each for name, each in published.items() if name not in unused}
    assert equal(there_and_back(converted, VJEPA_PROBE, ours), kept)
    with pytest.raises(UserError, match=r"a V-JEPA 1 probe of several layers"):
        VJEPA_PROBE.convert(Weights("k400.pth.tar", probe(blocks=1, unused=True)), ours)


def test_a_probe_needs_an_attentive_head():
    ours = VideoClassifier(ViT3D(64, 16, DIM, 2, 4), MeanPoolClassifier, CLASSES)
    with pytest.raises(UserError, match=r"ssv2\.pt is an attentive probe, .*MeanPoolClassifier; choose model="):
        VJEPA_PROBE.convert(Weights("ssv2.pt", probe()), ours)
