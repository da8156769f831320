"""Position tables and rotations against literal values and formulas written another way."""

import math

import pytest
import torch
import torch.nn.functional as F

from vidtrain.errors import UserError
from vidtrain.models.positions import (
    ROTARY,
    TABLES,
    fit_table,
    rotary_dim,
    rotary_table,
    rotate,
    sincos,
    sincos_1d,
    sincos_uniform,
)

CPU = torch.device("cpu")


def test_sincos_literal_values():
    # omega is 1, 0.01 for t and 1 for h and w; the token lies at t=1, h=2, w=3
    expected = [0.841471, 0.010000, 0.540302, 0.999950, 0.909297, -0.416147, 0.141120, -0.989992]
    torch.testing.assert_close(sincos((2, 3, 4), 8)[1, 2, 3], torch.tensor(expected), atol=1e-6, rtol=0)


def test_sincos_uniform_literal_values():
    # 2 * ceil(16 / 6) = 6 channels an axis, omega 1, 0.0464159, 0.0021544; the last two of w are cut
    expected = [0.841471, 0.046399, 0.002154, 0.540302, 0.998923, 0.999998]
    expected += [0.909297, 0.092698, 0.004309, -0.416147, 0.995694, 0.999991]
    expected += [0.141120, 0.138798, 0.006463, -0.989992]
    torch.testing.assert_close(sincos_uniform((2, 3, 4), 16)[1, 2, 3], torch.tensor(expected), atol=1e-6, rtol=0)


def test_sincos_1d_literal_values():
    # token 5 = (t=1, h=0, w=1) of a grid of (2, 2, 2); omega 1, 0.01; sin and cos alternate
    expected = [-0.958924, 0.283662, 0.049979, 0.998750]
    torch.testing.assert_close(sincos_1d((2, 2, 2), 4)[1, 0, 1], torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "dim", "axis_dims"),
    [
        ("sincos", 192, (96, 48, 48)),
        ("sincos", 1408, (704, 352, 352)),
        ("sincos_uniform", 768, (256, 256, 256)),
        ("sincos_uniform", 1024, (342, 342, 340)),
        ("sincos_uniform", 1280, (428, 428, 424)),
        ("sincos_uniform", 1408, (470, 470, 468)),
    ],
)
def test_sincos_tables_against_an_independent_formula(name, dim, axis_dims):
    table = TABLES[name]((3, 4, 5), dim)
    assert table.shape == (3, 4, 5, dim)
    assert table.dtype == torch.float32

    def channel(position, index, uncut):
        half = uncut // 2
        angle = position * math.exp(-math.log(10000) * (index % half) / half)
        return math.sin(angle) if index < half else math.cos(angle)

    for token in ((0, 0, 0), (2, 1, 4), (1, 3, 2)):
        expected = [
            channel(position, index, max(axis_dims) if name == "sincos_uniform" else axis_dim)
            for position, axis_dim in zip(token, axis_dims, strict=True)
            for index in range(axis_dim)
        ]
        torch.testing.assert_close(table[token], torch.tensor(expected), atol=1e-7, rtol=0)


def test_shorter_clip_takes_the_first_tokens():
    table = sincos((4, 2, 3), 16)
    assert torch.equal(fit_table(table, (4, 2, 3)), table.flatten(0, 2))
    assert torch.equal(fit_table(table, (2, 2, 3)), table.flatten(0, 2)[:12])


def test_other_sizes_are_interpolated():
    ramp = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
    assert fit_table(ramp, (1, 1, 4)).flatten().tolist() == [0.0, 0.25, 0.75, 1.0]

    table = sincos((2, 4, 6), 16)
    by_factor = F.interpolate(table.permute(3, 0, 1, 2)[None], scale_factor=(2, 1.5, 0.5), mode="trilinear")
    expected = by_factor[0].permute(1, 2, 3, 0).flatten(0, 2)
    torch.testing.assert_close(fit_table(table, (4, 6, 3)), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("head_dim", "expected"), [(64, 20), (80, 26), (88, 28), (104, 34), (6, 2), (5, 0)])
def test_rotary_dim(head_dim, expected):
    assert rotary_dim(head_dim) == expected


def _rotate_token(kind, values, token, grid=(4, 4, 4)):
    """The values of one head, turned as at that token of the grid."""
    cos, sin = rotary_table(grid, len(values), kind, None, CPU)
    index = (token[0] * grid[1] + token[1]) * grid[2] + token[2]
    return rotate(torch.tensor(values)[None], (cos[index : index + 1], sin[index : index + 1]))[0]


