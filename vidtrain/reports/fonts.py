"""Names in any script: fonts of this machine that have their characters, and what is drawn where none has.

A picture by matplotlib goes through `prepare`, text by Pillow through `runs`. A character that no font has is spelled
in Latin letters where Unicode's names give them (kana, hangul, emoji); other names get a number, with a `Legend`.
"""

import re
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import font_manager, get_data_path, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from vidtrain.files.escaping import legend_of, shown, shown_lines

DEFAULT = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
LAST_RESORT = "LastResort"  # its glyphs are boxes that stand for a script
INVISIBLE = ("Cf", "Mn", "Me")  # joiners, variation selectors and marks: nothing without what they belong to
SPELLED = re.compile(r"(?:HANGUL SYLLABLE|(?:HIRAGANA|KATAKANA) LETTER(?: SMALL)?) ([A-Z]+)")
FLAG_LETTER = "REGIONAL INDICATOR SYMBOL LETTER "


# --- what fonts have ------------------------------------------------------------------------------------------


@cache
def _characters(path: str) -> np.ndarray:
    """The code points that a font has, sorted; none where it cannot be drawn with, as fonts of colored bitmaps."""
    try:
        font = FT2Font(path)
        codes = np.array(sorted(font.get_charmap()), dtype=np.uint32)
        font.set_size(12, 72)
        if len(codes):
            font.load_char(int(codes[-1]))
    except (OSError, RuntimeError, ValueError):
        return np.zeros(0, np.uint32)
    return codes


@cache
def _fonts() -> tuple[tuple[str, str], ...]:
    """(family, path) of the upright fonts of normal weight on this machine, those without serifs first.

    matplotlib's own list is of when it was first made; fonts that came later are added to it.
    """
    known = {each.fname for each in font_manager.fontManager.ttflist}
    for path in sorted(set(font_manager.findSystemFonts()) - known):
        try:
            font_manager.fontManager.addfont(path)
        except Exception:  # whatever is wrong with a font that nobody chose, there are others
            continue
    plain = {
        (each.name, each.fname)
        for each in font_manager.fontManager.ttflist
        if each.style == "normal"
        and each.weight in (400, "normal", "regular", "book")
        and each.stretch in ("normal", 400)
        and LAST_RESORT not in Path(each.fname).name
    }
    return tuple(sorted(plain, key=lambda each: ("Sans" not in each[0], "Mono" in each[0], each)))


@cache
def _covering(codes: frozenset[int]) -> tuple[tuple[str, str], ...]:
    """(family, path) of fonts that have `codes` between them, as far as any has: always that next which has most."""
    missing = np.array(sorted(codes), dtype=np.uint32)
    chosen: list[tuple[str, str]] = []
    while len(missing):
        counts = [np.isin(missing, _characters(path)).sum() for _, path in _fonts()]
        if not counts or max(counts) == 0:
            break
        best = _fonts()[int(np.argmax(counts))]
        chosen.append(best)
        missing = missing[~np.isin(missing, _characters(best[1]))]
    return tuple(chosen)


def _lacking(text: str) -> frozenset[int]:
    """The code points that the default font lacks."""
    codes = {ord(each) for each in text if each != "\n"}
    return frozenset(codes - _default_characters())


@cache
def _default_characters() -> frozenset[int]:
    return frozenset(_characters(str(DEFAULT)).tolist())


def _chosen(text: str) -> tuple[list[tuple[str, str]], frozenset[int]]:
    """Fonts for what the default font lacks of a text, and the code points that no font has."""
    lacking = _lacking(text)
    if not lacking:
        return [], lacking
    # the joiners are of use to the script around them, and no reason to take another font
    fonts = list(_covering(frozenset(code for code in lacking if not _invisible(chr(code)))))
    absent = (code for code in lacking if not any(_has(path, code) for _, path in fonts))
    return fonts, frozenset(absent)


def _invisible(character: str) -> bool:
    return unicodedata.category(character) in INVISIBLE


# --- what is drawn of a name ----------------------------------------------------------------------------------


