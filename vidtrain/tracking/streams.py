"""Standard output and standard error that a run outlives: on a full disk, where nobody reads them any more, and where
they have no way to write a character."""

import errno
import logging
import os
import select
import sys
from typing import Any, TextIO

from vidtrain.files.atomic import FULL
from vidtrain.files.escaping import masked, shown, shown_lines

GONE = (errno.EPIPE, errno.EIO)  # the program behind the pipe, or the terminal
STATUS_UNREAD = 141  # what a shell shows of a program that writes to a pipe which nobody reads: 128 + SIGPIPE


class PatientStream:
    """`sys.stdout` or `sys.stderr`, which may be a file on a full disk, or what nobody reads any more, such as
    `| tee log` that was ended: a run goes on without the words. What it records lies in its folder."""

    def __init__(self, name: str):
        self._name = name

    @property
    def _stream(self) -> TextIO:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # what rich puts in its place while bars move

    def write(self, text: str) -> int:
        try:
            self._stream.write(masked(text))
            return len(text)
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
            silence(self._stream)
        elif error.errno not in FULL:
            raise error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """What is written to it from now on, and what waits in it, goes nowhere: Python fails otherwise when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def unread() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as behind `| head`."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


# --- characters -------------------------------------------------------------------------------------------


def use_utf8() -> None:
    """Starts the program again in Python's UTF-8 mode, with the same process id, where the locale has another encoding
    for the names of files: a name out of a listing could not be looked up there, nor one with an accent be written.
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # also for the processes that this one starts; and never a second time
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def take_every_character() -> None:
    """Standard output and error spell a character that their encoding lacks, as `\\xe9`, and go on."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where another one has been put in its place
            stream.reconfigure(errors="backslashreplace")


def as_data(stream: TextIO) -> TextIO:
    """`stream` for results that a program reads: the bytes that a file of them holds, whatever the locale."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding="utf-8", errors="surrogateescape")
    return stream


class OneLineNames(logging.Formatter):
    """Words of a log without the characters that a terminal obeys; a name that goes into them stays on one line."""

    def format(self, record: logging.LogRecord) -> str:
        named = logging.makeLogRecord(record.__dict__)
        if isinstance(record.args, tuple):
            named.args = tuple(
                shown(each) if isinstance(each, str | os.PathLike) else each for each in record.args
            )
        return shown_lines(super().format(named))
