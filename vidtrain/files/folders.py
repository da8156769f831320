"""The folders of this package, and those that it writes into: one process at a time, and no link that leads out."""

import errno
import fcntl
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from vidtrain.errors import UserError
from vidtrain.files.escaping import first_lines

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds conf/ within the package; in a checkout it lies beside it
IN_CHECKOUT = not (PACKAGE / "conf").is_dir()
ROOT = PACKAGE.parent if IN_CHECKOUT else PACKAGE
CONF = ROOT / "conf"


def install_hint(extra: str) -> str:
    """What to type for the packages of an extra. Never a bare name: the package index has another project of that
    name."""
    if IN_CHECKOUT:
        return f"uv sync --extra {extra}"
    return f"pip install 'WHEEL[{extra}]', WHEEL being the path of the file that vidtrain was installed from"


# --- one process per run folder ---------------------------------------------------------------------------

LOOK_SECONDS = 0.05  # longer than `is_held` takes a lock for
NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of file systems without them


class RunLock:
    """Holds `run_dir` for this process until `release`, or until it ends, however it ends.

    The main rank takes it before anything is written. The kernel keeps the lock (flock), so a kill -9
    frees it and no stale lock can remain. Makes the folder where it is absent. Raises UserError where another
    process holds the folder, or where nothing can be written there.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / ".lock"
        self._descriptor: int | None = None
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write into the run folder {run_dir} ({error.strerror}): "
                "choose a folder that you may write to."
            ) from error
        try:
            self._acquire(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # Forked loader workers share the lock, and would keep it for seconds after a kill -9 of this process.
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Frees the folder. The file stays: removing it would let two processes lock two files."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self, descriptor: int) -> None:
        folder = self._path.parent
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # perhaps by someone who only looks
                time.sleep(LOOK_SECONDS)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"the run folder {folder} is in use by {holder(folder)}: "
                "wait for it, stop it, or choose another folder."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            log.warning("%s is on a file system without locks: start no second process there", folder)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def is_held(run_dir: Path) -> bool:
    """Whether a process holds `run_dir`, on any machine that the file system's locks reach."""
    try:
        descriptor = os.open(run_dir / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # the kernel offers no way to ask without taking it
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
    return False


def holder(run_dir: Path) -> str:
    """The process that holds `run_dir`, or held it last, in words."""
    try:
        process = json.loads((run_dir / ".lock").read_text(encoding="utf-8"))
    except ValueError:
        return "another process, which has only just started"
    return f"process {process['pid']} on {process['host']}, started {process['started']}"


# --- links ------------------------------------------------------------------------------------------------

MOST_SHOWN = 5
# A folder that W&B makes when it starts, and writes into no other time; it holds a link to a log of its own
OF_ONE_START = re.compile(r"(offline-)?run-\d{8}_\d{6}-\w+")


def check_links(folder: Path, below: bool = False, folders: bool = True) -> None:
    """Raises `UserError` for links in `folder`, and with `below` in all that lies below it, that lead out of it.

    A folder that is written into may be from elsewhere. A link in it, named as a file that is to be written, would have
    another file of the user's overwritten. `folder` itself may be a link. Without `folders`, only links to files count,
    and those that lead to nothing.
    """
    home = os.path.realpath(folder)
    outside = []
    for path in _links(home, below):
        target = os.path.realpath(path)
        if not _is_inside(target, home) and (folders or not os.path.isdir(target)):
            outside.append(f"{os.path.join(folder, os.path.relpath(path, home))} -> {os.readlink(path)}")
    if outside:
        raise UserError(
            f"{folder} is to be written into, and holds links that lead out of it:\n  "
            + "\n  ".join(first_lines(outside, MOST_SHOWN))
            + "\nIn a folder from elsewhere they would have your own files overwritten: put the files in their place, "
            "or remove them. The folder as a whole may be a link to another disk"
        )


def check_inside(path: Path, folder: Path) -> None:
    """Raises `UserError` where `path`, a place below `folder`, is led out of it by a link."""
    place, home = os.path.realpath(path), os.path.realpath(folder)
    if place == home or not _is_inside(place, home):
        raise UserError(
            f"{path} is to be written into, and a link leads from it to {place}, outside of {folder}: put the folder "
            "itself in its place, or choose another with out="
        )


def check_writable(out: Path) -> None:
    """Makes the output folder. Raises `UserError` now, rather than after the work, where it cannot be written, or holds
    links to files that would be written instead."""
    check_links(out, folders=False)
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        message = f"cannot write into out={out}: {error.strerror}; choose another folder with out="
        raise UserError(message) from error


def _is_inside(target: str, home: str) -> bool:
    return target == home or target.startswith(os.path.join(home, ""))


def _links(folder: str, below: bool) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):  # it is yet to be made, or making it will say so
        return
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; choose another folder") from error
    for entry in entries:
        if entry.is_symlink():
            yield entry.path
        elif below and entry.is_dir(follow_symlinks=False) and not OF_ONE_START.fullmatch(entry.name):
            yield from _links(entry.path, below)
