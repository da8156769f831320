"""The videos of the benchmark: real clips as they are, and others encoded once from real clips."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
from av.filter import Graph

KINETICS = "mmaction2/tests/data/test.mp4"
COCKATOO = "imageio-binaries/images/cockatoo_yuv420.mp4"
FILM = "moviepy/media/big_buck_bunny_0_30.webm"
HD = ("mmaction2/tools/data/skeleton/S001C001P001R001A001_rgb.avi", "mmaction2/demo/demo_skeleton.mp4")


@dataclass(frozen=True)
class Video:
    """A row of the tables: `path` is None where it could not be had, and `why` says why."""

    name: str
    path: str | None
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """How one file is encoded from `clips`, one after the other, the last of them mirrored.

    `b_frames` None leaves them to the encoder's default. None of these files states its matrix.
    """

    name: str
    file: str
    clips: tuple[str, ...]
    size: tuple[int, int]
    codec: str
    gop: int
    b_frames: int | None = None
    options: dict[str, str] = field(default_factory=dict)


REAL = {
    "Kinetics clip, H.264 340x256, GOP 250, B": "mmaction2/demo/demo.mp4",
    "UCF-type avi, MPEG-4 320x240, packed B": "mmaction2/tests/data/test.avi",
}

RECIPES = (
    Recipe(
        "H.264 340x256, GOP 12, B",
        "h264_340_gop12.mp4",
        (KINETICS,),
        (340, 256),
        "libx264",
        12,
        None,
        {"crf": "20"},
    ),
    Recipe(
        "H.264 340x256, GOP 250, B",
        "h264_340_gop250.mp4",
        (KINETICS,),
        (340, 256),
        "libx264",
        250,
        None,
        {"crf": "20"},
    ),
    Recipe(
        "H.264 340x256, GOP 30, no B",
        "h264_340_gop30.mp4",
        (KINETICS,),
        (340, 256),
        "libx264",
        30,
        0,
        {"crf": "20"},
    ),
    Recipe(
        "MPEG-4 320x240 avi, GOP 12, no B",
        "mpeg4_gop12.avi",
        (KINETICS,),
        (320, 240),
        "mpeg4",
        12,
        0,
        {"b": "800k"},
    ),
    Recipe(
        "VP9 640x360",
        "vp9_360.webm",
        (COCKATOO,),
        (640, 360),
        "libvpx-vp9",
        128,
        None,
        {"b": "800k", "deadline": "good", "cpu-used": "3"},
    ),
    Recipe(
        "AV1 640x360",
        "av1_360.mp4",
        (COCKATOO,),
        (640, 360),
        "libsvtav1",
        128,
        None,
        {"crf": "32", "preset": "7"},
    ),
    Recipe(
        "H.264 1280x720, GOP 60, B",
        "h264_720_gop60.mp4",
        (COCKATOO,),
        (1280, 720),
        "libx264",
        60,
        None,
        {"crf": "21"},
    ),
    Recipe(
        "H.264 1280x720, GOP 250, B",
        "h264_720_gop250.mp4",
        (COCKATOO,),
        (1280, 720),
        "libx264",
        250,
        None,
        {"crf": "21"},
    ),
    Recipe(
        "H.264 1280x720, GOP 60, B, film",
        "h264_720_film.mp4",
        (FILM,),
        (1280, 720),
        "libx264",
        60,
        None,
        {"crf": "21"},
    ),
    Recipe(
        "HEVC 1920x1080, GOP 250, B",
        "hevc_1080.mp4",
        (*HD, HD[0]),
        (1920, 1080),
        "libx265",
        250,
        None,
        {"crf": "24", "preset": "fast", "x265-params": "log-level=none"},
    ),
)


def videos(clips: Path, folder: Path, extra: list[str]) -> list[Video]:
    """All rows. Files are made in `folder` if they are not there; `extra` adds rows, written name=path."""
    found = [_real(name, clips / path) for name, path in REAL.items()]
    found += [_made(recipe, clips, folder) for recipe in RECIPES]
    for each in extra:
        name, _, path = each.partition("=")
        found.append(_real(name, Path(path)))
    return found


def _real(name: str, path: Path) -> Video:
    return Video(name, str(path)) if path.is_file() else Video(name, None, f"no file {path}")


def _made(recipe: Recipe, clips: Path, folder: Path) -> Video:
    path = folder / recipe.file
    if path.is_file():
        return Video(recipe.name, str(path))
    if missing := [clip for clip in recipe.clips if not (clips / clip).is_file()]:
        return Video(recipe.name, None, f"no file {clips / missing[0]}")
    try:
        av.CodecContext.create(recipe.codec, "w")
    except av.codec.codec.UnknownCodecError:
        return Video(recipe.name, None, f"this FFmpeg has no encoder {recipe.codec}")
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"part_{recipe.file}"
    _encode(recipe, clips, part)
    part.rename(path)
    return Video(recipe.name, str(path))


def _encode(recipe: Recipe, clips: Path, path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(recipe.codec, rate=30, options=recipe.options)
        stream.width, stream.height = recipe.size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = recipe.gop
        stream.codec_context.time_base = Fraction(1, 30)
        if recipe.b_frames is not None:
            stream.codec_context.max_b_frames = recipe.b_frames
        for number, frame in enumerate(_frames(recipe, clips)):
            frame.pts, frame.duration, frame.time_base = number, 1, Fraction(1, 30)
            frame.pict_type = 0  # the encoder's to choose
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _frames(recipe: Recipe, clips: Path) -> Iterator[av.VideoFrame]:
    for place, clip in enumerate(recipe.clips):
        with av.open(str(clips / clip)) as container:
            stream = container.streams.video[0]
            mirrored = place > 0 and place == len(recipe.clips) - 1
            scale = ("scale", f"w={recipe.size[0]}:h={recipe.size[1]}:flags=bicubic:out_range=limited")
            graph = _graph(stream, [scale, ("format", "yuv420p"), *([("hflip", "")] if mirrored else [])])
            for frame in container.decode(stream):
                graph.push(frame)
                yield graph.pull()


def _graph(stream: av.VideoStream, filters: list[tuple[str, str]]) -> Graph:
    graph = Graph()
    last = graph.add_buffer(template=stream, time_base=stream.time_base)
    for name, options in [*filters, ("buffersink", "")]:
        following = graph.add(name, options)
        last.link_to(following)
        last = following
    graph.configure()
    return graph
