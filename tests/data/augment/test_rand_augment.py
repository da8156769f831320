"""RandAugment against timm's operations on PIL images: what each does, and how far a magnitude goes."""

from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor
from torch.nn import functional as F

from vidtrain.data.augment.rand_augment import LEVELS, NAMES, RandAugment
from vidtrain.errors import UserError

THEIRS = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
GEOMETRIC = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
MAGNITUDES = (0, 1, 3.3, 5, 7, 9.2, 9.99)


def smooth(height: int = 56, width: int = 72) -> Tensor:
    """A picture with soft edges, uint8 [3 h w]."""
    coarse = 255 * torch.rand(1, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, (height, width), mode="bicubic")[0].clamp(0, 255).round().to(torch.uint8)


def noise(*shape: int) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def their_argument(name: str, magnitude: float, sign: int) -> tuple:
    level = auto_augment.LEVEL_TO_ARG[THEIRS[name]]
    with mock.patch("random.random", return_value=0.25 if sign == 1 else 0.75):
        return level(magnitude, {"img_mean": (128,) * 3}) if level else ()


def theirs(picture: Tensor, name: str, magnitude: float, sign: int, resample: int) -> Tensor:
    image = Image.fromarray(picture.permute(1, 2, 0).numpy())
    arguments = their_argument(name, magnitude, sign)
    operation = auto_augment.NAME_TO_OP[THEIRS[name]]
    image = operation(image, *arguments, resample=resample, fillcolor=(128,) * 3)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_the_operations_are_the_increasing_ones_of_timm():
    assert [THEIRS[name] for name in NAMES] == auto_augment._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", NAMES)
def test_levels_are_those_of_timm(name, sign):
    for magnitude in (*MAGNITUDES, 10):
        expected = their_argument(name, magnitude, sign)
        assert not expected or LEVELS[name](magnitude, sign) == expected[0]


@pytest.mark.parametrize("name", NAMES)
def test_operations_against_pil(name):
    """Colors: equal, but for the gray of color and contrast, which is rounded elsewhere. Places: PIL drops the
    fraction of what it interpolates, which is rounded here, so off by one at most."""
    transform = RandAugment(interpolation="bilinear")
    exact = name not in (*GEOMETRIC, "color", "contrast", "sharpness")
    for picture in (smooth(), noise(3, 40, 48)):
        for magnitude in MAGNITUDES:
            for sign in (-1, 1):
                found = transform.apply_op(picture[None].clone(), name, LEVELS[name](magnitude, sign))[0]
                expected = theirs(picture, name, magnitude, sign, Image.Resampling.BILINEAR)
                apart = (found.short() - expected.short()).abs().max().item()
                assert apart <= (0 if exact else 1), (magnitude, sign)


@pytest.mark.parametrize("name", GEOMETRIC)
def test_bicubic_against_pil(name):
    """PIL's kernel is steeper (a = -1, torch has -0.75): a few colors apart where edges are soft."""
    for magnitude in MAGNITUDES:
        for sign in (-1, 1):
            found = RandAugment().apply_op(smooth()[None], name, LEVELS[name](magnitude, sign))[0]
            expected = theirs(smooth(), name, magnitude, sign, Image.Resampling.BICUBIC)
            apart = (found.short() - expected.short()).abs().float()
            assert apart.max() <= 6 and apart.mean() < 1


def test_posterize_to_nothing_and_solarize_of_nothing():
    """The ends of the ranges: at magnitude 10 no bit is kept (PIL refuses that), at 0 no color is inverted."""
    assert (LEVELS["posterize"](10, 1), LEVELS["solarize"](0, 1)) == (0, 256)
    frames = noise(2, 3, 8, 8)
    assert torch.equal(RandAugment().apply_op(frames, "posterize", 0), torch.zeros_like(frames))
    assert torch.equal(RandAugment().apply_op(frames, "solarize", 256), frames)


