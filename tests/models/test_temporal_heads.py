"""Heads that look along time: statistics by hand, order, places that stay apart, lengths other than a table's."""

from functools import partial

import pytest
import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.temporal_heads import (
    STATISTICS,
    TemporalConvolutionClassifier,
    TemporalStatisticsClassifier,
    TemporalTransformerClassifier,
    statistic,
)
from vidtrain.models.timm_frames import TimmFrames


def head(embed_dim=12, num_classes=3, num_frames=4, num_heads=2, **options) -> TemporalTransformerClassifier:
    torch.manual_seed(0)
    built = TemporalTransformerClassifier(embed_dim, num_classes, num_frames, num_heads=num_heads, **options)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    return built.eval()


def tokens(t=4, places=1, batch=2) -> torch.Tensor:
    return torch.randn(batch, t * places, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@torch.no_grad()
def test_the_order_of_frames_matters(positions):
    built, x = head(positions=positions), tokens()
    assert not torch.allclose(built(x, (4, 1, 1)), built(x.flip(1), (4, 1, 1)), atol=1e-2)
    built.pos_embed.zero_()
    torch.testing.assert_close(built(x, (4, 1, 1)), built(x.flip(1), (4, 1, 1)), atol=1e-5, rtol=0)


@torch.no_grad()
def test_reversing_a_clip_changes_the_answer():
    torch.manual_seed(0)
    encoder = TimmFrames("test_resnet", 32)
    model = VideoClassifier(
        encoder, partial(TemporalTransformerClassifier, num_frames=4, num_heads=4, width=32), num_classes=3
    ).eval()
    for parameter in model.head.parameters():
        nn.init.normal_(parameter, std=0.3)
    clips = torch.randn(1, 1, 3, 4, 32, 32)
    assert not torch.allclose(model(clips), model(clips.flip(3)), atol=1e-3)
    assert model(torch.randn(2, 3, 3, 4, 32, 32)).shape == (2, 3, 3)


@torch.no_grad()
def test_each_place_attends_to_itself_at_other_times():
    built, x = head(), tokens(places=6)
    logits = built(x, (4, 2, 3))
    alone = [built(x.unflatten(1, (4, 6))[:, :, place], (4, 1, 1)) for place in range(6)]
    torch.testing.assert_close(logits, torch.stack(alone).mean(dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@pytest.mark.parametrize("t", [1, 3, 4, 8])
@torch.no_grad()
def test_other_lengths(positions, t):
    logits = head(positions=positions, width=16)(tokens(t), (t, 1, 1))
    assert logits.shape == (2, 3) and logits.isfinite().all()


def test_what_a_checkpoint_holds():
    assert "pos_embed" not in head().state_dict()
    assert head(positions="learned").state_dict()["pos_embed"].shape == (4, 1, 1, 12)
    head(num_frames=8).load_state_dict(head().state_dict(), strict=True)


def test_gradients_with_and_without_recomputation():
    x = tokens()
    plain, saving = head(width=16), head(width=16, activation_checkpointing=True)
    for built in (plain.train(), saving.train()):
        built(x, (4, 1, 1)).square().sum().backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad) and one.grad.any()


def test_drop_path_grows_over_depth():
    rates = [block.drop_path.rate for block in head(depth=3, drop_path=0.2).blocks[1:]]
    assert rates == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, r"model\.head\.width=12 .*model\.head\.num_heads=5; nearest that fit: 10, 15\."),
        ({"num_heads": 5, "width": 16}, r"model\.head\.width=16 .*nearest that fit: 15, 20\."),
        ({"num_heads": 0}, r"model\.head\.num_heads=0 is too small"),
        ({"depth": 0}, r"model\.head\.depth=0 is too small"),
        ({"positions": "rope"}, r"model\.head\.positions='rope' .*sincos, learned\."),
    ],
)
def test_what_does_not_fit(options, message):
    with pytest.raises(UserError, match=message):
        head(**options)


# --- statistics ---


def test_statistics_of_one_feature_by_hand():
    x = torch.tensor([1.0, 3.0, 2.0, 6.0]).view(1, 4, 1, 1)
    values = {name: statistic(name, x).item() for name in STATISTICS}
    assert values == pytest.approx(
        {"mean": 3.0, "difference": (2 + 1 + 4) / 3, "deviation": (14 / 4) ** 0.5, "trend": 4.2}
    )  # numpy.polyfit([0, 1, 2, 3], [1, 3, 2, 6], 1)[0] * 3


def test_a_ramp_rises_by_what_its_ends_differ_and_a_single_step_does_not_change():
    ramp = torch.linspace(-2, 5, 6).view(1, 6, 1, 1)
    assert statistic("trend", ramp).item() == pytest.approx(7)
    for name in ("difference", "deviation", "trend"):
        assert not statistic(name, ramp[:, :1]).any()