class Legend:
    """Numbers for what could not be drawn, from 1."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def number(self, name: str) -> str:
        return f"#{self.numbers.setdefault(name, len(self.numbers) + 1)}"

    def write(self, picture: Path) -> Path | None:
        """Writes NAME_names.txt beside a picture, or takes away an earlier one where there is nothing to say."""
        path = legend_of(picture)
        if not self.numbers:
            path.unlink(missing_ok=True)
            return None
        lines = (f"#{number}\t{name}\n" for name, number in self.numbers.items())
        path.write_text("".join(lines), encoding="utf-8")
        return path


def drawable(text: str, legend: Legend) -> str:
    """A text as the fonts of this machine can draw it; what they cannot is spelled, or gets a number of `legend`."""
    if text.isascii() and text.isprintable():
        return text
    text = shown_lines(unicodedata.normalize("NFC", text))
    _, absent = _chosen(text)
    if not absent:
        return text
    parts: list[str] = []
    for drawn, piece in _pieces(text, absent):
        parts.append(piece if drawn else _replaced(piece, legend))
    return re.sub(" +", " ", "".join(parts)).strip(" ")


def _pieces(text: str, absent: frozenset[int]) -> list[tuple[bool, str]]:
    """A text in stretches that can (True) and cannot be drawn; marks and joiners go with what stands before them."""
    found: list[tuple[bool, str]] = []
    for character in text:
        drawn = ord(character) not in absent
        if _invisible(character):
            if found and not found[-1][0]:
                found[-1] = (False, found[-1][1] + character)
                continue
            if not drawn:  # a selector or a joiner behind what is drawn without it
                continue
        if found and found[-1][0] == drawn:
            found[-1] = (drawn, found[-1][1] + character)
        else:
            found.append((drawn, character))
    # two words of one name have one number, not two
    joined: list[tuple[bool, str]] = []
    for number, (drawn, piece) in enumerate(found):
        between = 0 < number < len(found) - 1 and piece in (" ", "-", "_", "·")
        if joined and (between and not joined[-1][0] or not drawn and not joined[-1][0]):
            joined[-1] = (False, joined[-1][1] + piece)
        else:
            joined.append((drawn, piece))
    return joined


def _replaced(piece: str, legend: Legend) -> str:
    simple = "".join(each for each in unicodedata.normalize("NFKD", piece) if not _invisible(each))
    if simple.strip() and not _lacking(simple):
        return simple
    spelled = [_spelled(each) for each in piece if not _invisible(each)]
    if None in spelled:
        return legend.number(piece)
    return "".join(filter(None, spelled))


def _spelled(character: str) -> str | None:
    """A character in Latin letters, by its name in Unicode; None where that says nothing."""
    name, category = unicodedata.name(character, ""), unicodedata.category(character)
    if character in " -_·":
        return character
    if found := SPELLED.fullmatch(name):
        return found[1].lower()
    if name.startswith(FLAG_LETTER):
        return name[-1]
    if category == "Sk":  # the color of the skin of the emoji before
        return ""
    return f" {name.lower()} " if category == "So" and name else None


def shortened(name: str, length: int) -> str:
    """A name on one line, in at most so many columns, of which the characters of East Asian scripts take two."""
    name = shown(name)
    widths = [_columns(each) for each in name]
    if sum(widths) <= length:
        return name
    kept, used = 0, 1  # the dots
    while kept < len(name) and used + widths[kept] <= length:
        used += widths[kept]
        kept += 1
    return name[:kept] + "…"


def _columns(character: str) -> int:
    if _invisible(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


# --- matplotlib and Pillow ------------------------------------------------------------------------------------


def prepare(figure: Figure) -> Legend:
    """Every text of a figure as it can be drawn, in fonts that have it, and taken literally: a $ begins no formula.

    What has got a number is said below the picture; the caller writes the legend.
    """
    legend = Legend()
    axes = [axis for each in figure.axes for axis in (each.xaxis, each.yaxis)]
    for axis in axes:
        # of named ticks, which are written only when drawn
        if isinstance(axis.get_major_locator(), FixedLocator):
            named = [label.get_text() for label in axis.get_ticklabels()]
            drawn = [drawable(name, legend) for name in named]
            if drawn != named:
                axis.set_ticklabels(drawn)
    for text in figure.findobj(Text):
        text.set_parse_math(False)
        text.set_text(drawable(text.get_text(), legend))
    used = "".join(text.get_text() for text in figure.findobj(Text))
    more = [family for family, _ in _chosen(used)[0]]
    if more:
        families = [*rcParams["font.family"], *more]
        for axis in axes:
            axis.set_tick_params(labelfontfamily=families)
        for text in figure.findobj(Text):
            text.set_fontfamily(families)
    return legend


def add_note(figure: Figure, words: str) -> None:
    """A line below all that a figure shows."""
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    box = figure.get_tightbbox(canvas.get_renderer())
    width, height = figure.get_size_inches()
    figure.text(box.x0 / width, box.y0 / height - 0.1 / height, words, va="top", fontsize=8, color="0.35")


def runs(text: str) -> list[tuple[str, str]]:
    """(path of a font, part) of a text that `drawable` gave, for Pillow, which draws with one font at a time."""
    fonts = [str(DEFAULT), *(path for _, path in _chosen(text)[0])]
    found: list[tuple[str, str]] = []
    for character in text:
        code = ord(character)
        if found and (_invisible(character) or character == " " or _has(found[-1][0], code)):
            found[-1] = (found[-1][0], found[-1][1] + character)
            continue
        font = next((path for path in fonts if _has(path, code)), fonts[0])
        found.append((font, character))
    return found


def _has(path: str, code: int) -> bool:
    codes = _characters(path)
    place = int(np.searchsorted(codes, code))
    return place < len(codes) and int(codes[place]) == code
