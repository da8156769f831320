"""Freed memory stays with the process: counted in page faults, of a fresh process."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from vidtrain.data.loading.workers import keep_freed_memory

if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(9)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE, PICTURES = 3 << 20, 16  # a 1080p decoder's
for clip in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pictures = [libc.malloc(SIZE) for _ in range(PICTURES)]
    for each in pictures:
        ctypes.memset(each, 1, SIZE)
    for each in pictures:
        libc.free(each)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_the_fourth_clip(how):
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=100)
    if done.returncode == 9:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


@pytest.mark.slow
def test_a_clip_reuses_the_memory_of_the_one_before():
    assert faults_of_the_fourth_clip("as_it_is") > 10_000  # of 4 KiB
    assert faults_of_the_fourth_clip("keep") < 100
