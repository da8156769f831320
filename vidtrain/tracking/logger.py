"""The interface of a logger, which shows a run elsewhere. If it fails, training goes on: the run folder has all."""

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
    """The description of a run that a logger gets at its start."""

    folder: Path
    id: str  # the same when the run is resumed
    name: str
    group: str  # name of the sweep or experiment that the run belongs to
    settings: Mapping[str, Any]  # the resolved configuration, by dotted key
    step: int = 0  # step that the run starts from; a resumed run may log later steps again


class Logger(Protocol):
    """The interface of a logger. It runs in a process of its own (`LoggerProcess`), so any call may raise or hang.

    It is constructed in the training process and pickled to the other before `start`, so it must be picklable until
    then. Only its constructor and `start` may raise UserError.
    """

    label: str  # its name in messages
    waits_for_start: bool  # whether training waits for `start`, so that its UserError can end the run
    start_seconds: float  # time limit of `start`
    close_seconds: float  # time limit for all calls that are left when the run ends

    def start(self, run: LoggedRun) -> None:
        """Starts logging. If a run with the same id exists, logging continues there."""

    def log(self, metrics: Mapping[str, Metric], step: int) -> None: ...

    def image(self, name: str, path: Path, step: int) -> None: ...

    def page(self, name: str, path: Path, step: int) -> None:
        """Shows or stores a self-contained HTML file."""

    def checkpoint(self, name: str, path: Path) -> None:
        """Stores a checkpoint file, if the logger is configured to."""

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self, status: str) -> str | None:
        """Ends the run. `status` is "finished" for a run that reached its end, else any other word. Returns a hint how
        to look at the logged run, or None."""


def require_packages(names: Sequence[str], option: str, extra: str) -> None:
    """Raises UserError if a package of `names` is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"logger={option} needs {', '.join(missing)}: {install_hint(extra)}")


def check_artifacts(logger: str, artifacts: str | None) -> None:
    if artifacts not in (None, "best"):
        raise UserError(f'logger.{logger}.artifacts is "{artifacts}": it must be best, or null for none.')
