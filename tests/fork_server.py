"""Programs of vidtrain in processes of their own, started in a fraction of a second.

A server has imported torch and vidtrain. For each program it forks a child, which is then `python -m vidtrain.NAME`,
but for the seconds that importing takes. What is about the start itself (imports, torchrun) is not tested so.
The server itself is forked off the process that runs the tests, before the first of them.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import fork_server_process
from ports import free_ports

PATIENCE = 300.0  # seconds until something that should happen is taken not to


class Child:
    """A program under way. What it prints goes through pipes, which no full disk and no limit on files holds up."""

    def __init__(self, server: "ForkServer", pid: int, outputs: tuple[int, int]):
        self._server = server
        self.pid = pid
        self._printed: list[tuple[int, bytes]] = []  # (1 or 2, bytes) as they came
        self._readers = [
            threading.Thread(target=self._read, args=(number, file), daemon=True)
            for number, file in enumerate(outputs, start=1)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, number: int, file: int) -> None:
        with open(file, "rb", buffering=0) as pipe:
            while chunk := pipe.read(1 << 16):
                self._printed.append((number, chunk))

    def _text(self, *numbers: int) -> str:
        return b"".join(chunk for number, chunk in self._printed if number in numbers).decode(errors="replace")

    @property
    def stdout(self) -> str:
        return self._text(1)

    @property
    def stderr(self) -> str:
        return self._text(2)

    @property
    def said(self) -> str:
        return self._text(1, 2)

    @property
    def words(self) -> str:
        """What it said, without line breaks, which depend on the width."""
        return " ".join(self.said.split())

    def running(self) -> bool:
        return self._server.status(self.pid) is None

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit status, or minus the signal that ended it."""
        deadline = time.monotonic() + timeout
        while (status := self._server.status(self.pid)) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the program did not end:\n{self.said}")
            time.sleep(0.01)
        for reader in self._readers:
            reader.join(10)  # a worker of its own may outlive it for a moment
        return status

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def limit_files(self, size: int) -> None:
        """From now on no file of the program can grow beyond `size` bytes: what it is like on a disk that is full."""
        with suppress(ProcessLookupError):  # it is over
            resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def until(self, happened: Callable[[], Any], pause: float = 0.0005) -> bool:
        """Waits until something has happened; whether it did before the program ended."""
        deadline = time.monotonic() + PATIENCE
        last_status = 0.0
        while not happened():
            # a status takes longer than looking, and some things are soon over
            if time.monotonic() < last_status + 0.05:
                time.sleep(pause)
                continue
            last_status = time.monotonic()
            if not self.running():
                return bool(happened())
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"what was waited for did not happen:\n{self.said}")
        return True


class Process(Protocol):
    def poll(self) -> int | None: ...

    def wait(self, timeout: float) -> int: ...


class ForkedProcess:
    """A forked child, with the two methods of `subprocess.Popen` that a server needs."""

    def __init__(self, pid: int):
        self._pid = pid
        self._status: int | None = None

    def poll(self) -> int | None:
        if self._status is None:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the fork server {self._pid} did not end")
            time.sleep(0.01)
        return status


class ForkServer:
    """Starts programs; see above. To be closed."""

    def __init__(self, forked: bool = False) -> None:
        self._statuses: dict[int, int] = {}
        self._lock = threading.Lock()
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, fork_server_process.__file__, str(theirs.fileno())]
        self._process: Process
        if forked:
            self._process = ForkedProcess(fork_server_process.fork(theirs))
        else:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(
        self,
        program: str,
        *arguments: object,
        composed_for: Path | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> Child:
        """`python -m vidtrain.PROGRAM ARGUMENTS` in the folder `cwd` with the environment `env`, by default one's own.

        With `composed_for` it is training in that folder with a configuration that is composed once for the same
        arguments, which saves Hydra's second at every start.
        """
        pipes = [os.pipe(), os.pipe()]
        request = {
            "program": program,
            "arguments": [str(argument) for argument in arguments],
            "composed_for": None if composed_for is None else str(composed_for),
            "cwd": str(cwd or Path.cwd()),
            "environment": dict(os.environ if env is None else env),
        }
        pid = self._request(request, [write for _, write in pipes])
        for _, write in pipes:
            os.close(write)
        return Child(self, pid, (pipes[0][0], pipes[1][0]))

    def status(self, pid: int) -> int | None:
        if pid not in self._statuses:
            status = self._request({"pid": pid})
            if status is not None:
                self._statuses[pid] = status
        return self._statuses[pid] if pid in self._statuses else None

    def close(self) -> None:
        self._requests.close()
        self._process.wait(PATIENCE)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def _request(self, request: dict[str, Any], files: list[int] | None = None) -> Any:
        try:
            with self._lock:
                socket.send_fds(self._requests, [json.dumps(request).encode()], files or [])
                return json.loads(self._requests.recv(1 << 10))
        except OSError as error:
            status = self._process.wait(PATIENCE)
            raise RuntimeError(f"the fork server has ended with status {status}; its last words are above") from error


_SERVERS: list[ForkServer] = []


def fork_off() -> None:
    """Makes this process's server, for which nothing is imported twice. To be called before the first test: later a
    thread may hold a lock, which a fork would keep locked, and a test may have changed the process."""
    _SERVERS.append(ForkServer(forked=True))


def server() -> ForkServer:
    """The one of this process; it ends with it, as its socket is closed then. One that has died is replaced, so that
    the test that it died in is the only one to fail."""
    if not _SERVERS or _SERVERS[-1].has_ended():
        _SERVERS.append(ForkServer())
    return _SERVERS[-1]


def run_program(
    program: str,
    *arguments: object,
    ranks: int = 1,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` gives of `python -m vidtrain.PROGRAM ARGUMENTS`, of several ranks as torchrun starts them.

    The status of several ranks is the first that is not 0; the others are ended then.
    """
    children = start_ranks(program, *arguments, ranks=ranks, cwd=cwd, env=env)
    deadline = time.monotonic() + timeout
    while any(running := [child.running() for child in children]):
        ended = [child.wait() for child, runs in zip(children, running, strict=True) if not runs]
        if any(ended) or time.monotonic() > deadline:
            time.sleep(1.0)  # for the last words of the others
            for child in children:
                if child.running():
                    child.kill(signal.SIGTERM)
            break
        time.sleep(0.01)
    statuses = [child.wait(30) for child in children]
    if time.monotonic() > deadline:
        raise TimeoutError(f"{program} did not end:\n{''.join(child.said for child in children)}")
    stdout, stderr = ("".join(getattr(child, name) for child in children) for name in ("stdout", "stderr"))
    status = next((status for status in statuses if status), 0)
    return subprocess.CompletedProcess([program, *map(str, arguments)], status, stdout, stderr)


def start_ranks(
    program: str,
    *arguments: object,
    ranks: int = 1,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> list[Child]:
    """The ranks of a program, with what torchrun says to each."""
    env = dict(os.environ if env is None else env)
    if ranks == 1:
        return [server().start(program, *arguments, cwd=cwd, env=env)]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1))}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [
        server().start(
            program,
            *arguments,
            cwd=cwd,
            env={**env, **meeting, **sizes, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
