"""SlowFast and its slow pathway alone: PyTorchVideo's numbers, sizes, and what training asks of an encoder."""

from functools import partial
from pathlib import Path

import hydra
import pytest
import torch
from composing import config_of
from pytorchvideo.models.resnet import create_resnet
from pytorchvideo.models.slowfast import create_slowfast
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.heads import AttentiveClassifier, FullyConvolutionalClassifier
from vidtrain.models.slowfast import SlowFast, SlowOnly
from vidtrain.models.weights.format import Weights
from vidtrain.models.weights.residual_networks import PYTORCHVIDEO_SLOW, PYTORCHVIDEO_SLOWFAST
from vidtrain.training.run import PhaseSettings
from vidtrain.training.stages import apply_phase, parameter_groups, set_train_mode

CONF = Path(__file__).parents[2] / "conf"
CLASSES = 7
# Largest difference of logits over the largest logit, float32 on a CPU with torch 2.15. SlowFast: 1.4e-7 here,
# 2.1e-7 at full width and clips of 224 to 320 pixels, since the fast features are averaged in two steps and not
# in one. Slow: exactly 0, here and at full width.
TOLERANCE = 1e-6


def small(**options) -> SlowFast:
    torch.manual_seed(0)
    return SlowFast(width=8, **options)


def small_slow(**options) -> SlowOnly:
    torch.manual_seed(0)
    return SlowOnly(width=8, **options)


BUILDERS = {"slowfast": small, "slow": small_slow}


def clip(frames=8, height=32, width=32, batch=2) -> Tensor:
    return torch.randn(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def as_trained(model: nn.Module) -> nn.Module:
    """Batch statistics and scales as training leaves them, none at its start."""
    torch.manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.2)
    return model.eval()


