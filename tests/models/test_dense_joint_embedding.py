"""V-JEPA 2.1: its loss by hand, its levels and norms, and figures of the original code on the same weights.

The code of facebookresearch/vjepa2 (app/vjepa_2_1), loaded with the same file, gives the same: targets to the bit,
encoder and predictions within 2e-6 of the largest, the loss within 2e-7, and every gradient within 2e-6; with four
levels and with one, with and without weights of distance, before the end of the warm-up and after.
"""

import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from noisy_models import noisy
from padded_batches import trained_both_ways
from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.models.dense_joint_embedding import DenseJointEmbedding
from vidtrain.models.masks import BlockMasks
from vidtrain.models.vit3d import ViT3D
from vidtrain.models.weights.loading import load_pretrained
from vidtrain.models.weights.pretraining import LAYOUTS
from vidtrain.models.weights.vjepa import NORMED_BLOCKS, VJEPA_2_1

FRAMES, SIZE, GRID = 4, 96, (2, 6, 6)
EQUAL = BlockMasks(blocks=[1, 1], areas=[0.15, 0.5], aspect=[1, 1])  # one size, so that all lists are equally long


def dense(masks=EQUAL, objective=(), **options) -> DenseJointEmbedding:
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "depth": 5, "num_heads": 4, "positions": "rope_interleaved", "modality_embed": True}
    encoder = ViT3D(SIZE, FRAMES, **(sizes | options))
    widths = {"predictor_dim": 24, "predictor_depth": 2, "predictor_heads": 2, "levels": 2}
    return DenseJointEmbedding(encoder, masks, **(widths | dict(objective)))


