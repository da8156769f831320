"""What is known of published weights beside their tensors: the names and the number of their classes."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from vidtrain.errors import UserError
from vidtrain.models.weights.files import read
from vidtrain.models.weights.formats.torchvision import enum_weights, is_enum_name
from vidtrain.models.weights.loading import recognize


def published_classes(source: str, path: Path) -> tuple[str, ...] | None:
    """The class names of the weights `source`, which lie at `path`, in the order of their logits; None where neither
    their name nor a config.json beside them tells."""
    if is_enum_name(source):
        return tuple(enum_weights(source).meta["categories"])
    config = read(path, source).config
    if config is None or "id2label" not in config:
        return None
    by_number = {int(number): name for number, name in config["id2label"].items()}
    if sorted(by_number) != list(range(len(by_number))):
        raise UserError(
            f"{source}: id2label in config.json does not number its classes from 0; give classes="
        )
    return tuple(by_number[number] for number in range(len(by_number)))


def num_classes(sources: Sequence[str], paths: Sequence[Path], model: nn.Module) -> int:
    """How many classes the published head tells apart, for a `model` of any number of classes (on the meta device).

    Raises UserError for weights without a head, which answer nothing.
    """
    found = {}
    for source, path in zip(sources, paths, strict=True):
        weights = read(path, source)
        found |= recognize(weights, model).convert(weights, model).tensors
    if "head.linear.weight" not in found:
        raise UserError(
            f"{' and '.join(sources)} hold an encoder and no classifier that fits model.head: train one first, with "
            "python -m vidtrain.train pretrained=..., and export that run"
        )
    return len(found["head.linear.weight"])
