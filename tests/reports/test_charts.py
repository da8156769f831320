"""Names in any script in pictures: a font that has them, or letters, or a number with a legend; and no warnings."""

import warnings

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from PIL import Image

from vidtrain.reports import charts
from vidtrain.reports.charts import Legend, drawable, runs, save_png, shortened
from vidtrain.reports.frames import caption
from vidtrain.reports.plots import plot_confusion

HOSTILE = [
    "跑步",
    "打 篮球",
    "कूदना",
    "กระโดด",
    "price $5 and $6",
    "a\x1b[31mb",
    "caf\udce9",
    "‮evil",
    "👍🏽 ok",
]


def diagonal(classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The confusions of a model that is always right, with a video a class."""
    return np.arange(classes), np.arange(classes), np.ones(classes, int)


def fresh() -> None:
    charts._fonts.cache_clear()
    charts._covering.cache_clear()


@pytest.fixture
def bare(monkeypatch):
    """A machine that has no fonts but matplotlib's own."""
    own = ((("DejaVu Sans", str(charts.DEFAULT))),)
    monkeypatch.setattr(charts, "_fonts", lambda: own)
    charts._covering.cache_clear()
    yield
    monkeypatch.undo()
    charts._covering.cache_clear()


@pytest.fixture
def chinese(tmp_path, monkeypatch):
    """A font with two characters, found on the machine after matplotlib made its list."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "run"])
    builder.setupCharacterMap({0x8DD1: "run", 0x6B65: "run"})
    box = pen.glyph()
    builder.setupGlyf({".notdef": box, "run": box})
    builder.setupHorizontalMetrics({".notdef": (1000, 100), "run": (1000, 100)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Two Characters Sans", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    path = tmp_path / "two.ttf"
    builder.save(path)
    before = list(charts.font_manager.fontManager.ttflist)
    known = [each for each in before if each.fname == str(charts.DEFAULT)]
    monkeypatch.setattr(charts.font_manager.fontManager, "ttflist", known)
    monkeypatch.setattr(charts.font_manager, "findSystemFonts", lambda: [str(path)])
    fresh()
    yield path
    monkeypatch.undo()
    charts.font_manager.fontManager.ttflist = before
    fresh()


def test_a_font_that_has_the_characters_is_found_and_used(chinese, tmp_path):
    legend = Legend()
    assert drawable("跑步 fast", legend) == "跑步 fast" and not legend.numbers
    assert runs("跑步 fast") == [(str(chinese), "跑步 "), (str(charts.DEFAULT), "fast")]
    assert drawable("跑步者", legend) == "跑步#1" and legend.numbers == {"者": 1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(diagonal(2), ["跑步", "walk"], tmp_path / "confusion.png")
    assert not (tmp_path / "confusion_names.txt").exists()
    panel = caption(200, "跑步", [("跑步", 0.0)], 1)
    assert (panel.min(axis=2) > 200).sum() > 100  # two filled boxes


def test_without_a_font_names_are_spelled_or_numbered(bare):
    legend = Legend()
    assert [drawable(name, legend) for name in HOSTILE] == [
        "#1", "#2", "#3", "#4", "price $5 and $6", "a\\x1b[31mb", "caf\\xe9", "\\u202eevil", "thumbs up sign ok"
    ]  # fmt: skip
    assert legend.numbers == {"跑步": 1, "打 篮球": 2, "कूदना": 3, "กระโดด": 4}
    assert drawable("true: 跑步 0.93", legend) == "true: #1 0.93"
    assert drawable("ひらがな カタカナ 달리기 🇩🇪", Legend()) == "hiragana katakana dalrigi DE"
    assert drawable("cafe\u0301 القفز тест", Legend()) == "café القفز тест"


@pytest.mark.slow
def test_pictures_of_any_name_come_without_warnings_and_with_their_legend(bare, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_confusion(diagonal(len(HOSTILE)), HOSTILE, tmp_path / "confusion.png")
        panel = caption(300, drawable(HOSTILE[0], Legend()), [(drawable(HOSTILE[2], Legend()), 0.5)], 1)
    assert (tmp_path / "confusion_names.txt").read_text().splitlines()[:2] == ["#1\t跑步", "#2\t打 篮球"]
    assert panel.shape == (46, 300, 3)
    plot_confusion(diagonal(2), ["a", "b"], tmp_path / "confusion.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png"]


def test_a_dollar_begins_no_formula(tmp_path):
    figure = Figure(figsize=(3, 1))
    figure.suptitle(r"$\frac{broken and $x$")
    save_png(figure, tmp_path / "title.png")
    assert Image.open(tmp_path / "title.png").size[0] > 100


def test_a_huge_figure_is_drawn_less_finely(tmp_path):
    figure = Figure(figsize=(300, 200))
    figure.add_subplot()
    save_png(figure, tmp_path / "huge.png")
    with Image.open(tmp_path / "huge.png") as picture:
        assert picture.size[0] * picture.size[1] < 41e6


def test_names_are_cut_by_the_columns_they_take():
    assert shortened("abcdef", 6) == "abcdef" and shortened("abcdefg", 6) == "abcde…"
    assert shortened("跑步跑步", 8) == "跑步跑步" and shortened("跑步跑步跑", 8) == "跑步跑…"
    assert shortened("e\u0301" * 4, 4) == "e\u0301" * 4


def test_names_of_several_lines_are_drawn_on_one():
    assert shortened("two\nlines\t\x1b", 26) == "two\\nlines\\t\\x1b"
