"""VideoMAE: loss, gradients and pictures against transformers on shared weights and masks; padding, bad input."""

import pytest
import torch
from noisy_models import noisy
from torch import Tensor, nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from vidtrain.errors import UserError
from vidtrain.models.masked_models import MaskedAutoencoder
from vidtrain.models.masks import BlockMasks, TubeMasks
from vidtrain.models.positions import take_tokens
from vidtrain.models.vit3d import ViT3D

FRAMES, SIZE = 4, 64
COLORS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def theirs(norm_pix_loss: bool) -> VideoMAEForPreTraining:
    config = VideoMAEConfig(
        image_size=SIZE,
        num_frames=FRAMES,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=192,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=3,
        decoder_intermediate_size=96,
        use_mean_pooling=False,
        norm_pix_loss=norm_pix_loss,
    )
    torch.manual_seed(0)
    return noisy(VideoMAEForPreTraining(config).eval())


def ours(norm_pix_loss: bool = True, masks=None, **options) -> MaskedAutoencoder:
    torch.manual_seed(0)
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 4, "positions": "sincos_1d", "norm_eps": 1e-12}
    encoder = ViT3D(SIZE, FRAMES, **(sizes | options))
    return MaskedAutoencoder(
        encoder,
        masks or TubeMasks(0.75),
        **COLORS,
        decoder_dim=24,
        decoder_depth=2,
        decoder_heads=3,
        norm_pix_loss=norm_pix_loss,
    ).eval()


BLOCK = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


def renamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of their model or gradients, by our names; keys have no bias, so ours is zero."""
    result = {}
    for name, tensor in tensors.items():
        name = name.replace("videomae.encoder.layer.", "encoder.blocks.").replace(
            "decoder.decoder_layers.", "head.blocks."
        )
        name = name.replace("videomae.embeddings.patch_embeddings.projection", "encoder.patch_embed.proj")
        name = name.replace("videomae.layernorm", "encoder.norm").replace("decoder.norm", "head.norm")
        name = name.replace("decoder.head", "head.linear")
        for old, new in BLOCK.items():
            name = name.replace(f".{old}.", f".{new}.")
        if name in ("encoder_to_decoder.weight", "mask_token"):
            name = f"head.{name}"
        result[name] = tensor.flatten() if name == "head.mask_token" else tensor
    for name in [name for name in result if ".attention.attention.query." in name]:
        parts = [result.pop(name.replace("query", part), None) for part in ("query", "key", "value")]
        parts = [torch.zeros_like(parts[0]) if part is None else part for part in parts]
        result[name.replace("attention.attention.query", "attn.qkv")] = torch.cat(parts)
    return result


def difference(one: Tensor, other: Tensor) -> float:
    assert one.shape == other.shape
    return float((one.detach() - other.detach()).abs().max() / other.detach().abs().max())


def video(batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, FRAMES, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_and_gradients_are_those_of_transformers(norm_pix_loss):
    reference, model = theirs(norm_pix_loss), ours(norm_pix_loss)
    model.load_state_dict(renamed(reference.state_dict()), strict=True)
    model.head.norm.eps = 1e-5  # theirs is torch's default; the original's is that of the blocks
    masks = model.sample_masks(video(), torch.tensor([4, 5, 6]))
    hidden = torch.zeros(3, 32).scatter(1, masks[0].hidden, 1).bool()
    expected = reference(video().transpose(1, 2), bool_masked_pos=hidden).loss
    expected.backward()
    losses = model.losses(video(), masks)
    losses.mean().backward()
    assert losses.shape == (3,) and losses.dtype == torch.float32
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    gradients = renamed({name: p.grad for name, p in reference.named_parameters()})
    for name, parameter in model.named_parameters():
        grad = parameter.grad
        if name.endswith("qkv.bias"):  # attention is blind to a bias of the keys, which theirs has not
            q, k, v = grad.chunk(3)
            assert float(k.abs().max()) <= 1e-6
            grad = torch.cat((q, torch.zeros_like(k), v))
        assert difference(grad, gradients[name]) <= 1e-5, name


@torch.no_grad()
def test_pictures_are_the_video_with_what_transformers_predicts():
    reference, model = theirs(True), ours(True)
    model.load_state_dict(renamed(reference.state_dict()), strict=True)
    model.head.norm.eps = 1e-5
    masks = model.sample_masks(video(), torch.tensor([4, 5, 6]))
    hidden = torch.zeros(3, 32).scatter(1, masks[0].hidden, 1).bool()
    logits = reference(video().transpose(1, 2), bool_masked_pos=hidden).logits
    mean, std = (torch.tensor(COLORS[name]).view(3, 1, 1, 1) for name in ("mean", "std"))
    expected = video() * std + mean
    for row in range(3):
        for place, vector in zip(masks[0].hidden[row].tolist(), logits[row], strict=True):
            t, h, w = place // 16, place // 4 % 4, place % 4
            cube = expected[row, :, 2 * t : 2 * t + 2, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16]
            colors = vector.view(2, 16, 16, 3).permute(3, 0, 1, 2)
            flat = cube.flatten(1)
            cube.copy_(colors * (flat.std(1) + 1e-6).view(3, 1, 1, 1) + flat.mean(1).view(3, 1, 1, 1))
    shown = model.predictions(video(), masks)
    assert shown.shape == video().shape and shown.dtype == torch.float32
    torch.testing.assert_close(shown, expected.clamp(0, 1), atol=1e-5, rtol=0)
    assert not torch.allclose(shown, (video() * std + mean).clamp(0, 1), atol=0.1)


@torch.no_grad()
def test_a_perfect_prediction_is_the_video_and_no_error():
    for norm_pix_loss in (True, False):
        model = ours(norm_pix_loss)
        masks = model.sample_masks(video(), torch.arange(3))
        target = model._targets(video())[0]
        model._predict = lambda clips, masks, target=target: take_tokens(target, masks.hidden)
        pixels = video() * model.std + model.mean
        torch.testing.assert_close(model.predictions(video(), masks), pixels.clamp(0, 1), atol=1e-6, rtol=0)
        assert model.losses(video(), masks).tolist() == [0, 0, 0]


@pytest.mark.parametrize("positions", ["sincos_1d", "rope", "learned"])
def test_a_padded_batch_is_each_sample_alone(positions):
    model = ours(masks=BlockMasks(), positions=positions)
    seeds = torch.tensor([1, 2, 3])
    masks = model.sample_masks(video(), seeds)
    assert [kind.visible_valid is None for kind in masks] == [False, False]
    losses = model.losses(video(), masks)
    losses.sum().backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    alone = torch.cat(
        [model.losses(video()[i : i + 1], model.sample_masks(video()[i : i + 1], seeds[i : i + 1])) for i in range(3)]
    )
    alone.sum().backward()
    assert difference(losses, alone) <= 1e-6
    assert max(difference(one, p.grad) for one, p in zip(together, model.parameters(), strict=True)) <= 1e-5
    shown = [model.predictions(video()[i:], model.sample_masks(video()[i:], seeds[i:]))[0] for i in range(3)]
    torch.testing.assert_close(torch.stack(shown), model.predictions(video(), masks), atol=1e-5, rtol=0)


def test_other_sizes_of_clips():
    model = ours()
    for shape in ((1, 3, 8, 64, 64), (1, 3, 2, 48, 80)):
        clips = torch.randn(shape)
        masks = model.sample_masks(clips, torch.tensor([0]))
        assert model.losses(clips, masks).isfinite().all()
        assert model.predictions(clips, masks).shape == shape


@pytest.mark.slow
def test_training_paints_a_constant_video():
    """Measured: the loss of pixels as they are falls to 0.015 of what it was."""
    model = ours(norm_pix_loss=False).train()
    clips = torch.ones(4, 3, FRAMES, SIZE, SIZE) * torch.linspace(-1, 1, 4).view(4, 1, 1, 1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(40):
        loss = model.losses(clips, model.sample_masks(clips, torch.arange(4) + 10 * step)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step()
        losses.append(loss.item())
    assert losses[-1] < 0.03 * losses[0]


def test_autocast_keeps_the_loss_in_float32():
    model = ours()
    masks = model.sample_masks(video(), torch.arange(3))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.losses(video(), masks)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, model.losses(video(), masks), rtol=0.02, atol=0)


def test_the_encoder_is_what_is_kept_and_the_state_holds_all_of_it():
    model = ours()
    assert model.feature_encoder() is model.encoder
    assert {name.split(".")[0] for name in model.state_dict()} == {"encoder", "head"}
    assert model.head.mask_token.std() > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"decoder_heads": 5},
            r"objective\.decoder_dim=24 .*objective\.decoder_heads=5; nearest that fit: 20, 25",
        ),
        (
            {"decoder_dim": 5, "decoder_heads": 1},
            r"objective\.decoder_dim=5 .* 2, which .*nearest that fit: 4, 6",
        ),
        ({"decoder_depth": 0}, r"objective\.decoder_depth=0 is too small"),
    ],
)
def test_widths_that_do_not_fit(options, message):
    encoder = ViT3D(SIZE, FRAMES, 48, 1, 4)
    with pytest.raises(UserError, match=message):
        MaskedAutoencoder(encoder, TubeMasks(), **COLORS, **({"decoder_dim": 24} | options))


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: nn.Linear(2, 2), r"model\.encoder is a Linear, which cannot .* have a ViT3D: vit3d_\*"),
        (
            lambda: ViT3D(SIZE, FRAMES, 48, 2, 4, out_layers=[0, 1]),
            r"model\.encoder\.out_layers=\[0, 1\] returns several",
        ),
    ],
)
def test_encoders_that_cannot_leave_tokens_out(encoder, message):
    with pytest.raises(UserError, match=message):
        MaskedAutoencoder(encoder(), TubeMasks(), **COLORS)


def test_masks_are_tried_before_the_start():
    with pytest.raises(UserError, match=r"objective\.masks\.ratio=0\.2 hides none"):
        ours(masks=TubeMasks(0.2)).masks.check((2, 2, 2))
    ours().masks.check((2, 2, 2))
