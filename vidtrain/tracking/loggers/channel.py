"""Messages between the training process and a logger's: pickled, each after its length."""

import pickle
import socket
from collections import deque
from typing import Any

LENGTH_BYTES = 4
RECEIVED = 1 << 16


def frame(message: tuple[Any, ...]) -> bytes:
    data = pickle.dumps(message)
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class Frames:
    """Whole messages out of bytes that come in pieces."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, data: bytes) -> list[tuple[Any, ...]]:
        """The messages that `data` completes."""
        self._bytes += data
        found = []
        while len(self._bytes) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._bytes[:LENGTH_BYTES], "big")
            if len(self._bytes) < end:
                break
            found.append(pickle.loads(bytes(self._bytes[LENGTH_BYTES:end])))
            del self._bytes[:end]
        return found


class Outbox:
    """Messages that wait until a non-blocking socket takes them, so that nobody waits for its other end."""

    def __init__(self, connection: socket.socket):
        self.waiting = 0  # bytes
        self._connection = connection
        self._frames: deque[memoryview] = deque()

    def add(self, message: tuple[Any, ...]) -> None:
        self._frames.append(memoryview(frame(message)))
        self.waiting += len(self._frames[-1])

    def push(self) -> int:
        """Hands over what the socket takes now; how many bytes that was. Raises OSError where nobody is left."""
        before = self.waiting
        while self._frames:
            try:
                sent = self._connection.send(self._frames[0])
            except BlockingIOError:
                break
            self.waiting -= sent
            if sent == len(self._frames[0]):
                self._frames.popleft()
            else:
                self._frames[0] = self._frames[0][sent:]
        return before - self.waiting
