"""What decoders say of frames that they could not make out: such frames are made up, and nobody should see them."""

from collections import deque
from collections.abc import Iterator

import av
from av.video.frame import PictureType

from vidtrain.data.decoding.ffmpeg_log import ffmpeg_errors
from vidtrain.data.decoding.frame_times import states_shown_times
from vidtrain.data.decoding.pixel_bounds import larger
from vidtrain.data.decoding.video import DecodeError, opened
from vidtrain.data.processes import watchdog

# Decoders that set no mark on a frame that they could not make out: they only say so in their log. What those of
# UNMARKING say of NOT_PIXELS is not about the picture; of what those of OF_PIXELS say, these words are.
UNMARKING = ("hevc", "vvc")
NOT_PIXELS = ("SEI", "VUI", "VPS")
OF_PIXELS = {"mjpeg": ("overread", "error y=", "error count")}
MOST_REORDERED = 16  # frames by which H.264 and HEVC may show a picture later than one that refers to it


def listened(decoder: av.CodecContext, packet: av.Packet | None) -> tuple[list[av.VideoFrame], bool]:
    """What the decoder gives out for `packet`, None asking for what it holds; and whether a decoder that marks no
    frames called the packet damaged."""
    codec = decoder.codec.canonical_name
    if codec not in UNMARKING and codec not in OF_PIXELS:
        return decoder.decode(packet), False
    with ffmpeg_errors() as log:
        frames = decoder.decode(packet)
    said = [words for _, who, words in log if who == decoder.name]
    if codec in OF_PIXELS:
        return frames, any(word in words for words in said for word in OF_PIXELS[codec])
    return frames, any(not any(word in words for word in NOT_PIXELS) for words in said)


def damage_error(path: str, first: int, count: int = 1) -> DecodeError:
    """What is said of `count` wanted frames, of which `first` is the first, that the decoder made up."""
    which = f"frame {first} is" if count == 1 else f"{count} wanted frames, from frame {first} on, are"
    return DecodeError(path, f"{which} damaged: the decoder made up what it could not read")


def check_size(path: str, frame: av.VideoFrame, max_pixels: int) -> None:
    """Raises `DecodeError` for a frame of more than `max_pixels`: decoders let some through, as they count padding."""
    if cause := larger(frame.width, frame.height, max_pixels):
        raise DecodeError(path, cause)


def frames_in_order(path: str, max_pixels: int) -> Iterator[tuple[av.VideoFrame, bool]]:
    """Every frame of a video file in order, with a time only where the file states it, and whether the decoder made up
    some of it. Raises `DecodeError`."""
    with opened(path, max_pixels) as (container, stream):
        decoder = stream.codec_context
        doubtful: set[int | None] = set()
        for packet in container.demux(stream):
            watchdog.progress()
            try:
                frames, complains = listened(decoder, packet)
            except EOFError:  # what it held has been asked for
                return
            if complains:
                doubtful.add(packet.pts)  # None, of a container without times: of any frame from here on
            for frame in frames:
                check_size(path, frame, max_pixels)
                made_up = frame.is_corrupt or frame.pts in doubtful or None in doubtful
                if not states_shown_times(container.format):
                    frame.pts = None
                yield frame, made_up


def sound_image(path: str, max_pixels: int) -> av.VideoFrame:
    """The picture of an image file. Raises `DecodeError` where there is none, or one that is damaged."""
    frame, made_up = next(frames_in_order(path, max_pixels), (None, False))
    if frame is None:
        raise DecodeError(path, "no frame of it decodes")
    if made_up:
        raise DecodeError(path, "the picture is damaged")
    return frame


def sound_frames(path: str, max_pixels: int) -> Iterator[tuple[int, av.VideoFrame | None]]:
    """Every frame of a video file in order with its index, None in place of one that is damaged or may refer to one
    that is. A few frames are held until it is known. Raises `DecodeError`.
    """
    # index, frame, whether it is sound; of B pictures, which may refer to one that is shown later
    held: deque[list] = deque()
    sound = True
    for index, (frame, made_up) in enumerate(frames_in_order(path, max_pixels)):
        if made_up:
            for entry in held:
                entry[2] = False
        sound = not made_up and (sound or (frame.key_frame and frame.pict_type == PictureType.I))
        held.append([index, frame, sound])
        at_most = MOST_REORDERED if frame.pict_type == PictureType.B else 0
        while len(held) > at_most:
            yield _settled(held.popleft())
    while held:
        yield _settled(held.popleft())


def _settled(entry: list) -> tuple[int, av.VideoFrame | None]:
    index, frame, sound = entry
    return index, frame if sound else None
