import numpy as np
import pytest

from vidtrain.data.augment.geometry import (
    CenterCrops,
    Crop,
    FixedCrop,
    RandomResizedCrop,
    ShortSideCrop,
    SquashedCrop,
    SquashedFrame,
    TrainGeometry,
    WholeFrame,
    _between,
)
from vidtrain.errors import UserError

FRAMES = [(320, 240), (240, 320), (340, 256), (1920, 1080), (101, 77), (64, 64), (500, 40), (3, 2), (1, 1)]
SIZES = [(224, 224), (112, 112), (96, 128), (128, 96)]


T = 16  # frames of a clip


def many(geometry: TrainGeometry, width: int, height: int, size: tuple[int, int], count: int) -> list:
    rng = np.random.default_rng(0)
    return [geometry(width, height, size, T, rng) for _ in range(count)]


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
    assert CenterCrops()(320, 240, (100, 200)) == [Crop(0, 40, 320, 160)]  # wider than the frame: all its width


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
        assert_inside(RandomResizedCrop()(width, height, size, T, rng), width, height)
        crop = ShortSideCrop((1.0, 1.5))(width, height, size, T, rng)
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
    crops = many(RandomResizedCrop((0.2, 0.6), (0.75, 4 / 3), 0.3), 640, 480, (96, 128), 2000)
    areas = np.array([crop.width * crop.height / (640 * 480) for crop in crops])
    ratios = np.array([crop.width / crop.height for crop in crops]) / (128 / 96)
    assert 0.19 < areas.min() < 0.22 and 0.58 < areas.max() < 0.61
    assert 0.74 < ratios.min() < 0.77 and 1.28 < ratios.max() < 1.35
    assert abs(areas.mean() - 0.4) < 0.02
    assert abs(np.log(ratios).mean()) < 0.02
    assert 0.25 < np.mean([crop.flip for crop in crops]) < 0.35


def test_random_resized_crop_of_an_extreme_frame_is_centered():
    rng = np.random.default_rng(0)
    assert RandomResizedCrop((0.9, 1.0), (1.0, 1.0), 0.0)(400, 100, (64, 64), T, rng) == Crop(150, 0, 100, 100)
    assert RandomResizedCrop((1.0, 1.0), (1.0, 1.0), 1.0)(64, 64, (32, 32), T, rng) == Crop(0, 0, 64, 64, True)


def test_short_side_crop_bounds_and_places():
    crops = many(ShortSideCrop((256 / 224, 320 / 224), 0.5), 320, 240, (224, 224), 2000)
    sides = {crop.width for crop in crops}
    assert min(sides) == 168 and max(sides) == 210  # 240 * 224 / 320 and 240 * 224 / 256
    assert min(crop.left for crop in crops) == 0 and max(crop.left + crop.width for crop in crops) == 320
    assert min(crop.top for crop in crops) == 0 and max(crop.top + crop.height for crop in crops) == 240
    assert 0.45 < np.mean([crop.flip for crop in crops]) < 0.55


def test_draws_depend_on_the_generator_alone():
    for geometry in (RandomResizedCrop(), RandomResizedCrop(motion_shift=True), ShortSideCrop((1.0, 1.25))):
        first, second = (geometry(320, 240, (64, 64), T, np.random.default_rng(3)) for _ in range(2))
        assert first == second


@pytest.mark.parametrize(
    ("seed", "resized", "short_side"),
    [
        (0, Crop(41, 107, 83, 109, False), Crop(58, 9, 207, 207, True)),
        (1, Crop(3, 8, 234, 181, False), Crop(81, 26, 213, 213, True)),
        (2, Crop(71, 61, 148, 166, True), Crop(10, 4, 225, 225, False)),
    ],
)
def test_draws_stay_as_they_are(seed, resized, short_side):
    """Runs are repeated by their seed, so another draw from the same generator is another result."""
    for geometry, expected in ((RandomResizedCrop(), resized), (ShortSideCrop((1.0, 1.25)), short_side)):
        assert geometry(320, 240, (224, 224), T, np.random.default_rng(seed)) == expected


