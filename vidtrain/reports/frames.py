"""Draws frames of videos: the clips that a model saw with its heat maps, its mistakes, and its answers over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from vidtrain.reports.charts import (
    COLORS,
    DEFAULT,
    color_bar,
    runs,
    save_png,
    shortened,
    spread_evenly,
    thinned,
    write_beside,
)

MOST_WRONG = 16  # videos on a sheet of mistakes
WRONG_FRAMES = 5  # frames of each
STRIP_WIDTH = 6.0  # inches: the width of a video's frames
TRUE, PREDICTED = "#1a7f37", "#c2410c"
SEEN_FRAMES = 8  # frames of a clip on a contact sheet
MOST_CLIPS = 4
CELL, TOP = 1.55, 2.6  # inches: the width of a frame, and the height of the part above all frames
MOST_CLASSES = 12  # classes of a timeline
MOST_WINDOWS = 4000  # columns of a timeline; more windows are averaged
OTHER = "0.55"  # the color of classes without a color of their own
HEAT = colormaps["inferno"]
MOST_OPAQUE = 0.7
ROW, MARGIN = 20, 6  # pixels: the height of a caption's row, and its margin
STRIP = 10  # pixels: the height of the strip that shows where in the video a frame is

Color = tuple[int, int, int]
Box = tuple[int, int, int, int]  # left, top, width, height in pixels of the picture
Span = tuple[float, float, Color | str]  # start and end as shares of the whole, and a color
Wrong = tuple[str, str, float]  # the true class, the predicted class and its probability
Stretch = tuple[float, float, int]  # start and end in seconds of a video, and the predicted class

BACKGROUND, BAR, PALE_BAR = (24, 24, 27), (0, 114, 178), (30, 87, 119)
TEXT, PALE, EMPTY = (244, 244, 245), (161, 161, 170), (54, 54, 57)


# --- mistakes ---------------------------------------------------------------------------------------------


def plot_wrong(strips: Sequence[np.ndarray], wrong: Sequence[Wrong], title: str, path: Path) -> None:
    """Draws a strip of frames uint8 [t h w 3] for each of `wrong`, with both classes and the probability below it."""
    columns = min(2, len(wrong))
    lines = -(-len(wrong) // columns)
    pictures = [side_by_side(frames) for frames in strips]
    ratio = max(picture.shape[0] / picture.shape[1] for picture in pictures)
    size = (STRIP_WIDTH * columns, (STRIP_WIDTH * ratio + 0.4) * lines + 0.45)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    for number, (picture, (true, predicted, probability)) in enumerate(zip(pictures, wrong, strict=True), start=1):
        axes = figure.add_subplot(lines, columns, number)
        axes.imshow(picture, interpolation="nearest" if picture.shape[0] < 100 else "auto")
        axes.set_axis_off()
        answer = f"predicted: {shortened(predicted)} {few_digits(probability)}"
        below = {"xycoords": "axes fraction", "va": "top", "fontsize": 8.5}
        write_beside(axes, f"true: {shortened(true)}", (0, 0), (0, -4), ha="left", color=TRUE, **below)
        write_beside(axes, answer, (1, 0), (0, -4), ha="right", color=PREDICTED, **below)
    save_png(figure, path)


def few_digits(probability: float) -> str:
    """A probability with two decimals or, below 0.01, with one digit, such as 0.002 or 5e-05: with thousands of classes
    even the most probable may be that small."""
    return f"{probability:.2f}" if probability >= 0.01 else f"{probability:.1g}"


def side_by_side(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [t h w 3] as one picture, with a white line between them."""
    gap = max(1, frames.shape[2] // 40)
    framed = np.pad(frames, ((0, 0), (0, 0), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(framed), axis=1)[:, :-gap]


# --- the clips that a model saw ---------------------------------------------------------------------------


@dataclass(frozen=True)
class SeenClip:
    """One clip as the model saw it: `frames` uint8 [t h w 3] at `times` [t] in seconds. `heat` [a b c], 0 to 1 over
    time, height and width, shows where the model looked, and `shares` [a] are the shares of the clip's heat; or both
    are None."""

    name: str
    frames: np.ndarray
    times: np.ndarray
    heat: np.ndarray | None
    shares: np.ndarray | None


def draw_contact_sheet(
    path: Path,
    title: str,
    note: str,
    top: Sequence[tuple[str, float]],
    frame: np.ndarray,
    boxes: Sequence[Box],
    clips: Sequence[SeenClip],
) -> None:
    """Draws the whole `frame`, uint8 [h w 3], with the `boxes` that the model saw; the `top` classes with
    probabilities; and up to 8 frames of each of the first 4 clips, as the model saw them, and again with the heat
    map."""
    shown = clips[:MOST_CLIPS]
    height, width = clips[0].frames.shape[1:3]
    lines = len(shown) * (1 if clips[0].heat is None else 2)
    frame_inches = lines * (CELL * min(height / width, 2) + 0.25)
    figure = Figure(figsize=(CELL * SEEN_FRAMES + 0.6, TOP + frame_inches), layout="constrained")
    parts = figure.add_gridspec(2, 1, height_ratios=[TOP, frame_inches])
    above, below = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
    above.suptitle(title, fontsize=11, x=0.01, ha="left")
    whole, bars = above.subplots(1, 2, width_ratios=[1, 1.4])
    for box in boxes:
        frame = outlined(frame, box)
    whole.imshow(frame)
    whole.set_axis_off()
    whole.set_title("whole frame, and the part that the model sees", fontsize=8)
    _draw_top(bars, top)
    rows = iter(below.subplots(lines, SEEN_FRAMES, squeeze=False))
    for clip in shown:
        places = spread_evenly(len(clip.frames), SEEN_FRAMES)
        labels = [f"{clip.times[place]:.2f} s" for place in places]
        _draw_frames(next(rows), list(clip.frames[places]), labels, f"{clip.name}\nas seen")
        if clip.heat is not None and clip.shares is not None:
            steps = [step_of(place, len(clip.frames), len(clip.heat)) for place in places]
            heated = [shade(clip.frames[place], clip.heat[step]) for place, step in zip(places, steps, strict=True)]
            # a step of the heat map may cover several frames: its share stands below the first
            labels = [f"{clip.shares[step]:.0%}" if step not in steps[:at] else "…" for at, step in enumerate(steps)]
            _draw_frames(next(rows), heated, labels, "heat")
    hidden = f" {len(clips) - len(shown)} more clips are not shown." if len(clips) > len(shown) else ""
    below.supxlabel(note + hidden, fontsize=7.5, x=0.01, ha="left", color="0.35")
    save_png(figure, path)


def step_of(place: int, frames: int, steps: int) -> int:
    """The step of a heat map, of `steps` equal ones, to which frame `place` of `frames` belongs."""
    return place * steps // frames


def _draw_top(axes: Axes, top: Sequence[tuple[str, float]]) -> None:
    shares = [share for _, share in top]
    bars = axes.barh(range(len(top)), shares, color=[COLORS[0], *["#9DC3DE"] * (len(top) - 1)])
    axes.bar_label(bars, [f"{share:.1%}" for share in shares], fontsize=8, padding=2)
    axes.set_yticks(range(len(top)), [shortened(name) for name, _ in top], fontsize=8)
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _draw_frames(row: np.ndarray, pictures: Sequence[np.ndarray], labels: Sequence[str], name: str) -> None:
    for axes, picture, label in zip(row, pictures, labels, strict=False):
        axes.imshow(picture)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_xlabel(label, fontsize=7.5, labelpad=1)
    for axes in row[len(labels) :]:
        axes.set_axis_off()
    row[0].set_ylabel(name, fontsize=7.5)


# --- answers over time ------------------------------------------------------------------------------------


def draw_timeline(
    path: Path,
    title: str,
    classes: Sequence[str],
    edges: np.ndarray,
    probabilities: np.ndarray,
    stretches: Sequence[Stretch],
) -> None:
    """Draws the `probabilities` [w k] of w windows as a map, with a row for each class, and the answers above it.

    Window i lasts from edges[i] to edges[i + 1] seconds; windows that could not be read are NaN. Up to 12 classes are
    shown: those that are the answer for longest, then those with the largest mean.
    """
    chosen = shown_classes(probabilities, stretches)
    colors = dict(zip(chosen, [*COLORS, *[OTHER] * MOST_CLASSES], strict=False))
    windows_per_column = max(1, -(-len(probabilities) // MOST_WINDOWS))
    shown = thinned(edges[:-1], probabilities[:, chosen], MOST_WINDOWS)[1]
    edges = np.append(edges[:-1:windows_per_column], edges[-1])
    height = 0.32 * len(chosen)
    figure = Figure(figsize=(13, 1.9 + height), layout="constrained")
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    answers, axes = figure.subplots(2, 1, sharex=True, height_ratios=[0.5, height + 0.3])
    for start, end, number in stretches:
        answers.axvspan(start, end, facecolor=colors.get(number, OTHER), linewidth=0)
        if end - start > 0.09 * (edges[-1] - edges[0]):
            look = {"ha": "center", "va": "center", "fontsize": 8, "color": "white", "clip_on": True}
            answers.text((start + end) / 2, 0.5, shortened(classes[number]), **look)
    answers.set_yticks([0.5], ["answer"], fontsize=9)
    answers.set_ylim(0, 1)
    answers.tick_params(length=0, labelbottom=False)
    answers.spines[:].set_visible(False)
    rows = np.arange(len(chosen) + 1) - 0.5
    axes.set_facecolor("0.85")  # shows where windows could not be read
    image = axes.pcolormesh(edges, rows, np.ma.masked_invalid(shown.T), cmap="Blues", vmin=0, vmax=1, rasterized=True)
    axes.set_yticks(range(len(chosen)), [shortened(classes[index]) for index in chosen], fontsize=9)
    for index, label in zip(chosen, axes.get_yticklabels(), strict=True):
        label.set_color(colors[index])
    axes.invert_yaxis()
    axes.hlines(rows[1:-1], edges[0], edges[-1], colors="white", linewidth=1)
    _label_times(axes, float(edges[0]), float(edges[-1]))
    color_bar(figure, image, "probability", ax=[answers, axes], fraction=0.02, pad=0.01)
    save_png(figure, path)


def _label_times(axes: Axes, start: float, end: float) -> None:
    """Sets ticks at round numbers of seconds or, beyond two minutes, of minutes."""
    minutes = end > 120
    axes.set_xlim(start, end)
    steps = [1, 1.5, 2, 3, 5, 6, 10] if minutes else [1, 2, 3, 5, 6, 10]
    unit = 60 if minutes else 1
    ticks = MaxNLocator(nbins=12, steps=steps).tick_values(start / unit, end / unit)
    axes.set_xticks([unit * tick for tick in ticks if start <= unit * tick <= end])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock_text(seconds, minutes)))
    form = "h:mm:ss" if end >= 3600 else "m:ss" if minutes else "s"
    axes.set_xlabel(f"time ({form})", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.spines[:].set_visible(False)


def shown_classes(probabilities: np.ndarray, stretches: Sequence[Stretch]) -> list[int]:
    """The classes that a timeline shows, the most important first."""
    seconds = np.zeros(probabilities.shape[1])
    for start, end, number in stretches:
        seconds[number] += end - start
    means = np.nan_to_num(np.ma.masked_invalid(probabilities).mean(axis=0).filled(0.0))
    order = np.lexsort((np.arange(probabilities.shape[1]), -means, -seconds))
    return order[:MOST_CLASSES].tolist()


def clock_text(seconds: float, minutes: bool) -> str:
    """A time as h:mm:ss or m:ss, or in plain seconds."""
    if not minutes:
        return f"{seconds:g}"
    hours, rest = divmod(round(seconds), 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


# --- frames of labeled videos -----------------------------------------------------------------------------


def shade(picture: np.ndarray, heat: np.ndarray, box: Box | None = None) -> np.ndarray:
    """`picture`, uint8 [h w 3], with `heat` [a b], 0 to 1, stretched over it or over a `box` in it. Low heat is
    transparent, so regions that the model ignores keep their colors."""
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


def outlined(picture: np.ndarray, box: Box, color: Color = (255, 255, 255)) -> np.ndarray:
    """`picture` with a thin frame around the `box`."""
    image = Image.fromarray(picture)
    left, top, width, height = box
    ImageDraw.Draw(image).rectangle((left, top, left + width - 1, top + height - 1), outline=color)
    return np.asarray(image)


def caption(width: int, title: str, rows: Sequence[tuple[str, float]], lines: int) -> np.ndarray:
    """A panel uint8 [h width 3] with a title and a bar for each (name, share) of `rows`; it has room for `lines` bars.
    Names must have passed `vidtrain.reports.charts.drawable`."""
    height = ROW * (lines + 1) + MARGIN
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    _write(draw, (MARGIN, MARGIN // 2), _fitting(title, width - 2 * MARGIN, 12), PALE, 12)
    for number, (name, share) in enumerate(rows):
        top = MARGIN + ROW * (number + 1)
        reach = round((width - 2 * MARGIN) * min(max(share, 0.0), 1.0))
        if reach:
            color = BAR if number == 0 else PALE_BAR
            draw.rectangle((MARGIN, top, MARGIN + reach, top + ROW - 5), fill=color)
        percent = f"{share:.1%}"
        room = width - 4 * MARGIN - _length(percent, 13)
        _write(draw, (MARGIN + 4, top - 1), _fitting(name, room, 13), TEXT, 13)
        _write(draw, (width - MARGIN - 2 - _length(percent, 13), top - 1), percent, TEXT, 13)
    return np.asarray(image)


def strip(width: int, spans: Sequence[Span]) -> np.ndarray:
    """A strip uint8 [h width 3] for the whole video, with its colored `spans`."""
    image = Image.new("RGB", (width, STRIP), EMPTY)
    draw = ImageDraw.Draw(image)
    for start, end, color in spans:
        draw.rectangle(
            (round(start * width), 2, max(round(end * width) - 1, round(start * width)), STRIP - 3),
            fill=color,
        )
    return np.asarray(image)


def labeled(picture: np.ndarray, panel: np.ndarray, whole: np.ndarray, at: float) -> np.ndarray:
    """Stacks `picture`, the strip `whole` with a mark at the share `at` of the video, and `panel`. Height and width are
    padded to even numbers, as video codecs require."""
    marked = whole.copy()
    column = min(int(at * marked.shape[1]), marked.shape[1] - 2)
    marked[:, max(column, 0) : column + 2] = 255
    stacked = np.concatenate([picture, marked, panel])
    even = [-side % 2 for side in stacked.shape[:2]]
    return np.pad(stacked, ((0, even[0]), (0, even[1]), (0, 0)), mode="edge")


@cache
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def _write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, color: Color, size: int) -> None:
    """Writes `text` with its top left at `place`, on the baseline of the default font."""
    left, line = place[0], place[1] + _font(str(DEFAULT), size).getmetrics()[0]
    for path, part in runs(text):
        draw.text((left, line), part, fill=color, font=_font(path, size), anchor="ls")
        left += _font(path, size).getlength(part)


def _length(text: str, size: int) -> float:
    return sum(_font(path, size).getlength(part) for path, part in runs(text))


def _fitting(text: str, width: float, size: int) -> str:
    """`text`, cut to `width` pixels."""
    if _length(text, size) <= width:
        return text
    while text and _length(text + "…", size) > width:
        text = text[:-1]
    return text + "…"
