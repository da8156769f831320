"""The optimizer of a phase: one for encoder and head together; in a grid, one for each head of the grid."""

import difflib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from vidtrain.errors import UserError
from vidtrain.training.run import PhaseSettings
from vidtrain.training.schedules import Schedule
from vidtrain.training.stages import (
    EncoderWithHead,
    ScaledModule,
    group_parameters,
    head_choices,
    head_names,
    parameter_groups,
)

# parameter groups -> optimizer; lr and weight_decay may be passed to override the configured ones
OptimizerFactory = Callable[..., torch.optim.Optimizer]


class _Member(NamedTuple):
    """What one loss trains. `OptimizerSet` holds a member for each of the h losses, in their order.

    To give parts of one model optimizers of their own, write an optimizer that steps several and divides its groups by
    their `name` (see `parameter_groups`). `set_rates` sets each group's rates: a part's own peak rate belongs into
    `lr_scale`, as a factor.
    """

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # an overflow of one head's gradients must not scale down another's


class OptimizerSet:
    """The optimizers of a phase, with the interface of one optimizer.

    In a grid, each head has its own optimizer, with its own learning rate and weight decay."""

    def __init__(self, members: Sequence[_Member]):
        self._members = list(members)

    @classmethod
    def make(
        cls, factory: OptimizerFactory, model: EncoderWithHead, phase: PhaseSettings, device_type: str, precision: str
    ) -> Self:
        def member(module: nn.Module, optimizer: torch.optim.Optimizer) -> _Member:
            trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
            scaler = torch.amp.GradScaler(device_type, enabled=precision == "fp16")
            return _Member(trainable, optimizer, scaler)

        if phase.heads is None or not isinstance(model.head, nn.ModuleList):
            return cls([member(model, factory(parameter_groups(model, phase)))])
        members = []
        choices = zip(model.head, head_names(phase.heads), head_choices(phase.heads), strict=True)
        for head, name, (lr, decay) in choices:
            modules: list[ScaledModule] = [(f"head.{name}", 1.0, head.named_parameters())]
            optimizer = factory(group_parameters(modules, phase.lr_scale), lr=lr, weight_decay=decay)
            members.append(member(head, optimizer))
        return cls(members)

    # --- the parts of a step, in the order in which they are called ------------------------------------

    def set_rates(self, lr: Schedule, weight_decay: Schedule, step: int, total: int) -> dict[str, float]:
        """Sets the rates of step `step` of 1..`total`; returns the learning rates by group, and the largest weight
        decay as `weight_decay`."""
        by_member = [set_rates(member.optimizer, lr, weight_decay, step, total) for member in self._members]
        rates = {name: rate for member_rates in by_member for name, rate in member_rates.items()}
        return rates | {"weight_decay": max(member_rates["weight_decay"] for member_rates in by_member)}

    def backward(self, losses: Tensor) -> None:
        """Adds the gradients of `losses` [h]. No head's gradient depends on another head's loss."""
        pairs = zip(self._members, losses.unbind(), strict=True)
        torch.autograd.backward([member.scaler.scale(loss) for member, loss in pairs])

    def clip(self, bound: float | None, by: str) -> Tensor:
        """Unscales the gradients and clips those of each head (`clip_gradients`); returns their norms [h] before
        clipping."""
        for member in self._members:
            member.scaler.unscale_(member.optimizer)
        return torch.stack([clip_gradients(member.parameters, bound, by) for member in self._members])

    def step(self) -> None:
        """Updates the weights, and frees the gradients."""
        for member in self._members:
            member.scaler.step(member.optimizer)
            member.scaler.update()
            member.optimizer.zero_grad(set_to_none=True)

    # --- for the log and the checkpoint ----------------------------------------------------------------

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers."""
        return [group for member in self._members for group in member.optimizer.param_groups]

    @property
    def peak_lrs(self) -> dict[Tensor, float]:
        """The learning rate of each parameter at the peak of the schedule."""
        return {
            parameter: member.optimizer.defaults["lr"] * group["lr_scale"]
            for member in self._members
            for group in member.optimizer.param_groups
            for parameter in group["params"]
        }

    @property
    def lr(self) -> float:
        """The largest learning rate in force."""
        return max(group["lr"] for group in self.groups)

    @property
    def loss_scale(self) -> float | None:
        """In fp16, the factor of the losses in the next step (the smallest one of a grid); None otherwise."""
        scales = [member.scaler.get_scale() for member in self._members if member.scaler.is_enabled()]
        return min(scales, default=None)

    def skips(self, norms: Sequence[float]) -> int:
        """How many heads skip this step: in fp16, those whose gradients overflowed and have no finite norm."""
        pairs = zip(self._members, norms, strict=True)
        return sum(member.scaler.is_enabled() and not math.isfinite(norm) for member, norm in pairs)

    @property
    def num_tensors(self) -> int:
        return sum(len(member.parameters) for member in self._members)

    def state_dicts(self) -> dict[str, Any]:
        """The entries `optimizer` and `scaler` of a checkpoint: a state dict each, or in a grid a list of them."""
        optimizers = [member.optimizer.state_dict() for member in self._members]
        scalers = [member.scaler.state_dict() for member in self._members]
        if len(self._members) == 1:
            return {"optimizer": optimizers[0], "scaler": scalers[0]}
        return {"optimizer": optimizers, "scaler": scalers}

    def load(self, optimizer: Any, scaler: Any) -> None:
        """Loads the two entries that `state_dicts` returned."""
        optimizers, scalers = (stored if isinstance(stored, list) else [stored] for stored in (optimizer, scaler))
        for member, optimizer_state, scaler_state in zip(self._members, optimizers, scalers, strict=True):
            member.optimizer.load_state_dict(optimizer_state)
            member.scaler.load_state_dict(scaler_state)


def set_rates(
    optimizer: torch.optim.Optimizer, lr: Schedule, weight_decay: Schedule, step: int, total_steps: int
) -> dict[str, float]:
    """Sets the rates of step `step` of 1..`total_steps`; returns the rates by group, for the log."""
    lr_now = optimizer.defaults["lr"] * lr(step, total_steps)
    weight_decay_now = optimizer.defaults["weight_decay"] * weight_decay(step, total_steps)
    for group in optimizer.param_groups:
        group["lr"] = lr_now * group["lr_scale"]
        group["weight_decay"] = weight_decay_now * group["wd_scale"]
    rates = {f"lr/{group['name'].removesuffix('.no_decay')}": group["lr"] for group in optimizer.param_groups}
    return rates | {"weight_decay": weight_decay_now}


def clip_gradients(parameters: Sequence[nn.Parameter], bound: float | None, by: str) -> Tensor:
    """Clips gradients in place; returns their norm before clipping, on their device.

    With `by` = "norm", all gradients are scaled so that their norm is at most `bound`; with "value", each component is
    cut to [-`bound`, `bound`]. Without a bound, nothing is clipped.
    """
    if by == "norm":
        return nn.utils.clip_grad_norm_(parameters, bound or math.inf)
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if bound:
        nn.utils.clip_grad_value_(parameters, bound)
    return norm


def timm_optimizer(
    params: list[dict], name: str, lr: float, weight_decay: float = 0.0, options: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """timm's optimizer `name`, such as lion, lamb, adan or muon, for groups of parameters.

    `options` are its further arguments. timm's optimizers ignore the groups' `lr_scale`, so only `set_rates` applies
    it. Raises `UserError` for an unknown name or option, and for an optimizer that needs a missing package or GPU, or
    second derivatives, which the loop does not compute.
    """
    from timm.optim import get_optimizer_class, get_optimizer_info, list_optimizers  # takes seconds

    known = [str(optimizer) for optimizer in list_optimizers()]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or known
        raise UserError(f"name={name} is not an optimizer of timm; choose one of {', '.join(near)}")
    info = get_optimizer_info(name)
    if info.second_order:
        raise UserError(f"name={name} needs second derivatives, which the training loop does not compute")
    try:
        build: Callable[..., torch.optim.Optimizer] = get_optimizer_class(name)
    except (ImportError, AssertionError) as error:
        raise UserError(f"name={name}: {error}") from error
    arguments = inspect.signature(get_optimizer_class(name, bind_defaults=False)).parameters
    settings = dict(options or {})
    allowed = [argument for argument in arguments if argument not in ("params", "lr", "weight_decay")]
    for option in settings:
        if option not in allowed:
            raise UserError(f"options.{option}: {name} takes {', '.join(allowed)}")
    if info.has_momentum and arguments["momentum"].default == 0:
        settings.setdefault("momentum", 0.9)  # timm's own default; Nesterov momentum needs a value above 0
    optimizer = build(params, lr=lr, weight_decay=weight_decay, **settings)
    for group in optimizer.param_groups:
        # timm's "corrected" weight decay is lr^2 / max_lr_snapshot, which must be the peak of this group
        if group.keys() >= {"max_lr_snapshot", "lr_scale"}:
            group["max_lr_snapshot"] *= group["lr_scale"]
    return optimizer
