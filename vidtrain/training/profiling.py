"""A torch profiler over a few steps, or nothing with the same face."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule


class NoProfiler:
    def __enter__(self) -> "NoProfiler":
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def step(self) -> None:
        return None


StepProfiler = profile | NoProfiler


def step_profiler(folder: Path, enabled: bool) -> StepProfiler:
    """A context whose `step()` is called once an optimizer step.

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
