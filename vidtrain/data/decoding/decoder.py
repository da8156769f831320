"""Reads requested frames of a video exactly, cropped and scaled.

Exact means that a frame read by random access equals, byte for byte, the same frame when the whole file is read in
order. Frames that the decoder made up because of damaged data are refused.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor

from vidtrain.data.augment.geometry import ANTIALIASED, Crop
from vidtrain.data.decoding.container import check_size, damage_error, sound_frames, sound_image
from vidtrain.data.decoding.conversion import BilinearPictures, ViewConverter
from vidtrain.data.decoding.packets import damaged_frames, decode_frames, decode_in_order, expect_frames
from vidtrain.data.decoding.video import DecodeError, VideoInfo, displayed_size
from vidtrain.data.stores.files import ByteRanges
from vidtrain.files.atomic import replacing_path

View = tuple[np.ndarray, Crop | Sequence[Crop]]
CLOCK = 90_000  # ticks per second of written videos, as in MPEG
ENCODING = {"preset": "veryfast", "crf": "20"}


def decode_views(
    video: VideoInfo,
    views: Sequence[View],
    size: tuple[int, int],
    interpolation: str = "bicubic",
    size_changes: str = "scale",
    file: ByteRanges | None = None,
    resize: str = ANTIALIASED,
) -> Tensor:
    """The pixels of `views` as uint8 [n c t h w], RGB, scaled to `size` (h, w) by bicubic or bilinear `interpolation`,
    or as `resize` says, one of `RESIZES` of vidtrain.data.augment.geometry.

    A view is the frame indices of a clip, int64 [t], and the box to crop, one for all its frames or one for each. All
    views are read in one pass over the file, on one thread; a frame is converted once for each box. Frames of another
    size than the first are scaled to it, or refused (`SIZE_CHANGES`). `file` is the open file for which `expect_views`
    was called, if any. Raises `DecodeError` if the file does not match `video`, or a frame is damaged.
    """
    _check_views(video, views)
    clips = torch.empty(len(views), 3, len(views[0][0]), *size, dtype=torch.uint8)
    pixels = clips.numpy()
    places: dict[int, dict[Crop, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for view, (indices, crops) in enumerate(views):
        for place, index in enumerate(indices.tolist()):
            crop = crops if isinstance(crops, Crop) else crops[place]
            places[index][crop].append((view, place))
    converters: dict[Crop, ViewConverter] = {}
    pictures = None if resize == ANTIALIASED else BilinearPictures(video, interpolation)

    decoded = set()
    for index, frame in read_frames(video, sorted(places), file=file):
        if size_changes == "refuse":
            check_unchanged(video, index, frame)
        decoded.add(index)
        if pictures is not None:
            pictures.show(frame)
        for crop, wanted in places[index].items():
            (view, place), *others = wanted
            if pictures is not None:
                pictures.view(crop, pixels[view, :, place])
            else:
                if crop not in converters:
                    converters[crop] = ViewConverter.of(video, crop, size, interpolation)
                converters[crop](frame, pixels[view, :, place])
            for other_view, other_place in others:
                pixels[other_view, :, other_place] = pixels[view, :, place]
    if missing := sorted(places.keys() - decoded):
        cause = f"{len(missing)} of {len(places)} requested frames do not decode, the first is {missing[0]}"
        raise DecodeError(video.path, cause)
    return clips


def expect_views(file: ByteRanges, video: VideoInfo, views: Sequence[View]) -> None:
    """Tells `file` which byte ranges `decode_views` will read, if the video has a packet table."""
    if video.packets is not None:
        wanted = np.unique(np.concatenate([indices for indices, _ in views])).tolist()
        expect_frames(file, video.packets, wanted)


def _check_views(video: VideoInfo, views: Sequence[View]) -> None:
    for indices, crops in views:
        if indices.min() < 0 or indices.max() >= video.num_frames:
            raise ValueError(f"frames {indices.min()}..{indices.max()} of {video.num_frames} of {video.path}")
        if not isinstance(crops, Crop) and len(crops) != len(indices):
            raise ValueError(f"{len(crops)} boxes for the {len(indices)} frames of a clip")
        for crop in [crops] if isinstance(crops, Crop) else crops:
            width, height = crop.scaled or (video.width, video.height)
            inside = crop.left + crop.width <= width and crop.top + crop.height <= height
            if not inside or crop.left < 0 or crop.top < 0:
                raise ValueError(f"{crop} in the {video.width}x{video.height} frame of {video.path}")


def check_unchanged(video: VideoInfo, index: int, frame: av.VideoFrame) -> None:
    """Raises `DecodeError` for a frame of another size than the first one's."""
    shown = displayed_size(frame.width, frame.height, video.way_of(frame))
    if shown != video.picture:
        raise size_error(video.path, index, video.picture, *shown)


