"""Parameter groups: they carry scales, the schedules carry the rest."""

import re
from collections.abc import Callable, Iterable

import torch
from torch import nn

from vidtrain.errors import UserError
from vidtrain.training.schedules import Schedule
from vidtrain.training.settings import PhaseSettings

Part = tuple[str, float, Iterable[tuple[str, nn.Parameter]]]  # name, lr scale, named parameters
CLIP_GRAD_BY = ("norm", "value")
# Positions and tokens that are learned, by the names that our, torchvision's and timm's models give them
NOT_DECAYED = re.compile(
    r"pos_embed|(^|\.)(rel_pos_\w+|relative_position_bias_table|(cls|class|dist|reg|register)_tokens?)$"
)
OptimizerFactory = Callable[..., torch.optim.Optimizer]  # of groups; lr and weight_decay may be given anew


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


def clip_gradients(parameters: Iterable[nn.Parameter], bound: float | None, by: str) -> torch.Tensor:
    """Clips gradients in place; returns their norm from before, on their device.

    `by` norm scales all to a norm of `bound` at most; by value cuts each component to [-`bound`, `bound`]. Without a
    bound they are measured only.
    """
    if by == "norm":
        return nn.utils.clip_grad_norm_(parameters, bound or float("inf"))
    norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
    if bound:
        nn.utils.clip_grad_value_(parameters, bound)
    return norm


def trainable(model: nn.Module) -> Iterable[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]
