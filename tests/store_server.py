"""Stores that tests start: an HTTP server with ranges and with faults as real ones have them, and S3 by moto."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ports import free_ports


class Request(NamedTuple):
    """What was asked for: HEAD or GET, a path, and the range as (first byte, one behind the last)."""

    method: str
    path: str
    range: tuple[int, int] | None


class HttpStore:
    """Serves the files below `folder`. `fault` is asked of every request by its number, from 0, and names what goes
    wrong with it: "503", "reset", "short", "stall", "403"; None serves it. `latency` is in seconds."""

    def __init__(self, folder: Path, latency: float = 0.0, ranges: bool = True):
        self.folder = folder
        self.latency = latency
        self.ranges = ranges
        self.requests: list[Request] = []
        self.bytes_sent = 0
        self.fault: Callable[[int], str | None] = lambda number: None
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self.url = ""

    def noted(self, request: Request) -> int:
        with self._lock:
            self.requests.append(request)
            return len(self.requests) - 1

    @property
    def bytes_asked(self) -> int:
        return sum(asked.range[1] - asked.range[0] for asked in self.requests if asked.range)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the acknowledgment of its header
    store: HttpStore

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        store, path = self.store, unquote(urlsplit(self.path).path)
        file = store.folder / path.lstrip("/")
        size = file.stat().st_size if file.is_file() else 0
        begin, end, header = 0, size, self.headers.get("Range")
        if header and store.ranges:
            first, last = header.removeprefix("bytes=").split("-")
            begin, end = int(first), min(size, int(last) + 1 if last else size)
        fault = store.fault(store.noted(Request(self.command, path, (begin, end) if header else None)))
        time.sleep(store.latency)
        tag = f'"{file.stat().st_mtime_ns:x}-{size:x}"' if file.is_file() else ""
        if self.headers.get("If-Match", tag) != tag:
            fault = "412"
        if fault == "stall":
            store.stopped.wait(30)
        if fault in ("stall", "reset"):
            self.close_connection = True
            return
        if fault in ("503", "403", "412") or not file.is_file():
            self.send_response(int(fault) if fault in ("503", "403", "412") else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if header and store.ranges else 200)
        self.send_header("Content-Length", str(end - begin))
        self.send_header("ETag", tag)
        self.send_header("Last-Modified", self.date_time_string(int(file.stat().st_mtime)))
        if store.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if with_body:
            with open(file, "rb") as source:
                source.seek(begin)
                data = source.read(end - begin)
            if fault == "short":
                data, self.close_connection = data[: len(data) // 2], True
            with suppress(OSError):  # who asked may be gone
                for start in range(0, len(data), 1 << 16):
                    self.wfile.write(data[start : start + (1 << 16)])
                    store.bytes_sent += len(data[start : start + (1 << 16)])

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # who asked may be gone


@contextmanager
def serving(folder: Path, latency: float = 0.0, ranges: bool = True) -> Iterator[HttpStore]:
    """The files below `folder` at the `url` of what is given."""
    store = HttpStore(folder, latency, ranges)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"store": store}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield store
    finally:
        store.stopped.set()
        server.shutdown()
        server.server_close()


def forget_clients() -> None:
    """Those of an earlier S3 server keep its address."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


@contextmanager
def serving_s3() -> Iterator[str]:
    """The address of an S3 server, empty at first, for AWS_ENDPOINT_URL."""
    from moto.server import ThreadedMotoServer

    forget_clients()
    server = ThreadedMotoServer("127.0.0.1", free_ports(1))
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()
