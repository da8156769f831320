"""Re-encodes one video: a smaller file with fast random access, with the same frames at the same times.

Access is fast because the file has a keyframe every few frames, and B frames that no other frame refers to, which need
not be decoded.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.filter import Graph
from av.video.frame import PictureType

from vidtrain.data.decoding import watchdog
from vidtrain.data.decoding.container import damage_error, frames_in_order, opened, sound_image
from vidtrain.data.decoding.conversion import (
    FULL_RANGE,
    MATRICES,
    SCALE_FLAGS,
    SIZE_CHANGES,
    color_of,
    filter_graph,
)
from vidtrain.data.decoding.decoder import check_unchanged
from vidtrain.data.decoding.metadata import read_image_folder, read_metadata
from vidtrain.data.decoding.video import MAX_PIXELS, DecodeError, Orientation, VideoInfo
from vidtrain.errors import UserError
from vidtrain.files.atomic import replacing_path

PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow", "placebo"
)  # fmt: skip
BT601, LIMITED_RANGE = 6, 1
# Time units per second if those of the source are too fine for MP4
COARSER_SCALES = (1_000_000, 90_000, 1_000)
LARGEST = 2**31 - 1  # MP4 stores the distance of two frames, and the units a second, in 32 bits
MOST_ASPECT = 4096  # the largest number that x264 writes of a pixel's shape
UNTIMED_RATE = 25  # a file with a single frame has this rate


@dataclass(frozen=True)
class EncodeSettings:
    """How prepared files are encoded. Raises `UserError` for settings that x264 refuses.

    `short_side` is in pixels, `gop` the frames from one keyframe to the next, `b_frames` the B frames in a row, `crf`
    x264's constant quality (0 best, 51 worst), `preset` its effort, `size_changes`, one of `SIZE_CHANGES`, the
    treatment of frames with another size than the first.
    """

    short_side: int
    gop: int
    b_frames: int
    crf: int
    preset: str
    size_changes: str = "scale"

    def __post_init__(self) -> None:
        if self.short_side < 2 or self.short_side % 2:
            raise UserError(f"short_side={self.short_side}: must be an even number of pixels, 2 or more")
        for name, least, most in (("gop", 1, 250), ("b_frames", 0, 16), ("crf", 0, 51)):
            if not least <= getattr(self, name) <= most:
                raise UserError(f"{name}={getattr(self, name)}: must lie between {least} and {most}")
        if self.preset not in PRESETS:
            raise UserError(f"preset={self.preset}: must be one of {', '.join(PRESETS)}")
        if self.size_changes not in SIZE_CHANGES:
            known = ", ".join(SIZE_CHANGES)
            raise UserError(f"data.size_changes={self.size_changes}: must be one of {known}")

    def size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of the copy: the short side is `short_side`, or that of the source if smaller. Sides are
        rounded to the nearest even number, or down if nothing is shrunk."""
        short = min(width, height)
        if short <= self.short_side:
            return max(2, width // 2 * 2), max(2, height // 2 * 2)
        shrunk = [(side * self.short_side + short) // (2 * short) * 2 for side in (width, height)]
        return shrunk[0], shrunk[1]


@dataclass(frozen=True)
class Job:
    """A video to prepare: the file or, with a `frame_rate`, the folder of images `source` becomes `target`. Frames of
    more than `max_pixels` are not read."""

    source: str
    target: Path
    settings: EncodeSettings
    frame_rate: float | None
    max_pixels: int = MAX_PIXELS


@dataclass(frozen=True)
class PrepareResult:
    """The result of a job. `cause` is why the source cannot be read; then there is no copy.

    `bytes` is the copy's size. Its times are those of the source plus `shift` seconds, 0 unless the source begins
    before time 0. `refusal` is the message of an error that must end the program.
    """

    bytes: int = 0
    shift: float = 0.0
    cause: str = ""
    refusal: str = ""


def prepare_file(job: Job) -> PrepareResult:
    """Makes `job.target` atomically. Errors are returned in the result, as it is sent between processes."""
    try:
        job.target.parent.mkdir(parents=True, exist_ok=True)
        if job.frame_rate:
            video = read_image_folder(job.source, job.frame_rate, job.max_pixels)
        else:
            video = read_metadata(job.source, job.max_pixels)
        timing = Timing.of(video)
        size = job.settings.size(video.width, video.height)
        # with the process id, so that two processes can work on one file
        with replacing_path(job.target) as temporary:
            encode(video, temporary, timing, size, job.settings)
            verify(video, temporary, timing, size)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            return PrepareResult(os.path.getsize(temporary), timing.shift)
    except DecodeError as error:
        return PrepareResult(cause=error.cause if error.path == job.source else str(error))
    except OSError as error:  # of the copy's side: what reading raises is a DecodeError
        return PrepareResult(refusal=f"cannot write {job.target}: {error.strerror or error}")
    except av.FFmpegError as error:
        return PrepareResult(cause=f"it cannot be encoded: {error.strerror}")


@dataclass(frozen=True, eq=False)
class Timing:
    """Frame times as MP4 stores them: `units` int64 [num_frames], 0 or more, `scale` of them a second."""

    units: np.ndarray
    scale: int
    shift: float

    @classmethod
    def of(cls, video: VideoInfo) -> "Timing":
        """The times of `video`, exact if MP4 can store them, else rounded to a microsecond or more."""
        shift = max(0, -int(video.ticks[0]))
        for scale in (video.tick.denominator, *COARSER_SCALES):
            per_tick = video.tick * scale
            ticks = (video.ticks + shift).tolist()
            units = np.array([round(tick * per_tick) for tick in ticks], dtype=np.int64)
            gaps = np.diff(units)
            if scale <= LARGEST and (gaps > 0).all() and gaps.max(initial=0) * 32 <= LARGEST:
                return cls(units, scale, float(shift * video.tick))
        raise DecodeError(video.path, "its frame times are too far apart for an MP4 file")

    @property
    def durations(self) -> np.ndarray:
        """The duration of each frame in units, int64 [num_frames]; the last lasts as long as the one before."""
        gaps = np.diff(self.units)
        last = gaps[-1] if len(gaps) else max(1, self.scale // UNTIMED_RATE)
        return np.append(gaps, last)

    @property
    def rate(self) -> Fraction:
        """The average frames a second, limited to what encoders accept."""
        mean = Fraction(len(self.units) * self.scale, int(self.durations.sum()))
        return min(max(mean.limit_denominator(100_000), Fraction(1, 1000)), Fraction(1000))


def encode(video: VideoInfo, target: Path, timing: Timing, size: tuple[int, int], settings: EncodeSettings) -> None:
    """Writes all frames of `video` to `target` in `size` (width, height), upright and in 8 bit 4:2:0.

    The copy is labeled with the matrix, range and pixel shape that the reader assumes for the source. Raises
    `DecodeError` if a frame of the source cannot be decoded without errors, or has another time.
    """
    converter: Converter | None = None
    durations, scale = timing.durations, str(timing.scale)
    # sets both time scales: MP4 stores the start of the first frame in the movie's
    options = {"movflags": "+faststart", "video_track_timescale": scale, "movie_timescale": scale}
    with av.open(str(target), "w", format="mp4", options=options) as container:
        stream = container.add_stream("libx264", rate=timing.rate, options=_codec_options(settings))
        encoder = stream.codec_context
        for index, frame in enumerate(_frames(video)):
            if converter is None:
                converter = Converter(frame, video, size, settings.size_changes)
                stream.width, stream.height = size
                encoder.sample_aspect_ratio = pixel_aspect(video, size)
                stream.pix_fmt = "yuv420p"
                encoder.time_base = Fraction(1, timing.scale)
                encoder.gop_size, encoder.max_b_frames = settings.gop, settings.b_frames
                encoder.thread_type, encoder.thread_count = "NONE", 1
                encoder.colorspace, encoder.color_range = converter.matrix, converter.range
                encoder.color_primaries, encoder.color_trc = frame.color_primaries, frame.color_trc
            picture = converter(frame, index)
            picture.pts, picture.duration = int(timing.units[index]), int(durations[index])
            picture.time_base = Fraction(1, timing.scale)
            picture.pict_type = PictureType.NONE  # otherwise the encoder repeats the source's frame types
            container.mux(stream.encode(picture))
            watchdog.progress()
        for packet in encoder.encode_lazy(None):  # lookahead, which would take seconds
            packet.stream = stream
            container.mux(packet)
            watchdog.progress()


def _codec_options(settings: EncodeSettings) -> dict[str, str]:
    starts = f"keyint={settings.gop}:min-keyint={settings.gop}:scenecut=0:open-gop=0"
    # always the allowed number of B frames: by default x264 makes none if there is much motion, and then every frame
    # must be decoded
    skippable = f"b-pyramid=none:b-adapt=0:bframes={settings.b_frames}"
    return {"preset": settings.preset, "crf": str(settings.crf), "x264-params": f"{starts}:{skippable}"}


def _frames(video: VideoInfo) -> Iterator[av.VideoFrame]:
    """All frames in order; raises `DecodeError` if their number or times differ from those of `video`."""
    times: list[int | None] = []
    for frame in _decoded(video):
        if len(times) == video.num_frames:
            raise DecodeError(video.path, f"it holds more than the {video.num_frames} frames found at first")
        times.append(None if video.images else frame.pts)
        time_base = frame.time_base
        yield frame
    if lost := video.num_frames - len(times):
        raise DecodeError(video.path, f"{lost} of {video.num_frames} frames do not decode")
    ticks = np.array([time for time in times if time is not None])
    timed = len(ticks) == len(times) and (np.diff(ticks) > 0).all()
    if timed and time_base and not _same_times(ticks, time_base, video.ticks, video.tick):
        raise DecodeError(video.path, "the times of its decoded frames are not those of its packets")


def _decoded(video: VideoInfo) -> Iterator[av.VideoFrame]:
    if video.images:
        yield from (sound_image(path, video.max_pixels) for path in video.images)
        return
    for index, (frame, made_up) in enumerate(frames_in_order(video.path, video.max_pixels)):
        if made_up:
            raise damage_error(video.path, index)
        yield frame


def _same_times(ticks: np.ndarray, tick: Fraction, others: np.ndarray, other: Fraction) -> bool:
    ratio = tick / other
    return bool((ticks * ratio.numerator == others * ratio.denominator).all())


class Converter:
    """Turns upright, scales and reduces frames to 8 bit 4:2:0, in the matrix and range of the `first` frame."""

    def __init__(self, first: av.VideoFrame, video: VideoInfo, size: tuple[int, int], size_changes: str):
        self.matrix = first.colorspace if first.colorspace in MATRICES else BT601
        self._range_name = color_of(first)[1]
        self.range = FULL_RANGE if self._range_name == "full" else LIMITED_RANGE
        self._video, self._size, self._size_changes = video, size, size_changes
        self._layout: tuple = ()
        self._graph: Graph

    def __call__(self, frame: av.VideoFrame, index: int) -> av.VideoFrame:
        video = self._video
        way = video.way_of(frame)
        if self._size_changes == "refuse":
            check_unchanged(video, index, frame)
        layout = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, way)
        if layout != self._layout:
            self._graph, self._layout = self._build(frame, way), layout
        self._graph.vpush(frame)
        return self._graph.vpull()

    def _build(self, frame: av.VideoFrame, way: Orientation) -> Graph:
        width, height = self._size[::-1] if way.swaps_sides else self._size
        own = (MATRICES[self.matrix], self._range_name)
        scale = f"w={width}:h={height}:{self._scale(*color_of(frame))}"
        left = ":out_chroma_loc=left"  # H.264's default
        turn, upside_down = way.filters
        turn = [*turn, *([("vflip", "")] if upside_down else [])]
        if not turn:
            return filter_graph(frame, [("scale", scale + left), ("format", "yuv420p")])
        # 4:4:4, which every filter accepts: samples of 4:2:0 are centered between pixels in height but not in width,
        # and turning would exchange the two
        after = [("scale", self._scale(*own) + left), ("format", "yuv420p")]
        return filter_graph(frame, [("scale", scale), ("format", "yuv444p"), *turn, *after])

    def _scale(self, matrix: str, source_range: str) -> str:
        colors = f"in_color_matrix={matrix}:out_color_matrix={MATRICES[self.matrix]}"
        return f"flags=bicubic+{SCALE_FLAGS}:{colors}:in_range={source_range}:out_range={self._range_name}"


def pixel_aspect(video: VideoInfo, size: tuple[int, int]) -> Fraction:
    """The aspect of a copy's pixels, from that of the source and the rounding of sides.

    Square pixels stay square: the rounding, up to half a pixel, is ignored for them.
    """
    if video.aspect == 1:
        return Fraction(1)
    stretch = Fraction(video.width * size[1], video.height * size[0])
    return (video.aspect * stretch).limit_denominator(MOST_ASPECT)


def verify(video: VideoInfo, copy: Path, timing: Timing, size: tuple[int, int]) -> None:
    """Reads the file `copy`; raises `DecodeError` for `video` unless it has the same frames at the same times."""
    try:
        copied = read_metadata(str(copy))
        with opened(str(copy)) as (container, stream):
            decoded = 0
            for _ in container.decode(stream):
                decoded += 1
                watchdog.progress()
    except DecodeError as error:
        raise DecodeError(video.path, f"its copy cannot be read: {error.cause}") from error
    problems = []
    if not decoded == copied.num_frames == video.num_frames:
        problems.append(f"{decoded} frames of {video.num_frames}")
    elif not _same_times(copied.ticks, copied.tick, timing.units, Fraction(1, timing.scale)):
        problems.append("other frame times")
    if copied.aspect != pixel_aspect(video, size):
        problems.append(f"pixels of {copied.aspect} for {pixel_aspect(video, size)}")
    if (copied.width, copied.height) != size or copied.orientation != Orientation():
        mirrored = "mirrored and " * copied.mirrored
        problems.append(
            f"{copied.width}x{copied.height} {mirrored}turned by {copied.rotation} for {size[0]}x{size[1]} upright"
        )
    if problems:
        raise DecodeError(video.path, f"its copy came out wrong: {', '.join(problems)}")
