"""Parameter groups: they carry scales, the schedules carry the rest."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.training.schedules import Schedule
from vidtrain.training.settings import PhaseSettings

OptimizerFactory = Callable[[list[dict]], torch.optim.Optimizer]


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases, norms (one dimension) or position embeddings."""
    return parameter.ndim > 1 and not name.endswith("bias") and "pos_embed" not in name


def parameter_groups(model: nn.Module, phase: PhaseSettings) -> list[dict]:
    """The trainable parameters of `model.encoder` and `model.head`, grouped by what scales them.

    Each group holds `params`, a `name` such as `encoder.layer03.no_decay`, `lr_scale` and `wd_scale` (1 or 0).
    With `layer_decay` d, the layer that lies k layers below the head trains at d^k (the head at d^0), as in
    BEiT (arXiv:2106.08254).
    """
    parts = [("head", 1.0, model.head.named_parameters())]
    depth = len(model.encoder.layers)
    names = {parameter: name for name, parameter in model.encoder.named_parameters()}
    for index, layer in enumerate(model.encoder.layers):
        scale = phase.encoder_lr_scale * phase.layer_decay ** (depth - index)
        part = "encoder" if phase.layer_decay == 1 else f"encoder.layer{index:02d}"
        parts.append((part, scale, [(names[parameter], parameter) for parameter in layer.parameters()]))

    groups: dict[str, dict] = {}
    for part, scale, named in parts:
        for name, parameter in named:
            if not parameter.requires_grad:
                continue
            decay = decays(name, parameter)
            key = part if decay else f"{part}.no_decay"
            group = {"name": key, "params": [], "lr_scale": phase.lr_scale * scale, "wd_scale": float(decay)}
            groups.setdefault(key, group)["params"].append(parameter)
    held = {parameter for group in groups.values() for parameter in group["params"]}
    forgotten = [name for name, each in model.named_parameters() if each.requires_grad and each not in held]
    if forgotten:
        raise UserError(
            f"parameters that train but lie in neither encoder.layers nor the head: {', '.join(forgotten[:8])}; "
            "let the encoder's `layers` hold them"
        )
    return list(groups.values())


def set_rates(
    optimizer: torch.optim.Optimizer,
    lr: Schedule,
    weight_decay: Schedule,
    step: int,
    total_steps: int,
) -> dict[str, float]:
    """Puts step `step` of 1..`total_steps` in force; returns the rates by group, for the log."""
    lr_now = optimizer.defaults["lr"] * lr(step, total_steps)
    weight_decay_now = optimizer.defaults["weight_decay"] * weight_decay(step, total_steps)
    for group in optimizer.param_groups:
        group["lr"] = lr_now * group["lr_scale"]
        group["weight_decay"] = weight_decay_now * group["wd_scale"]
    rates = {f"lr/{group['name']}": group["lr"] for group in optimizer.param_groups if group["wd_scale"]}
    return rates | {"weight_decay": weight_decay_now}


def trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
