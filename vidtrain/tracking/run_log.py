"""What a run records in its folder. Call it unconditionally, on every rank: it knows what each one writes.

metrics.jsonl         main rank   one row per call of `log`; the truth, which the logger repeats
summary.json          main rank   the closing numbers
steps_rank{r}.csv     each rank   one row per optimizer step
faults_rank{r}.jsonl  each rank   videos that could not be read
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vidtrain.errors import UserError
from vidtrain.files.atomic import write_json_atomic
from vidtrain.files.escaping import shown
from vidtrain.tracking.console import Console, NullConsole
from vidtrain.tracking.ledgers import JsonLines, StepTable, each_json_line
from vidtrain.tracking.loggers.logger import Logger, Metric

FAULTS_SHOWN = 20
MOST_HELD = 100_000  # rows of a file that wait in memory for a full disk; some ten megabytes


class RunLog:
    """The writer of one rank. `logger` has been started by the program, on the main rank only.

    A full disk does not end the run: rows wait in memory, `MOST_HELD` of each file, and are written when there is room.
    """

    def __init__(
        self, run_dir: Path, logger: Logger, console: Console | NullConsole, is_main: bool, rank: int
    ):
        run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir = run_dir
        self.logger = logger
        self.console = console
        self.is_main = is_main
        self._metrics = JsonLines(run_dir / "metrics.jsonl", MOST_HELD)
        self._steps = StepTable(run_dir / f"steps_rank{rank}.csv", most_held=MOST_HELD)
        self._faults = JsonLines(run_dir / f"faults_rank{rank}.jsonl", MOST_HELD)
        self._ledgers = (self._metrics, self._steps, self._faults)
        self._troubled: set[Path] = set()
        self._faulty: set[str] = set()

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        """Record numbers known after optimizer step `step`. Non-finite ones are written as null."""
        if self.is_main:
            self._metrics.append({"step": step, **metrics})
            self._watch(self._metrics)
            self.logger.log(metrics, step)

    def step(self, row: Mapping[str, Metric]) -> None:
        """Record one optimizer step of this rank; the row has a "step" and always the same keys."""
        self._steps.append(row)
        self._watch(self._steps)

    def fault(self, path: str, cause: str, step: int, split: str) -> None:
        """Record a video that could not be read. Each is shown once, and only the first few."""
        self._faults.append({"step": step, "split": split, "path": path, "cause": cause})
        self._watch(self._faults)
        if path in self._faulty:
            return
        self._faulty.add(path)
        if len(self._faulty) <= FAULTS_SHOWN:
            self.console.warn(f"unreadable video in {split}: {shown(path)} ({shown(cause)})")
        if len(self._faulty) == FAULTS_SHOWN:
            self.console.warn(f"further unreadable videos are named only in {self._faults.path}")

    def image(self, name: str, path: Path, step: int) -> None:
        """Show a picture of the run folder in the logger, as of step `step`."""
        if self.is_main:
            self.logger.image(name, path, step)

    def checkpoint(self, name: str, path: Path) -> None:
        """Offer a checkpoint to the logger, which keeps those that it was asked to."""
        if self.is_main:
            self.logger.checkpoint(name, path)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the closing numbers, in place of any earlier ones."""
        if self.is_main:
            write_json_atomic(self.run_dir / "summary.json", values)
            self.logger.summary(values)

    def rewind(self, step: int, world_size: int) -> None:
        """Forget what was recorded after `step`, the one that a resumed run of `world_size` ranks starts from.

        Its rows then equal those of a run that was never disturbed. Rank 0 does so for ranks that there are no more.
        """
        if self.is_main:
            self._metrics.keep(lambda row: row["step"] <= step)
            for table in self.run_dir.glob("steps_rank*.csv"):
                rank = int(table.stem.removeprefix("steps_rank"))
                if rank >= world_size:
                    StepTable(table).rewind(step)
                    JsonLines(self.run_dir / f"faults_rank{rank}.jsonl").keep(lambda row: row["step"] <= step)
        self._steps.rewind(step)
        self._faults.keep(lambda row: row["step"] <= step)

    def flush(self) -> str | None:
        """Put every row on the disk; says why that failed, or None. Needed before a checkpoint: rows up to it are not
        written again."""
        for ledger in self._ledgers:
            ledger.flush()
            self._watch(ledger)
        troubles = [f"{each.path}: {each.trouble}" for each in self._ledgers if each.trouble is not None]
        return "; ".join(troubles) if troubles else None

    def close(self, status: str) -> None:
        """End the record; `status` as in `Logger.close`. What is logged later opens the files again.

        Rows that a full disk did not take are lost: UserError, or a warning where the run has failed anyway.
        """
        lost = []
        for ledger in self._ledgers:
            try:
                ledger.close()
            except UserError as error:
                lost.append(str(error))
        if self.is_main:
            self.logger.close("failed" if lost else status)
        if lost and status == "finished":
            raise UserError("\n".join(lost))
        for each in lost:
            self.console.warn(each)

    def _watch(self, ledger: JsonLines | StepTable) -> None:
        """Say once that rows wait, and once that they are written."""
        if ledger.trouble is not None and ledger.path not in self._troubled:
            self._troubled.add(ledger.path)
            self.console.warn(
                f"cannot write {ledger.path} ({ledger.trouble}): its rows wait in memory, and the run goes on; free "
                "some space"
            )
        elif ledger.trouble is None and ledger.path in self._troubled:
            self._troubled.discard(ledger.path)
            self.console.info(f"{ledger.path} is written again, with every row that waited")


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, oldest first; works beside the running process too."""
    return list(each_metric(run_dir))


def each_metric(run_dir: Path) -> Iterator[dict[str, Any]]:
    """`read_metrics`, a row at a time: a long run has millions."""
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a folder: give the folder of a run.")
    path = run_dir / "metrics.jsonl"
    return each_json_line(path) if path.exists() else iter(())


class NullRunLog:
    """For steps that are measured: what they meet is counted, and not recorded."""

    def fault(self, path: str, cause: str, step: int, split: str) -> None:
        return None
