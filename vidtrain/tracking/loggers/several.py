"""Several trackers at once, each in a process of its own."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vidtrain.files.escaping import shown
from vidtrain.tracking.loggers.logger import LoggedRun, Logger, Metric
from vidtrain.tracking.loggers.process import LoggerProcess


class Loggers:
    """Repeats every call to each of `loggers`, by name; none can stop, slow or hang the caller, or another."""

    def __init__(self, loggers: Mapping[str, Logger]):
        self._processes = [LoggerProcess(name, each) for name, each in loggers.items()]

    def start(self, run: LoggedRun) -> None:
        """Raises UserError where a tracker refuses to start, such as W&B online without a key."""
        run = replace(run, settings=_plain(run.settings), name=shown(run.name), group=shown(run.group))
        for each in self._processes:
            each.launch(run)
        for each in self._processes:
            each.wait_for_start()

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        self._tell("log", _plain(metrics), step)

    def image(self, name: str, path: Path, step: int) -> None:
        self._tell("image", name, path, step)

    def checkpoint(self, name: str, path: Path) -> None:
        self._tell("checkpoint", name, path)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._tell("summary", _plain(values))

    def close(self, status: str) -> None:
        """Returns once all is logged, or given up: at most `close_seconds` of the slowest later."""
        for each in self._processes:
            each.tell("close", status)
        for each in self._processes:
            each.close()

    def _tell(self, call: str, *arguments: Any) -> None:
        for each in self._processes:
            each.tell(call, *arguments)


def _plain(value: Any) -> Any:
    """A copy in text that every tracker can store and show: settings hold paths and class names, which may hold bytes
    that are no UTF-8, or characters that act."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