def test_rope_keeps_the_quirk_of_the_released_weights():
    # 4 of 13 channels for each axis, omega 1, 0.01. Tiled angles at t=2: 2, .02, 2, .02, so the two of a pair
    # turn differently: cos 2 - 2 sin 2, 2 cos .02 + sin .02, 3 cos 2 - 4 sin 2, 4 cos .02 + 3 sin .02
    turned = _rotate_token("rope", [1.0, 2.0, 3.0, 4.0] * 3 + [5.0], (2, 0, 0))
    expected = [-2.234742, 2.019599, -4.885630, 4.059196] + [1.0, 2.0, 3.0, 4.0] * 2 + [5.0]
    torch.testing.assert_close(turned, torch.tensor(expected), atol=2e-6, rtol=0)


def test_rope_interleaved_turns_both_channels_of_a_pair_alike():
    # cos 2 - 2 sin 2, 2 cos 2 + sin 2, 3 cos .02 - 4 sin .02, 4 cos .02 + 3 sin .02
    turned = _rotate_token("rope_interleaved", [1.0, 2.0, 3.0, 4.0] * 3 + [5.0], (2, 0, 0))
    expected = [-2.234742, 0.077004, 2.919405, 4.059196] + [1.0, 2.0, 3.0, 4.0] * 2 + [5.0]
    torch.testing.assert_close(turned, torch.tensor(expected), atol=2e-6, rtol=0)


def test_rope_interleaved_is_a_complex_rotation():
    grid, head_dim = (2, 3, 4), 64
    x = torch.randn(2, 24, head_dim, generator=torch.Generator().manual_seed(0))
    turned = rotate(x, rotary_table(grid, head_dim, "rope_interleaved", None, CPU))

    positions = torch.cartesian_prod(*(torch.arange(n, dtype=torch.float64) for n in grid))
    omega = 10000 ** (-torch.arange(10, dtype=torch.float64) / 10)
    angles = (positions[:, :, None] * omega).flatten(1)  # [24 30]: 20 channels, so 10 pairs, for each axis
    pairs = torch.view_as_complex(x[..., :60].double().unflatten(-1, (30, 2)))
    expected = torch.view_as_real(pairs * torch.exp(1j * angles)).flatten(-2).float()
    torch.testing.assert_close(turned[..., :60], expected, atol=2e-6, rtol=0)
    assert torch.equal(turned[..., 60:], x[..., 60:])


def test_rope_interleaved_scores_depend_on_the_distance_only():
    q, k = torch.randn(2, 12, generator=torch.Generator().manual_seed(0)).tolist()

    def score(kind, at_q, at_k):
        return float(_rotate_token(kind, q, at_q) @ _rotate_token(kind, k, at_k))

    near, far = ((0, 1, 2), (1, 0, 2)), ((2, 3, 3), (3, 2, 3))
    assert score("rope_interleaved", *near) == pytest.approx(score("rope_interleaved", *far), abs=1e-5)
    assert score("rope", *near) != pytest.approx(score("rope", *far), abs=1e-2)


def test_base_grid_stretches_height_and_width_but_not_time():
    # 5 rows over a base grid of 16 lie at 0, 3.75, 7.5, 11.25, 15; a single column stays at 0
    cos, sin = rotary_table((2, 5, 1), 6, "rope_interleaved", 16, CPU)
    angles = torch.atan2(sin, cos).unflatten(0, (2, 5))
    wrapped = [0.0, 3.75 - 2 * math.pi, 7.5 - 2 * math.pi, 11.25 - 4 * math.pi, 15 - 4 * math.pi]
    torch.testing.assert_close(angles[1, :, 2], torch.tensor(wrapped), atol=2e-6, rtol=0)
    torch.testing.assert_close(angles[1, :, 0], torch.ones(5), atol=2e-6, rtol=0)
    assert angles[1, :, 4].tolist() == [0.0] * 5


@pytest.mark.parametrize("kind", ROTARY)
def test_angles_stay_float32_under_autocast(kind):
    plain = rotary_table((8, 4, 4), 64, kind, None, CPU)
    with torch.autocast("cpu", torch.bfloat16):
        cast = rotary_table((8, 4, 4), 64, kind, None, CPU)
        turned = rotate(torch.ones(128, 64, dtype=torch.bfloat16), cast)
    assert cast[0].dtype == cast[1].dtype == torch.float32
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])
    assert turned.dtype == torch.bfloat16


def test_dimensions_that_cannot_be_cut():
    with pytest.raises(UserError, match=r"model\.encoder\.embed_dim=100 .*nearest that fit: 96, 104"):
        sincos((2, 2, 2), 100)
    with pytest.raises(UserError, match=r"model\.encoder\.embed_dim=7 .*nearest that fit: 6, 8"):
        sincos_1d((2, 2, 2), 7)
