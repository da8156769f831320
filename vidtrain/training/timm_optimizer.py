"""Every optimizer of timm, by its name."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers

from vidtrain.errors import UserError


def timm_optimizer(
    params: list[dict],
    name: str,
    lr: float,
    weight_decay: float = 0.0,
    options: Mapping[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """timm's optimizer `name`, such as lion, lamb, adan or muon, for groups of parameters.

    `options` are its further arguments. timm's optimizers do not read the groups' `lr_scale`, so `set_rates` alone
    scales. Raises `UserError` for an unknown name or option, and for an optimizer that needs a package or a GPU that
    is not there, or second derivatives, which the loop does not compute.
    """
    known = list_optimizers()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise UserError(f"name={name} is no optimizer of timm; choose one of {', '.join(near)}")
    info = get_optimizer_info(name)
    if info.second_order:
        raise UserError(f"name={name} needs second derivatives, which the training loop does not compute")
    try:
        build = get_optimizer_class(name)
    except (ImportError, AssertionError) as error:
        raise UserError(f"name={name}: {error}") from error
    arguments = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    given = dict(options or {})
    allowed = [each for each in arguments if each not in ("params", "lr", "weight_decay")]
    for option in given:
        if option not in allowed:
            raise UserError(f"options.{option}: {name} takes {', '.join(allowed)}")
    if info.has_momentum and arguments["momentum"].default == 0:
        given.setdefault("momentum", 0.9)  # as timm has it; without, Nesterov's is refused
    optimizer = build(params, lr=lr, weight_decay=weight_decay, **given)
    for group in optimizer.param_groups:
        # "corrected" weight decay is lr^2 / (the highest lr), which is the group's own
        if group.keys() >= {"max_lr_snapshot", "lr_scale"}:
            group["max_lr_snapshot"] *= group["lr_scale"]
    return optimizer
