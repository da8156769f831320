"""How much memory a run takes at its peak: of the GPU, of this process, and of its workers."""

import multiprocessing
import resource
import sys
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Forgets the GPU's peak; that of a process counts from its start."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> dict[str, int | None]:
    """Bytes: what tensors and PyTorch's cache took of the GPU and all there is of it (None without a GPU), resident
    memory of this process, and of its worker processes together (None where the system does not tell).

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
    """What the log says an epoch has cost: seconds, and GB of memory at the peak so far (see `peak_memory`)."""
    peak = peak_memory(device)
    named = {"process": "process", "workers": "workers", "gpu_allocated": "gpu"}
    memory = {f"memory/{name}_gb": peak[key] / 1e9 for key, name in named.items() if peak[key] is not None}
    return {"time/epoch_s": epoch_seconds, "time/total_s": total_seconds, **memory}


def _peak_of_workers() -> int | None:
    if not Path("/proc/self/status").is_file():
        return None
    found = [_high_water_mark(child.pid) for child in multiprocessing.active_children()]
    return sum(each for each in found if each is not None)


def _high_water_mark(process: int) -> int | None:
    """None for a process that has ended meanwhile."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # systems that emulate /proc may keep no peak, and tell what is resident now
    values = {line.split(":")[0]: line.split() for line in lines}
    for name in ("VmHWM", "VmRSS"):
        if name in values:
            return int(values[name][1]) * 1024
    return None
