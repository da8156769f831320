"""What tests of published files ask of a format: every tensor finds its place, and the way back gives the file."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vidtrain.models.classifier import VideoClassifier
from vidtrain.models.weights.format import Converted, Format, Weights
from vidtrain.models.weights.loading import check_settings


def converted_by(
    format: Format, formats: Sequence[Format], weights: Weights, ours: VideoClassifier, part: str = ""
) -> Converted:
    """Of `formats` this one alone takes the file: all tensors of a part of the model, whose settings agree with it."""
    assert [each for each in formats if each.recognizes(weights)] == [format]
    converted = format.convert(weights, ours)
    check_settings(ours, converted.requires, weights.source)
    assert converted.unexpected == []
    expected = {name: each.shape for name, each in ours.state_dict().items() if name.startswith(part)}
    assert {name: each.shape for name, each in converted.tensors.items()} == expected
    return converted


def there_and_back(converted: Converted, format: Format, ours: VideoClassifier) -> dict[str, Tensor]:
    ours.load_state_dict(converted.tensors, strict=False)
    return format.revert(ours.state_dict())


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
