"""The folders of this package; locks of run folders, for one process at a time; and checks of links in folders."""

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
# conf/ is inside the package in a wheel, and beside it in a checkout
IN_CHECKOUT = not (PACKAGE / "conf").is_dir()
ROOT = PACKAGE.parent if IN_CHECKOUT else PACKAGE
CONF = ROOT / "conf"


def install_hint(extra: str) -> str:
    """The command that installs an extra. It does not name the package alone, as the package index has another project
    of that name."""
    if IN_CHECKOUT:
        return f"uv sync --extra {extra}"
    return f"pip install 'WHEEL[{extra}]', where WHEEL is the file that vidtrain was installed from"


# --- one process per run folder ---------------------------------------------------------------------------

RETRY_SECONDS = 0.05  # longer than `is_held` holds a lock
NO_LOCK_ERRORS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # errors of file systems without locks


class RunLock:
    """Locks `run_dir` for this process until `release`, or until the process ends in any way.

    Rank 0 takes it before anything is written. It is a lock of the kernel (flock), so it is free as soon as the process
    ends, even by kill -9. The folder is created if it is absent. Raises UserError if another process holds the lock, or
    if the folder cannot be written.
    """

    def __init__(self, run_dir: Path):
        self._path = run_dir / ".lock"
        self._descriptor: int | None = None
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UserError(
                f"cannot write into the run folder {run_dir} ({error.strerror}): choose a folder that you may write to."
            ) from error
        try:
            self._acquire(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        # Forked loader workers inherit the lock, and would hold it for seconds after a kill -9 of this process
        os.register_at_fork(after_in_child=self.release)

    def release(self) -> None:
        """Frees the lock. The file stays, because otherwise two processes could lock two different files."""
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
            except BlockingIOError:  # another process may only be testing the lock, in `is_held`
                time.sleep(RETRY_SECONDS)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"the run folder {folder} is in use by {holder(folder)}: "
                "wait for it, stop it, or choose another folder."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCK_ERRORS:
                raise
            log.warning("%s is on a file system without locks: do not start a second process there", folder)
        started = datetime.now(UTC).isoformat(timespec="seconds")
        text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def is_held(run_dir: Path) -> bool:
    """Whether a process holds the lock of `run_dir`, on any machine if the file system supports locks."""
    try:
        descriptor = os.open(run_dir / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        # A lock can only be tested by trying to take it
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCK_ERRORS:
            raise
    finally:
        os.close(descriptor)
    return False


def holder(run_dir: Path) -> str:
    """A text about the process that holds the lock of `run_dir`, or was the last to hold it."""
    try:
        process = json.loads((run_dir / ".lock").read_text(encoding="utf-8"))
    except ValueError:
        return "another process, which has just started"
    return f"process {process['pid']} on {process['host']}, started {process['started']}"


# --- links ------------------------------------------------------------------------------------------------

MAX_LISTED = 5  # at most this many links are named
# W&B's folder of one attempt. It holds a link to W&B's own log, and later attempts do not write into it
WANDB_RUN_FOLDER = re.compile(r"(offline-)?run-\d{8}_\d{6}-\w+")


def check_links(folder: Path, below: bool = False, folders: bool = True) -> None:
    """Raises `UserError` for links in `folder`, and with `below` in all its subfolders, that lead out of `folder`.

    Somebody else may have made the folder. A link with the name of an output file would make the program overwrite
    another file of the user. `folder` itself may be a link. Without `folders`, links to existing folders are allowed.
    """
    root = os.path.realpath(folder)
    outside = []
    for path in _links(root, below):
        target = os.path.realpath(path)
        if not _is_inside(target, root) and (folders or not os.path.isdir(target)):
            outside.append(f"{os.path.join(folder, os.path.relpath(path, root))} -> {os.readlink(path)}")
    if outside:
        raise UserError(
            f"cannot write into {folder}, as it holds links that lead out of it:\n  "
            + "\n  ".join(first_lines(outside, MAX_LISTED))
            + "\nIf somebody else made them, your own files could be overwritten: replace the links by the files, or "
            "remove them. The folder itself may be a link to another disk"
        )


def check_inside(path: Path, folder: Path) -> None:
    """Raises `UserError` if a link in `path`, which is below `folder`, leads out of `folder`."""
    real_path, root = os.path.realpath(path), os.path.realpath(folder)
    if real_path == root or not _is_inside(real_path, root):
        raise UserError(
            f"cannot write into {path}, as a link leads from it to {real_path}, outside of {folder}: replace the link "
            "by a folder, or choose another with out="
        )


def check_writable(out: Path) -> None:
    """Creates the output folder. Raises `UserError` if it cannot be written, or holds links to other files that would
    be overwritten. Call it before the work, so that the work is not lost."""
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
    # `folder` is created later, which reports an error if it is a file
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror}; choose another folder") from error
    for entry in entries:
        if entry.is_symlink():
            yield entry.path
        elif below and entry.is_dir(follow_symlinks=False) and not WANDB_RUN_FOLDER.fullmatch(entry.name):
            yield from _links(entry.path, below)
