"""hydra/sweeper=grid: every combination of the values that overrides hold."""

from collections.abc import Mapping
from itertools import product
from typing import Any

from omegaconf import DictConfig

from vidtrain.config.overrides import values
from vidtrain.errors import UserError
from vidtrain.runs.folder import FREE
from vidtrain.sweeps.base import TrialSweeper
from vidtrain.sweeps.record import changed_settings


class GridSweeper(TrialSweeper):
    """Every combination of the values that overrides hold, the last one varied fastest."""

    def __init__(
        self, n_jobs: int | None = None, retry: bool = False, params: Mapping[str, Any] | None = None
    ):
        super().__init__(n_jobs, retry, params or {})

    def check_said(self, first: DictConfig) -> None:
        for key, each in self.said.items():
            if each.is_interval_sweep():
                raise UserError(
                    f"{key}: a grid has no end of values in an interval; list some, or hydra/sweeper=optuna"
                )

    def run_missing(self) -> None:
        combinations = [list(each) for each in product(*map(values, self.said.values()))]
        if self.record.trials:
            before = [each.overrides for each in self.record.trials]
            changed = changed_settings(before, combinations, FREE)
            if changed:
                self.refuse(changed)
        known, faults = len(self.record.trials), []
        for overrides in combinations:
            if self.record.find(overrides, FREE) is None:
                try:
                    self.add(overrides, self.record.next_number())
                except UserError as error:
                    faults.append(str(error))
        if faults:
            raise UserError("these trials cannot be composed; nothing was started\n  " + "\n  ".join(faults))
        self.record.planned = len(self.record.trials)
        self.record.write(self.folder)
        missing = [each for each in self.record.trials if self.is_to_run(each)]
        counts = {"trials": len(self.record.trials), "to run": len(missing)}
        if known:
            counts |= {
                "new": len(self.record.trials) - known,
                "ended": len(self.record.trials) - len(missing),
            }
        self.console.info(
            f"sweep {self.folder}: {', '.join(f'{count} {what}' for what, count in counts.items())}"
        )
        self.run_all(iter(missing), lambda state: None)
