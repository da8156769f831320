"""V-JEPA: predictions, targets, loss and gradients against transformers on shared weights and masks; the teacher."""

import copy

import pytest
import torch
import torch.nn.functional as F
from noisy_models import noisy
from padded_batches import trained_both_ways
from torch import Tensor, nn
from transformers import VJEPA2Config, VJEPA2Model

from vidtrain.errors import UserError
from vidtrain.models.masked_models import JointEmbedding
from vidtrain.models.masks import BlockMasks, TubeMasks
from vidtrain.models.vit3d import ViT3D

FRAMES, SIZE = 4, 64
EQUAL = BlockMasks(blocks=[1, 1], areas=[0.15, 0.7], aspect=[1, 1])  # one size, so that all lists are equally long


def theirs() -> VJEPA2Model:
    config = VJEPA2Config(
        crop_size=SIZE,
        frames_per_clip=FRAMES,
        hidden_size=104,
        num_attention_heads=4,  # 26 channels a head: 8 for each axis, 2 not rotated
        num_hidden_layers=2,
        pred_hidden_size=48,
        pred_num_attention_heads=4,
        pred_num_hidden_layers=2,
        pred_num_mask_tokens=2,
    )
    torch.manual_seed(0)
    return noisy(VJEPA2Model(config).eval())


def ours(masks=EQUAL, objective=(), **options) -> JointEmbedding:
    torch.manual_seed(0)
    sizes = {"embed_dim": 104, "depth": 2, "num_heads": 4, "positions": "rope"}
    encoder = ViT3D(SIZE, FRAMES, **(sizes | options))
    widths = {"predictor_dim": 48, "predictor_depth": 2, "predictor_heads": 4}
    return JointEmbedding(encoder, masks, **(widths | dict(objective)))


NAMES = {
    "encoder.embeddings.patch_embeddings.": "encoder.patch_embed.",
    "encoder.layer.": "encoder.blocks.",
    "encoder.layernorm.": "encoder.norm.",
    "predictor.embeddings.predictor_embeddings.": "head.embed.",
    "predictor.layer.": "head.blocks.",
    "predictor.layernorm.": "head.norm.",
    "predictor.proj.": "head.proj.",
    ".attention.": ".attn.",
}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of their model or gradients, by our names."""
    result = {}
    for name, tensor in tensors.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        result[name] = tensor
    for kind, token in enumerate(result.pop("predictor.embeddings.mask_tokens", [])):
        result[f"head.mask_tokens.{kind}"] = token.flatten()
    for name in [name for name in result if ".query." in name]:
        parts = [result.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        result[name.replace("query", "qkv")] = torch.cat(parts)
    return result


def filled(reference: VJEPA2Model, teacher: VJEPA2Model, **objective) -> JointEmbedding:
    model = ours(objective=objective)
    of_teacher = {
        name.replace("encoder.", "teacher."): tensor
        for name, tensor in renamed(teacher.state_dict()).items()
        if name.startswith("encoder.")
    }
    model.load_state_dict(renamed(reference.state_dict()) | of_teacher, strict=True)
    return model


def at(tokens: Tensor, places: Tensor) -> Tensor:
    return torch.stack([row[index] for row, index in zip(tokens, places, strict=True)])


def predicted(reference: VJEPA2Model, clips: Tensor, visible: Tensor, hidden: Tensor, kind: int) -> Tensor:
    """Theirs, with the encoder on the context alone, as in training; transformers' own forward pass encodes all."""
    encoder, predictor = reference.encoder, reference.predictor
    tokens = at(encoder.embeddings(clips.transpose(1, 2)), visible)
    for layer in encoder.layer:
        tokens = layer(tokens, visible)[0]
    tokens = encoder.layernorm(tokens)
    everywhere = torch.zeros(len(clips), 32, tokens.shape[-1])
    everywhere = everywhere.scatter(1, visible[..., None].expand_as(tokens), tokens)
    predictor.embeddings.num_mask_tokens = kind + 1  # their forward pass takes token 1 modulo this
    return predictor(everywhere, [visible], [hidden]).last_hidden_state


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one.detach() - other.detach()).abs().max() / other.detach().abs().max())


