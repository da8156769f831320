"""Patch embeddings and position tables of other sizes: what must stay the same does."""

import pytest
import torch
from einops import repeat
from timm.layers import resample_abs_pos_embed
from torch.nn import functional as F

from vidtrain.models.weights.vit3d import fit_learned_table, fit_patch_embed


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest, over the largest of what is expected."""
    return float((found - expected).abs().max() / expected.abs().max())


def tokens(weight: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    return F.conv3d(video, weight, stride=weight.shape[2:])


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_an_image_in_every_frame_gives_the_tokens_of_the_image(length):
    image, kernel = pixels(1, 3, 8, 8), weight(5, 3, 4, 4)
    fitted, note = fit_patch_embed(kernel, (length, 4, 4))
    assert fitted.shape == (5, 3, length, 4, 4)
    assert note == f"image patches inflated to {length} frames"
    still = repeat(image, "b c h w -> b c t h w", t=2 * length)
    expected = F.conv2d(image, kernel, stride=4)
    for step in range(2):
        # measured over 300 seeds: 8e-7, and 3e-15 in float64
        assert difference(tokens(fitted, still)[:, :, step], expected) <= 2e-6


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (2, 1, [3.0]),
        (2, 4, [0.5, 0.5, 1.0, 1.0]),
        (4, 2, [3.0, 7.0]),
        (3, 2, [2.0, 4.0]),  # 1 + 2/2, 2/2 + 3
        (2, 2, [1.0, 2.0]),
    ],
)
def test_time_is_shared_out_and_the_sum_stays(old, new, expected):
    kernel = torch.arange(1.0, old + 1).reshape(1, 1, old, 1, 1)
    fitted, note = fit_patch_embed(kernel, (new, 1, 1))
    torch.testing.assert_close(fitted.flatten(), torch.tensor(expected))
    assert note == ("" if old == new else f"tubelet length {old} resized to {new}")


def test_frames_shown_twice_give_the_same_tokens_to_a_tubelet_of_twice_the_length():
    video, kernel = pixels(1, 3, 4, 8, 8), weight(5, 3, 2, 4, 4)
    fitted, _ = fit_patch_embed(kernel, (4, 4, 4))
    twice = repeat(video, "b c t h w -> b c (t two) h w", two=2)
    # measured over 300 seeds: 1.3e-6, and 3e-15 in float64
    assert difference(tokens(fitted, twice), tokens(kernel, video)) <= 3e-6


@pytest.mark.parametrize("new", [6, 8])
def test_enlarged_patches_give_the_tokens_of_those_they_were_made_from(new):
    video, kernel = pixels(1, 3, 2, 4, 4), weight(5, 3, 2, 4, 4)
    fitted, note = fit_patch_embed(kernel, (2, new, new))
    assert note == f"patch size 4x4 resized to {new}x{new}"
    frames = F.interpolate(video[0].transpose(0, 1), size=(new, new), mode="bicubic", antialias=True)
    larger = frames.transpose(0, 1)[None]
    # measured over 300 seeds: 4e-6; timm inverts the resize in float32
    assert difference(tokens(fitted, larger), tokens(kernel, video)) <= 8e-6


def test_what_fits_stays_as_it_is():
    kernel = weight(5, 3, 2, 4, 4)
    fitted, note = fit_patch_embed(kernel, (2, 4, 4))
    assert torch.equal(fitted, kernel) and note == ""


def test_all_at_once_is_said_in_order():
    fitted, note = fit_patch_embed(weight(5, 3, 14, 14).half(), (2, 16, 16))
    assert (fitted.shape, fitted.dtype) == ((5, 3, 2, 16, 16), torch.float16)
    assert note == "image patches inflated to 2 frames; patch size 14x14 resized to 16x16"


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_a_table_is_repeated_over_time_without_its_prefix(prefix):
    table = weight(1, prefix + 9, 4)
    fitted = fit_learned_table(table, (2, 3, 3), prefix)
    assert fitted.shape == (2, 3, 3, 4)
    assert torch.equal(fitted[1].flatten(0, 1), table[0, prefix:])


def test_a_table_of_another_size_is_interpolated_as_timm_does():
    table = weight(1, 1 + 16, 8)
    expected = resample_abs_pos_embed(table, [3, 6], num_prefix_tokens=1)[0, 1:]
    assert torch.equal(fit_learned_table(table, (2, 3, 6), 1)[0].flatten(0, 1), expected)


def test_a_table_that_is_not_square():
    with pytest.raises(ValueError, match="8 positions are not those of a square image"):
        fit_learned_table(weight(1, 8, 4), (2, 3, 3))