@pytest.mark.parametrize("name", NAMES)
def test_a_clip_gets_what_its_frames_get(name):
    """Frame by frame or together: the same bits, so statistics are each frame's own."""
    frames = torch.stack([smooth(), smooth().flip(2), smooth() // 2])
    amount = LEVELS[name](7, 1)
    together = RandAugment().apply_op(frames.clone(), name, amount)
    for before, after in zip(frames, together, strict=True):
        alone = RandAugment().apply_op(before[None].clone(), name, amount)[0]
        assert (alone.short() - after.short()).abs().max() <= (1 if name in GEOMETRIC else 0)


class TestPlan:
    def test_literal(self):
        """Drawn by hand from the view's stream: which, whether, how much, which way."""
        rng = np.random.default_rng([7, 1])
        which, done = rng.integers(15, size=4), rng.random(4) < 0.5
        magnitudes, signs = rng.normal(7, 0.5, 4), rng.choice((-1, 1), 4)
        expected = [
            (NAMES[i], LEVELS[NAMES[i]](m, s)) for i, d, m, s in zip(which, done, magnitudes, signs, strict=True) if d
        ]
        assert RandAugment().plan(7) == expected != []

    def test_shares(self):
        plans = [RandAugment().plan(seed) for seed in range(4000)]
        lengths = Counter(map(len, plans))  # binomial of 4 halves: 1/16 4/16 6/16 4/16 1/16
        assert [lengths[n] / 4000 for n in range(5)] == pytest.approx([0.0625, 0.25, 0.375, 0.25, 0.0625], abs=0.03)
        done = Counter(name for plan in plans for name, _ in plan)
        assert set(done) == set(NAMES) and max(done.values()) < 1.25 * min(done.values())
        turns = np.array([amount for plan in plans for name, amount in plan if name == "rotate"])
        assert abs(turns).mean() == pytest.approx(21, abs=0.2)  # 30 degrees x 7 / 10
        assert abs(turns).std() == pytest.approx(1.5, abs=0.2)  # 30 x 0.5 / 10
        assert (turns > 0).mean() == pytest.approx(0.5, abs=0.06)
        assert any(len({name for name, _ in plan}) < len(plan) for plan in plans)  # with replacement

    def test_magnitudes_are_clipped(self):
        amounts = [amount for seed in range(300) for _, amount in RandAugment(magnitude_std=20).plan(seed)]
        assert max(amounts) <= 256 and min(amounts) >= -30

    def test_probability(self):
        assert all(RandAugment(probability=0).plan(seed) == [] for seed in range(50))
        assert all(len(RandAugment(num_ops=3, probability=1).plan(seed)) == 3 for seed in range(50))


class TestForward:
    def test_does_the_plan(self):
        clips, seeds = noise(6, 3, 2, 16, 20), torch.arange(6)
        transform = RandAugment()
        found = transform(clips, seeds)
        assert torch.equal(clips, noise(6, 3, 2, 16, 20)) and found.dtype == torch.uint8
        for clip, after, seed in zip(clips, found, seeds.tolist(), strict=True):
            frames = clip.transpose(0, 1)
            for name, amount in transform.plan(seed):
                frames = transform.apply_op(frames, name, amount)
            assert torch.equal(after, frames.transpose(0, 1))

    def test_batch_and_global_generators_do_not_matter(self):
        clips, seeds = noise(8, 3, 2, 16, 20), torch.arange(8) + 2**62
        transform = RandAugment()
        found = transform(clips, seeds)
        torch.manual_seed(5)
        before = torch.get_rng_state()
        assert torch.equal(transform(clips.flip(0)[:3], seeds.flip(0)[:3]).flip(0), found[-3:])
        assert torch.equal(torch.get_rng_state(), before)
        assert not torch.equal(found, clips)

    def test_still_clips_stay_still(self):
        still = noise(4, 3, 1, 16, 20).expand(-1, -1, 5, -1, -1)
        found = RandAugment(probability=1.0)(still, torch.arange(4))
        assert (found.short() - found[:, :, :1].short()).abs().max() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ops": 0}, "num_ops=0"),
        ({"magnitude": 11.0}, "magnitude=11"),
        ({"magnitude_std": -1.0}, "magnitude_std=-1"),
        ({"probability": 1.5}, "probability=1.5"),
        ({"interpolation": "nearest"}, "bilinear, bicubic"),
        ({"fill": 256}, "fill=256"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(UserError, match=message):
        RandAugment(**arguments)
