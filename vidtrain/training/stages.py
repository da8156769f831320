"""Stages: which parts of the model a phase trains. Everything else stays bit for bit."""

import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.training.batch_norm import batch_norms
from vidtrain.training.settings import HeadGridSettings, PhaseSettings, TrainerSettings


def apply_phase(model: nn.Module, phase: PhaseSettings) -> None:
    """Sets `requires_grad` of every parameter: the head trains, and the encoder's last blocks as asked.

    What follows the first trained block (a final norm) trains with it. Raises `UserError` when the encoder
    has fewer blocks, for rates that are none, and for what needs a frozen encoder where it trains.
    """
    check_rates(phase)
    model.head.requires_grad_(True)
    model.encoder.requires_grad_(phase.encoder_blocks is None)
    if phase.encoder_blocks is not None and phase.encoder_blocks < 0:
        raise UserError(
            f"encoder_blocks={phase.encoder_blocks}: write how many of the last blocks train, 0 or more"
        )
    if phase.heads is not None:
        check_frozen("heads", phase)
        check_head_grid(phase.heads)
    if phase.cache_features:
        check_frozen("cache_features", phase)
        if phase.cache_views < 1:
            raise UserError(f"cache_views={phase.cache_views} must be 1 or more")
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


def check_rates(phase: PhaseSettings) -> None:
    """Raises `UserError` for factors of the learning rate that would train uphill, or not at all."""
    for key in ("lr_scale", "encoder_lr_scale"):
        scale = getattr(phase, key)
        if not 0 < scale < float("inf"):
            instead = "; encoder_blocks=0 freezes the encoder" if key == "encoder_lr_scale" else ""
            raise UserError(f"{key}={scale:g} must be above 0{instead}")
    if not 0 < phase.layer_decay <= 1:
        raise UserError(
            f"layer_decay={phase.layer_decay:g} must be above 0, and 1 at most, which decays nothing"
        )


def check_frozen(key: str, phase: PhaseSettings) -> None:
    """Raises `UserError` where the encoder trains, which `key` does not allow."""
    blocks = phase.encoder_blocks
    if blocks != 0:
        raise UserError(
            f"{key} needs a frozen encoder, and encoder_blocks={'null' if blocks is None else blocks} trains it; set "
            "encoder_blocks=0"
        )


def check_together(phase: PhaseSettings, settings: TrainerSettings) -> None:
    """Raises `UserError` for settings of the trainer that a phase cannot be trained with."""
    if phase.heads is not None and settings.ema is not None:
        raise UserError(
            f"heads cannot be averaged: trainer.ema={settings.ema:g} averages one model, and these are many; set "
            "trainer.ema=null"
        )


def check_head_grid(heads: HeadGridSettings) -> None:
    """Raises `UserError` for a grid without a head, and for values that are none."""
    for key, values, least in (
        ("lr", heads.lr, "above 0"),
        ("weight_decay", heads.weight_decay, "0 or more"),
    ):
        if not values:
            raise UserError(f"heads.{key}=[] must hold a number or more, such as [1e-3, 1e-4]")
        wrong = [each for each in values if not 0 <= each < float("inf") or (key == "lr" and each == 0)]
        if wrong:
            raise UserError(f"heads.{key}={values}: every number must be {least}")
        if len(set(values)) < len(values):
            raise UserError(f"heads.{key}={values} holds a number twice")


def set_train_mode(model: nn.Module, batch_norm: str = "train") -> None:
    """Training mode for what trains, evaluation mode for what is frozen.

    A frozen layer in training mode would still move its batch statistics and drop paths. Where `batch_norm` (one of
    `BATCH_NORMS`) freezes the statistics, batch norms are in evaluation mode in layers that train, too.
    """
    model.train()
    for part in (*model.encoder.layers, model.head):
        if not any(parameter.requires_grad for parameter in part.parameters()):
            part.eval()
    if not any(parameter.requires_grad for parameter in model.encoder.parameters()):
        model.encoder.eval()
    if batch_norm in ("frozen", "frozen_statistics"):
        for norm in batch_norms(model):
            norm.eval()


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
    """The layer's name in the encoder; where it only gathers parts of the encoder, theirs."""
    names = {module: name for name, module in encoder.named_modules()}
    if layer in names:
        return names[layer]
    gathered = set(layer.parameters())
    parts = [names[module] for module in layer.modules() if module in names]
    parts += [name for name, parameter in encoder.named_parameters() if parameter in gathered]
    largest = [part for part in parts if not any(part.startswith(f"{other}.") for other in parts)]
    return ", ".join(largest)
