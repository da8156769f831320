"""From a decoded frame to the pixels of a view: rotate, crop, scale and mirror before there is any RGB."""

from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from av.filter import Graph
from av.filter.context import FilterContext

from vidtrain.data.augment.geometry import Crop
from vidtrain.data.gathers import avoid_gathers

# Rotation of the display matrix, in degrees counterclockwise, to the filters that carry it out.
ROTATIONS = {
    0: [],
    90: [("transpose", "cclock")],
    180: [("hflip", ""), ("vflip", "")],
    270: [("transpose", "clock")],
}

# Matrix coefficients (ITU-T H.273, table 4) to their name in the scale filter.
MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020", 10: "bt2020"}
# Unlabeled video is read as BT.601 at any size, as the readers do with which published weights were trained.
UNLABELED = "bt601"
FULL_RANGE = 2

# Both widen with the scale, so that they do not alias when shrinking; bicubic is sharper, bilinear faster.
INTERPOLATIONS = ("bicubic", "bilinear")
# One pass from source to scaled planar RGB, as nothing else is both fast and unbiased: by way of packed RGB, or of
# scaled YUV, swscale takes shortcuts that darken by a level. Without accurate_rnd swscale is off by one here and there,
# differently on different processors.
SCALE_FLAGS = "accurate_rnd+full_chroma_int"


def color_of(frame: av.VideoFrame) -> tuple[str, str]:
    """The matrix and the range that a frame is read with, as the scale filter calls them."""
    full = frame.color_range == FULL_RANGE or frame.format.name.startswith("yuvj")
    return MATRICES.get(frame.colorspace, UNLABELED), "full" if full else "limited"


def filter_graph(frame: av.VideoFrame, filters: Sequence[tuple[str, str]]) -> Graph:
    """A chain of `filters` (name, options) for frames like `frame`, on one thread."""
    avoid_gathers()
    graph = Graph()  # no filter in it looks at times, so any time base will do
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


class ViewConverter:
    """Cuts one `crop` out of frames and scales it to `size` (height, width), as uint8 RGB.

    `rotation` is the display rotation of the video in degrees counterclockwise, one of 0, 90, 180, 270, and
    `interpolation` one of `INTERPOLATIONS`. The crop's corner moves left and up to the next pixel that has a color
    sample of its own: by one pixel at most in 4:2:0 video.
    """

    def __init__(self, crop: Crop, size: tuple[int, int], rotation: int, interpolation: str = "bicubic"):
        self.crop = crop
        self.size = size
        self.rotation = rotation
        self.interpolation = interpolation
        self._layout: tuple = ()
        self._graph: Graph

    def __call__(self, frame: av.VideoFrame, out: np.ndarray) -> None:
        """Writes the view of `frame` into `out`, uint8 [3 h w]."""
        layout = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if layout != self._layout:
            self._graph, self._layout = self._build(frame), layout
        self._graph.push(frame)
        view = self._graph.pull()
        for channel, plane in zip((1, 2, 0), view.planes, strict=True):  # green, blue, red: the order of gbrp
            out[channel] = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[
                :, : view.width
            ]

    def _build(self, frame: av.VideoFrame) -> Graph:
        height, width = self.size
        matrix, source_range = color_of(frame)
        filters = [
            *ROTATIONS[self.rotation],
            ("crop", self._crop_options(frame)),
            (
                "scale",
                f"w={width}:h={height}:flags={self.interpolation}+{SCALE_FLAGS}"
                f":in_color_matrix={matrix}:in_range={source_range}:out_range=full",
            ),
            ("format", "gbrp"),
            *([("hflip", "")] if self.crop.flip else []),
        ]
        return filter_graph(frame, filters)

    def _crop_options(self, frame: av.VideoFrame) -> str:
        # how many luma samples share a color sample; the same on both sides of a quarter turn but for 4:2:2,
        # which the transpose filter turns into 4:4:4 or 4:4:0, where a coarser grid does no harm
        across, down = 4 // frame.format.chroma_width(4), 4 // frame.format.chroma_height(4)
        crop = self.crop
        left, top = crop.left - crop.left % across, crop.top - crop.top % down
        return f"w={crop.width}:h={crop.height}:x={left}:y={top}:exact=1"
