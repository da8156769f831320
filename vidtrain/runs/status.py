"""How the last attempt at an unfinished run ended: outcome.json in its folder.

A finished run has a summary.json instead, and one that was killed has neither.
"""

import gc
import json
import sys
import traceback
from datetime import datetime
from pathlib import Path
from typing import Any

from vidtrain.errors import DivergedError, Pruned, UserError
from vidtrain.files.atomic import write_json_atomic
from vidtrain.tracking.ledgers import whole_lines
from vidtrain.tracking.run_log import each_metric

OUTCOME = "outcome.json"
FAILED, DIVERGED, OUT_OF_MEMORY, PRUNED = "failed", "diverged", "out_of_memory", "pruned"
NO_MEMORY_ON_CPU = "DefaultCPUAllocator: can't allocate memory"  # PyTorch raises a plain RuntimeError there


def outcome_of(error: BaseException) -> str:
    """What an exception makes of a run: failed, diverged, out_of_memory or pruned."""
    if isinstance(error, Pruned):
        return PRUNED
    if isinstance(error, DivergedError):
        return DIVERGED
    # by name, so that reading outcomes needs no torch: torch.OutOfMemoryError
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    if named or isinstance(error, MemoryError) or NO_MEMORY_ON_CPU in str(error):
        return OUT_OF_MEMORY
    return FAILED


def record_outcome(folder: Path, error: BaseException) -> None:
    """Writes what ended an attempt; a note is added to `error` where even that cannot be written."""
    expected = isinstance(error, UserError | Pruned)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        outcome = {
            "status": outcome_of(error),
            "exception": type(error).__name__,
            "cause": str(error) or type(error).__name__,
            "step": last_step(folder),
            "ended": datetime.now().astimezone().isoformat(timespec="seconds"),
            "traceback": None if expected else "".join(traceback.format_exception(error)),
        }
        write_json_atomic(folder / OUTCOME, outcome)
    except (OSError, UserError) as refusal:
        error.add_note(f"{folder / OUTCOME} could not be written: {refusal}")


def read_outcome(folder: Path) -> dict[str, Any] | None:
    """What `record_outcome` wrote, or None. Raises `UserError` for a file that is damaged."""
    path = folder / OUTCOME
    if not path.is_file():
        return None
    try:
        outcome = json.loads(path.read_text(encoding="utf-8"))
        return {key: outcome[key] for key in ("status", "exception", "cause", "step", "ended", "traceback")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); delete it, and the trial runs again") from error


def clear_outcome(folder: Path) -> None:
    (folder / OUTCOME).unlink(missing_ok=True)


def last_step(folder: Path) -> int | None:
    """The last optimizer step of which the logs tell, or None."""
    steps = []
    if (folder / "metrics.jsonl").is_file():  # the closing row, of no phase, comes after the last step
        steps += [row["step"] for row in each_metric(folder) if "phase" in row]
    table = folder / "steps_rank0.csv"
    if table.is_file():
        last = [row.partition(",")[0] for row in whole_lines(table).splitlines()[-1:]]
        steps += [int(step) for step in last if step.isdigit()]  # or there is the header alone
    return max(steps, default=None)


def free_cuda_memory(error: BaseException) -> None:
    """Frees what the frames of an exception hold, such as the model on the GPU whose memory the next trial needs."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    gc.collect()
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
