"""Pictures are shrunk without gather instructions, which FFmpeg takes for fast.

swscale has two ways to shrink a row, which give the same bits: by AVX2's gather instructions, or by plain loads. It
gathers, unless FFmpeg holds a processor's gathers for slow, as it does with AMD's up to Zen 3 only. They are slow on
later ones as well, and on most of Intel's since the microcode against Gather Data Sampling; elsewhere there is little
between the two. On Zen 5 a box of 720 x 720 took twice as long with them (experiments/benchmarks/decoding).
"""

import ctypes
import platform
from functools import cache

import av.frame

SLOW_GATHER = 0x2000000  # AV_CPU_FLAG_SLOW_GATHER of libavutil/cpu.h, on x86
DETECT = -1  # forces no flags


def allow_gather(allowed: bool) -> bool:
    """Whether swscale may gather in what it sets up from here on, in all of this process.

    False where that cannot be said, and nothing is changed: on processors other than x86-64, and where libavutil's
    functions are not found.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        # this finds the functions of the libraries that it is linked to
        libavutil = ctypes.CDLL(av.frame.__file__)
        read, force = libavutil.av_get_cpu_flags, libavutil.av_force_cpu_flags
    except (OSError, AttributeError):
        return False
    force(DETECT)
    if not allowed:
        force(read() | SLOW_GATHER)
    return True


@cache
def disable_slow_gather() -> bool:
    """Forbids gather instructions in this process; only the first call does anything."""
    return allow_gather(False)
