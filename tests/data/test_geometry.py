import numpy as np
import pytest

from vidtrain.data.geometry import CenterCrops, Crop, RandomResizedCrop, ShortSideCrop
from vidtrain.errors import UserError

FRAMES = [(320, 240), (240, 320), (340, 256), (1920, 1080), (101, 77), (64, 64), (500, 40), (3, 2), (1, 1)]
SIZES = [(224, 224), (112, 112), (96, 128), (128, 96)]


def assert_inside(crop: Crop, width: int, height: int) -> None:
    assert all(isinstance(value, int) for value in (crop.left, crop.top, crop.width, crop.height))
    assert crop.width >= 1 and crop.height >= 1
    assert crop.left >= 0 and crop.left + crop.width <= width
    assert crop.top >= 0 and crop.top + crop.height <= height


def assert_aspect(crop: Crop, size: tuple[int, int]) -> None:
    """Width / height is the output's for some sides within half a pixel of the crop's."""
    narrowest = (crop.width - 0.5) / (crop.height + 0.5)
    widest = (crop.width + 0.5) / max(crop.height - 0.5, 0.5)
    assert narrowest <= size[1] / size[0] <= widest


def test_center_crop():
    assert CenterCrops(256 / 224)(320, 240, (224, 224)) == [Crop(55, 15, 210, 210)]
    assert CenterCrops()(320, 240, (224, 224)) == [Crop(40, 0, 240, 240)]
    assert CenterCrops()(240, 320, (112, 112)) == [Crop(0, 40, 240, 240)]
    assert CenterCrops()(320, 240, (100, 200)) == [
        Crop(0, 40, 320, 160)
    ]  # wider than the frame: all its width


def test_three_crops_along_the_side_with_room():
    assert CenterCrops(1.0, crops=3)(320, 240, (224, 224)) == [
        Crop(0, 0, 240, 240),
        Crop(40, 0, 240, 240),
        Crop(80, 0, 240, 240),
    ]
    assert CenterCrops(256 / 224, crops=3)(240, 320, (224, 224)) == [
        Crop(15, 0, 210, 210),
        Crop(15, 55, 210, 210),
        Crop(15, 110, 210, 210),
    ]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("width", "height"), FRAMES)
def test_every_crop_lies_inside(width, height, size):
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert_inside(RandomResizedCrop()(width, height, size, rng), width, height)
        crop = ShortSideCrop((1.0, 1.5))(width, height, size, rng)
        assert_inside(crop, width, height)
        if min(width, height) > 3:
            assert_aspect(crop, size)
    for crops in range(1, 6):
        for crop in CenterCrops(1.2, crops)(width, height, size):
            assert_inside(crop, width, height)
            if min(width, height) > 3:
                assert_aspect(crop, size)
            assert not crop.flip


def test_random_resized_crop_keeps_its_bounds():
    rng = np.random.default_rng(0)
    crops = [RandomResizedCrop((0.2, 0.6), (0.75, 4 / 3), 0.3)(640, 480, (96, 128), rng) for _ in range(2000)]
    areas = np.array([crop.width * crop.height / (640 * 480) for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops]) / (128 / 96)
    assert 0.19 < areas.min() < 0.22 and 0.58 < areas.max() < 0.61
    assert 0.74 < ratios.min() < 0.77 and 1.28 < ratios.max() < 1.35
    assert abs(areas.mean() - 0.4) < 0.02
    assert abs(np.log(ratios).mean()) < 0.02
    assert 0.25 < np.mean([crop.flip for crop in crops]) < 0.35


def test_random_resized_crop_of_an_extreme_frame_is_centered():
    rng = np.random.default_rng(0)
    assert RandomResizedCrop((0.9, 1.0), (1.0, 1.0), 0.0)(400, 100, (64, 64), rng) == Crop(150, 0, 100, 100)
    assert RandomResizedCrop((1.0, 1.0), (1.0, 1.0), 1.0)(64, 64, (32, 32), rng) == Crop(0, 0, 64, 64, True)


def test_short_side_crop_bounds_and_places():
    rng = np.random.default_rng(0)
    crops = [ShortSideCrop((256 / 224, 320 / 224), 0.5)(320, 240, (224, 224), rng) for _ in range(2000)]
    sides = {crop.width for crop in crops}
    assert min(sides) == 168 and max(sides) == 210  # 240 * 224 / 320 and 240 * 224 / 256
    assert min(crop.left for crop in crops) == 0 and max(crop.left + crop.width for crop in crops) == 320
    assert min(crop.top for crop in crops) == 0 and max(crop.top + crop.height for crop in crops) == 240
    assert 0.45 < np.mean([crop.flip for crop in crops]) < 0.55


def test_draws_depend_on_the_generator_alone():
    for geometry in (RandomResizedCrop(), ShortSideCrop()):
        first, second = (geometry(320, 240, (64, 64), np.random.default_rng(3)) for _ in range(2))
        assert first == second


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomResizedCrop(scale=(0.5, 0.1)), "scale"),
        (lambda: RandomResizedCrop(scale=(0.5, 1.1)), "scale at most 1"),
        (lambda: RandomResizedCrop(ratio=(0.0, 1.0)), "above 0"),
        (lambda: RandomResizedCrop(flip=1.5), "flip=1.5"),
        (lambda: ShortSideCrop(short_side_ratio=(0.9, 1.2)), "short_side_ratio"),
        (lambda: CenterCrops(0.5), "short_side_ratio"),
        (lambda: CenterCrops(1.0, crops=0), "crops=0"),
    ],
)
def test_refuses_what_makes_no_crop(build, message):
    with pytest.raises(UserError, match=message):
        build()
