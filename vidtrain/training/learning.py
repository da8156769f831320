"""What a phase trains and what it reads: the model on clips, or heads alone on a frozen encoder.

A grid of heads is one module that gives the logits of all heads side by side. Their losses are summed, so that one
backward pass gives each head its own gradients, as no parameter that trains is shared. Each has its own optimizer,
its own bound on the gradient and its own scaler: none can tell that the others are there.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vidtrain.evaluation.report import Report
from vidtrain.training.optim import OptimizerFactory, group_parts, parameter_groups, set_rates, trainable
from vidtrain.training.schedules import Schedule
from vidtrain.training.settings import HeadGridSettings, PhaseSettings


@dataclass(frozen=True)
class Learning:
    """What a phase trains and reads; `learner` shares the encoder, and a single head, with the run's model.

    The learner has `encoder`, `head` (of a grid, a list of heads) and maps what `transform` gives to clip logits
    [b n (h k)] of h heads. `evaluate` judges the val split and gives a report for each head.
    """

    learner: nn.Module
    transform: nn.Module
    mix: Callable[..., tuple[Tensor, Tensor]]
    train_batches: Callable[[int, int], Iterable]
    evaluate: Callable[[], list[Report]]


def head_names(heads: HeadGridSettings | None) -> list[str]:
    """A name for each head of a grid, in order, such as lr0.001_wd0.1; the weights of an ordinary phase are "raw"."""
    return ["raw"] if heads is None else [f"lr{lr:g}_wd{decay:g}" for lr, decay in head_choices(heads)]


def head_choices(heads: HeadGridSettings) -> list[tuple[float, float]]:
    """The (peak learning rate, weight decay) of each head."""
    return list(itertools.product(heads.lr, heads.weight_decay))


class Update(NamedTuple):
    """What an optimizer step is made of: the parameters that train, and who moves them."""

    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def make_updates(
    factory: OptimizerFactory, learner: nn.Module, phase: PhaseSettings, device_type: str, precision: str
) -> list[Update]:
    """One for the whole learner or, of a grid, one for each head with its own rate and weight decay."""

    def update(part: nn.Module, optimizer: torch.optim.Optimizer) -> Update:
        # an overflow of one head's gradients must not scale down another's
        return Update(
            trainable(part), optimizer, torch.amp.GradScaler(device_type, enabled=precision == "fp16")
        )

    if phase.heads is None:
        return [update(learner, factory(parameter_groups(learner, phase)))]
    named = zip(learner.head, head_names(phase.heads), head_choices(phase.heads), strict=True)
    found = []
    for head, name, (lr, decay) in named:
        groups = group_parts([(f"head.{name}", 1.0, head.named_parameters())], phase.lr_scale)
        found.append(update(head, factory(groups, lr=lr, weight_decay=decay)))
    return found


def load_updates(updates: Sequence[Update], optimizers: Any, scalers: Any) -> None:
    """Takes up the states that a checkpoint holds, as `packed` gave them."""
    for update, optimizer, scaler in zip(updates, _unpacked(optimizers), _unpacked(scalers), strict=True):
        update.optimizer.load_state_dict(optimizer)
        update.scaler.load_state_dict(scaler)


def packed(parts: Iterable[Any]) -> Any:
    """The states of several optimizers or scalers for a checkpoint; that of a single one stands by itself."""
    states = [part.state_dict() for part in parts]
    return states[0] if len(states) == 1 else states


def _unpacked(stored: Any) -> list[Any]:
    return stored if isinstance(stored, list) else [stored]


def groups_of(updates: Sequence[Update]) -> list[dict]:
    """The parameter groups of all optimizers."""
    return [group for update in updates for group in update.optimizer.param_groups]


def peak_lr(updates: Sequence[Update]) -> float:
    """The largest learning rate that an optimizer was made with, of which groups take shares."""
    return max(update.optimizer.defaults["lr"] for update in updates)


def set_all_rates(
    updates: Sequence[Update], lr: Schedule, weight_decay: Schedule, step: int, total: int
) -> dict[str, float]:
    """`set_rates` for every optimizer; of the weight decays, the log gets the largest."""
    found = [set_rates(each.optimizer, lr, weight_decay, step, total) for each in updates]
    rates = {key: value for each in found for key, value in each.items()}
    return rates | {"weight_decay": max(each["weight_decay"] for each in found)}


def finite_mean(values: Sequence[float]) -> float:
    """The mean of those that are finite; NaN where none is. A head that has diverged does not end the others."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


def best_head(found: Mapping[str, Report], monitor: str, direction: str) -> str:
    """The head with the best value of `monitor`; of equal ones the first. One that has diverged is never it."""
    sign = -1 if direction == "max" else 1

    def cost(name: str) -> float:
        value = head_value(found[name], monitor)
        return sign * value if math.isfinite(value) else math.inf

    return min(found, key=cost)


def head_value(report: Report, monitor: str) -> float:
    """NaN where the head has diverged: the class that it then names first would be right by chance."""
    return report.metrics[monitor] if not report.logits.isnan().any() else math.nan


def select_head(model: nn.Module, learner: nn.Module, names: Sequence[str], name: str) -> None:
    """Gives the model the weights of the head `name` of a grid."""
    model.head.load_state_dict(learner.head[names.index(name)].state_dict())


def grid_line(learner: nn.Module, names: Sequence[str]) -> str:
    """What a grid costs in memory, for the log."""
    count = sum(parameter.numel() for parameter in learner.head.parameters())
    size = 4 * count * torch.float32.itemsize / 1e9
    return (
        f"{len(names)} heads train on one frozen encoder: {count / 1e6:.2f} M parameters, which take about "
        f"{size:.2g} GB with gradients and Adam's state, and the activations of all of them at once"
    )
