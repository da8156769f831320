"""The encoder: an independent block, sizes of every kind, gradients, precision, compilation, bad input."""

import math
import shutil
from functools import partial

import pytest
import timm.layers
import timm.models.vision_transformer
import torch
import torch.nn.functional as F
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.positions import ROTARY, TABLES, fit_table
from vidtrain.models.vit3d import Block, DropPath, Mlp, SwiGLU, ViT3D, mlp_width


def small(image_size=32, num_frames=4, embed_dim=48, depth=2, num_heads=4, **options) -> ViT3D:
    torch.manual_seed(0)
    return ViT3D(image_size, num_frames, embed_dim, depth, num_heads, **options)


def clip(frames=4, height=32, width=32, batch=2) -> torch.Tensor:
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_block_equals_timm():
    theirs = timm.models.vision_transformer.Block(
        48, num_heads=4, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6)
    )
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours = Block(48, 4, 192, "gelu", qkv_bias=True, drop_path=0.0, norm_eps=1e-6)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 30, 48)
    assert float((ours(x, None) - theirs(x)).abs().max()) <= 1e-5  # measured: 0


def test_tokens_run_over_time_then_height_then_width():
    encoder = small(num_frames=4, image_size=(32, 48))
    video = torch.zeros(1, 3, 4, 32, 48)
    video[0, :, 2:4, 16:32, 32:48] = 1  # t=1, h=1, w=2 of (2, 2, 3)
    tokens = encoder.patch_embed(video)[0]
    changed = (tokens - encoder.patch_embed(torch.zeros_like(video))[0]).abs().amax(dim=-1)
    assert changed.nonzero().flatten().tolist() == [1 * 6 + 1 * 3 + 2]


@pytest.mark.parametrize("positions", [*TABLES, *ROTARY])
@pytest.mark.parametrize(
    ("frames", "height", "width", "tokens"),
    [(4, 32, 32, 8), (2, 32, 32, 4), (8, 32, 32, 16), (4, 48, 32, 12), (6, 16, 64, 12), (2, 16, 16, 1)],
)
@torch.no_grad()
def test_other_lengths_and_sizes(positions, frames, height, width, tokens):
    out = small(positions=positions)(clip(frames, height, width))
    assert out.shape == (2, tokens, 48)
    assert out.isfinite().all()


@pytest.mark.parametrize("positions", [*TABLES, *ROTARY])
@torch.no_grad()
def test_order_of_frames_matters(positions):
    encoder, video = small(positions=positions), clip(frames=4)
    tubelets_swapped = video[:, :, [2, 3, 0, 1]]
    assert not torch.allclose(encoder(video).mean(1), encoder(tubelets_swapped).mean(1), atol=1e-5)


@torch.no_grad()
def test_non_square_construction():
    encoder = small(image_size=(32, 48))
    assert encoder.pos_embed.shape == (2, 2, 3, 48)
    assert encoder(clip(height=32, width=48)).shape == (2, 12, 48)


def test_position_table_is_not_in_the_state_dict():
    assert "pos_embed" not in small().state_dict()
    small(image_size=64, num_frames=8).load_state_dict(small().state_dict(), strict=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "rope"},
        {"positions": "learned"},
        {"final_norm": False},
        {"activation": "swiglu"},
        {"out_layers": [0, 2], "norm_per_layer": True, "modality_embed": True},
    ],
)
def test_layers_hold_every_parameter_once_and_in_order(options):
    encoder = small(depth=3, **options)
    assert encoder.layers == [encoder.patch_embed, *encoder.blocks, encoder.norm]
    in_layers = [id(p) for layer in encoder.layers for p in layer.parameters()]
    assert sorted(in_layers) == sorted(id(p) for p in encoder.parameters())


