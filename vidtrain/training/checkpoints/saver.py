"""Saving a run's checkpoints while the disk may be full."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vidtrain.errors import UserError
from vidtrain.training.checkpoints import checkpoint
from vidtrain.training.checkpoints.files import BEST, LAST, PREVIOUS, remove_strays, resumable, step_file
from vidtrain.training.ranks.distributed import Ranks
from vidtrain.training.run import Console, Log

MOST_FAILED = 10  # saves in a row, before a run that saves nothing is ended


class Saver:
    """Writes the checkpoints of a run, on the main rank. A full disk costs it a checkpoint, not the run.

    What a checkpoint speaks of is on the disk before it is: the rows of the logs up to its step, and the best weights.
    So one that could not be written is made up for, and a resumed run misses nothing.

    `metadata` goes into every checkpoint.
    """

    def __init__(self, folder: Path, metadata: Mapping[str, Any], ranks: Ranks, log: Log, console: Console):
        self._folder = folder
        self._metadata = metadata
        self._ranks = ranks
        self._log = log
        self._console = console
        self._unsaved_best: dict[str, Any] | None = None
        self._failed = 0  # in a row
        self._newest: int | None = None  # step of the last that was written by this process
        if ranks.is_main:
            remove_strays(folder)

    def best(self, payload: Mapping[str, Any]) -> None:
        """Writes best.pt, or keeps a copy of the weights and writes it before the next checkpoint."""
        if not self._ranks.is_main:
            return
        self._unsaved_best = {**self._metadata, **payload}
        try:
            self._write_best()
        except checkpoint.NotSaved as error:
            weights = {name: _copy(tensor) for name, tensor in payload["model"].items()}
            self._unsaved_best = {**self._metadata, **payload, "model": weights}
            self._console.warn(
                f"{error}. These weights are kept in memory and written with the next checkpoint"
            )

    def save(
        self, payload: Mapping[str, Any], unwritten: Sequence[str | None], keep: bool, must: bool
    ) -> bool:
        """Writes last.pt, whose predecessor becomes previous.pt, and with `keep` a checkpoint for good; whether it did.

        `unwritten` says of each rank why rows of its logs are not on the disk, if they are not: then nothing is
        saved. A failure is a warning, counted as checkpoint/failed in the metrics, and the next call tries again.
        Raises `UserError` on every rank where the checkpoint `must` be written, and after `MOST_FAILED` failures in
        a row.
        """
        return self._ranks.on_main(lambda: self._save(payload, unwritten, keep, must))

    def _save(
        self, payload: Mapping[str, Any], unwritten: Sequence[str | None], keep: bool, must: bool
    ) -> bool:
        step = payload["state"]["total_step"]
        try:
            for rank, why in enumerate(unwritten):
                if why is not None:
                    raise checkpoint.NotSaved(
                        f"no checkpoint at step {step}: rows of rank {rank}'s logs wait, {why}"
                    )
            self._write_best()
            whole = {**self._metadata, **payload}
            if keep:
                checkpoint.save(whole, self._folder / step_file(step))
            checkpoint.save(whole, self._folder / LAST, self._folder / PREVIOUS)
        except checkpoint.NotSaved as error:
            self._failed += 1
            self._log.log({"checkpoint/failed": self._failed}, step)
            self._refuse_or_warn(str(error), step, must)
        else:
            if self._failed:
                self._console.info(
                    f"step {step}: the checkpoint is written, after {self._failed} that were not"
                )
            self._failed, self._newest = 0, step
        return self._newest == step

    def _refuse_or_warn(self, error: str, step: int, must: bool) -> None:
        there = resumable(self._folder)
        redo = "nothing was saved before" if not there else "the newest checkpoint stays as it was"
        if self._newest is not None:
            redo = f"the newest checkpoint is of step {self._newest}"
        if must:
            raise UserError(
                f"{error}\nTraining is done at step {step}, and its end could not be saved; {redo}. Free some "
                "space and resume with run_dir=: the steps since are taken again, and give the same weights"
            )
        if self._failed >= MOST_FAILED:
            raise UserError(
                f"{error}\n{self._failed} checkpoints in a row could not be written, the last at step {step}; {redo}. "
                "Free some space and resume with run_dir="
            )
        self._console.warn(
            f"step {step}: {error}. The run goes on and tries again with the next checkpoint (failure {self._failed} "
            f"in a row; {MOST_FAILED} end the run)"
        )

    def _write_best(self) -> None:
        if self._unsaved_best is not None:
            checkpoint.save(self._unsaved_best, self._folder / BEST)
            self._unsaved_best = None


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()