def video(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_predictions_targets_loss_and_gradients_are_those_of_transformers():
    reference = theirs()
    teacher = noisy(copy.deepcopy(reference))
    model = filled(reference, teacher)
    masks = model.sample_masks(video(), torch.tensor([4, 5, 6]))
    assert all(kind.visible_valid is None for kind in masks)
    with torch.no_grad():
        features = teacher(video().transpose(1, 2), skip_predictor=True).last_hidden_state
        target = F.layer_norm(features, (104,))
    assert difference(model.targets(video()), target) <= 1e-6
    losses = []
    for kind, mask in enumerate(masks):
        expected = predicted(reference, video(), mask.visible, mask.hidden, kind)
        tokens = model.encoder(video(), mask.visible)
        # the tokens are a product here and a convolution there; with a convolution all is equal to the bit
        assert difference(model.head(tokens, mask, kind, (2, 4, 4)), expected) <= 2e-6
        losses.append((expected - at(target, mask.hidden)).abs().mean())
    loss = sum(losses) / 2
    loss.backward()
    samples = model.losses(video(), masks)
    samples.mean().backward()
    assert samples.shape == (3,) and samples.dtype == torch.float32
    assert samples.mean().item() == pytest.approx(loss.item(), rel=1e-6)
    gradients = renamed({name: p.grad for name, p in reference.named_parameters()})
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == gradients.keys()
    for name, grad in trained.items():
        assert difference(grad, gradients[name]) <= 1e-5, name


@pytest.mark.parametrize("positions", ["rope", "rope_interleaved", "sincos", "sincos_uniform", "learned"])
def test_a_padded_batch_is_each_sample_alone(positions):
    model = noisy(ours(masks=BlockMasks(), positions=positions)).eval()
    (losses, together), (losses_alone, alone) = trained_both_ways(model, video())
    assert difference(losses, losses_alone) <= 1e-6
    assert together.keys() == alone.keys()
    for name, gradient in together.items():
        assert difference(gradient, alone[name]) <= 1e-5, name
    clips, seeds = video(), torch.tensor([1, 2, 3])
    maps = [
        model.predictions(clips[i : i + 1], model.sample_masks(clips[i : i + 1], seeds[i : i + 1])) for i in range(3)
    ]
    padded = model.predictions(clips, model.sample_masks(clips, seeds))
    torch.testing.assert_close(padded, torch.cat(maps), equal_nan=True, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_map_of_errors_lies_where_tokens_are_hidden():
    model = ours()
    masks = model.sample_masks(video(), torch.tensor([1, 2, 3]))
    maps = model.predictions(video(), masks)
    assert maps.shape == (3, 2, 2, 4, 4)
    for kind, (mask, errors) in enumerate(zip(masks, model.errors(video(), masks), strict=True)):
        for row in range(3):
            assert maps[row, kind].flatten()[mask.hidden[row]].tolist() == errors[row].tolist()
            assert maps[row, kind].flatten()[mask.visible[row]].isnan().all()
    torch.testing.assert_close(maps.flatten(2).nanmean(2).mean(1), model.losses(video(), masks))


@pytest.mark.parametrize("options", [{}, {"positions": "sincos"}, {"modality_embed": True}, {"positions": "learned"}])
def test_every_trained_parameter_has_a_gradient_and_the_teacher_none(options):
    model = noisy(ours(masks=BlockMasks(), **options))
    model.losses(video(), model.sample_masks(video(), torch.arange(3))).sum().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == name.startswith("teacher."), name
        assert parameter.grad is None or parameter.grad.any(), name


def test_the_teacher_follows_the_encoder():
    model = ours(objective={"momentum": 0.75})
    assert model.feature_encoder() is model.teacher
    before = copy.deepcopy(model.teacher.state_dict())
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1)
    model.after_step()
    for name, tensor in model.teacher.state_dict().items():
        torch.testing.assert_close(tensor, before[name] + 0.25)
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "head", "teacher"}


