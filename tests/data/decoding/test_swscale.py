"""Boxes shrunk with and without gather instructions are the same to the bit."""

import platform
import subprocess
import sys

import av
import numpy as np
import pytest

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding import conversion
from vidtrain.data.decoding.conversion import INTERPOLATIONS, ViewConverter

X86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 alone has these gathers")


@pytest.fixture
def gathering():
    """Lets a test choose; afterwards it is as it is in every process that converts."""
    yield conversion.allow_gather
    conversion.allow_gather(False)


@X86
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p", "yuv420p10le", "gray"])
def test_the_same_bits(interpolation, pixel_format, gathering):
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pixel_format)
    boxes = [(0, 0, 640, 360), (3, 5, 230, 200), (10, 20, 224, 224), (0, 0, 96, 64), (36, 0, 360, 360)]
    for crop in [Crop(*box) for box in boxes]:
        for size in [(224, 224), (112, 96), (100, 90)]:  # gathers serve widths that are multiples of 16
            views = []
            for allowed in (True, False):
                assert gathering(allowed)
                views.append(np.empty((3, *size), np.uint8))
                ViewConverter(crop, size, None, interpolation)(frame, views[-1])
            assert views[0].std() > 5
            np.testing.assert_array_equal(*views)


PROGRAM = """
import ctypes, av.frame
from vidtrain.data.decoding import conversion

libavutil = ctypes.CDLL(av.frame.__file__)
bit = lambda: libavutil.av_get_cpu_flags() >> 25 & 1
detected = bit()
print(conversion.disable_slow_gather(), bit(), conversion.allow_gather(True), bit() == detected)
"""


@X86
def test_ffmpeg_is_told():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["True", "1", "True", "True"], done.stderr


def test_another_processor_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert not conversion.allow_gather(False)


@X86
def test_a_library_without_the_functions_is_left_alone(monkeypatch):
    monkeypatch.setattr(conversion.av.frame, "__file__", "libc.so.6")
    assert not conversion.allow_gather(False)
