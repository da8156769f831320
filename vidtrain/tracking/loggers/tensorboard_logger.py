"""TensorBoard: event files in the run folder."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidtrain.tracking.loggers.logger import LoggedRun, Metric, require_packages


class TensorBoardLogger:
    """Writes run_dir/tensorboard, so that `tensorboard --logdir outputs` shows all runs side by side.

    It needs no PyTorch: it uses TensorBoard's own writer. TensorBoard stores numbers as float32.
    """

    label = "TensorBoard"
    waits_for_start = False
    start_seconds = 60.0
    close_seconds = 30.0

    def __init__(self) -> None:
        require_packages(["tensorboard"], "tensorboard", "tensorboard")

    def start(self, run: LoggedRun) -> None:
        """Opens a new event file. In a resumed run it makes TensorBoard hide the later events of the attempt before."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder = run.folder / "tensorboard"
        resumed = self._folder.is_dir() and any(self._folder.iterdir())
        self._writer = EventFileWriter(str(self._folder), flush_secs=10)
        if resumed:
            log = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=run.step + 1, session_log=log))
        else:
            rows = "\n".join(f"    {key}: {value}" for key, value in run.settings.items())
            self._text("settings", f"{run.name} ({run.group})\n\n{rows}", 0)

    def log(self, metrics: Mapping[str, Metric], step: int) -> None:
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        self._add([{"tag": key, "simple_value": float(value)} for key, value in numbers.items()], step)

    def image(self, name: str, path: Path, step: int) -> None:
        width, height = png_size(path)
        data = path.read_bytes()
        image = {"height": height, "width": width, "colorspace": 3, "encoded_image_string": data}
        self._add([{"tag": name, "image": image}], step)

    def page(self, name: str, path: Path, step: int) -> None:
        """TensorBoard shows no pages; this one stays in the run folder only."""

    def checkpoint(self, name: str, path: Path) -> None:
        """TensorBoard stores no files; this one stays in the run folder only."""

    def summary(self, values: Mapping[str, Any]) -> None:
        rows = "\n".join(f"    {key}: {value}" for key, value in values.items())
        self._text("summary", rows, values["steps"] if "steps" in values else 0)

    def close(self, status: str) -> str | None:
        self._writer.flush()
        self._writer.close()
        return f"to look at this run, tensorboard --logdir {self._folder}"

    def _text(self, tag: str, text: str, step: int) -> None:
        from tensorboard.plugins.text.summary_v2 import text_pb

        self._add(text_pb(tag, text).value, step)

    def _add(self, values: Sequence[Any], step: int) -> None:
        """Adds values of a summary; each is a protobuf message of TensorBoard, or a dict of its fields."""
        from tensorboard.compat.proto.event_pb2 import Event

        if values:
            self._writer.add_event(Event(wall_time=time.time(), step=step, summary={"value": values}))


def png_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG file, from its header."""
    header = path.open("rb").read(24)
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")
