"""Ports that tests listen on."""

import os
import socket
from contextlib import suppress


def free_ports(count: int) -> int:
    """The first of `count` free ports in a row.

    They lie below those that the kernel gives to connections, so that none is taken between now and its use.
    """
    for number in range(0, 10_000, count):
        first = 21_000 + (97 * os.getpid() + number) % (10_000 - count)
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise RuntimeError("no free ports")
