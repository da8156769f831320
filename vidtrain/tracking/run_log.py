"""What a run records in its folder. Call it unconditionally, on every rank: it knows what each one writes.

metrics.jsonl         main rank   one row per call of `log`; the truth, which the mirror repeats
summary.json          main rank   the closing numbers
steps_rank{r}.csv     each rank   one row per optimizer step
faults_rank{r}.jsonl  each rank   videos that could not be read
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.tracking.atomic import write_json_atomic
from vidtrain.tracking.console import Console, NullConsole
from vidtrain.tracking.ledgers import JsonLines, StepTable, read_json_lines
from vidtrain.tracking.mirror import Metric, Mirror

FAULTS_SHOWN = 20


class RunLog:
    """The writer of one rank. `mirror` has been started by the program, on the main rank only."""

    def __init__(
        self, run_dir: Path, mirror: Mirror, console: Console | NullConsole, is_main: bool, rank: int
    ):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.mirror = mirror
        self.console = console
        self.is_main = is_main
        self._metrics = JsonLines(run_dir / "metrics.jsonl")
        self._steps = StepTable(run_dir / f"steps_rank{rank}.csv")
        self._faults = JsonLines(run_dir / f"faults_rank{rank}.jsonl")
        self._faulty: set[str] = set()

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Record numbers known after optimizer step `step`. Non-finite ones are written as null."""
        if self.is_main:
            self._metrics.append({"step": step, **metrics})
            self.mirror.log(metrics, step)

    def step(self, row: Mapping[str, Metric]) -> None:
        """Record one optimizer step of this rank; the row has a "step" and always the same keys."""
        self._steps.append(row)

    def fault(self, path: str, cause: str, step: int, split: str) -> None:
        """Record a video that could not be read. Each is shown once, and only the first few."""
        self._faults.append({"step": step, "split": split, "path": path, "cause": cause})
        if path in self._faulty:
            return
        self._faulty.add(path)
        if len(self._faulty) <= FAULTS_SHOWN:
            self.console.warn(f"unreadable video in {split}: {path} ({cause})")
        if len(self._faulty) == FAULTS_SHOWN:
            self.console.warn(f"further unreadable videos are named only in {self._faults.path}")

    def image(self, name: str, path: Path) -> None:
        """Show a picture of the run folder in the mirror."""
        if self.is_main:
            self.mirror.image(name, path)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the closing numbers, in place of any earlier ones."""
        if self.is_main:
            write_json_atomic(self.run_dir / "summary.json", values)
            self.mirror.summary(values)

    def rewind(self, step: int) -> None:
        """Forget what was recorded after `step`, the one that a resumed run starts from.

        Its rows then equal those of a run that was never disturbed.
        """
        if self.is_main:
            self._metrics.keep(lambda row: row["step"] <= step)
        self._steps.rewind(step)
        self._faults.keep(lambda row: row["step"] <= step)

    def flush(self) -> None:
        """Put every row on the disk. Needed before a checkpoint: rows up to it are not written again."""
        for ledger in (self._metrics, self._steps, self._faults):
            ledger.flush()

    def close(self, status: str) -> None:
        """End the record; `status` as in `Mirror.close`. What is logged later opens the files again."""
        for ledger in (self._metrics, self._steps, self._faults):
            ledger.close()
        if self.is_main:
            self.mirror.close(status)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first; works beside the running process too."""
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a folder: give the folder of a run.")
    path = run_dir / "metrics.jsonl"
    return read_json_lines(path) if path.exists() else []