def test_the_teacher_has_no_dropout_and_takes_no_gradient():
    model = ours(drop_path=0.5, dropout=0.5).train()
    assert model.encoder.training and model.head.training
    assert not any(module.training for module in model.teacher.modules())
    assert torch.equal(model.targets(video()), model.targets(video()))
    assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
    model.eval()
    assert not model.encoder.training


def test_a_frozen_teacher_of_another_width_stays_as_it_is():
    teacher = noisy(ViT3D(SIZE, FRAMES, 48, 1, 4, positions="sincos_1d"))
    before = copy.deepcopy(teacher.state_dict())
    model = ours(objective={"teacher": teacher, "momentum": 1.0})
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.losses(video(), model.sample_masks(video(), torch.arange(3))).mean().backward()
    optimizer.step()
    model.after_step()
    assert model.targets(video()).shape == (3, 32, 48)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())


def test_the_predictor_starts_as_the_original_does():
    model = ours(objective={"predictor_dim": 192, "predictor_depth": 4})
    assert all(not token.any() for token in model.head.mask_tokens) and len(model.head.mask_tokens) == 2
    for level, block in enumerate(model.head.blocks, start=1):
        assert block.mlp.fc2.weight.std().item() == pytest.approx(0.02 / (2 * level) ** 0.5, rel=0.05)


def test_autocast_keeps_the_loss_in_float32():
    for positions in ("rope", "sincos"):
        model = ours(positions=positions)
        masks = model.sample_masks(video(), torch.arange(3))
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model.losses(video(), masks)
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, model.losses(video(), masks), rtol=0.02, atol=0)


@pytest.mark.slow
def test_traced_as_one_graph():
    model = ours(masks=BlockMasks(), objective={"predictor_depth": 1}, depth=1)
    traced = torch.compile(model.losses, fullgraph=True, backend="aot_eager")
    masks = model.sample_masks(video(), torch.arange(3))
    torch.testing.assert_close(traced(video(), masks), model.losses(video(), masks), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"momentum": 1.5}, r"objective\.momentum=1\.5 must lie between 0 and 1"),
        (
            {"predictor_heads": 5},
            r"objective\.predictor_dim=48 .*objective\.predictor_heads=5; nearest that fit: 45, 50",
        ),
        (
            {"predictor_heads": 12},
            r"objective\.predictor_dim=48 over objective\.predictor_heads=12 leaves 4 channels",
        ),
        ({"predictor_depth": 0}, r"objective\.predictor_depth=0 is too small"),
        (
            {"teacher": ViT3D(SIZE, FRAMES, 48, 1, 4)},
            r"objective\.momentum=0\.99925: objective\.teacher cannot follow",
        ),
        (
            {"teacher": ViT3D(SIZE, FRAMES, 48, 1, 4, patch_size=32), "momentum": 1},
            r"objective\.teacher has patch_size=32, but model\.encoder\.patch_size=16",
        ),
        ({"teacher": nn.Linear(2, 2)}, r"objective\.teacher is a Linear, which cannot"),
    ],
)
def test_what_does_not_fit_is_refused(objective, message):
    with pytest.raises(UserError, match=message):
        ours(objective=objective)


def test_tables_need_a_width_that_they_can_be_cut_from():
    with pytest.raises(UserError, match=r"objective\.predictor_dim=36 .*nearest that fit: 32, 40"):
        ours(positions="sincos", objective={"predictor_dim": 36})


def test_masks_are_tried_before_the_start():
    with pytest.raises(UserError, match=r"a block of 0\.15 of 2x2 places is empty"):
        ours(masks=BlockMasks()).masks.check((2, 2, 2))
    ours(masks=TubeMasks()).masks.check((2, 4, 4))