def video(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def counted(valid: Tensor | None, places: Tensor, row: int) -> list[int]:
    return places[row].tolist() if valid is None else places[row][valid[row]].tolist()


def place(token: int) -> Tensor:
    _, h, w = GRID
    return torch.tensor([token // (h * w), token // w % h, token % w], dtype=torch.float64)


def distance(token: int, hidden: list[int]) -> float:
    return min(float((place(token) - place(other)).norm()) for other in hidden)


def test_distances_are_those_to_the_nearest_hidden_token():
    for masks in dense(masks=BlockMasks()).sample_masks(video(), torch.tensor([1, 2, 3])):
        assert masks.visible_valid is not None
        for row, distances in enumerate(masks.distances(GRID)):
            visible, hidden = (
                counted(masks.visible_valid, masks.visible, row),
                counted(masks.hidden_valid, masks.hidden, row),
            )
            expected = [distance(token, hidden) for token in visible]
            assert distances[: len(visible)].tolist() == pytest.approx(expected, rel=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("weighted", [True, False])
def test_the_loss_by_hand(weighted):
    """Token by token, from the encoder's blocks, the norms of levels, and the predictor."""
    model = noisy(dense(objective={"distance_weighting": weighted, "context_weight": 0.3})).eval()
    assert model.blocks == (1, 4)
    clips = video()
    masks = model.sample_masks(clips, torch.tensor([4, 5, 6]))
    whole = model.teacher.outputs_of((1, 4), clips)
    levels = [model.teacher_norms["1"](whole[0]), model.teacher.norm(whole[1])]
    target = torch.cat([F.layer_norm(level, (48,)) for level in levels], dim=-1)
    losses = torch.zeros(3)
    for kind, mask in enumerate(masks):
        first, last = model.encoder.outputs_of((1, 4), clips, mask.visible)
        tokens = torch.cat([model.head.norms["1"](first), model.encoder.norm(last)], dim=-1)
        hidden, context = model.head.both(tokens, mask, kind, GRID)
        for row in range(3):
            away = mask.hidden[row].tolist()
            on_hidden = [(hidden[row, i] - target[row, token]).abs().mean() for i, token in enumerate(away)]
            on_context = [
                (context[row, i] - target[row, token]).abs().mean() / (distance(token, away) ** 0.5 if weighted else 1)
                for i, token in enumerate(mask.visible[row].tolist())
            ]
            losses[row] += (sum(on_hidden) / len(on_hidden) + 0.3 * sum(on_context) / len(on_context)) / 2
    torch.testing.assert_close(model.losses(clips, masks), losses, atol=1e-6, rtol=1e-6)


def test_the_weight_of_the_context_grows_in_the_warmup_and_counts_from_the_start_of_a_run():
    model = dense(objective={"context_weight": 0.0})
    model.ramp = (2, 6)
    shares = []
    for _ in range(8):
        shares.append(float(model.progress()))
        model.after_step()
    assert shares == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert int(model.steps) == 8
    model.begin(["steps"])
    assert int(model.steps) == 0 and float(model.progress()) == 0
    model.ramp = (0, 0)
    assert float(model.progress()) == 1


@torch.no_grad()
def test_before_the_warmup_the_loss_is_that_of_hidden_tokens():
    model = noisy(dense()).eval()
    masks = model.sample_masks(video(), torch.tensor([4, 5, 6]))
    model.ramp = (1, 2)
    hidden = [mask.mean_of_hidden(errors) for mask, errors in zip(masks, model.errors(video(), masks), strict=True)]
    torch.testing.assert_close(model.losses(video(), masks), torch.stack(hidden).mean(dim=0))
    model.steps += 2
    assert (model.losses(video(), masks) > torch.stack(hidden).mean(dim=0)).all()


@pytest.mark.parametrize("options", [{}, {"positions": "sincos", "modality_embed": False}, {"norm_per_layer": True}])
def test_a_padded_batch_is_each_sample_alone_and_every_trained_parameter_has_a_gradient(options):
    model = noisy(dense(masks=BlockMasks(), **options)).eval()
    (losses, together), (losses_alone, alone) = trained_both_ways(model, video())
    torch.testing.assert_close(losses, losses_alone, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith(("teacher.", "teacher_norms.")), name
        if parameter.requires_grad:
            assert together[name].any(), name
            torch.testing.assert_close(together[name], alone[name], atol=2e-5, rtol=1e-4, msg=name)


def test_the_teachers_norms_follow_those_of_the_encoder():
    model = dense(objective={"momentum": 0.75})
    with torch.no_grad():
        for parameter in [*model.encoder.parameters(), *model.head.norms.parameters()]:
            parameter.add_(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.after_step()
    for name, tensor in model.state_dict().items():
        follows = name.startswith(("teacher.", "teacher_norms."))
        torch.testing.assert_close(tensor, before[name] + (0.25 if follows else name == "steps"))
    model.begin([])
    assert torch.equal(model.teacher_norms["1"].weight, model.head.norms["1"].weight)
    assert model.feature_encoder() is model.teacher


def test_levels_are_the_published_ones_and_evenly_spaced_in_other_encoders():
    for depth, blocks in NORMED_BLOCKS.items():
        assert dense(depth=depth, embed_dim=24, objective={"levels": 4}).blocks == blocks
    assert dense(objective={"levels": 4}).blocks == (0, 1, 2, 4)
    one = dense(objective={"levels": 1})
    assert one.blocks == (4,) and len(one.head.norms) == 0
    assert one.head.embed.weight.shape == (24, 48) and one.head.proj_context.weight.shape == (48, 24)
    assert dense().head.embed[0].weight.shape == (48, 96) and dense().head.proj.weight.shape == (96, 24)


@pytest.mark.parametrize(
    ("objective", "options", "message"),
    [
        ({"levels": 6}, {}, r"objective\.levels=6, but model\.encoder has 5 blocks"),
        ({"levels": 0}, {}, r"objective\.levels=0 is too small"),
        ({"context_weight": -1}, {}, r"objective\.context_weight=-1 must be 0 or more"),
        ({}, {"out_layers": [1, 4]}, r"model\.encoder\.out_layers=\[1, 4\] returns several"),
        (
            {"teacher": ViT3D(SIZE, FRAMES, 48, 1, 4), "momentum": 1},
            {},
            r"objective\.levels=2, but objective\.teacher has 1 blocks",
        ),
    ],
)
def test_what_does_not_fit_is_refused(objective, options, message):
    with pytest.raises(UserError, match=message):
        dense(objective=objective, **options)


# --- figures of the original code -----------------------------------------------------------------------------------

# Of the original with `patterned` weights, on `wave` and the masks of seeds 4 and 5
FIRST_HIDDEN = [7, 8, 13, 14]
WITH_DISTANCES, WITHOUT_DISTANCES, HIDDEN_ONLY = 1.3849825, 1.4752187, 0.98074812
GRADIENTS = {  # their norms
    "encoder.patch_embed.proj.weight": 0.005585731,
    "encoder.patch_embed.video_mod_embed": 0.001427161,
    "encoder.blocks.2.attn.qkv.weight": 0.0008687133,
    "encoder.blocks.11.mlp.fc2.bias": 0.001457509,
    "encoder.norm.11.weight": 0.002363378,
    "head.norms.2.weight": 0.002301242,
    "head.norms.8.bias": 0.00231616,
    "head.embed.0.weight": 0.2251997,
    "head.embed.2.bias": 0.08218488,
    "head.mask_tokens.0": 0.08637093,
    "head.mask_tokens.1": 0.1034704,
    "head.video_mod_embed": 0.2682329,
    "head.blocks.3.attn.proj.weight": 0.8287364,
    "head.proj.weight": 0.1978286,
    "head.proj_context.weight": 0.08128197,
}


def patterned(shapes: dict[str, torch.Size]) -> dict[str, Tensor]:
    """Values that follow from a tensor's published name and shape."""
    return {
        name: (
            0.1 * torch.sin(0.7 * torch.arange(shape.numel(), dtype=torch.float64) + zlib.crc32(name.encode()) % 997)
            + ("norm" in name and name.endswith("weight"))
        ).reshape(shape).float()
        for name, shape in shapes.items()
    }  # fmt: skip


def wave() -> Tensor:
    count = 2 * 3 * FRAMES * SIZE * SIZE
    return torch.sin(0.01 * torch.arange(count, dtype=torch.float64) ** 1.3).reshape(2, 3, FRAMES, SIZE, SIZE).float()


def of_the_original(tmp_path: Path) -> DenseJointEmbedding:
    """A network with `patterned` weights, loaded from a file as the original writes it."""
    model = dense(depth=12, rope_base_grid=16, norm_per_layer=True, objective={"levels": 4, "predictor_depth": 4})
    published = LAYOUTS[VJEPA_2_1.name].revert(model.state_dict())
    levels: dict[str, dict[str, Tensor]] = {}
    for name, tensor in patterned({name: tensor.shape for name, tensor in published.items()}).items():
        part, _, rest = name.partition(".")
        levels.setdefault(part, {})[rest] = tensor
    torch.save(levels, tmp_path / "latest.pt")
    report = load_pretrained(model, "latest.pt", tmp_path / "latest.pt", 1.0)
    assert set(report.loaded) == model.state_dict().keys() - {"steps"} and report.left_out == {}
    return model.eval()


def test_losses_and_gradients_are_those_that_the_original_code_gave(tmp_path):
    model = of_the_original(tmp_path)
    masks = model.sample_masks(wave(), torch.tensor([4, 5]))
    assert masks[0].hidden[0].tolist()[:4] == FIRST_HIDDEN
    loss = model.losses(wave(), masks).mean()
    loss.backward()
    assert loss.item() == pytest.approx(WITH_DISTANCES, rel=1e-5)
    for name, norm in GRADIENTS.items():
        assert model.get_parameter(name).grad.norm().item() == pytest.approx(norm, rel=1e-4), name
    model.distance_weighting = False
    assert model.losses(wave(), masks).mean().item() == pytest.approx(WITHOUT_DISTANCES, rel=1e-5)
    model.ramp = (5, 9)
    assert model.losses(wave(), masks).mean().item() == pytest.approx(HIDDEN_ONLY, rel=1e-5)
