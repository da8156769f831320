"""Several trackers at once, each in a process of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vidtrain.tracking.mirror import Metric, Mirror, MirroredRun
from vidtrain.tracking.mirror_process import MirrorProcess


class Mirrors:
    """Repeats every call to each of `mirrors`, by name; none can stop, slow or hang the caller, or another."""

    def __init__(self, mirrors: Mapping[str, Mirror]):
        self._processes = [MirrorProcess(name, each) for name, each in mirrors.items()]

    def start(self, run: MirroredRun) -> None:
        """Raises UserError where a tracker refuses to start, such as W&B online without a key."""
        for each in self._processes:
            each.launch(run)
        for each in self._processes:
            each.wait_for_start()

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        self._tell("log", dict(metrics), step)

    def image(self, name: str, path: Path, step: int) -> None:
        self._tell("image", name, path, step)

    def checkpoint(self, name: str, path: Path) -> None:
        self._tell("checkpoint", name, path)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._tell("summary", dict(values))

    def close(self, status: str) -> None:
        """Returns once all is mirrored, or given up: at most `close_seconds` of the slowest later."""
        for each in self._processes:
            each.tell("close", status)
        for each in self._processes:
            each.close()

    def _tell(self, call: str, *arguments: Any) -> None:
        for each in self._processes:
            each.tell(call, *arguments)
