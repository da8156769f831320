"""The memory of worker processes: what they free stays with them, and tensors go from one to another.

Each clip has a decoder, whose pictures come to tens of megabytes. glibc gives so much back to the kernel, which fills
it with zeros page by page when the next clip asks for it: a tenth of the time of a 1080p clip
(experiments/benchmarks/decoding).

Tensors travel in anonymous memory (memfd), which unlike /dev/shm has no size of its own: containers give that 64 MB.
"""

import ctypes
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

# glibc's malloc.h. Above the threshold for mmap, of which 32 MiB is the largest, memory is never kept
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 512 << 20, M_TOP_PAD: 16 << 20}  # bytes


def keep_freed_memory() -> bool:
    """Lets this process keep up to 512 MiB that it has freed, for its own use. False where the C library is another
    than glibc, and nothing is changed."""
    libc = ctypes.CDLL(None)
    return hasattr(libc, "mallopt") and all([libc.mallopt(which, size) == 1 for which, size in KEPT.items()])


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
