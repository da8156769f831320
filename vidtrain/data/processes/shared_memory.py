"""Named tuples of tensors, from one process to another.

Tensors travel in anonymous memory (memfd), which unlike /dev/shm has no size of its own: containers give that 64 MB.
"""

import mmap
import os
import tempfile
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

INLINE_BYTES = 16 << 10  # tensors up to this size travel with the words about them


class _Shared(NamedTuple):
    """Stands for a tensor whose memory comes after the message."""

    dtype: torch.dtype
    shape: torch.Size
    size: int


def send(connection: Connection, answer: NamedTuple) -> None:
    """Sends a named tuple; its tensors are copied once."""
    fields, files = [], []
    for field in answer:
        if isinstance(field, Tensor):
            size = field.nbytes
            if size > INLINE_BYTES:
                files.append(_filled(memoryview(field.contiguous().numpy()).cast("B")))
                field = _Shared(field.dtype, field.shape, size)
            else:
                field = field.numpy()  # torch would open a file for each, however small
        fields.append(field)
    connection.send((type(answer), fields))
    for file in files:
        send_handle(connection, file, None)
        os.close(file)


def receive(connection: Connection, time_limit: float | None = None) -> NamedTuple:
    """What `send` sent. Raises EOFError, or the like, where the sender has ended meanwhile, and TimeoutError where a
    tensor does not follow within `time_limit` seconds: it was stopped meanwhile."""
    kind, fields = connection.recv()
    for place, field in enumerate(fields):
        if isinstance(field, _Shared):
            if not connection.poll(time_limit):
                raise TimeoutError(f"nothing came for {time_limit} s")
            file = recv_handle(connection)
            memory = mmap.mmap(file, field.size)
            os.close(file)
            fields[place] = torch.frombuffer(memory, dtype=field.dtype).view(field.shape)
        elif isinstance(field, np.ndarray):
            fields[place] = torch.from_numpy(field)
    return kind(*fields)


def _filled(content: memoryview) -> int:
    """A file descriptor of memory that holds `content` and is gone with its last user."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("batch")
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    while content:
        content = content[os.write(file, content) :]
    return file
