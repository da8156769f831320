"""Stages: which parts of the model a phase trains. Everything else stays bit for bit."""

import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.training.settings import PhaseSettings


def apply_phase(model: nn.Module, phase: PhaseSettings) -> None:
    """Sets `requires_grad` of every parameter: the head trains, and the encoder's last blocks as asked.

    What follows the first trained block (a final norm) trains with it. Raises `UserError` when the encoder
    has fewer blocks.
    """
    model.head.requires_grad_(True)
    model.encoder.requires_grad_(phase.encoder_blocks is None)
    if phase.encoder_blocks is not None and phase.encoder_blocks < 0:
        raise UserError(
            f"encoder_blocks={phase.encoder_blocks}: write how many of the last blocks train, 0 or more"
        )
    if phase.encoder_blocks:
        layers, blocks = list(model.encoder.layers), list(model.encoder.blocks)
        if phase.encoder_blocks > len(blocks):
            raise UserError(
                f"encoder_blocks={phase.encoder_blocks}, but the encoder has {len(blocks)} blocks; "
                "write null to train all of it"
            )
        first = next(i for i, layer in enumerate(layers) if layer is blocks[-phase.encoder_blocks])
        for layer in layers[first:]:
            layer.requires_grad_(True)


def set_train_mode(model: nn.Module) -> None:
    """Training mode for what trains, evaluation mode for what is frozen.

    A frozen layer in training mode would still move its batch statistics and drop paths.
    """
    model.train()
    for part in (*model.encoder.layers, model.head):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()
    if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
        model.encoder.eval()


def parameter_table(model: nn.Module, groups: list[dict], lr: float) -> list[tuple[str, str, str, str]]:
    """Rows (part, parameters, trained, peak learning rate) for the trainable-parameter table."""
    rates: dict[torch.Tensor, float] = {
        parameter: lr * group["lr_scale"] for group in groups for parameter in group["params"]
    }
    names = [("encoder." + _layer_name(model.encoder, layer), layer) for layer in model.encoder.layers]
    rows = []
    for name, part in [*names, ("head", model.head)]:
        parameters = list(part.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        rate = max((rates[parameter] for parameter in parameters if parameter in rates), default=None)
        rows.append((name, f"{count:,}", f"{trained:,}", "frozen" if rate is None else f"{rate:.3g}"))
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    rows.append(("total", f"{total:,}", f"{trained:,}", f"{trained / max(1, total):.1%}"))
    return rows


def _layer_name(encoder: nn.Module, layer: nn.Module) -> str:
    return next(name for name, module in encoder.named_modules() if module is layer)
