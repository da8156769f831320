"""Freed memory stays with the process: counted in page faults, of a fresh process."""

import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
import torch
from vidtrain.build.parts import set_cpu_threads
from vidtrain.data.loading.workers import keep_freed_memory
from vidtrain.training.distributed import Ranks

if sys.argv[1] == "worker" and not keep_freed_memory():
    sys.exit(9)
if sys.argv[1] == "network":
    set_cpu_threads(1, Ranks(torch.device("cpu")))
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
size, number = int(sys.argv[2]) << 20, int(sys.argv[3])
for clip in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(number)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults_of_the_fourth_clip(process: str, megabytes: int, blocks: int) -> int:
    command = [sys.executable, "-c", PROGRAM, process, str(megabytes), str(blocks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    if done.returncode == 9:
        pytest.skip("the C library is not glibc")
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("process", "megabytes", "blocks"),
    [pytest.param("worker", 3, 16, id="1080p pictures"), pytest.param("network", 25, 30, id="activations")],
)
def test_a_clip_reuses_the_memory_of_the_one_before(process, megabytes, blocks):
    assert faults_of_the_fourth_clip("other", megabytes, blocks) > 10_000  # of 4 KiB
    assert faults_of_the_fourth_clip(process, megabytes, blocks) < 100
