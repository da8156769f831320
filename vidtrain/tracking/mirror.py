"""A mirror shows a run elsewhere. The truth is in the run folder, so it may fail and training goes on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

Metric = float | int | str | None


class Mirror(Protocol):
    """What a tracker must offer. Only `start` may raise, and only UserError; the main rank alone calls it."""

    def start(self, run_dir: Path, run_id: str, config: dict[str, Any], name: str) -> None:
        """Begin to mirror, or go on where a run of the same `run_id` ended. `config` is the resolved one."""

    def log(self, metrics: Mapping[str, Metric], step: int) -> None: ...

    def image(self, name: str, path: Path) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def close(self, status: str) -> None:
        """End the run. `status` is "finished" for one that reached its end, else any other word."""


class NullMirror:
    """Mirrors nothing."""

    def start(self, run_dir: Path, run_id: str, config: dict[str, Any], name: str) -> None:
        pass

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        pass

    def image(self, name: str, path: Path) -> None:
        pass

    def summary(self, values: Mapping[str, Any]) -> None:
        pass

    def close(self, status: str) -> None:
        pass
