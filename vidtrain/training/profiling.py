"""The cost of training: the time of each part of a step, peak memory, and torch's profiler."""

import multiprocessing
import resource
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

# The parts of a step, in this order: waiting for a batch; copying it to the device; color, normalization and mixing
# there; model and loss; gradients; clipping, update and average of the weights
PARTS = ("load", "transfer", "augment", "forward", "backward", "optimizer")

Instant = float | torch.cuda.Event  # seconds of the host's clock, or an event in the queue of the GPU


class StepClock:
    """Divides the time of steps into named parts, which sum to the whole step.

    On a GPU the marks are CUDA events in its queue, which do not delay it. Work of the host counts only while the GPU
    waits for it. `seconds` synchronizes before it reads them.
    """

    def __init__(self, device: torch.device):
        self._on_gpu = device.type == "cuda"
        self._last = self._now()
        self._steps: list[list[tuple[str, Instant, Instant]]] = [[]]

    def begin(self) -> None:
        """Starts the first step; each later step starts where the one before it ends."""
        self._last = self._now()

    def mark(self, part: str) -> None:
        """Assigns the time since the last mark to `part`."""
        now = self._now()
        self._steps[-1].append((part, self._last, now))
        self._last = now

    def end_step(self) -> None:
        self._steps.append([])

    def seconds(self) -> list[dict[str, float]]:
        """The seconds of each part, for every finished step."""
        if self._on_gpu:
            torch.cuda.synchronize()
        by_step = []
        for marks in self._steps[:-1]:
            parts = dict.fromkeys(PARTS, 0.0)
            for part, before, after in marks:
                parts[part] += _seconds_between(before, after)
            by_step.append(parts)
        return by_step

    def _now(self) -> Instant:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _seconds_between(before: Instant, after: Instant) -> float:
    if isinstance(before, float) or isinstance(after, float):
        assert isinstance(before, float) and isinstance(after, float)
        return after - before
    return before.elapsed_time(after) / 1000


class NoClock:
    """A clock that measures nothing. Training uses it; only the benchmark measures."""

    def mark(self, part: str) -> None:
        return None


NO_CLOCK = NoClock()


def reset_peak(device: torch.device) -> None:
    """Resets the GPU's peak memory. The peak of a process cannot be reset: it counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Peak memory in bytes: of tensors and of PyTorch's cache on the GPU, with the GPU's total (None without a GPU);
    resident memory of this process, and of its workers together (None where the system does not report it).

    Memory that a worker shares with this process counts in both.
    """
    gpu = dict.fromkeys(("gpu_allocated", "gpu_reserved", "gpu_total"))
    if device.type == "cuda":
        gpu = {
            "gpu_allocated": torch.cuda.max_memory_allocated(device),
            "gpu_reserved": torch.cuda.max_memory_reserved(device),
            "gpu_total": torch.cuda.get_device_properties(device).total_memory,
        }
    unit = 1 if sys.platform == "darwin" else 1024
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {**gpu, "process": process, "workers": _peak_of_workers()}


def epoch_costs(epoch_seconds: float, total_seconds: float, device: torch.device) -> dict[str, float]:
    """Columns of the log: seconds of the epoch and of the run, and GB of peak memory so far (see `peak_memory`)."""
    peak = peak_memory(device)
    names = {"process": "process", "workers": "workers", "gpu_allocated": "gpu"}
    sizes = {f"memory/{name}_gb": peak[key] for key, name in names.items()}
    memory = {name: size / 1e9 for name, size in sizes.items() if size is not None}
    return {"time/epoch_s": epoch_seconds, "time/total_s": total_seconds, **memory}


def _peak_of_workers() -> int | None:
    if not Path("/proc/self/status").is_file():
        return None
    peaks = [_high_water_mark(child.pid) for child in multiprocessing.active_children()]
    return sum(peak for peak in peaks if peak is not None)


def _high_water_mark(process: int | None) -> int | None:
    """Peak resident bytes of a process; None if it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Systems that emulate /proc may have no peak (VmHWM), only the memory that is resident now (VmRSS)
    values = {line.split(":")[0]: line.split() for line in lines}
    for name in ("VmHWM", "VmRSS"):
        if name in values:
            return int(values[name][1]) * 1024
    return None


class NoProfiler(nullcontext):
    def step(self) -> None:
        return None


StepProfiler = profile | NoProfiler


def step_profiler(folder: Path, enabled: bool) -> StepProfiler:
    """A context whose `step()` is to be called once per optimizer step.

    Enabled, it skips two steps, warms up for one, records four, and writes trace.json (for Perfetto or
    chrome://tracing) and operators.txt (where the time went) into `folder`.
    """
    if not enabled:
        return NoProfiler()
    folder.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)

    def write(recorded: profile) -> None:
        recorded.export_chrome_trace(str(folder / "trace.json"))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=order, row_limit=40)
        (folder / "operators.txt").write_text(table, encoding="utf-8")

    plan = schedule(wait=2, warmup=1, active=4, repeat=1)
    return profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True)