def packed(video: Tensor, alpha: int) -> list[Tensor]:
    """Inputs of PyTorchVideo's SlowFast, as the PackPathway of its tutorial makes them."""
    chosen = torch.linspace(0, video.shape[2] - 1, video.shape[2] // alpha).long()
    return [video.index_select(2, chosen), video]


# As published but narrower; clips as in training, and larger ones at which the window finds several places
@pytest.mark.parametrize(
    ("alpha", "kernel", "slow_frames", "height", "width", "side"),
    [(4, 7, 8, 64, 64, 2), (4, 7, 8, 256, 224, 7), (8, 5, 4, 64, 96, 2)],
    ids=["8x8", "8x8 larger", "4x16 larger"],
)
@torch.no_grad()
def test_slowfast_equals_pytorchvideo(alpha, kernel, slow_frames, height, width, side):
    theirs = as_trained(
        create_slowfast(
            model_num_class=CLASSES,
            stem_dim_outs=(8, 1),
            slowfast_fusion_conv_kernel_size=(kernel, 1, 1),
            slowfast_fusion_conv_stride=(alpha, 1, 1),
            head_pool_kernel_sizes=((slow_frames, side, side), (32, side, side)),
        )
    )
    head = partial(FullyConvolutionalClassifier, pool_size=(slow_frames, side, side), dropout=0.5)
    ours = VideoClassifier(SlowFast(width=8, alpha=alpha, fusion_kernel=kernel), head, CLASSES).eval()
    ours.load_state_dict(PYTORCHVIDEO_SLOWFAST.convert(Weights("", theirs.state_dict()), ours).tensors)
    video = clip(32, height, width, batch=1)
    expected = theirs(packed(video, alpha))
    difference = (ours(video[:, None])[:, 0] - expected).abs().max() / expected.abs().max()
    assert float(difference) <= TOLERANCE


@pytest.mark.parametrize(("height", "width", "side"), [(64, 64, 2), (256, 224, 7)])
@torch.no_grad()
def test_slow_equals_pytorchvideo(height, width, side):
    theirs = as_trained(
        create_resnet(
            model_num_class=CLASSES,
            stem_dim_out=8,
            stem_conv_kernel_size=(1, 7, 7),
            head_pool_kernel_size=(8, side, side),
        )
    )
    head = partial(FullyConvolutionalClassifier, pool_size=(8, side, side), dropout=0.5)
    ours = VideoClassifier(SlowOnly(width=8), head, CLASSES).eval()
    ours.load_state_dict(PYTORCHVIDEO_SLOW.convert(Weights("", theirs.state_dict()), ours).tensors)
    video = clip(8, height, width, batch=1)
    expected = theirs(video)
    difference = (ours(video[:, None])[:, 0] - expected).abs().max() / expected.abs().max()
    assert float(difference) <= TOLERANCE


@pytest.mark.parametrize(
    ("frames", "alpha", "expected"),
    [
        (32, 4, [0, 4, 8, 13, 17, 22, 26, 31]),
        (32, 8, [0, 10, 20, 31]),
        (8, 4, [0, 7]),
        (4, 4, [0]),
        (8, 1, [0, 1, 2, 3, 4, 5, 6, 7]),
    ],
)
@torch.no_grad()
def test_frames_of_the_slow_pathway(frames, alpha, expected):
    encoder, seen = small(alpha=alpha).eval(), []
    encoder.stem.slow.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    video = torch.arange(frames).float().reshape(1, 1, frames, 1, 1).expand(1, 3, frames, 32, 32)
    encoder(video)
    assert seen[0][0, 0, :, 0, 0].tolist() == expected


@torch.no_grad()
def test_tokens_are_slow_channels_then_the_fast_mean_of_each_group():
    encoder, features = as_trained(small()), []
    encoder.blocks[-1].register_forward_hook(lambda module, inputs, output: features.append(output))
    tokens = encoder(clip(16, 64, 96)).reshape(2, 4, 2, 3, 288)
    slow, fast = features[0]
    assert (slow.shape, fast.shape) == ((2, 256, 4, 2, 3), (2, 32, 16, 2, 3))
    torch.testing.assert_close(tokens[0, 1, 0, 2, :256], slow[0, :, 1, 0, 2])
    torch.testing.assert_close(tokens[0, 1, 0, 2, 256:], fast[0, :, 4:8, 0, 2].mean(dim=1))


@pytest.mark.parametrize(
    ("name", "frames", "height", "width", "grid"),
    [
        ("slowfast", 8, 32, 32, (2, 1, 1)),
        ("slowfast", 4, 50, 97, (1, 2, 4)),
        ("slowfast", 12, 16, 64, (3, 1, 2)),
        ("slow", 8, 32, 32, (8, 1, 1)),
        ("slow", 5, 50, 97, (5, 2, 4)),
        ("slow", 1, 16, 64, (1, 1, 2)),
    ],
)
@torch.no_grad()
def test_clips_of_other_sizes(name, frames, height, width, grid):
    encoder = as_trained(BUILDERS[name]())
    assert encoder.grid(frames, height, width) == grid
    tokens = encoder(clip(frames, height, width))
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], encoder.embed_dim)
    assert tokens.isfinite().all()


@pytest.mark.parametrize(("name", "frames"), [("slowfast", 16), ("slow", 4)])
@pytest.mark.parametrize("fusion", ["mean_logits", "joint"])
@torch.no_grad()
def test_other_heads_take_its_tokens(name, frames, fusion):
    head = partial(AttentiveClassifier, num_heads=4)
    model = VideoClassifier(BUILDERS[name](), head, CLASSES, fusion).eval()
    clips = clip(frames)[:, None].expand(2, 3, 3, frames, 32, 32)
    assert model(clips).shape == (2, 1 if fusion == "joint" else 3, CLASSES)


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_order_of_frames_matters(name):
    encoder, video = as_trained(BUILDERS[name]()), clip(8)
    backwards = encoder(video.flip(2)).mean(1)
    assert not torch.allclose(encoder(video).mean(1), backwards, rtol=1e-2)