def test_names_are_the_original_ones():
    names = {name.replace("blocks.1.", "blocks.N.") for name in small().state_dict() if "blocks.0." not in name}
    block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    modules = ("patch_embed.proj", "norm", *(f"blocks.N.{module}" for module in block))
    assert names == {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@pytest.mark.parametrize(
    ("dim", "ratio", "activation", "expected"),
    [
        (1024, 4.0, "gelu", 4096),
        (1408, 48 / 11, "gelu", 6144),
        (1024, 4.0, "swiglu", 2736),
        (1408, 48 / 11, "swiglu", 4096),
    ],
)
def test_mlp_width(dim, ratio, activation, expected):
    assert mlp_width(dim, ratio, activation) == expected


def test_mlp_hidden_is_taken_as_it_is():
    assert small(mlp_hidden=100).blocks[0].mlp.fc1.out_features == 100
    assert small(mlp_hidden=100, activation="swiglu").blocks[0].mlp.fc1.out_features == 100


@torch.no_grad()
def test_swiglu_formula():
    mlp, x = SwiGLU(8, 16), torch.randn(3, 8)
    gate = x @ mlp.fc1.weight.T + mlp.fc1.bias
    hidden = gate / (1 + torch.exp(-gate)) * (x @ mlp.fc2.weight.T + mlp.fc2.bias)
    torch.testing.assert_close(mlp(x), hidden @ mlp.fc3.weight.T + mlp.fc3.bias)


def test_drop_path_grows_over_depth():
    rates = [getattr(block.drop_path, "rate", 0.0) for block in small(depth=5, drop_path=0.2).blocks]
    assert rates == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])
    assert not any(isinstance(module, DropPath) for module in small(depth=5).modules())


@pytest.mark.parametrize("rate", [0.2, 0.7])
def test_drop_path_is_that_of_timm(rate):
    x = torch.randn(16, 5, 3)
    ours, theirs = DropPath(rate), timm.layers.DropPath(rate)
    torch.manual_seed(0)
    dropped = ours(x)
    torch.manual_seed(0)
    torch.testing.assert_close(dropped, theirs(x), rtol=0, atol=0)
    torch.testing.assert_close(ours.eval()(x), x, rtol=0, atol=0)


def test_the_mlp_is_that_of_timm():
    ours, theirs = Mlp(6, 8), timm.layers.Mlp(6, 8)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 6)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)


@pytest.mark.parametrize(("activation", "output"), [("gelu", "fc2"), ("swiglu", "fc3")])
@torch.no_grad()
def test_initialization(activation, output):
    encoder = small(embed_dim=192, depth=4, activation=activation)
    assert float(encoder.patch_embed.proj.weight.std()) == pytest.approx(0.02, rel=0.05)
    for level, block in enumerate(encoder.blocks, start=1):
        assert float(block.attn.qkv.weight.std()) == pytest.approx(0.02, rel=0.05)
        assert float(block.mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.05)
        rescaled = 0.02 / math.sqrt(2 * level)
        assert float(block.attn.proj.weight.std()) == pytest.approx(rescaled, rel=0.05)
        assert float(block.mlp.get_submodule(output).weight.std()) == pytest.approx(rescaled, rel=0.05)
    assert all(not p.any() for name, p in encoder.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"positions": "rope", "activation": "swiglu"},
        {"positions": "learned"},
        {"out_layers": [0, 1], "norm_per_layer": True, "modality_embed": True},
    ],
)
def test_gradient_reaches_every_parameter(options):
    encoder = small(**options)
    encoder(clip()).square().mean(dim=1)[:, :24].sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@torch.no_grad()
def test_tokens_of_several_layers_follow_each_other():
    """The reference's: each through the final norm, in the order of the blocks."""
    encoder, video = small(depth=3, out_layers=[0, 2]), clip()
    assert encoder.grid(4, 32, 32) == (4, 2, 2)  # t counts the layers
    tables = encoder.pos_embed.flatten(0, 2)
    first = encoder.blocks[0](encoder.patch_embed(video) + tables, None)
    last = encoder.blocks[2](encoder.blocks[1](first, None), None)
    assert torch.equal(encoder(video), torch.cat((encoder.norm(first), encoder.norm(last)), dim=1))


@torch.no_grad()
def test_a_norm_for_each_layer():
    shared, own = small(depth=3, out_layers=[0, 2]), small(depth=3, out_layers=[0, 2], norm_per_layer=True)
    state = shared.state_dict()
    weight, bias = state.pop("norm.weight"), state.pop("norm.bias")
    norms = {f"norm.{layer}.{kind}": each for layer in (0, 2) for kind, each in (("weight", weight), ("bias", bias))}
    own.load_state_dict(state | norms, strict=True)
    assert torch.equal(own(clip()), shared(clip()))
    own.norm["2"].bias.add_(1)
    changed = (own(clip()) - shared(clip())).abs().amax(dim=(0, 2))
    assert changed[:8].max() == 0 and changed[8:].min() > 0.9


