"""One process per run folder."""

import errno
import fcntl
import json
import logging
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from vidtrain.errors import UserError

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.05  # longer than `is_held` takes a lock for


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
        os.register_at_fork(after_in_child=self._close)

    def release(self) -> None:
        """Give the folder free. The file stays: removing it would let two processes lock two files."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _acquire(self, descriptor: int) -> None:
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # perhaps by someone who only looks
                time.sleep(LOOK_SECONDS)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"the run folder {self._path.parent} is in use by {_holder(self._path)}: "
                "wait for it, stop it, or choose another folder."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
                raise
            log.warning(
                "%s is on a file system without locks: start no second process there", self._path.parent
            )
        holder = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return "another process, which has only just started"
    return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"


def is_held(run_dir: Path) -> bool:
    """Whether a process holds `run_dir`, on any machine that the file system's locks reach."""
    try:
        descriptor = os.open(run_dir / ".lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(
            descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB
        )  # the kernel offers no way to ask without taking it
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise
        return False
    finally:
        os.close(descriptor)
    return False


def holder(run_dir: Path) -> str:
    """The process that holds `run_dir`, or held it last, in words."""
    return _holder(run_dir / ".lock")