def test_every_pathway_reaches_the_slow_one():
    """Both see the video, and the lateral connections carry what only the fast one saw."""
    encoder, video = as_trained(small()), clip(8)  # slow frames are 0 and 7
    changed = video.clone()
    changed[:, :, 3] += 1
    with torch.no_grad():
        difference = (encoder(changed) - encoder(video)).abs().amax(dim=(0, 1))
    assert float(difference[:256].max()) > 1e-3 and float(difference[256:].max()) > 1e-3


@pytest.mark.parametrize(("name", "count"), [("slowfast", 17), ("slow", 17)])
def test_layers_hold_every_parameter_once_and_in_order(name, count):
    encoder = BUILDERS[name]()
    assert len(encoder.layers) == count and encoder.layers[1:] == encoder.blocks
    in_layers = [id(p) for layer in encoder.layers for p in layer.parameters()]
    assert sorted(in_layers) == sorted(id(p) for p in encoder.parameters())
    assert [id(p) for p in encoder.parameters()] == in_layers


def test_the_last_blocks_are_unfrozen_in_both_pathways():
    model = VideoClassifier(small(), FullyConvolutionalClassifier, CLASSES)
    apply_phase(model, PhaseSettings(encoder_blocks=3))  # the whole last stage with the connection before it
    set_train_mode(model)
    trained = {".".join(name.split(".")[:5]) for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "encoder.stages.3.0.fusion",
        *(f"encoder.stages.3.{index}.{path}" for index in range(3) for path in ("slow", "fast")),
        "head.linear.weight",
        "head.linear.bias",
    }
    frozen = model.encoder.stages[2][5].fast.branch.norm_a.running_mean.clone()
    moved = model.encoder.stages[3][0].fast.branch.norm_a.running_mean.clone()
    model(clip()[:, None]).sum().backward()
    assert torch.equal(model.encoder.stages[2][5].fast.branch.norm_a.running_mean, frozen)
    assert not torch.equal(model.encoder.stages[3][0].fast.branch.norm_a.running_mean, moved)


