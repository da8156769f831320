"""The console output of a run: a progress bar on a terminal, plain lines in a log file, nothing on ranks other than 0.

A run goes on if its standard output is on a full disk, is a pipe that nobody reads any more, or cannot encode a
character. rich is imported inside functions, as programs import this module for --help, which must be fast.
"""

import errno
import logging
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from vidtrain.files.atomic import FULL
from vidtrain.files.escaping import masked, shown, shown_lines

if TYPE_CHECKING:
    import rich.console
    from rich.progress import TaskID
    from rich.table import Table

Shown = float | int | str | None

PLAIN_WIDTH = 120


@dataclass
class Phase:
    """A running task with a known number of steps, such as a phase of training or one validation."""

    name: str
    total_steps: int
    step: int
    fields: Mapping[str, Shown] = field(default_factory=dict)
    _clock_from: tuple[float, int] | None = None

    def move(self, step: int, fields: Mapping[str, Shown], now: float) -> None:
        self.step = step
        self.fields = fields
        if self._clock_from is None:
            self._clock_from = now, step  # after the first step, which also waits for workers and compilers

    def seconds_left(self, now: float) -> float | None:
        """The seconds that the remaining steps take at the mean pace so far; None before the second step."""
        if self._clock_from is None or self.step == self._clock_from[1]:
            return None
        since, first = self._clock_from
        return (now - since) / (self.step - first) * (self.total_steps - self.step)

    def values(self, gap: str) -> str:
        return gap.join(f"{key} {shown(format_value(value))}" for key, value in self.fields.items())


class BarView:
    """A live bar for each running phase, outermost first. The outermost bar stays on the screen when its phase ends."""

    interval = 0.5  # seconds between two drawings

    def __init__(self, out: "rich.console.Console"):
        self._out = out
        self._tasks: list[TaskID] = []

    def open(self, phases: Sequence[Phase], now: float) -> None:
        """Draws a bar for the last of `phases`, which has just begun; `now` is in seconds."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.table import Column

        if not self._tasks:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),  # as wide as the other columns allow
                MofNCompleteColumn(),
                TextColumn("{task.fields[values]}", markup=False),
                TextColumn("{task.fields[left]}", style="cyan", markup=False),
                console=self._out,
                expand=True,
                auto_refresh=False,  # its thread would compete with training; `draw` refreshes instead
            )
            self._progress.start()
        phase = phases[-1]
        name = shown(phase.name)
        self._tasks.append(self._progress.add_task(name, total=phase.total_steps, values="", left=""))
        self.draw(phases, now)

    def draw(self, phases: Sequence[Phase], now: float) -> None:
        for task, phase in zip(self._tasks, phases, strict=True):
            left = f"{format_seconds(phase.seconds_left(now))} left"
            self._progress.update(task, completed=phase.step, values=phase.values(" "), left=left)
        self._progress.refresh()

    def close(self, phases: Sequence[Phase], now: float) -> None:
        """Removes the bar of the last of `phases`, which is about to end."""
        self.draw(phases, now)
        task = self._tasks.pop()
        if self._tasks:
            self._progress.remove_task(task)
            self._progress.refresh()
        else:
            self._progress.stop()


class LineView:
    """A line about the innermost phase from time to time, so that the log of a cluster job stays readable."""

    interval = 10.0  # seconds between two lines

    def __init__(self, out: "rich.console.Console"):
        self._out = out

    def open(self, phases: Sequence[Phase], now: float) -> None: ...
    def draw(self, phases: Sequence[Phase], now: float) -> None:
        phase = phases[-1]
        parts = [f"{shown(phase.name)} {phase.step}/{phase.total_steps}"]
        if phase.fields:
            parts.append(phase.values("  "))
        if phase.step < phase.total_steps:
            parts.append(f"{format_seconds(phase.seconds_left(now))} left")
        self._out.print("  ".join(parts), markup=False, emoji=False, highlight=False, soft_wrap=True)

    def close(self, phases: Sequence[Phase], now: float) -> None: ...


class Console:
    """Prints messages, tables and progress on `out`, with control characters escaped. `clock` returns seconds."""

    def __init__(self, out: "rich.console.Console", clock: Callable[[], float] = time.monotonic):
        self._out = out
        self._clock = clock
        self._view: BarView | LineView = BarView(out) if out.is_terminal and not out.is_dumb_terminal else LineView(out)
        self._phases: list[Phase] = []
        self._draw_at = 0.0

    def info(self, text: str) -> None:
        self._print(text)

    def warn(self, text: str) -> None:
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        # Text in brackets must not count as rich's markup, nor text between colons as an emoji
        self._out.print(shown_lines(text), style=style, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Shown]]) -> None:
        """See `make_table`."""
        self._out.print(make_table(title, columns, rows))

    @contextmanager
    def phase(self, name: str, total_steps: int, start_step: int = 0) -> Iterator[None]:
        """A context in which `advance` moves this phase. Phases nest, such as a validation within training."""
        self._phases.append(Phase(name, total_steps, step=start_step))
        now = self._clock()
        self._view.open(self._phases, now)
        self._draw_at = now + self._view.interval
        try:
            yield
        finally:
            self._view.close(self._phases, self._clock())
            self._phases.pop()

    def advance(self, step: int, fields: Mapping[str, Shown]) -> None:
        """Records that the innermost phase has done `step` steps. Most calls draw nothing, so it is cheap."""
        now = self._clock()
        phase = self._phases[-1]
        phase.move(step, fields, now)
        outermost = len(self._phases) == 1
        if now >= self._draw_at or (outermost and step == phase.total_steps):
            self._view.draw(self._phases, now)
            self._draw_at = now + self._view.interval


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Shown]]) -> "Table":
    """A table; columns that hold only numbers are aligned to the right. The title may have several lines."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(shown_lines(title), style="bold"), title_justify="left")
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float | None) for row in rows)
        table.add_column(Text(shown(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(format_value(cell))) for cell in row))
    return table