@torch.no_grad()
def test_the_vector_that_marks_video_is_a_second_bias():
    plain, marked = small(), small(modality_embed=True)
    assert marked.patch_embed.video_mod_embed.shape == (48,)
    assert 0 < marked.patch_embed.video_mod_embed.std() < 1e-5
    marked.load_state_dict(plain.state_dict() | {"patch_embed.video_mod_embed": torch.arange(48.0)})
    plain.patch_embed.proj.bias.add_(torch.arange(48.0))
    torch.testing.assert_close(marked(clip()), plain(clip()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["dropout", "attention_dropout"])
def test_dropout_is_of_training_alone(kind):
    plain, dropping, video = small(), small(**{kind: 0.5}), clip()
    dropping.load_state_dict(plain.state_dict())
    assert not torch.allclose(dropping(video), dropping(video), atol=1e-3)
    assert torch.equal(dropping.eval()(video), plain.eval()(video))


@pytest.mark.parametrize("positions", [*TABLES, *ROTARY, "learned"])
@torch.no_grad()
def test_tokens_left_out_are_as_tokens_that_none_attends_to(positions):
    """Each token keeps the position of its true place."""
    encoder, places = (
        small(positions=positions, out_layers=[0, 1]).eval(),
        torch.tensor([[1, 4, 6], [0, 2, 3]]),
    )
    for block in encoder.blocks:
        block.attn.qkv.weight.mul_(10)  # so that attention has something to tell
    visible = encoder(clip(), places)
    mask = torch.zeros(2, 8, dtype=torch.bool).scatter(1, places, True)
    forward = Block.forward
    for block in encoder.blocks:
        block.forward = lambda x, rotary, key_mask, block=block: forward(block, x, rotary, mask)
    index = torch.cat((places, places + 8), dim=1)[..., None].expand(-1, -1, 48)
    torch.testing.assert_close(visible, encoder(clip()).gather(1, index), atol=1e-5, rtol=0)
    for block in encoder.blocks:
        del block.forward
    assert not torch.allclose(visible, encoder(clip()).gather(1, index), atol=1e-3)


@torch.no_grad()
def test_tokens_of_a_clip_do_not_see_padding():
    encoder = small(positions="rope").eval()
    places = torch.tensor([[1, 4, 6], [2, 3, 0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    padded = encoder(clip(), places, valid)
    torch.testing.assert_close(padded[1:, :2], encoder(clip()[1:], places[1:, :2]), atol=5e-6, rtol=0)
    whole = encoder(clip(), torch.arange(8).expand(2, 8))
    torch.testing.assert_close(whole, encoder(clip()), atol=5e-6, rtol=0)


@torch.no_grad()
def test_a_table_made_for_pretraining_is_interpolated_for_another_size():
    """VideoMAE's table runs over the flat index, so one made for 160 pixels would not mean the same places."""
    encoder = small(image_size=224, num_frames=16, positions="sincos_1d").eval()
    video = clip(frames=8, height=160, width=160, batch=1)
    table = encoder.pos_embed.permute(3, 0, 1, 2)[None]
    fitted = F.interpolate(table, size=(4, 10, 10), mode="trilinear")[0].permute(1, 2, 3, 0).flatten(0, 2)
    x = encoder.patch_embed(video) + fitted
    for block in encoder.blocks:
        x = block(x, None)
    tokens = encoder(video)
    assert tokens.shape == (1, 400, 48) and tokens.isfinite().all()
    torch.testing.assert_close(tokens, encoder.norm(x), atol=1e-6, rtol=0)
    recomputed = small(image_size=160, num_frames=8, positions="sincos_1d").eval()
    recomputed.load_state_dict(encoder.state_dict())
    assert float((recomputed(video) - tokens).abs().max()) > 0.1


@torch.no_grad()
def test_fewer_frames_take_the_first_steps_of_the_table_or_all_of_it_as_the_original_does():
    cut, stretched = small(num_frames=8), small(num_frames=8, positions="sincos_uniform")
    for encoder, expected in (
        (cut, cut.pos_embed[:2].flatten(0, 2)),
        (stretched, fit_table(stretched.pos_embed, (2, 2, 2), cut=False)),
    ):
        x = encoder.patch_embed(clip()) + expected
        for block in encoder.blocks:
            x = block(x, None)
        assert torch.equal(encoder(clip()), encoder.norm(x))
    assert not torch.allclose(fit_table(stretched.pos_embed, (2, 2, 2)), expected, atol=0.1)


@pytest.mark.parametrize("positions", ["sincos", "rope"])
def test_activation_checkpointing_gives_equal_gradients(positions):
    plain = small(positions=positions, drop_path=0.3, depth=3)
    saving = small(positions=positions, drop_path=0.3, depth=3, activation_checkpointing=True)
    for encoder in (plain, saving):
        torch.manual_seed(2)  # the same branches are dropped, also in the recomputation
        encoder(clip(batch=4))[..., :24].sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


def test_activation_checkpointing_of_visible_tokens_gives_equal_gradients():
    plain, saving = small(positions="rope"), small(positions="rope", activation_checkpointing=True)
    places, valid = torch.tensor([[1, 4], [6, 0]]), torch.tensor([[True, True], [True, False]])
    for encoder in (plain, saving):
        encoder(clip(), places, valid)[..., :24].sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("positions", ["sincos", "rope", "rope_interleaved"])
def test_autocast(positions, dtype):
    encoder, video = small(positions=positions), clip()
    with torch.autocast("cpu", dtype):
        tokens = encoder(video)
    assert tokens.isfinite().all()
    torch.testing.assert_close(tokens.float(), encoder(video), atol=0.05, rtol=0)
    tokens.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["sincos", "rope"])
@torch.no_grad()
def test_traced_as_one_graph(positions):
    encoder = small(positions=positions, depth=1).eval()
    traced = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(clip()), encoder(clip()), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on this machine")
@torch.no_grad()
def test_compiled_equals_eager():
    encoder = small(positions="rope", depth=1).eval()
    compiled = torch.compile(encoder, fullgraph=True)
    torch.testing.assert_close(compiled(clip()), encoder(clip()), atol=1e-5, rtol=0)  # measured: 4e-7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 5}, r"clip\.frames=5 .*model\.encoder\.tubelet_size=2; nearest that fit: 4, 6\."),
        ({"num_frames": 1}, r"clip\.frames=1 .*nearest that fit: 2\."),
        ({"image_size": 60}, r"clip\.size=60 .*model\.encoder\.patch_size=16; nearest that fit: 48, 64\."),
        ({"image_size": (32, 40)}, r"clip\.size=40 .*nearest that fit: 32, 48\."),
        ({"num_heads": 5}, r"model\.encoder\.num_heads=5 .*embed_dim=48; nearest that fit: 4, 6\."),
        ({"num_heads": 0}, r"model\.encoder\.num_heads=0 .*nearest that fit: 1\."),
        (
            {"num_heads": 12, "positions": "rope"},
            r"num_heads=12 leaves 4 channels.*model\.encoder\.num_heads=8\.",
        ),
        (
            {"embed_dim": 4, "num_heads": 1, "positions": "rope"},
            r"leaves 4 .*that fits: model\.encoder\.embed_dim=6\.",
        ),
        (
            {"embed_dim": 36},
            r"model\.encoder\.embed_dim=36 .*positions=sincos needs; nearest that fit: 32, 40\.",
        ),
        (
            {"positions": "none"},
            r"model\.encoder\.positions=.none. .*sincos, .*rope, rope_interleaved, learned\.",
        ),
        ({"rope_base_grid": 16}, r"model\.encoder\.rope_base_grid=16 has no effect with positions=sincos"),
        ({"drop_path": -1}, r"model\.encoder\.drop_path=-1 must be a share from 0 to below 1"),
        ({"activation": "relu"}, r"model\.encoder\.activation='relu' .*gelu, swiglu\."),
        ({"depth": 0}, r"model\.encoder\.depth=0 .*the smallest that fits is 1\."),
        ({"out_layers": [1, 0]}, r"model\.encoder\.out_layers=\[1, 0\] must be .* in rising order\."),
        ({"out_layers": []}, r"model\.encoder\.out_layers=\[\] must be block numbers from 0"),
        (
            {"out_layers": [0]},
            r"out_layers=\[0\] must end with the last block, 1; .*model\.encoder\.depth=1\.",
        ),
        (
            {"norm_per_layer": True, "final_norm": False},
            r"norm_per_layer=true needs model\.encoder\.final_norm",
        ),
    ],
)
def test_sizes_that_do_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        small(**options)


def test_clips_that_do_not_fit():
    with pytest.raises(UserError, match=r"clip\.frames=3 .*nearest that fit: 2, 4"):
        small()(clip(frames=3))
    with pytest.raises(UserError, match=r"clip\.size=40 .*nearest that fit: 32, 48"):
        small()(clip(height=40))
