"""MixUp and CutMix: by hand, and against timm with the same share and box."""

from unittest import mock

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup
from torch import nn

from vidtrain.data.augment.device import Mix, Mixing, cut_box, mix_clips, mix_targets, soft_targets
from vidtrain.errors import UserError

KEY = (0, 12, 1)


def noise(samples: int = 2, views: int = 2, frames: int = 3) -> torch.Tensor:
    shape = (samples, views, 3, frames, 8, 10)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def by_timm(
    clips: torch.Tensor, labels: torch.Tensor, mix: Mix, smoothing: float, multi_label: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two samples, everything before the picture's sides as its channels."""
    mixup = timm_mixup.Mixup(1.0, 1.0, label_smoothing=smoothing, num_classes=4, multi_label=multi_label)
    top, left, height, width = mix.box or (0, 0, 0, 0)
    with (
        mock.patch.object(mixup, "_params_per_batch", lambda: (mix.share, mix.box is not None)),
        mock.patch.object(timm_mixup, "rand_bbox", lambda *_, **__: (top, top + height, left, left + width)),
    ):
        pictures, targets = mixup(clips.flatten(1, 3).clone(), labels)
    return pictures.view_as(clips), targets


class TestAgainstTimm:
    @pytest.mark.parametrize("smoothing", [0.0, 0.1])
    @pytest.mark.parametrize("mixing", [Mixing(0.8, 0.0), Mixing(0.0, 1.0), Mixing(0.8, 1.0)])
    def test_same_numbers(self, mixing, smoothing):
        clips, labels = noise(), torch.tensor([3, 1])
        for step in range(20):
            mix = mixing.draw((0, step, 0), 8, 10)
            found = mixing(clips, labels, 4, (0, step, 0), smoothing)
            expected = by_timm(clips, labels, mix, smoothing)
            torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
            torch.testing.assert_close(found[1], expected[1], atol=1e-6, rtol=0)

    def test_multi_label(self):
        clips, labels = noise(), torch.tensor([[1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
        mixing = Mixing(0.8, 0.0)
        found = mixing(clips, labels, 4, KEY, 0.1)
        expected = by_timm(clips, labels, mixing.draw(KEY, 8, 10), 0.1, multi_label=True)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)

    def test_pairs_of_a_larger_batch(self):
        """Every sample with the one before it, an odd number of them too."""
        clips, labels = noise(5), torch.tensor([3, 1, 0, 2, 2])
        for mixing in (Mixing(0.8, 0.0), Mixing(0.0, 1.0)):
            mix = mixing.draw(KEY, 8, 10)
            found, targets = mixing(clips, labels, 4, KEY)
            for i in range(5):
                pictures, expected = by_timm(clips[[i, i - 1]], labels[[i, i - 1]], mix, 0.0)
                torch.testing.assert_close(found[i], pictures[0], atol=1e-6, rtol=0)
                torch.testing.assert_close(targets[i], expected[0], atol=1e-6, rtol=0)

    def test_cut_box(self):
        for share in (0.0, 0.1, 0.37, 0.5, 0.99, 1.0):
            for center in ((0, 0), (4, 5), (7, 9), (2, 8)):
                with mock.patch("numpy.random.randint", side_effect=center):
                    top, bottom, left, right = timm_mixup.rand_bbox((8, 10), share)
                assert cut_box(share, center, 8, 10) == (top, left, bottom - top, right - left)


class TestByHand:
    def test_mixup(self):
        clips = torch.tensor([0.0, 10.0, 100.0]).view(3, 1, 1, 1, 1, 1)
        mixed = mix_clips(clips, Mix(0.75))
        assert mixed.flatten().tolist() == [25.0, 7.5, 77.5]  # a quarter of 100, 0 and 10
        targets = mix_targets(soft_targets(torch.tensor([0, 1, 1]), 2), Mix(0.75))
        assert targets.tolist() == [[0.75, 0.25], [0.25, 0.75], [0.0, 1.0]]

    def test_cutmix(self):
        clips = torch.tensor([1.0, 2.0]).view(2, 1, 1, 1, 1, 1).repeat(1, 2, 1, 2, 3, 4)
        mixed = mix_clips(clips, Mix(10 / 12, (1, 2, 2, 1)))
        expected = [[1, 1, 1, 1], [1, 1, 2, 1], [1, 1, 2, 1]]
        assert torch.equal(mixed[0], torch.tensor(expected).float().expand_as(mixed[0]))
        assert torch.equal(mixed[1], 3 - mixed[0])
        assert torch.equal(clips[0], torch.ones_like(clips[0]))  # what came in is left as it was

    def test_smoothing(self):
        assert soft_targets(torch.tensor([2]), 4, 0.2)[0].tolist() == pytest.approx([0.05, 0.05, 0.85, 0.05])
        assert soft_targets(torch.tensor([[1.0, 0.0]]), 2, 0.2)[0].tolist() == pytest.approx([0.9, 0.1])

    def test_smoothed_here_or_in_the_loss(self):
        clips, labels = noise(4), torch.tensor([0, 1, 2, 3])
        logits = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
        here, plain = (Mixing()(clips, labels, 5, KEY, smoothing)[1] for smoothing in (0.1, 0.0))
        found = nn.CrossEntropyLoss()(logits, here)
        torch.testing.assert_close(found, nn.CrossEntropyLoss(label_smoothing=0.1)(logits, plain))
        assert here.sum(1).tolist() == pytest.approx([1.0] * 4)


class TestDraw:
    def test_key_alone(self):
        clips, labels = noise(4), torch.tensor([0, 1, 2, 3])
        first = Mixing()(clips, labels, 4, KEY)
        torch.manual_seed(9)
        np.random.seed(9)
        again = Mixing()(clips, labels, 4, KEY)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        shares = {Mixing().draw((0, step, rank), 8, 10).share for step in range(10) for rank in range(2)}
        assert len(shares) > 15

    def test_which_way(self):
        mixes = [Mixing(switch_probability=0.3).draw(step, 224, 224) for step in range(3000)]
        assert np.mean([mix.box is not None for mix in mixes]) == pytest.approx(0.3, abs=0.03)
        shares = np.array([mix.share for mix in mixes if mix.box is None])
        assert shares.mean() == pytest.approx(0.5, abs=0.02)
        assert shares.var() == pytest.approx(1 / (4 * (2 * 0.8 + 1)), abs=0.006)  # of Beta(0.8, 0.8)
        assert all(Mixing(0.0, 1.0).draw(step, 8, 8).box for step in range(50))
        assert all(Mixing(1.0, 0.0).draw(step, 8, 8).box is None for step in range(50))

    def test_share_is_that_of_the_pixels(self):
        for step in range(200):
            mix = Mixing(0.0, 1.0).draw(step, 30, 40)
            top, left, height, width = mix.box
            assert 0 <= top <= top + height <= 30 and 0 <= left <= left + width <= 40
            assert mix.share == 1 - height * width / 1200

    def test_probability(self):
        mixes = [Mixing(probability=0.4).draw(step, 224, 224) for step in range(3000)]
        assert np.mean([mix == Mix(1.0) for mix in mixes]) == pytest.approx(0.6, abs=0.03)
        clips, labels = noise(), torch.tensor([3, 1])
        found, targets = Mixing(probability=0.0)(clips, labels, 4, KEY)
        assert torch.equal(found, clips) and targets.tolist() == [[0, 0, 0, 1], [0, 1, 0, 0]]


def test_copies_of_a_video_are_not_partners():
    clips, labels = noise(6), torch.tensor([3, 3, 1, 1, 0, 0])
    for mixing in (Mixing(0.8, 0.0), Mixing(0.0, 1.0)):
        mix = mixing.draw(KEY, 8, 10)
        found, targets = mixing(clips, labels, 4, KEY, copies=2)
        partners = [4, 5, 0, 1, 2, 3]
        pairs = [mixing(clips[[one, other]], labels[[one, other]], 4, KEY) for one, other in enumerate(partners)]
        assert torch.equal(found, torch.stack([pair[0][0] for pair in pairs]))
        assert torch.equal(targets, torch.stack([pair[1][0] for pair in pairs]))
        assert targets[1, 3] == pytest.approx(mix.share) and targets[1, 0] == pytest.approx(1 - mix.share)


def test_refuses():
    with pytest.raises(UserError, match="two videos in a batch"):
        Mixing()(noise(2), torch.tensor([0, 0]), 4, KEY, copies=2)
    with pytest.raises(UserError, match="two videos in a batch"):
        Mixing()(noise(1), torch.tensor([0]), 4, KEY)
    with pytest.raises(UserError, match="one must be above"):
        Mixing(0.0, 0.0)
    with pytest.raises(UserError, match="mixup_alpha=-1"):
        Mixing(-1.0, 1.0)
    with pytest.raises(UserError, match="switch_probability=2"):
        Mixing(switch_probability=2.0)
    with pytest.raises(ValueError, match="labels have 3 classes, not 4"):
        Mixing()(noise(), torch.zeros(2, 3), 4, KEY)
