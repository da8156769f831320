"""How large a picture may be: a file of a few kilobytes can say that its pictures take gigabytes.

FFmpeg's decoders refuse larger pictures before they allocate any, where they are told so; what a file says of itself
is looked at before any decoder is opened.
"""

import errno
import re
from contextlib import suppress

import av
import av.logging

from vidtrain.data.decoding.ffmpeg_log import ffmpeg_errors
from vidtrain.data.processes import watchdog

MAX_PIXELS = 36_000_000  # of one picture: 8192 x 4320 are 35.4 million
# Of all video streams of a file together, each of which is decoded a little to find out about it: as many largest
# pictures
MOST_TOGETHER = 4
PADDING = 1 << 16
IMAGES = (b"\xff\xd8\xff", b"\x89PNG")  # how they begin
OPENING = {"metadata_errors": "ignore"}
TOO_LARGE = re.compile(r"Picture size (\d+)x(\d+) exceeds specified max pixel count")  # libavutil's words


def decoder_options(max_pixels: int) -> dict[str, str]:
    """What tells a decoder to refuse pictures that are larger by far: it counts the pixels that it pads them with."""
    return {"max_pixels": str(2 * max_pixels + PADDING)}


def too_large(path: str, max_pixels: int) -> str:
    """Why the pictures that the file says it has are too large; empty if they are not, or it cannot be opened. No
    decoder is."""
    if _is_image(path):
        return ""
    sizes = []
    with (
        av.logging.Capture(local=True),  # that no decoder may be opened is no error
        suppress(av.FFmpegError),  # which opening it in earnest gives again
        av.open(path, options={"codec_whitelist": "none"}, **OPENING) as container,
    ):
        contexts = [stream.codec_context for stream in container.streams.video]
        sizes = [(each.width, each.height) for each in contexts if each is not None]
    pixels = [width * height for width, height in sizes]
    if pixels and (words := larger(*sizes[pixels.index(max(pixels))], max_pixels)):
        return words
    if sum(pixels) > MOST_TOGETHER * max_pixels:
        return (
            f"its {len(pixels)} video streams have {sum(pixels)} pixels together, more than {MOST_TOGETHER} times "
            f"data.max_pixels={max_pixels}"
        )
    return ""


def _is_image(path: str) -> bool:
    """Whether it is a JPEG or PNG image, of which nothing is known before its decoder looks, and there is one picture;
    a folder of them would take a fifth longer."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read(4).startswith(IMAGES)
    return False


def larger(width: int, height: int, max_pixels: int) -> str:
    """What is wrong with a picture of more than `max_pixels`; empty for others."""
    if width * height <= max_pixels:
        return ""
    return f"its picture of {width}x{height} has more pixels than data.max_pixels={max_pixels}"


def why_refused(path: str, error: av.FFmpegError, max_pixels: int) -> str:
    """What a decoder that gave up with `error` found too large; empty if it was something else.

    That stands in FFmpeg's log alone, so the file is decoded once more up to where it happens.
    """
    if error.errno != errno.EINVAL:  # which decoders give for this, among others
        return ""
    with (
        ffmpeg_errors() as log,
        suppress(av.FFmpegError),
        av.open(path, options=decoder_options(max_pixels), **OPENING) as container,
    ):
        stream = container.streams.best("video")
        stream.codec_context.options = decoder_options(max_pixels)
        for _ in container.decode(stream):
            watchdog.progress()
    found = next(filter(None, (TOO_LARGE.search(each) for _, _, each in log)), None)
    return larger(int(found[1]), int(found[2]), max_pixels) if found else ""