def size_error(path: str, index: int, shape: tuple[int, int], width: int, height: int) -> DecodeError:
    """The error for a frame whose size differs from that of the first, `shape`."""
    change = f"from {shape[0]}x{shape[1]} to {width}x{height} at frame {index}"
    # the audit recognizes the cause by "size changes"
    refused = "size changes are refused by data.size_changes"
    return DecodeError(path, f"the picture changes its size {change} ({refused})")


def read_frames(
    video: VideoInfo, wanted: list[int], in_order: bool = False, file: ByteRanges | None = None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields the frames with the (sorted) indices `wanted`, as far as they exist. Raises `DecodeError` if one is
    damaged.

    They come in any order; if a frame comes twice, the second one counts. With `in_order` each comes once, in the order
    of the file.
    """
    if video.images:
        yield from ((index, sound_image(video.images[index], video.max_pixels)) for index in wanted)
        return
    if video.packets is not None:
        source = (video.path, video.packets, wanted, video.max_pixels)
        for index, frame in decode_in_order(*source) if in_order else decode_frames(*source, file):
            check_size(video.path, frame, video.max_pixels)
            yield index, frame
        return
    # without a packet table, the file is read from its start
    indices = set(wanted)
    for index, sound in islice(sound_frames(video.path, video.max_pixels), max(wanted, default=-1) + 1):
        if index in indices:
            if sound is None:
                raise damage_error(video.path, index)
            yield index, sound


def refused_frames(video: VideoInfo) -> list[int]:
    """The indices of damaged frames, which are refused, found by decoding the whole file. Raises `DecodeError` if that
    is impossible."""
    if video.images:
        damaged = []
        for index, path in enumerate(video.images):
            try:
                sound_image(path, video.max_pixels)
            except DecodeError:
                damaged.append(index)
        return damaged
    if video.packets is not None:
        return damaged_frames(video.path, video.packets, video.max_pixels)
    return [index for index, frame in sound_frames(video.path, video.max_pixels) if frame is None]


def all_frames(video: VideoInfo, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yields every frame of `video` in presentation order, scaled to `size` (height, width): uint8 [h w 3], RGB. Raises
    `DecodeError` if one does not decode or is damaged."""
    convert = ViewConverter.of(video, Crop(0, 0, video.width, video.height), size)
    early: dict[int, np.ndarray] = {}  # frames that were decoded before earlier ones
    shown = 0
    for index, frame in read_frames(video, list(range(video.num_frames)), in_order=True):
        picture = np.empty((3, *size), np.uint8)
        convert(frame, picture)
        early[index] = picture
        while shown in early:
            yield np.ascontiguousarray(early.pop(shown).transpose(1, 2, 0))
            shown += 1
    if shown < video.num_frames:
        raise DecodeError(video.path, f"frame {shown} of {video.num_frames} does not decode")


def write_video(path: Path, pictures: Iterable[np.ndarray], seconds: np.ndarray) -> None:
    """Writes pictures, uint8 [h w 3] with even sides, as H.264 in MP4, with increasing times in `seconds`. The file
    appears when it is complete."""
    times = np.round((seconds - seconds[0]) * CLOCK).astype(np.int64)
    span = int(times[-1]) if len(times) > 1 else CLOCK // 25
    mean = Fraction(max(1, len(times) - 1) * CLOCK, span).limit_denominator(1000)
    with (
        replacing_path(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
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
