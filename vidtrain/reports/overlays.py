"""Heat maps over pictures, and captions below them, for the frames of labeled videos."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw, ImageFont

from vidtrain.reports.fonts import DEFAULT, runs

HEAT = colormaps["inferno"]
MOST_OPAQUE = 0.7
ROW, MARGIN = 20, 6  # pixels of a caption
STRIP = 10  # pixels: the height of the strip that shows where in the video a frame is
BACKGROUND, BAR, TEXT, PALE = (24, 24, 27), (0, 114, 178), (244, 244, 245), (161, 161, 170)

Box = tuple[int, int, int, int]  # left, top, width, height in pixels of the picture
Span = tuple[float, float, tuple[int, int, int]]  # from, to, as shares of the whole, and a color


def shade(picture: np.ndarray, heat: np.ndarray, box: Box | None = None) -> np.ndarray:
    """`picture`, uint8 [h w 3], with `heat` [a b] of 0 to 1 stretched over it, or over a `box` of it.

    Little heat is transparent, so what is not looked at keeps its colors.
    """
    left, top, width, height = box or (0, 0, picture.shape[1], picture.shape[0])
    if width < 1 or height < 1:
        return picture
    stretched = Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    amount = np.asarray(stretched).clip(0, 1)[..., None]
    shaded = picture.copy()
    inside = shaded[top : top + height, left : left + width]
    opacity = MOST_OPAQUE * amount
    colors = HEAT(0.25 + 0.75 * amount[..., 0])[..., :3] * 255
    inside[:] = np.round(inside * (1 - opacity) + colors * opacity)
    return shaded


def outlined(picture: np.ndarray, box: Box, color: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """`picture` with a thin frame around the `box`."""
    image = Image.fromarray(picture)
    left, top, width, height = box
    ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), outline=color)
    return np.asarray(image)


def caption(width: int, title: str, rows: Sequence[tuple[str, float]], lines: int) -> np.ndarray:
    """A panel uint8 [h width 3] with a title and the names and shares of `rows`, as bars; room for `lines` of them.

    Names are such as `vidtrain.reports.fonts.drawable` gives.
    """
    height = ROW * (lines + 1) + MARGIN
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _write(draw, (MARGIN, MARGIN // 2), _fitting(title, width - 2 * MARGIN, 12), PALE, 12)
    for number, (name, share) in enumerate(rows):
        top = MARGIN + ROW * (number + 1)
        reach = round((width - 2 * MARGIN) * min(max(share, 0.0), 1.0))
        if reach:
            color = BAR if number == 0 else tuple(value // 2 + 30 for value in BAR)
            draw.rectangle((MARGIN, top, MARGIN + reach, top + ROW - 5), fill=color)
        percent = f"{share:.1%}"
        room = width - 4 * MARGIN - _length(percent, 13)
        _write(draw, (MARGIN + 4, top - 1), _fitting(name, room, 13), TEXT, 13)
        _write(draw, (width - MARGIN - 2 - _length(percent, 13), top - 1), percent, TEXT, 13)
    return np.asarray(image)


def strip(width: int, spans: Sequence[Span]) -> np.ndarray:
    """A strip uint8 [h width 3] for the whole video, with its colored `spans`."""
    image = Image.new("RGB", (width, STRIP), tuple(value + 30 for value in BACKGROUND))
    draw = ImageDraw.Draw(image)
    for start, end, color in spans:
        draw.rectangle(
            (round(start * width), 2, max(round(end * width) - 1, round(start * width)), STRIP - 3),
            fill=color,
        )
    return np.asarray(image)


def labeled(picture: np.ndarray, panel: np.ndarray, whole: np.ndarray, at: float) -> np.ndarray:
    """`picture`, a strip of the whole video with a mark `at` a share of it, and a panel, one below the other.

    The sides come out even, as video codecs want them.
    """
    marked = whole.copy()
    column = min(int(at * marked.shape[1]), marked.shape[1] - 2)
    marked[:, max(column, 0) : column + 2] = 255
    stacked = np.concatenate([picture, marked, panel])
    even = [-side % 2 for side in stacked.shape[:2]]
    return np.pad(stacked, ((0, even[0]), (0, even[1]), (0, 0)), mode="edge")


def rgb(color: str) -> tuple[int, int, int]:
    """A color written as #RRGGBB."""
    return tuple(int(color[place : place + 2], 16) for place in (1, 3, 5))


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _write(
    draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: tuple[int, int, int], size: int
) -> None:
    """Writes `text` from `place` on, its top left, on the base line of the default font."""
    left, line = place[0], place[1] + _font(str(DEFAULT), size).getmetrics()[0]
    for path, part in runs(text):
        draw.text((left, line), part, fill=color, font=_font(path, size), anchor="ls")
        left += _font(path, size).getlength(part)


def _length(text: str, size: int) -> float:
    return sum(_font(path, size).getlength(part) for path, part in runs(text))


def _fitting(text: str, width: float, size: int) -> str:
    """`text`, cut where it is wider than `width` pixels."""
    if _length(text, size) <= width:
        return text
    while text and _length(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
