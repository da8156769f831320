"""What all charts share: colors, plain axes, PNG files, and names in any script.

A character that no font of this machine has is replaced by Latin letters if its Unicode name gives them (kana, hangul,
emoji). Other names are replaced by a number, which a `Legend` explains.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, get_data_path, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator
from numpy.typing import ArrayLike

from vidtrain.files.escaping import legend_of, shown, shown_lines

# Okabe and Ito (2008): color-blind readers can distinguish these too
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
DOTS_PER_INCH = 150
NAME_LENGTH = 26  # columns of a class's name
MOST_PIXELS = 40e6  # limit of a picture: drawing takes about ten bytes of memory for each
MOST_ACROSS = 30_000  # pixels: limit of a picture's width and height

DEFAULT = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
LAST_RESORT = "LastResort"  # a font whose glyphs are boxes that stand for a script
INVISIBLE = ("Cf", "Mn", "Me")  # joiners, variation selectors and marks: they only modify another character
BETWEEN = " -_·"  # characters between two words of one name
SPELLED = re.compile(r"(?:HANGUL SYLLABLE|(?:HIRAGANA|KATAKANA) LETTER(?: SMALL)?) ([A-Z]+)")
FLAG_LETTER = "REGIONAL INDICATOR SYMBOL LETTER "

# --- axes and files ---------------------------------------------------------------------------------------


def style(axes: Axes, title: str, across: str = "") -> None:
    """Gives the axes a title on the left and a pale grid; `across` labels the horizontal axis."""
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.set_xlabel(across, fontsize=9)
    axes.tick_params(labelsize=8.5)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Labels the rows of the axes with `names`, the first on top."""
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)


def write_beside(axes: Axes, text: str, place: tuple[float, float], offset: tuple[float, float], **look: Any):
    """Writes a text at an `offset` in points from a `place` in the axes' coordinates."""
    axes.annotate(text, place, xytext=offset, textcoords="offset points", **look)


def color_bar(figure: Figure, image: ScalarMappable, label: str = "", **where: Any) -> None:
    bar = figure.colorbar(image, **where)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0)
    bar.set_label(label, fontsize=9)


