"""Converts a decoded frame to the pixels of a view: crops and scales the coded picture, then rotates and mirrors it.

Before a filter that does not accept a format, libavfilter inserts a conversion that knows neither the color matrix nor
the range. So only filters that accept every format come before the scale filter, which is given both.
"""

import ctypes
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

import av
import av.frame
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.decoding.video import Orientation, VideoInfo, displayed_size, orientation_of

# Matrix coefficients (ITU-T H.273, table 4) -> their name in the scale filter
MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
# Video without a matrix is read as BT.601 at any size, as by the readers with which published weights were trained
UNLABELED = "bt601"
FULL_RANGE = 2

# Both are antialiased when shrinking; bicubic is sharper, bilinear faster
INTERPOLATIONS = ("bicubic", "bilinear")
# Frames with another size than the first are scaled to it, as players do, or refused with an error
SIZE_CHANGES = ("scale", "refuse")
# Frames are scaled to planar RGB in one pass: with packed RGB or scaled YUV in between, swscale's shortcuts darken
# pictures by a level. Without accurate_rnd some pixels differ by one level, depending on the processor
SCALE_FLAGS = "accurate_rnd+full_chroma_int"

SLOW_GATHER = 0x2000000  # AV_CPU_FLAG_SLOW_GATHER of libavutil/cpu.h, on x86
DETECT = -1  # detects the processor's flags again


def color_of(frame: av.VideoFrame) -> tuple[str, str]:
    """The color matrix and the range of a frame, by their names in the scale filter."""
    full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    return MATRICES.get(frame.colorspace, UNLABELED), "full" if full else "limited"


def filter_graph(frame: av.VideoFrame, filters: Sequence[tuple[str, str]]) -> Graph:
    """A chain of `filters` (name, options) for frames like `frame`, on one thread."""
    disable_slow_gather()
    graph = Graph()  # no filter in it uses times, so any time base works
    graph.threads = 1
    last: FilterContext = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1)
    )
    for name, options in [*filters, ("buffersink", "")]:
        following = graph.add(name, options)
        last.link_to(following)
        last = following
    graph.configure()
    return graph


def unpacked(frame: av.VideoFrame) -> list[tuple[str, str]]:
    """Filters that convert a format that the crop filter does not accept to planes with the same values: packed pixels
    that share color samples, and single bits. Empty for other formats."""
    pixels = frame.format
    across, planes = 4 // pixels.chroma_width(4), {part.plane for part in pixels.components}
    if pixels.is_bit_stream:
        target = "gray"
    elif across > 1 and len(planes) == 1:
        bits = pixels.components[0].bits
        target = ("yuv422p" if across == 2 else "yuv411p") + (f"{bits}le" if bits > 8 else "")
    else:
        return []
    return [("scale", f"flags={SCALE_FLAGS}:{_same_colors(frame)}"), ("format", target)]


def resized(frame: av.VideoFrame, width: int, height: int) -> list[tuple[str, str]]:
    """Filters that scale a frame to another size in its own format (after `unpacked`) and colors; a palette becomes
    RGB."""
    own = "gbrp" if frame.format.has_palette else frame.format.name
    target = [options for name, options in unpacked(frame) if name == "format"] or [own]
    scale = f"w={width}:h={height}:flags=bicubic+{SCALE_FLAGS}:{_same_colors(frame)}"
    return [("scale", scale), ("format", target[0])]


def _same_colors(frame: av.VideoFrame) -> str:
    """Options with which the scale filter does not change matrix and range."""
    matrix, own = color_of(frame)
    return f"in_color_matrix={matrix}:out_color_matrix={matrix}:in_range={own}:out_range={own}"


