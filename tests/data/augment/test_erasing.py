"""Random erasing: what goes, what stays, and with which numbers, also against timm."""

import math
from unittest import mock

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing as TimmErasing

from vidtrain.data.augment.device import RandomErasing, stream
from vidtrain.errors import UserError

HEIGHT, WIDTH = 48, 64


def ones(views: int = 1, frames: int = 3) -> torch.Tensor:
    return torch.full((views, 3, frames, HEIGHT, WIDTH), 9.0)


def box_of(erasing: RandomErasing, seed: int, height: int = HEIGHT, width: int = WIDTH):
    """The rows and columns that the view with this seed loses."""
    return erasing.box(stream(seed, "erasing"), height, width)


def size(box: tuple[slice, slice]) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def test_one_box_in_all_frames_and_channels():
    erasing = RandomErasing(1.0, mode="constant")
    for seed in range(20):
        rows, columns = box_of(erasing, seed)
        expected = ones()
        expected[..., rows, columns] = 0
        assert torch.equal(erasing(ones(), torch.tensor([seed])), expected)


def test_noise_is_fresh_for_every_pixel_and_standard_normal():
    erasing = RandomErasing(1.0, (0.3, 0.3333))
    seeds = torch.arange(40)
    found = erasing(ones(40, 4), seeds)
    values = []
    for clip, seed in zip(found, seeds.tolist(), strict=True):
        rows, columns = box_of(erasing, seed)
        inside = clip[:, :, rows, columns]
        assert (clip == 9).sum() == clip.numel() - inside.numel()
        assert inside.unique().numel() > 0.99 * inside.numel()
        values.append(inside.flatten())
    values = torch.cat(values)
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01


def test_share_of_clips_and_bounds_of_boxes():
    boxes = [box_of(RandomErasing(0.25), seed, 224, 224) for seed in range(8000)]
    sizes = np.array([size(box) for box in boxes if box])
    assert len(sizes) / len(boxes) == pytest.approx(0.25, abs=0.015)
    areas, aspects = sizes.prod(1) / 224**2, sizes[:, 0] / sizes[:, 1]
    assert 0.019 < areas.min() < 0.03 and 0.31 < areas.max() < 0.34
    assert areas.mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.01)
    assert 0.28 < aspects.min() < 0.33 and 3.0 < aspects.max() < 3.5
    assert np.log(aspects).mean() == pytest.approx(0, abs=0.05)
    assert min(box[0].start for box in boxes if box) == 0
    assert max(box[1].stop for box in boxes if box) == 224


def test_box_against_timm():
    """The same numbers drawn: area, logarithm of the aspect ratio, top and left."""
    for seed in range(20):
        rng = np.random.default_rng([seed, 2])
        rng.random()
        area, aspect = rng.uniform(0.02, 1 / 3), rng.uniform(math.log(0.3), math.log(1 / 0.3))
        box = box_of(RandomErasing(1.0), seed)
        if size(box)[0] != round(math.sqrt(area * math.exp(aspect) * HEIGHT * WIDTH)):
            continue  # the first try did not fit
        picture = torch.ones(3, HEIGHT, WIDTH)
        with (
            mock.patch("random.uniform", side_effect=[area, aspect]),
            mock.patch("random.randint", side_effect=[box[0].start, box[1].start]),
        ):
            TimmErasing(1.0, mode="const", device="cpu")(picture)
        expected = torch.ones(3, HEIGHT, WIDTH)
        expected[:, *box] = 0
        assert torch.equal(picture, expected)


def test_view_alone_decides():
    erasing = RandomErasing(0.5)
    seeds = torch.arange(12) + 2**62
    whole = erasing(ones(12), seeds)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert torch.equal(erasing(ones(5), seeds.flip(0)[:5]).flip(0), whole[-5:])
    assert torch.equal(torch.get_rng_state(), before)
    assert 0 < sum(torch.equal(clip, ones()[0]) for clip in whole) < 12


def test_off_and_where_nothing_fits():
    assert all(box_of(RandomErasing(0.0), seed) is None for seed in range(200))
    assert box_of(RandomErasing(1.0, (1.0, 1.0), (1.0, 1.0)), 0, 8, 8) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"probability": 2.0}, "probability=2"),
        ({"area": (0.5, 0.1)}, "area"),
        ({"area": (0.0, 0.1)}, "area"),
        ({"aspect": (0.0, 1.0)}, "aspect"),
        ({"mode": "color"}, "pixel, constant"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        RandomErasing(**arguments)