class TestMotionShift:
    def test_literal(self):
        """Edges move in four equal steps: the left one from 22 to 128 by 26.5, the right one from 296 by -18."""
        found = RandomResizedCrop(motion_shift=True)(320, 240, (224, 224), 5, np.random.default_rng(5))
        assert found == (
            Crop(22, 5, 274, 230, True),
            Crop(49, 18, 229, 198, True),
            Crop(75, 31, 185, 166, True),
            Crop(102, 43, 140, 135, True),
            Crop(128, 56, 96, 103, True),
        )

    def test_ends_are_two_draws_of_the_still_crop(self):
        rng = np.random.default_rng(8)
        first, last = (RandomResizedCrop()(320, 240, (64, 64), T, rng) for _ in range(2))
        found = RandomResizedCrop(motion_shift=True)(320, 240, (64, 64), T, np.random.default_rng(8))
        assert len(found) == T and found[0] == first
        assert (found[-1].left, found[-1].top) == (last.left, last.top)
        assert (found[-1].width, found[-1].height) == (last.width, last.height)
        assert {crop.flip for crop in found} == {first.flip}

    def test_one_frame_has_the_first_box(self):
        found = RandomResizedCrop(motion_shift=True)(320, 240, (64, 64), 1, np.random.default_rng(8))
        assert found == (RandomResizedCrop()(320, 240, (64, 64), 1, np.random.default_rng(8)),)

    @pytest.mark.parametrize(("width", "height"), FRAMES)
    def test_every_box_lies_inside(self, width, height):
        rng = np.random.default_rng(0)
        for frames in (2, 3, 16, 17):
            for _ in range(50):
                for crop in RandomResizedCrop(motion_shift=True)(width, height, (64, 64), frames, rng):
                    assert_inside(crop, width, height)

    def test_halves_round_up_so_that_no_box_vanishes(self):
        assert [_between(0, 3, step, 2) for step in range(3)] == [0, 2, 3]
        assert [_between(3, 0, step, 2) for step in range(3)] == [3, 2, 0]
        # from columns 1..1 to 2..2, in the middle: from 1.5 and 2.5, which rounding to even makes 2 and 2
        assert (_between(1, 2, 1, 2), _between(2, 3, 1, 2)) == (2, 3)


class TestShortSideInPixels:
    def test_light_augmentation_of_112_pixels(self):
        """128 to 160, both ends included, then 112: of a frame of 240, boxes of 240 * 112 / 160 = 168 to 210."""
        crops = many(ShortSideCrop(short_side=(128, 160)), 320, 240, (112, 112), 4000)
        assert {crop.width for crop in crops} == {round(240 * 112 / side) for side in range(128, 161)}

    def test_same_box_as_with_the_ratio(self):
        """160 pixels are twice 80: of a frame of 240, 120 x 144."""
        boxes = [
            geometry(320, 240, (80, 96), T, np.random.default_rng(0))
            for geometry in (ShortSideCrop(short_side=(160, 160)), ShortSideCrop((2.0, 2.0)))
        ]
        assert (boxes[0].width, boxes[0].height) == (boxes[1].width, boxes[1].height) == (144, 120)

    def test_shorter_than_the_output(self):
        with pytest.raises(UserError, match="short_side=100: .* 112"):
            ShortSideCrop(short_side=(100, 300))(320, 240, (112, 150), T, np.random.default_rng(0))
        with pytest.raises(UserError, match="short_side=200"):
            CenterCrops(short_side=200)(320, 240, (224, 224))


def test_fixed_crop_is_that_of_evaluation():
    for width, height in FRAMES:
        assert [FixedCrop()(width, height, (96, 128), T, np.random.default_rng(0))] == CenterCrops(1.0)(
            width, height, (96, 128)
        )


class TestCenterCropsInPixels:
    def test_one_crop_of_vjepa2(self):
        """256 cut from a short side of int(256 * 256 / 224) = 292: 480 * 256 / 292 = 420.8 source pixels."""
        assert CenterCrops(short_side=292)(640, 480, (256, 256)) == [Crop(109, 29, 421, 421)]
        assert CenterCrops(short_side=438)(640, 480, (384, 384)) == [Crop(109, 29, 421, 421)]

    def test_output_size_is_that_asked_for(self):
        assert CenterCrops(1.2, 3).output_size(640, 480, (96, 128)) == (96, 128)

    def test_neither_is_the_output_itself(self):
        assert CenterCrops()(640, 480, (96, 96)) == CenterCrops(short_side=96)(640, 480, (96, 96))


