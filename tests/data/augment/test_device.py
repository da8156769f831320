"""From uint8 clips to what the model takes: literal values, and color against torchvision."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from vidtrain.data.augment.device import ColorJitter, DeviceTransform, RandomErasing
from vidtrain.data.augment.rand_augment import RandAugment

SEEDS = torch.tensor([[0, 7], [2**63 - 2, 41]])


def noise(videos: int = 2, views: int = 2, frames: int = 3) -> Tensor:
    shape = (videos, views, 3, frames, 8, 10)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def plain(color: ColorJitter | None = None) -> DeviceTransform:
    """Neither shift nor scale, so that the output is the picture in [0, 1]."""
    return DeviceTransform([0.0, 0.0, 0.0], [1.0, 1.0, 1.0], color)


def factors(seed: int, *strengths: float) -> list[float]:
    """The brightness, contrast and saturation that `seed` draws: one number in [-1, 1] for each."""
    return (1 + np.random.default_rng(seed).uniform(-1, 1, 3) * strengths).tolist()


class TestNormalization:
    def test_literal(self):
        """0, 51 and 255 are 0, 0.2 and 1, with another mean and deviation for each channel."""
        clips = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3, 1, 1).expand(1, 2, 3, 3, 4, 5)
        found = DeviceTransform([0.5, 0.2, 0.0], [0.25, 0.2, 0.5])(clips)
        assert (found.shape, found.dtype) == ((1, 2, 3, 3, 4, 5), torch.float32)
        expected = torch.tensor([[-2.0, -1.2, 2.0], [-1.0, 0.0, 4.0], [0.0, 0.4, 2.0]])  # channel by frame
        torch.testing.assert_close(found, expected.view(1, 1, 3, 3, 1, 1).expand_as(found), atol=1e-6, rtol=0)

    def test_axes_stay_in_place(self):
        clips = noise(2, 3, 4)
        torch.testing.assert_close(plain()(clips), clips.float() / 255, atol=1e-7, rtol=0)

    @pytest.mark.parametrize("color", [None, ColorJitter(0.4, 0.4, 0.4)])
    def test_input_is_left_as_it_was(self, color):
        clips, seeds = noise(), SEEDS.clone()
        plain(color)(clips, seeds)
        assert torch.equal(clips, noise()) and torch.equal(seeds, SEEDS)

    def test_nothing_of_it_is_saved(self):
        assert DeviceTransform([0.5] * 3, [0.5] * 3, ColorJitter(0.4)).state_dict() == {}


class TestAllTogether:
    MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]

    def strong(self, dtype: torch.dtype = torch.float32) -> DeviceTransform:
        stages = ColorJitter(0.4, 0.4, 0.4, 0.1), RandAugment(), RandomErasing(0.5)
        return DeviceTransform(self.MEAN, self.STD, *stages, dtype)

    def test_order(self):
        """RandAugment sees uint8, color sees [0, 1], erasing what is normalized."""
        clips, seeds = noise(), SEEDS.flatten()
        views = RandAugment()(clips.flatten(0, 1), seeds)
        views = ColorJitter(0.4, 0.4, 0.4, 0.1)(views.float() / 255, seeds)
        views = (views - torch.tensor(self.MEAN).view(3, 1, 1, 1)) / torch.tensor(self.STD).view(3, 1, 1, 1)
        expected = RandomErasing(0.5)(views, seeds).view_as(clips)
        torch.testing.assert_close(self.strong()(clips, SEEDS), expected, atol=1e-6, rtol=0)

    def test_evaluation_only_normalizes(self):
        assert torch.equal(self.strong()(noise()), DeviceTransform(self.MEAN, self.STD)(noise()))

    def test_batch_does_not_matter(self):
        clips, seeds = noise(8), torch.arange(16).view(8, 2)
        whole = self.strong()(clips, seeds)
        found = self.strong()(clips.flip(0)[:3], seeds.flip(0)[:3]).flip(0)
        torch.testing.assert_close(found, whole[-3:], atol=1e-6, rtol=0)

    def test_leaves_no_gradient_and_nothing_to_save(self):
        transform = self.strong()
        assert transform.state_dict() == {} and list(transform.parameters()) == []
        assert not transform(noise(), SEEDS).requires_grad

    def test_half_precision(self):
        """Erasing draws other noise in half precision, so it is left out."""
        stages = ColorJitter(0.4, 0.4, 0.4, 0.1), RandAugment()
        half, single = (
            DeviceTransform(self.MEAN, self.STD, *stages, dtype=dtype)(noise(), SEEDS)
            for dtype in (torch.float16, torch.float32)
        )
        assert half.dtype == torch.float16
        assert (half.float() - single).abs().max() < 0.02  # a color is 1 / 255 / 0.2 = 0.02
        assert self.strong(torch.float16)(noise(), SEEDS).dtype == torch.float16

    def test_bfloat16_is_too_coarse(self):
        with pytest.raises(ValueError, match="float32"):
            DeviceTransform(self.MEAN, self.STD, dtype=torch.bfloat16)


class TestColorJitter:
    def test_only_with_seeds(self):
        jittering = plain(ColorJitter(0.4, 0.4, 0.4))
        assert torch.equal(jittering(noise()), plain()(noise()))
        jittered = jittering(noise(), SEEDS)
        assert not torch.equal(jittered, plain()(noise()))
        assert torch.equal(jittering.eval()(noise(), SEEDS), jittered)  # whatever the module's mode
        assert torch.equal(plain()(noise(), SEEDS), plain()(noise()))

    def test_strength_zero_changes_nothing(self):
        assert torch.equal(plain(ColorJitter())(noise(), SEEDS), plain()(noise()))

    def test_normalization_comes_after(self):
        color = ColorJitter(0.4, 0.4, 0.4)
        found = DeviceTransform([0.5] * 3, [0.25] * 3, color)(noise(), SEEDS)
        torch.testing.assert_close(found, (plain(color)(noise(), SEEDS) - 0.5) / 0.25, atol=1e-5, rtol=0)

    def test_brightness_by_hand(self):
        """Dark enough not to be clamped, every pixel of every frame is multiplied by one number."""
        clips = (noise(1, 2) // 4).clamp(min=1)
        ratios = plain(ColorJitter(brightness=0.4))(clips, SEEDS[:1]) / plain()(clips)
        for view, seed in enumerate(SEEDS[0].tolist()):
            factor = factors(seed, 0.4, 0.0, 0.0)[0]
            assert 0.6 <= factor <= 1.4
            assert (ratios[0, view] - factor).abs().max() < 1e-6

    def test_all_frames_of_a_clip_alike(self):
        still = noise(2, 2, 1).expand(-1, -1, -1, 5, -1, -1)
        found = plain(ColorJitter(0.4, 0.4, 0.4))(still, SEEDS)
        assert torch.equal(found, found[:, :, :, :1].expand_as(found))

    def test_clips_are_independent(self):
        """The same pixels under four seeds come out in four ways, the same seed in one."""
        clips = noise(1, 1).expand(2, 2, -1, -1, -1, -1)
        found = plain(ColorJitter(0.4, 0.4, 0.4))(clips, SEEDS).flatten(0, 1)
        assert all(not torch.allclose(found[i], found[j], atol=1e-3) for i in range(4) for j in range(i))
        alike = plain(ColorJitter(0.4, 0.4, 0.4))(clips, torch.full((2, 2), 7)).flatten(0, 1)
        torch.testing.assert_close(alike, found[1:2].expand_as(alike), atol=1e-6, rtol=0)

    def test_batch_does_not_matter(self):
        transform, clips = plain(ColorJitter(0.4, 0.4, 0.4)), noise(8)
        seeds = torch.arange(16).view(8, 2)
        whole = transform(clips, seeds)
        for part in (slice(3, 4), slice(2, 7)):
            torch.testing.assert_close(transform(clips[part], seeds[part]), whole[part], atol=1e-6, rtol=0)
        turned = transform(clips.flip(0), seeds.flip(0)).flip(0)
        torch.testing.assert_close(turned, whole, atol=1e-6, rtol=0)

    def test_global_generators_are_neither_read_nor_moved(self):
        transform = plain(ColorJitter(0.4, 0.4, 0.4))
        first = transform(noise(), SEEDS)
        torch.manual_seed(99)
        np.random.seed(99)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        assert torch.equal(transform(noise(), SEEDS), first)
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]

    @pytest.mark.parametrize(
        "strengths",
        [(0.8, 0.0, 0.0), (0.0, 0.8, 0.0), (0.0, 0.0, 0.8), (0.4, 0.4, 0.4), (1.0, 1.0, 1.0)],
    )
    def test_against_torchvision(self, strengths):
        """A clip laid out as one tall picture, so that its contrast is about one mean for all frames."""
        clips, seeds = noise(4, 4), torch.arange(16).view(4, 4)
        found = plain(ColorJitter(*strengths))(clips, seeds).flatten(0, 1)
        largest = 0.0
        for clip, jittered, seed in zip(clips.flatten(0, 1), found, seeds.flatten().tolist(), strict=True):
            brightness, contrast, saturation = factors(seed, *strengths)
            picture = clip.flatten(1, 2).float() / 255  # [c (t h) w]
            picture = tv.adjust_brightness(picture, brightness)
            picture = tv.adjust_contrast(picture, contrast)
            picture = tv.adjust_saturation(picture, saturation)
            largest = max(largest, (jittered.flatten(1, 2) - picture).abs().max().item())
        assert largest < 2e-4  # torchvision's weight of red is 0.2989

    def test_stays_in_range(self):
        found = plain(ColorJitter(1.0, 1.0, 1.0))(noise(8), torch.arange(16).view(8, 2))
        assert found.min() >= 0 and found.max() <= 1
