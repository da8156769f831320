"""All frames of a video, one after the other, and writing such frames as a new one; neither holds more than a few."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.conversion import ViewConverter
from vidtrain.data.decoding.decoder import read_frames
from vidtrain.data.decoding.video import DecodeError, VideoInfo

CLOCK = 90_000  # ticks a second of written videos, what MPEG counts in
ENCODING = {"preset": "veryfast", "crf": "20"}


def all_frames(video: VideoInfo, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Every frame of `video` in the order in which they are shown, upright and scaled to `size` (height, width): uint8
    [h w 3], RGB.

    Raises `DecodeError` where one does not decode, or is damaged.
    """
    convert = ViewConverter.of(video, Crop(0, 0, video.width, video.height), size)
    early: dict[int, np.ndarray] = {}  # decoded before those that are shown before them
    due = 0
    for index, frame in read_frames(video, list(range(video.num_frames)), in_order=True):
        picture = np.empty((3, *size), np.uint8)
        convert(frame, picture)
        early[index] = picture
        while due in early:
            yield np.ascontiguousarray(early.pop(due).transpose(1, 2, 0))
            due += 1
    if due < video.num_frames:
        raise DecodeError(video.path, f"frame {due} of {video.num_frames} does not decode")


def write_video(path: Path, pictures: Iterable[np.ndarray], seconds: np.ndarray) -> None:
    """Writes pictures, uint8 [h w 3] of even sides, as H.264 in MP4; each is shown at its time, increasing.

    The file appears when it is whole.
    """
    times = np.round((seconds - seconds[0]) * CLOCK).astype(np.int64)
    span = int(times[-1]) if len(times) > 1 else CLOCK // 25
    mean = Fraction(max(1, len(times) - 1) * CLOCK, span).limit_denominator(1000)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=mean, options=ENCODING)
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, CLOCK)
            stream.codec_context.thread_count = 1
            for number, (picture, time) in enumerate(zip(pictures, times, strict=True)):
                if number == 0:
                    stream.height, stream.width = picture.shape[:2]
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = int(time), Fraction(1, CLOCK)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