def test_layer_decay_is_the_same_for_both_pathways():
    model = VideoClassifier(small(), FullyConvolutionalClassifier, CLASSES)
    groups = parameter_groups(model, PhaseSettings(layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    for depth, block in enumerate(model.encoder.blocks, start=1):
        assert {scale[id(p)] for p in block.parameters()} == {0.5 ** (17 - depth)}
    assert {scale[id(p)] for p in model.encoder.stem.parameters()} == {0.5**17}


@pytest.mark.parametrize("name", BUILDERS)
def test_recomputed_activations_change_nothing(name):
    plain, recomputed = BUILDERS[name](), BUILDERS[name](activation_checkpointing=True)
    for encoder in (plain, recomputed):
        for block in encoder.blocks:  # branches that start at zero would hide what goes on in them
            for module in block.modules():
                if isinstance(module, nn.BatchNorm3d):
                    nn.init.ones_(module.weight)
        encoder(clip(frames=4)).square().mean().backward()
    for (key, ours), theirs in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, key=key: f"{key}: {text}")
    for ours, theirs in zip(plain.buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_parameter_gets_a_gradient(name):
    model = VideoClassifier(BUILDERS[name](), FullyConvolutionalClassifier, CLASSES)
    model(clip(frames=4)[:, None]).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_half_precision():
    encoder, video = as_trained(small()), clip()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(video).float()
    full = encoder(video)
    assert float((half - full).abs().max() / full.abs().max()) <= 5e-2  # measured: 1.1e-2 of the largest token


@pytest.mark.slow
@torch.no_grad()
def test_compiles_without_a_break():
    encoder, video = as_trained(small()), clip()
    encoder.stages = encoder.stages[:2]  # with one lateral connection of either kind; the others are the same
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(video), encoder(video))


@pytest.mark.parametrize("name", BUILDERS)
def test_branches_start_at_zero_unless_asked(name):
    zero = BUILDERS[name]().stages[3][2]
    one = BUILDERS[name](zero_init_residual=False).stages[3][2]
    for block, value in ((zero, 0), (one, 1)):
        for path in [block] if name == "slow" else [block.slow, block.fast]:
            assert (path.branch.norm_c.weight == value).all()
            assert (path.branch.norm_b.weight == 1).all()


def build(name: str) -> nn.Module:
    with torch.device("meta"):
        config = config_of(f"model/{name}")
        return hydra.utils.instantiate(config.model)(num_classes=400)


@pytest.mark.parametrize(
    ("name", "encoder", "whole", "dim"),
    [("slowfast_r50", 33_644_488, 34_566_488, 2304), ("slow_r50", 31_634_496, 32_454_096, 2048)],
)
def test_shipped_models_have_the_published_size(name, encoder, whole, dim):
    """PyTorchVideo's model zoo: 34.57 M and 32.45 M parameters with 400 classes."""
    model = build(name)
    assert sum(p.numel() for p in model.encoder.parameters()) == encoder
    assert sum(p.numel() for p in model.parameters()) == whole
    assert (model.encoder.embed_dim, model.head.dropout.p) == (dim, 0.5)
    described = (CONF / "model" / f"{name}.yaml").read_text().splitlines()[0]
    assert f"{encoder / 1e6:.1f} M encoder parameters ({whole / 1e6:.1f} M with 400 classes)" in described


def test_probabilities_of_windows_are_averaged_in_evaluation():
    """PySlowFast: softmax at each of 2 x 2 windows, then their mean."""
    torch.manual_seed(0)
    head = FullyConvolutionalClassifier(8, 5, pool_size=(2, 7, 7), window_fusion="mean_probs")
    nn.init.normal_(head.linear.weight)
    tokens, grid = torch.randn(3, 2 * 8 * 8, 8), (2, 8, 8)
    features = tokens.unflatten(1, grid)
    windows = [features[:, :, y : y + 7, x : x + 7].mean(dim=(1, 2, 3)) for y in (0, 1) for x in (0, 1)]
    logits = torch.stack([head.linear(window) for window in windows])
    torch.testing.assert_close(head.eval()(tokens, grid).softmax(dim=-1), logits.softmax(dim=-1).mean(dim=0))
    torch.testing.assert_close(head.train()(tokens, grid), logits.mean(dim=0))
    with pytest.raises(UserError, match="model.head.window_fusion='mean' is not known"):
        FullyConvolutionalClassifier(8, 5, window_fusion="mean")


@pytest.mark.parametrize(("name", "frames"), [("slowfast_r50", 32), ("slow_r50", 8)])
def test_the_shipped_window_takes_clips_from_193_pixels_on(name, frames):
    model = build(name)
    assert model(torch.zeros(1, 1, 3, frames, 193, 193, device="meta")).shape == (1, 1, 400)
    with pytest.raises(UserError, match=r"pool_size=\[8, 7, 7\] is larger .*\[8, 6, 6\]"):
        model(torch.zeros(1, 1, 3, frames, 192, 192, device="meta"))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small().grid(10, 32, 32), r"clip\.frames=10 .*model\.encoder\.alpha=4; .*8, 12"),
        (lambda: small()(clip(2)), r"clip\.frames=2 .*alpha=4"),
        (lambda: small(depth=34), r"model\.encoder\.depth=34 .*50, 101, 152"),
        (lambda: small_slow(depth=18), r"model\.encoder\.depth=18"),
        (lambda: small(alpha=0), r"model\.encoder\.alpha=0"),
        (lambda: small(beta_inv=3), r"model\.encoder\.width=8 .*model\.encoder\.beta_inv=3; .*6, 9"),
        (lambda: small(fusion_kernel=4), r"model\.encoder\.fusion_kernel=4 must be odd; .*3, 5"),
        (lambda: small(fusion_ratio=0), r"model\.encoder\.fusion_ratio=0"),
        (lambda: SlowOnly(width=0), r"model\.encoder\.width=0"),
    ],
)
def test_what_does_not_fit_is_named(build, message):
    with pytest.raises(UserError, match=message):
        build()