def spread_evenly(count: int, most: int) -> list[int]:
    """Up to `most` of the indices below `count`, evenly spread, both ends included."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()


def thinned(places: ArrayLike, values: ArrayLike, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Averages n `places` and `values` [n ...] over at most `most` stretches of equal length. Returns for each stretch
    the mean place, and the mean, lowest and highest finite value, which are NaN if none is finite."""
    places, values = np.asarray(places, np.float64), np.ma.masked_invalid(values)
    length = max(1, -(-len(places) // most))
    starts = np.arange(0, len(places), length)
    finite = ~np.ma.getmaskarray(values)
    counts = np.add.reduceat(finite.astype(np.float64), starts)
    low = np.minimum.reduceat(values.filled(np.inf), starts)
    high = np.maximum.reduceat(values.filled(-np.inf), starts)
    with np.errstate(invalid="ignore"):
        means = np.add.reduceat(values.filled(0.0), starts) / counts
    sizes = np.diff([*starts, len(places)])
    # the mean of equal values can differ from them by rounding, so it is clipped
    means, low, high = (np.where(counts > 0, column, np.nan) for column in (means.clip(low, high), low, high))
    return np.add.reduceat(places, starts) / sizes, means, low, high


def save_png(figure: Figure, path: Path) -> None:
    """Saves a figure. The file is replaced in one step, as a reader may open it at any time. NAME_names.txt beside it
    lists names that no font here can draw. A figure too large for memory is drawn with fewer pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = prepare(figure).write(path)
    if names is not None:
        _add_note(figure, f"#1 and so on: names in {names.name}, which no font here has (install one, such as Noto)")
    width, height = figure.get_size_inches()
    finest = min(math.sqrt(MOST_PIXELS / (width * height)), MOST_ACROSS / max(width, height))
    temporary = path.with_name(f".{path.name}.tmp")
    FigureCanvasAgg(figure).print_figure(
        temporary, dpi=min(DOTS_PER_INCH, finest), format="png", bbox_inches="tight", pad_inches=0.15
    )
    temporary.replace(path)


def _add_note(figure: Figure, note: str) -> None:
    """Adds a line of text below the figure's content."""
    figure.draw_without_rendering()
    box = figure.get_tightbbox(FigureCanvasAgg(figure).get_renderer())
    width, height = figure.get_size_inches()
    figure.text(box.x0 / width, box.y0 / height - 0.1 / height, note, va="top", fontsize=8, color="0.35")


# --- fonts and their characters ---------------------------------------------------------------------------


@cache
def _characters(path: str) -> frozenset[int]:
    """The code points that a font has; none if it cannot be drawn, such as a font of colored bitmaps."""
    try:
        font = FT2Font(path)
        codes = frozenset(font.get_charmap())
        font.set_size(12, 72)
        if codes:
            font.load_char(max(codes))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
    return codes


@cache
def _fonts() -> tuple[tuple[str, str], ...]:
    """(family, path) of the upright fonts of normal weight on this machine, those without serifs first. matplotlib
    caches its list of fonts; fonts installed since then are added to it."""
    manager = font_manager.fontManager
    for path in sorted(set(font_manager.findSystemFonts()) - {font.fname for font in manager.ttflist}):
        try:
            manager.addfont(path)
        except Exception:  # a damaged font may raise anything, and other fonts remain
            continue
    plain = {
        (font.name, font.fname)
        for font in manager.ttflist
        if font.style == "normal"
        and font.weight in (400, "normal", "regular", "book")
        and font.stretch in ("normal", 400)
        and LAST_RESORT not in Path(font.fname).name
    }
    return tuple(sorted(plain, key=lambda font: ("Sans" not in font[0], "Mono" in font[0], font)))


@cache
def _covering(codes: frozenset[int]) -> tuple[tuple[str, str], ...]:
    """(family, path) of fonts that together have the `codes`, as far as possible. Greedy: each next font is the one
    with most of the remaining codes."""
    chosen: list[tuple[str, str]] = []
    while codes and _fonts():
        best = max(_fonts(), key=lambda font: len(codes & _characters(font[1])))
        if not codes & _characters(best[1]):
            break
        chosen.append(best)
        codes -= _characters(best[1])
    return tuple(chosen)


def _lacking(text: str) -> frozenset[int]:
    """The code points that the default font lacks."""
    return frozenset(map(ord, text)) - _characters(str(DEFAULT)) - {ord("\n")}


def _fonts_for(text: str) -> tuple[tuple[str, str], ...]:
    """(family, path) of fonts for the characters of a text that the default font lacks."""
    # invisible characters alone are no reason to use another font
    return _covering(frozenset(code for code in _lacking(text) if not _invisible(chr(code))))


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in INVISIBLE


# --- replacing characters that no font has ----------------------------------------------------------------


class Legend:
    """Numbers, from 1, that stand for names that cannot be drawn."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, name: str) -> str:
        return f"#{self.numbers.setdefault(name, len(self.numbers) + 1)}"

    def write(self, picture: Path) -> Path | None:
        """Writes NAME_names.txt beside a picture, or removes an earlier one if there are no numbers."""
        path = legend_of(picture)
        if not self.numbers:
            path.unlink(missing_ok=True)
            return None
        lines = (f"#{number}\t{name}\n" for name, number in self.numbers.items())
        path.write_text("".join(lines), encoding="utf-8")
        return path


# matches the kinds (`_kind`) of a name's characters, so that the whole name gets one number: its letters, their marks,
# and the characters between its words
ABSENT_NAME = re.compile(r"a[agi]*(?:b[gi]*a[agi]*)*")


def drawable(text: str, legend: Legend) -> str:
    """A text that the fonts of this machine can draw: names that they cannot draw are replaced by Latin letters, or by
    a number of `legend`."""
    if text.isascii() and text.isprintable():
        return text
    text = shown_lines(unicodedata.normalize("NFC", text))
    absent = _lacking(text).difference(*(_characters(path) for _, path in _fonts_for(text)))
    if not absent:
        return text
    kinds = "".join(_kind(character, absent) for character in text)
    parts, end = [], 0
    for name in ABSENT_NAME.finditer(kinds):
        parts += [text[end : name.start()], _replaced(text[name.start() : name.end()], legend)]
        end = name.end()
    # invisible characters that no font has are left out
    drawn = "".join([*parts, text[end:]])
    gone = {code: None for code in absent if _invisible(chr(code))}
    return re.sub(" +", " ", drawn.translate(gone)).strip(" ")


def _kind(character: str, absent: frozenset[int]) -> str:
    """A letter for the kind of a character. Visible: a (absent from all fonts), b (between words), d (drawable).
    Invisible: g (absent), i (drawable)."""
    if _invisible(character):
        return "g" if ord(character) in absent else "i"
    if ord(character) in absent:
        return "a"
    return "b" if character in BETWEEN else "d"


def _replaced(name: str, legend: Legend) -> str:
    """The replacement of a name that cannot be drawn: simpler characters, Latin letters, or a number."""
    simple = "".join(part for part in unicodedata.normalize("NFKD", name) if not _invisible(part))
    if simple.strip() and not _lacking(simple):
        return simple
    spelled = [_spelled(character) for character in name if not _invisible(character)]
    return legend.number(name) if None in spelled else "".join(filter(None, spelled))


def _spelled(character: str) -> str | None:
    """A character in Latin letters, from its Unicode name; None if the name gives none."""
    name, category = unicodedata.name(character, ""), unicodedata.category(character)
    if character in BETWEEN:
        return character
    if letters := SPELLED.fullmatch(name):
        return letters[1].lower()
    if name.startswith(FLAG_LETTER):
        return name[-1]
    if category == "Sk":  # the skin color of the emoji before it
        return ""
    return f" {name.lower()} " if category == "So" and name else None


def shortened(name: str, length: int = NAME_LENGTH) -> str:
    """A name on one line, in at most `length` columns. Characters of East Asian scripts take two."""
    name = shown(name)
    widths = np.cumsum([_columns(character) for character in name])
    if not name or widths[-1] <= length:
        return name
    return name[: int(np.searchsorted(widths, length - 1, side="right"))] + "…"


def _columns(character: str) -> int:
    if _invisible(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


# --- matplotlib and Pillow --------------------------------------------------------------------------------


def prepare(figure: Figure) -> Legend:
    """Makes every text of a figure drawable, sets fonts that have its characters, and turns formulas off, so that a $
    is drawn as it is. Returns the legend of texts that became numbers, which the caller writes."""
    legend = Legend()
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)]
    for axis in axes:
        # the texts of named ticks are set only when drawn, so they are replaced here
        if isinstance(axis.get_major_locator(), FixedLocator):
            labels = [label.get_text() for label in axis.get_ticklabels()]
            drawn = [drawable(name, legend) for name in labels]
            if drawn != labels:
                axis.set_ticklabels(drawn)
    texts = [artist for artist in figure.findobj(Text) if isinstance(artist, Text)]
    for text in texts:
        text.set_parse_math(False)
        text.set_text(drawable(text.get_text(), legend))
    families_needed = [family for family, _ in _fonts_for("".join(text.get_text() for text in texts))]
    if families_needed:
        families = [*rcParams["font.family"], *families_needed]
        for axis in axes:
            axis.set_tick_params(labelfontfamily=families)
        for text in texts:
            text.set_fontfamily(families)
    return legend


def runs(text: str) -> list[tuple[str, str]]:
    """(path of a font, part) of a text that `drawable` returned. Pillow draws with one font at a time."""
    fonts = [str(DEFAULT), *(path for _, path in _fonts_for(text))]
    parts: list[tuple[str, str]] = []
    for character in text:
        code = ord(character)
        if parts and (_invisible(character) or character == " " or code in _characters(parts[-1][0])):
            parts[-1] = (parts[-1][0], parts[-1][1] + character)
        else:
            parts.append((next((path for path in fonts if code in _characters(path)), fonts[0]), character))
    return parts
