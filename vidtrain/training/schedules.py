"""Schedules: functions of the step, without state. A resumed run needs only the step.

A schedule returns a factor of the optimizer's learning rate or weight decay. Steps count from 1, as in V-JEPA's
reference: the first optimizer step uses the factor of step 1.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Protocol

from vidtrain.errors import UserError

_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ep|it|%)")


def steps(duration: str, total_steps: int, steps_per_epoch: int) -> int:
    """Converts a duration to optimizer steps: `3ep` epochs, `500it` steps, `10%` of `total_steps`."""
    match = _DURATION.fullmatch(str(duration).strip())
    if not match:
        raise UserError(f"{duration!r} is not a duration: write 3ep (epochs), 500it (steps) or 10% (a share)")
    size = {"ep": steps_per_epoch, "it": 1, "%": total_steps / 100}[match["unit"]]
    return round(float(match["number"]) * size)


def ramp_steps(durations: Sequence[str] | None, total_steps: int, steps_per_epoch: int, key: str) -> tuple[int, int]:
    """Two durations, the first not after the second, in steps; None means that a ramp ends before it starts: (0, 0).
    Raises `UserError` naming `key` for others."""
    if durations is None:
        return 0, 0
    ends = [steps(duration, total_steps, steps_per_epoch) for duration in durations]
    if len(ends) != 2 or ends[0] > ends[1]:
        raise UserError(f"{key}={list(durations)} must be two durations, the earlier first, such as [5%, 10%], or null")
    return ends[0], ends[1]


def every(duration: str, total_steps: int, steps_per_epoch: int) -> Callable[[int], bool]:
    """Returns a function that is True at each multiple of `duration` (one step at least), counted in the phase."""
    stride = max(1, steps(duration, total_steps, steps_per_epoch))
    return lambda step: step % stride == 0


def duration(default: str | Sequence[str]) -> Any:
    """A field of a `WithDurations` schedule that holds a duration, or several."""
    return field(default=default, metadata={"duration": True})


class Schedule(Protocol):
    """What the loop asks of a schedule."""

    def __call__(self, step: int, total_steps: int) -> float:
        """The factor that step `step` of 1..`total_steps` uses."""


def in_steps(schedule: Schedule, total_steps: int, steps_per_epoch: int) -> Schedule:
    """The same schedule with its durations, if it has any, converted to steps.

    Raises `UserError` if the configured object is not callable as a schedule, or returns no valid factor.
    """
    if isinstance(schedule, WithDurations) and is_dataclass(schedule) and not isinstance(schedule, type):

        def convert(value: str | Sequence[str]) -> int | list[int]:
            if isinstance(value, str):
                return steps(value, total_steps, steps_per_epoch)
            return [steps(part, total_steps, steps_per_epoch) for part in value]

        durations = [field.name for field in fields(schedule) if field.metadata]
        schedule = replace(schedule, **{name: convert(getattr(schedule, name)) for name in durations})
    name = type(schedule).__name__
    if not callable(schedule):
        raise UserError(f"{name} is not a schedule: it must be callable as (step, total_steps) -> factor")
    factor = schedule(1, max(1, total_steps))
    if not isinstance(factor, int | float) or not 0 <= factor < math.inf:
        raise UserError(f"{name} gives {factor!r} at step 1: a schedule gives a factor of 0 or more")
    return schedule


class WithDurations:
    """Base class of a schedule with fields like `warmup: str = duration("10%")`. `in_steps` converts these fields to
    numbers of steps before the schedule is called."""

    def __post_init__(self) -> None:
        for name in ("start", "final", "gamma"):
            factor = getattr(self, name, 1.0)
            if not 0 <= factor < math.inf:
                raise UserError(f"schedule {name}={factor} must be a factor of 0 or more")


def too_long(schedule: Schedule, total_steps: int) -> str | None:
    """A warning if warmup and anneal, in steps, are together longer than a phase of `total_steps`; otherwise None."""
    parts = {name: getattr(schedule, name) for name in ("warmup", "anneal") if getattr(schedule, name, 0)}
    if sum(parts.values()) <= total_steps + 1:  # + 1: both may have been rounded up
        return None
    lengths = " and ".join(f"{name} ({length} steps)" for name, length in parts.items())
    return f"{lengths} are longer than the phase, which has {total_steps} steps: its peak is never reached"


@dataclass(frozen=True)
class WarmupStableDecay(WithDurations):
    """Linear warmup from `start` to 1, then constant, then `anneal` steps from 1 to `final`.

    The linear anneal is V-JEPA's formula; `shape: cosine` takes half a cosine instead.
    """

    warmup: str = duration("10%")
    anneal: str = duration("20%")
    start: float = 0.0
    final: float = 0.0
    shape: str = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape not in ("linear", "cosine"):
            raise UserError(f"schedule shape {self.shape!r} is unknown: choose linear or cosine")

    def __call__(self, step: int, total_steps: int) -> float:
        warmup, anneal = int(self.warmup), int(self.anneal)
        if step < warmup:
            return _rise(step, warmup, self.start)
        into_anneal = step - (total_steps - anneal)
        if into_anneal < 0:
            return 1.0
        progress = into_anneal / max(1, anneal)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return 1 + progress * (self.final - 1)


@dataclass(frozen=True)
class Cosine(WithDurations):
    """Linear warmup from `start` to 1, then half a cosine to `final` at the last step (SGDR, arXiv:1608.03983).

    Without warmup and with `final` above 1 it is the increasing weight decay of V-JEPA and DINO.
    """

    warmup: str = duration("10%")
    start: float = 0.0
    final: float = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        warmup = int(self.warmup)
        if step < warmup:
            return _rise(step, warmup, self.start)
        progress = (step - warmup) / max(1, total_steps - warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class MultiStep(WithDurations):
    """Linear warmup from `start` to 1, then a factor of `gamma` more after each of `milestones`."""

    milestones: Sequence[str] = duration(("50%", "75%"))
    gamma: float = 0.1
    warmup: str = duration("0it")
    start: float = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        if step < int(self.warmup):
            return _rise(step, int(self.warmup), self.start)
        # Steps count from 1: step m + 1 is the first after a milestone of m steps
        return self.gamma ** sum(step > int(milestone) for milestone in self.milestones)


@dataclass(frozen=True)
class Constant(WithDurations):
    """Linear warmup from `start`, then 1."""

    warmup: str = duration("0it")
    start: float = 0.0

    def __call__(self, step: int, total_steps: int) -> float:
        return _rise(step, int(self.warmup), self.start) if step < int(self.warmup) else 1.0


def _rise(step: int, warmup: int, start: float) -> float:
    """The factor at `step` < `warmup`, on the line from `start` at step 0 to 1 at step `warmup`."""
    return start + step / warmup * (1 - start)