@pytest.mark.parametrize(("statistics", "differs"), [(("mean", "difference", "deviation"), False), (("trend",), True)])
@torch.no_grad()
def test_the_trend_alone_tells_the_direction_of_time(statistics, differs):
    torch.manual_seed(0)
    built = TemporalStatisticsClassifier(12, 3, statistics)
    x = tokens(t=4, places=4)
    turned = x.unflatten(1, (4, 4)).flip(1).flatten(1, 2)
    close = torch.allclose(built(x, (4, 2, 2)), built(turned, (4, 2, 2)), atol=1e-5)
    assert close != differs


@torch.no_grad()
def test_places_are_averaged_or_kept_apart():
    torch.manual_seed(0)
    x = tokens(t=4, places=4)
    moved = x.unflatten(1, (4, 4)).roll(1, 2).flatten(1, 2)
    for spatial_size, alike in ((None, True), (2, False)):
        built = TemporalStatisticsClassifier(12, 3, spatial_size=spatial_size)
        assert torch.allclose(built(x, (4, 2, 2)), built(moved, (4, 2, 2)), atol=1e-6) is alike
    assert built.linear.weight.shape == (3, 3 * 4 * 12)


@torch.no_grad()
def test_streams_are_normed_each_by_itself():
    """What fills one stream, at any scale, changes nothing of what is seen of the other."""
    built = TemporalStatisticsClassifier(12, 3, ("mean", "deviation"), streams=2)
    x = tokens(t=4)
    louder = torch.cat((1000 * x[..., :6], x[..., 6:]), dim=-1)
    # epsilon is under the root of the norm, so equal but for that
    torch.testing.assert_close(built(louder, (4, 1, 1)), built(x, (4, 1, 1)), atol=1e-4, rtol=0)
    together = TemporalStatisticsClassifier(12, 3, ("mean", "deviation"))
    together.linear.load_state_dict(built.linear.state_dict())
    assert not torch.allclose(together(louder, (4, 1, 1)), together(x, (4, 1, 1)), atol=1e-2)


@torch.no_grad()
def test_a_layer_from_zero_starts_undecided():
    assert not TemporalStatisticsClassifier(12, 3, init_std=0)(tokens(), (4, 1, 1)).any()
    drawn = TemporalStatisticsClassifier(384, 100, init_std=0.5).linear.weight
    assert drawn.std().item() == pytest.approx(0.5, rel=0.02)


def test_still_clips_have_finite_gradients():
    built = TemporalStatisticsClassifier(12, 3)
    x = tokens()[:, :1].repeat(1, 4, 1).requires_grad_()
    built(x, (4, 1, 1)).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"statistics": ["mean", "speed"]},
            r"model\.head\.statistics='speed' .*mean, difference, deviation, trend",
        ),
        ({"statistics": []}, r"model\.head\.statistics=\[\] must be one or more"),
        ({"statistics": ["mean", "mean"]}, r"model\.head\.statistics=.* each once"),
        ({"spatial_size": 0}, r"model\.head\.spatial_size=0 is too small"),
        ({"streams": 5}, r"width of a token=12 .* model\.head\.streams=5"),
        ({"init_std": -1.0}, r"model\.head\.init_std=-1"),
    ],
)
def test_statistics_that_are_none(options, message):
    with pytest.raises(UserError, match=message):
        TemporalStatisticsClassifier(12, 3, **options)


def test_a_grid_of_other_places():
    built = TemporalStatisticsClassifier(12, 3, spatial_size=2)
    with pytest.raises(UserError, match=r"model\.head\.spatial_size=2, but .* 1x4 places"):
        built(tokens(places=4), (4, 1, 4))


# --- convolutions ---


@torch.no_grad()
def test_convolutions_run_along_time_at_each_place():
    torch.manual_seed(0)
    built = TemporalConvolutionClassifier(12, 3, width=8).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = tokens(places=6)
    logits = built(x, (4, 2, 3))
    alone = [built(x.unflatten(1, (4, 6))[:, :, place], (4, 1, 1)) for place in range(6)]
    torch.testing.assert_close(logits, torch.stack(alone).mean(dim=0), atol=1e-5, rtol=0)
    assert not torch.allclose(alone[0], built(x.unflatten(1, (4, 6))[:, :, 0].flip(1), (4, 1, 1)), atol=1e-3)
    assert built(tokens(t=1), (1, 1, 1)).isfinite().all()


def test_a_kernel_without_a_middle():
    with pytest.raises(UserError, match=r"model\.head\.kernel=4 must be odd; nearest that fit: 3, 5"):
        TemporalConvolutionClassifier(12, 3, kernel=4)