class NullConsole:
    """Shows nothing: the console of every rank but the main one."""

    def info(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Shown]]) -> None: ...
    @contextmanager
    def phase(self, name: str, total_steps: int, start_step: int = 0) -> Iterator[None]:
        yield

    def advance(self, step: int, fields: Mapping[str, Shown]) -> None: ...


def make_console(is_main: bool, stderr: bool = False) -> Console | NullConsole:
    """The console of this rank. With `stderr` it is on standard error, for programs that print results on stdout."""
    if not is_main:
        return NullConsole()
    import rich.console

    stream = PatientStream("stderr" if stderr else "stdout")
    out = rich.console.Console(file=stream)  # type: ignore[arg-type]  # rich asks for IO[str], but uses only parts
    if not out.is_terminal:
        out.width = PLAIN_WIDTH
    return Console(out)


def format_value(value: Shown) -> str:
    """A float with four significant digits (below a million without an exponent), "-" for None, any other value as it
    is."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def format_seconds(seconds: float | None) -> str:
    """[h:]mm:ss, or --:-- for None."""
    if seconds is None or not math.isfinite(seconds):
        return "--:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute:02d}:{second:02d}"


# --- standard output and standard error -------------------------------------------------------------------

GONE = (errno.EPIPE, errno.EIO)  # the pipe's reader has ended, or the terminal was closed
STATUS_NO_READER = 141  # 128 + SIGPIPE: a shell's status for a program that writes to a pipe without a reader


class PatientStream:
    """`sys.stdout` or `sys.stderr`, without errors if the disk is full or the reader (such as `| tee log`) has ended:
    the run goes on without these messages. Its log files are in the run folder."""

    def __init__(self, name: str):
        self._name = name

    @property
    def _stream(self) -> TextIO:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # rich replaces it while bars are live

    def write(self, text: str) -> int:
        try:
            self._stream.write(masked(text))
        except OSError as error:
            self._outlive(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._outlive(error)

    def _outlive(self, error: OSError) -> None:
        if error.errno in GONE:
            redirect_to_null(self._stream)
        elif error.errno not in FULL:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def redirect_to_null(stream: TextIO) -> None:
    """Redirects a stream, with its buffered text, to /dev/null. Otherwise Python fails when it flushes it at exit."""
    null_device = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_device, stream.fileno())
    os.close(null_device)


def stdout_reader_ended() -> bool:
    """Whether standard output is a pipe whose reader has ended, such as `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def use_utf8() -> None:
    """Restarts the program in Python's UTF-8 mode, with the same process id, if file names have another encoding in
    this locale. Otherwise names from a manifest would not be found, and names with accents could not be written.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # child processes inherit it; it also prevents a second restart
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def take_every_character() -> None:
    """Makes standard output and error write a character that their encoding lacks as `\\xe9`, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # absent if something, such as a test, has replaced the stream
            stream.reconfigure(errors="backslashreplace")


def as_data(stream: TextIO) -> TextIO:
    """Makes `stream` write results exactly as a file of them would hold them, in any locale; returns it."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    return stream


class OneLineNames(logging.Formatter):
    """Formats log messages with control characters escaped; a name in a message stays on one line."""

    def format(self, record: logging.LogRecord) -> str:
        escaped = logging.makeLogRecord(record.__dict__)
        if isinstance(record.args, tuple):
            escaped.args = tuple(
                shown(argument) if isinstance(argument, str | os.PathLike) else argument for argument in record.args
            )
        return shown_lines(super().format(escaped))