@dataclass(eq=False)
class ViewConverter:
    """Crops frames to `crop` and scales them to `size` (height, width), as uint8 RGB.

    In the coded picture the crop's corner is moved left and up to the next pixel with its own color sample, by at most
    one pixel in 4:2:0 video. A rotated view equals, byte for byte, the rotated view of the upright picture.
    """

    crop: Crop  # in pixels of the displayed frame
    size: tuple[int, int]
    orientation: Orientation | None  # orientation of all frames; None: that of each frame
    interpolation: str = "bicubic"  # one of `INTERPOLATIONS`
    shape: tuple[int, int] | None = None  # (width, height) as displayed, to which frames are scaled first, if any
    # (width, height) in square pixels, if the crop is in these; its edges are rounded to the frames' pixels
    shown: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        self._upside_down = False
        self._layout: tuple[object, ...] = ()
        self._graph: Graph

    @classmethod
    def of(cls, video: VideoInfo, crop: Crop, size: tuple[int, int], interpolation: str = "bicubic") -> "ViewConverter":
        """The converter for frames of `video`."""
        orientation = None if video.images else video.orientation
        shown = (video.width, video.height) if video.pixels_of else None
        return cls(crop, size, orientation, interpolation, video.picture, shown)

    def __call__(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Writes the view of `frame` into `out`, uint8 [3 h w]."""
        way = orientation_of(frame) if self.orientation is None else self.orientation
        layout = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, way)
        if layout != self._layout:
            self._graph, self._layout = self._build(frame, way), layout
        self._graph.vpush(frame)
        view = self._graph.vpull()
        rows = slice(None, None, -1 if self._upside_down else 1)
        for channel, plane in zip((1, 2, 0), view.planes, strict=True):  # green, blue, red: the order of gbrp
            lines = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
            out[channel] = lines[rows, : view.width]

    def _build(self, frame: av.VideoFrame, way: Orientation) -> Graph:
        height, width = self.size[::-1] if way.swaps_sides else self.size
        turn, self._upside_down = way.filters
        matrix, source_range = color_of(frame)
        coded = (frame.width, frame.height) if self.shape is None else displayed_size(*self.shape, way)
        whole = self.shape is not None and (self.crop.width, self.crop.height) == (self.shown or self.shape)
        if coded == (frame.width, frame.height):
            part = [("crop", self._crop_options(frame, way, *coded))]
        elif whole:  # the final scale suffices
            part = []
        else:
            part = [*resized(frame, *coded), ("crop", self._crop_options(frame, way, *coded))]
        scale = f"w={width}:h={height}:flags={self.interpolation}+{SCALE_FLAGS}"
        scale += f":in_color_matrix={matrix}:in_range={source_range}:out_range=full"
        flip = [("hflip", "")] if self.crop.flip else []
        filters = [*unpacked(frame), *part, ("scale", scale), ("format", "gbrp"), *turn, *flip]
        return filter_graph(frame, filters)

    def _crop_options(self, frame: av.VideoFrame, way: Orientation, coded_width: int, coded_height: int) -> str:
        # number of luma samples that share a color sample
        across, down = 4 // frame.format.chroma_width(4), 4 // frame.format.chroma_height(4)
        crop = self._box(*displayed_size(coded_width, coded_height, way))
        left, top, width, height = way.coded_box(crop, coded_width, coded_height)
        left, top = left - left % across, top - top % down
        return f"w={width}:h={height}:x={left}:y={top}:exact=1"

    def _box(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The crop (left, top, width, height) in a picture of `width` and `height`."""
        crop = self.crop
        if self.shown is None:
            return crop.left, crop.top, crop.width, crop.height
        left, across = _edges(crop.left, crop.width, self.shown[0], width)
        top, down = _edges(crop.top, crop.height, self.shown[1], height)
        return left, top, across, down


class BilinearPictures:
    """Views of a frame that is scaled as a whole RGB picture, as by OpenCV's INTER_LINEAR: it interpolates between the
    four nearest pixels, without antialiasing. All boxes of a scaled frame share the scaling."""

    def __init__(self, video: VideoInfo, interpolation: str):
        shown = video.width, video.height
        self._whole = np.empty((3, *shown[::-1]), np.uint8)
        self._convert = ViewConverter.of(video, Crop(0, 0, *shown), shown[::-1], interpolation)
        self._scaled: dict[tuple[int, int], np.ndarray] = {}

    def show(self, frame: av.VideoFrame) -> None:
        """Sets the frame for the next views."""
        self._convert(frame, self._whole)
        self._scaled.clear()

    def view(self, crop: Crop, out: np.ndarray) -> None:
        """Writes a view of the current frame into `out`, uint8 [3 h w]."""
        size = crop.scaled
        if size is not None and size not in self._scaled:
            self._scaled[size] = resize_bilinear(self._whole, *size[::-1])
        picture = self._whole if size is None else self._scaled[size]
        box = picture[:, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
        view = resize_bilinear(box, *out.shape[1:])
        out[:] = view[:, :, ::-1] if crop.flip else view


def resize_bilinear(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [3 h w] -> [3 height width], in the fixed-point arithmetic of OpenCV's resize with INTER_LINEAR: weights
    are 2048ths, the sum of two pixels of a row is truncated to 128ths of a level, that of two rows to quarters, and
    then rounded."""
    if picture.shape[1:] == (height, width):
        return picture
    rows, down = _neighbors(picture.shape[1], height)
    columns, across = _neighbors(picture.shape[2], width)
    across = np.where(columns[0] == columns[1], np.array([[2048], [0]], np.int32), across)
    read, places = np.unique(rows, return_inverse=True)
    lines = picture[:, read]

    mixed, right = (np.take(lines, columns[side], axis=2) * across[side] for side in (0, 1))
    mixed += right
    mixed >>= 4
    above, below = (np.take(mixed, places.reshape(rows.shape)[side], axis=1) for side in (0, 1))
    for line, weight in ((above, down[0]), (below, down[1])):
        line *= weight[:, None]
        line >>= 16
    above += below
    above += 2
    above >>= 2
    return above.astype(np.uint8)


def _neighbors(pixels: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The two of `pixels` between which each of `wanted` pixels lies, int64 [2 wanted], and their weights, int32 of
    2048ths."""
    places = ((np.arange(wanted) + 0.5) * (pixels / wanted) - 0.5).astype(np.float32)
    first = np.floor(places).astype(np.int64)
    share = (places - first).astype(np.float32)
    weights = np.rint(np.stack((1 - share, share)) * 2048).astype(np.int32)
    return np.stack((first, first + 1)).clip(0, pixels - 1), weights


def _edges(begin: int, length: int, shown: int, pixels: int) -> tuple[int, int]:
    """Scales an interval of `length` from `begin`, in units of `shown`, to `pixels`: (start, length of at least
    one)."""
    first = min(round(begin * pixels / shown), pixels - 1)
    return first, max(1, round((begin + length) * pixels / shown) - first)


def allow_gather(allowed: bool) -> bool:
    """Sets whether scalers that swscale sets up later in this process may use gather instructions. Returns False and
    changes nothing on processors other than x86-64, or if libavutil's functions are not found.

    swscale shrinks a row with AVX2's gather instructions or with plain loads; the results are equal. FFmpeg avoids
    gathers only on AMD's processors up to Zen 3. They are slow on later ones too, and on most of Intel's since the
    microcode against Gather Data Sampling; elsewhere the difference is small. On Zen 5 a box of 720 x 720 took twice as
    long with them (experiments/benchmarks/decoding).
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    try:
        # the module is linked to libavutil, so its functions are found here
        libavutil = ctypes.CDLL(av.frame.__file__)
        read, force = libavutil.av_get_cpu_flags, libavutil.av_force_cpu_flags
    except (OSError, AttributeError):
        return False
    force(DETECT)
    if not allowed:
        force(read() | SLOW_GATHER)
    return True


@cache
def disable_slow_gather() -> bool:
    """Forbids gather instructions in this process; later calls have no effect."""
    return allow_gather(False)
