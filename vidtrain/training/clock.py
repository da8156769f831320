"""A clock that divides the time of training steps into parts."""

import time

import torch

# What a step's time is divided into, in this order: waiting for a batch, copying it to the device, color,
# normalization and mixing there, the model and the loss, gradients, and clipping, update and average of the weights
PARTS = ("load", "transfer", "augment", "forward", "backward", "optimizer")


class StepClock:
    """Divides the time of steps into named parts, which sum to the step without a gap.

    On a GPU the marks are events in its own queue: they do not hold it up, and what the host does meanwhile counts
    only where the GPU waits for it. `seconds` synchronizes before it reads them.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._last = self._now()
        self._steps: list[list[tuple[str, object, object]]] = [[]]

    def begin(self) -> None:
        """The first step begins now; each other one where the one before it ends."""
        self._last = self._now()

    def mark(self, part: str) -> None:
        """What happened since the last mark belongs to `part`."""
        now = self._now()
        self._steps[-1].append((part, self._last, now))
        self._last = now

    def end_step(self) -> None:
        self._steps.append([])

    def seconds(self) -> list[dict[str, float]]:
        """The seconds of each part, for every step that has ended."""
        if self._on_gpu:
            torch.cuda.synchronize()
        found = []
        for marks in self._steps[:-1]:
            parts = dict.fromkeys(PARTS, 0.0)
            for part, before, after in marks:
                parts[part] += before.elapsed_time(after) / 1000 if self._on_gpu else after - before
            found.append(parts)
        return found

    def _now(self) -> object:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class NoClock:
    """Does not look at the time; what training itself steps with."""

    def mark(self, part: str) -> None:
        return None


NO_CLOCK = NoClock()
