"""Memory that a decoding process frees stays with it.

Each clip has a decoder, whose pictures come to tens of megabytes. glibc gives so much back to the kernel, which fills
it with zeros page by page when the next clip asks for it: a tenth of the time of a 1080p clip
(experiments/benchmarks/decoding).
"""

import ctypes

# glibc's malloc.h. Above the threshold for mmap, of which 32 MiB is the largest, memory is never kept
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEPT = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 512 << 20, M_TOP_PAD: 16 << 20}  # bytes


def keep_freed_memory() -> bool:
    """Lets this process keep up to 512 MiB that it has freed, for its own use. False where the C library is another
    than glibc, and nothing is changed."""
    libc = ctypes.CDLL(None)
    return hasattr(libc, "mallopt") and all([libc.mallopt(which, size) == 1 for which, size in KEPT.items()])
