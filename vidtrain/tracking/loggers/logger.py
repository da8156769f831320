"""A logger shows a run elsewhere. It may fail, and training goes on: the truth is in the run folder."""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from vidtrain.errors import UserError
from vidtrain.files.folders import install_hint

Metric = float | int | str | None


@dataclass(frozen=True)
class LoggedRun:
    """What a tracker is told of a run."""

    folder: Path
    id: str  # the same when the run is resumed
    name: str
    group: str  # the sweep that it belongs to, or the experiment
    settings: Mapping[str, Any]  # resolved, by dotted key
    step: int = 0  # that the run starts from; a resumed one logs those after it again


class Logger(Protocol):
    """What a tracker must offer, in a process of its own (`LoggerProcess`), where each call may raise or hang.

    It is made in the training process and sent to the other before `start`, so it is plain data until then. Only its
    constructor and `start` may raise UserError.
    """

    label: str  # what messages call it
    waits_for_start: bool  # training waits for `start`, which may refuse; else it begins meanwhile
    start_seconds: float  # that `start` may take
    close_seconds: float  # that all that is left may take once the run has ended

    def start(self, run: LoggedRun) -> None:
        """Begins to log, or goes on where a run of the same id ended."""

    def log(self, metrics: Mapping[str, Metric], step: int) -> None: ...

    def image(self, name: str, path: Path, step: int) -> None: ...

    def page(self, name: str, path: Path, step: int) -> None:
        """Shows or keeps an HTML file that needs nothing else."""

    def checkpoint(self, name: str, path: Path) -> None:
        """Keeps a checkpoint file, if the logger was asked to."""

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self, status: str) -> str | None:
        """Ends the run. `status` is "finished" for one that reached its end, else any other word. Returns how to look
        at what was logged."""


def require_packages(names: Sequence[str], option: str, extra: str) -> None:
    """Raises UserError where a package of `names` is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"logger={option} needs {', '.join(missing)}: {install_hint(extra)}")


def check_artifacts(logger: str, artifacts: str | None) -> None:
    if artifacts not in (None, "best"):
        raise UserError(f'logger.{logger}.artifacts is "{artifacts}": it must be best, or null for none.')
