"""Videos made for tests."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

TICKS = Fraction(1, 1000)


@pytest.fixture(scope="session", name="write_video")
def write_video_fixture() -> Callable[..., str]:
    return write_video


@pytest.fixture(scope="session", name="patches")
def patches_fixture() -> Callable[..., list[av.VideoFrame]]:
    return patches


def write_video(
    path: Path,
    frames: Sequence[av.VideoFrame],
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    times: Sequence[int] | None = None,
    b_frames: int | None = None,
    rotation: int = 0,
    color: tuple[int, int] | None = None,
    container_options: dict[str, str] | None = None,
) -> str:
    """Writes `frames`, shown at `times` in milliseconds (by default 40 apart); `color` is (matrix, range)."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        context = stream.codec_context
        context.thread_count, context.gop_size = 1, 12
        # only where the codec takes any time base: MPEG-4 and the like want that of the frame rate
        context.time_base = TICKS if times is not None else Fraction(1, 25)
        if b_frames is not None:
            context.max_b_frames = b_frames
        if color is not None:
            context.colorspace, context.color_range = color
        if rotation:
            stream.set_display_rotation(rotation)
        for i, frame in enumerate(frames):
            frame.pts, frame.time_base = (i, Fraction(1, 25)) if times is None else (int(times[i]), TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return str(path)


def patches(count: int, width: int = 96, height: int = 64, pixel_format: str = "yuv420p") -> list[av.VideoFrame]:
    """A picture of colored patches under a moving window, so that no two frames are alike."""
    rng = np.random.default_rng(0)
    picture = np.kron(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))
    windows = [picture[2 * i % 200 :, 3 * i % 300 :][:height, :width] for i in range(count)]
    return [
        av.VideoFrame.from_ndarray(np.ascontiguousarray(window), format="rgb24").reformat(format=pixel_format)
        for window in windows
    ]
