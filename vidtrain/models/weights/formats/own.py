"""Checkpoints that this project wrote."""

from collections.abc import Mapping

from torch import Tensor, nn

from vidtrain.models.weights.format import Converted, Format, Weights

PREFIX = "model."


def _convert(weights: Weights, model: nn.Module) -> Converted:
    named = {
        name.removeprefix(PREFIX): each for name, each in weights.tensors.items() if name.startswith(PREFIX)
    }
    return Converted(tensors=named)


def _revert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


OWN = Format(
    name="vidtrain checkpoint",
    encoder=nn.Module,
    models="the model that it was trained with",
    recognizes=lambda weights: weights.written_by is not None and weights.written_by.startswith("vidtrain/"),
    convert=_convert,
    revert=_revert,
)