class TestWholeFrame:
    def test_one_view_of_everything(self):
        assert WholeFrame()(320, 240, (224, 224)) == [Crop(0, 0, 320, 240)]
        assert WholeFrame().crops == 1

    @pytest.mark.parametrize(
        ("geometry", "frame", "expected"),
        [
            (WholeFrame(), (320, 240), (224, 299)),  # 298.67
            (WholeFrame(), (240, 320), (299, 224)),
            (WholeFrame(), (100, 100), (224, 224)),
            (WholeFrame(256), (1920, 1080), (256, 455)),  # 455.1
            (WholeFrame(128), (320, 256), (128, 160)),
            (WholeFrame(2), (5, 4), (2, 3)),  # 2.5: halves up
            (WholeFrame(2), (9, 4), (2, 5)),  # 4.5: halves up
            (WholeFrame(multiple_of=16), (320, 240), (224, 304)),  # 18.67 patches
            (WholeFrame(256, 16), (1080, 1920), (448, 256)),  # 28.4 patches
            (WholeFrame(32, 16), (5, 4), (32, 48)),  # 2.5 patches: halves up
        ],
    )
    def test_output_size(self, geometry, frame, expected):
        assert geometry.output_size(*frame, (224, 224)) == expected

    def test_short_side_of_no_whole_patches(self):
        with pytest.raises(UserError, match="short_side=250: .*multiple_of=16"):
            WholeFrame(250, 16)
        with pytest.raises(UserError, match="short_side=100"):
            WholeFrame(multiple_of=16).output_size(320, 240, (100, 128))


class TestSquashed:
    def test_evaluation_shows_everything_in_the_size_asked_for(self):
        assert SquashedFrame()(320, 240, (64, 64)) == [Crop(0, 0, 320, 240)]
        assert SquashedFrame().output_size(320, 240, (48, 64)) == (48, 64)

    def test_training_draws_boxes_of_the_frames_shape(self):
        rng, geometry = np.random.default_rng(0), SquashedCrop(scale=(0.25, 1.0), flip=0.5)
        boxes = [geometry(320, 240, (64, 64), 4, rng) for _ in range(300)]
        for box in boxes:
            assert box.left >= 0 and box.left + box.width <= 320
            assert box.top >= 0 and box.top + box.height <= 240
            assert abs(box.width / 320 - box.height / 240) < 0.005
        shares = [box.width * box.height / (320 * 240) for box in boxes]
        assert 0.24 < min(shares) < 0.3 and 0.95 < max(shares) <= 1.0
        assert 0.4 < np.mean([box.flip for box in boxes]) < 0.6

    def test_uncut_by_default(self):
        rng = np.random.default_rng(0)
        assert SquashedCrop(flip=0.0)(320, 240, (64, 64), 4, rng) == Crop(0, 0, 320, 240)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomResizedCrop(scale=(0.5, 0.1)), "scale"),
        (lambda: RandomResizedCrop(scale=(0.5, 1.1)), "at most 1"),
        (lambda: RandomResizedCrop(ratio=(0.0, 1.0)), "above 0"),
        (lambda: RandomResizedCrop(flip=1.5), "flip=1.5"),
        (lambda: ShortSideCrop(short_side_ratio=(0.9, 1.2)), "short_side_ratio"),
        (lambda: ShortSideCrop(), "one must be given"),
        (lambda: ShortSideCrop((1.0, 1.2), short_side=(128, 160)), "one must be given"),
        (lambda: ShortSideCrop(short_side=(160, 128)), "short_side"),
        (lambda: CenterCrops(0.5), "short_side_ratio"),
        (lambda: CenterCrops(1.0, short_side=256), "one of them must be null"),
        (lambda: WholeFrame(crops=3), "crops=3: a whole frame is one view"),
        (lambda: WholeFrame(multiple_of=0), "multiple_of=0"),
        (lambda: SquashedFrame(crops=2), "crops=2"),
        (lambda: SquashedCrop(scale=(0.0, 1.0)), "above 0"),
        (lambda: SquashedCrop(scale=(0.5, 1.5)), "at most 1"),
        (lambda: CenterCrops(1.0, crops=0), "crops=0"),
    ],
)
def test_refuses_what_makes_no_crop(build, message):
    with pytest.raises(UserError, match=message):
        build()
