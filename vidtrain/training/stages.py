"""Stages: which parts of the model a phase trains, and at which rate and decay. Everything else stays bit for bit."""

import re
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidtrain.errors import UserError
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.run import HeadGridSettings, PhaseSettings, TrainerSettings


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


Part = tuple[str, float, Iterable[tuple[str, nn.Parameter]]]  # name, lr scale, named parameters


# Positions and tokens that are learned, by the names that our, torchvision's and timm's models give them
NOT_DECAYED = re.compile(
    r"pos_embed|(^|\.)(rel_pos_\w+|relative_position_bias_table|(cls|class|dist|reg|register)_tokens?)$"
)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms (one dimension), positions, absolute or relative, or class and
    register tokens, as in ViT, Swin and MViT; to the query of an attentive pooler, as in V-JEPA."""
    return parameter.ndim > 1 and not name.endswith("bias") and NOT_DECAYED.search(name) is None


def parameter_groups(model: nn.Module, phase: PhaseSettings) -> list[dict]:
    """The trainable parameters of `model.encoder` and `model.head`, grouped by what scales them.

    Each group holds `params`, a `name` such as `encoder.layer03.no_decay`, `lr_scale` and `wd_scale` (1 or 0).
    With `layer_decay` d, a layer trains at d to its power of `layer_powers`, and the head at d^0.
    """
    parts: list[Part] = [("head", 1.0, model.head.named_parameters())]
    names = {parameter: name for name, parameter in model.encoder.named_parameters()}
    layers = list(model.encoder.layers)
    for index, (layer, power) in enumerate(zip(layers, layer_powers(model.encoder), strict=True)):
        scale = phase.encoder_lr_scale * phase.layer_decay**power
        part = "encoder" if phase.layer_decay == 1 else f"encoder.layer{index:02d}"
        parts.append((part, scale, [(names[parameter], parameter) for parameter in layer.parameters()]))

    groups = group_parts(parts, phase.lr_scale)
    held = {parameter for group in groups for parameter in group["params"]}
    forgotten = [name for name, each in model.named_parameters() if each.requires_grad and each not in held]
    if forgotten:
        raise UserError(
            f"parameters that train but lie in neither encoder.layers nor the head: {', '.join(forgotten[:8])}; "
            "let the encoder's `layers` hold them"
        )
    return groups


def layer_powers(encoder: nn.Module) -> list[int]:
    """The power of `layer_decay` at which each of `encoder.layers` trains, as in BEiT, MAE, VideoMAE and timm.

    It is 1 for the last block, one more for each block before it, and one more again for the stem: what lies before
    the first block. What lies between two blocks (a patch merging) goes with the later one, and what follows the last
    (a final norm) with the head, at power 0.
    """
    blocks = set(encoder.blocks)
    layers = list(encoder.layers)
    powers, met = [], 0
    for layer in reversed(layers):
        met += layer in blocks
        powers.append(met + (met == len(blocks) and layer not in blocks))
    return powers[::-1]


def group_parts(parts: Iterable[Part], lr_scale: float) -> list[dict]:
    """The trainable parameters of `parts` in groups as `parameter_groups` gives them."""
    groups: dict[str, dict] = {}
    for part, scale, named in parts:
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            decay = decays(name, parameter)
            key = part if decay else f"{part}.no_decay"
            group = {"name": key, "params": [], "lr_scale": lr_scale * scale, "wd_scale": float(decay)}
            groups.setdefault(key, group)["params"].append(parameter)
    return list(groups.values())


BATCH_NORMS = {
    "train": "normalize by the batch of each rank",
    "sync": "normalize by the batch of all ranks",
    "frozen_statistics": "keep their running statistics; scale and shift train",
    "frozen": "keep their running statistics, scale and shift",
}


def batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


def prepare_batch_norm(model: nn.Module, mode: str, ranks: Ranks) -> nn.Module:
    """`model` with batch norms that can do as `mode` says, their parameters and buffers the same.

    Raises `UserError` where they shall count over ranks that are not on GPUs, which PyTorch cannot.
    """
    if mode != "sync" or ranks.world_size == 1 or not batch_norms(model):
        return model
    if ranks.device.type != "cuda":
        raise UserError(
            f"trainer.batch_norm=sync needs a GPU for each of the {ranks.world_size} ranks, and this is a "
            f"{ranks.device.type}; choose train or frozen, or start one process"
        )
    # timm's, as PyTorch's would lose the activations that its norms hold; imported here, as it takes seconds
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


def freeze_batch_norm(model: nn.Module, mode: str) -> None:
    """After a phase has said what trains: scales and shifts do not, where `mode` is frozen."""
    if mode == "frozen":
        for norm in batch_norms(model):
            norm.requires_grad_(False)
