"""The page, tables and pictures of a comparison, from a summary."""

import csv
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from vidtrain.reports import compare_charts
from vidtrain.reports.compare_charts import draw, setting_axis
from vidtrain.reports.pages import compare_page, name_of, ranked, write_tables


class Loud:
    """A console on which nothing may be warned of."""

    def warn(self, text: str) -> None:
        raise AssertionError(text)


LOUD = Loud()
EVIL = "<script>alert(1)</script>&\"'"


def recipe(number: int, text: str = "a", compared: bool = True, values=(0.5, 0.6), settings=None) -> dict:
    mean = None if values[0] is None else sum(values) / len(values)
    return {
        "number": number, "label": text, "settings": settings or {"optimizer.lr": number / 10}, "runs": [text] * 2,
        "n": 2, "split": "test", "protocol": "8x3 frames", "compared": compared, "values": list(values),
        "mean": mean, "deviation": 0.07, "metrics": {"top1": (mean, 0.07), "loss": (1.0, None)},
        "monitor": "top1", "best": (0.7, 0.01),
    }  # fmt: skip


def run(recipe: int, value: float | None = 0.5, text: str = "a", **settings) -> dict:
    return {
        "name": text, "folder": text, "recipe": recipe, "settings": settings or {"optimizer.lr": recipe / 10},
        "repeats": {"seed": 0}, "monitor": "top1", "best": 0.7, "best_step": 10, "final": None, "steps": 20,
        "best_baseline": None, "minutes": 2.0, "split": "test", "protocol": "8x3 frames", "coverage": "9/9",
        "commit": None,
        "metrics": {"top1": value, "loss": 1.0}, "curve": [(10, 0.4), (20, 0.5)],
    }  # fmt: skip


def comparison(other: int, text: str = "a", verdict: str = "better") -> dict:
    return {
        "metric": "top1", "baseline": 1, "other": other, "shared": 9, "units": 3, "difference": 0.1,
        "interval": (0.05, 0.15), "interval_with_seeds": (-0.1, 0.3), "widest": (-0.1, 0.3), "verdict": verdict,
        "gained": 2, "lost": 1, "pairs": [{"baseline": 0, "other": 0, "only_baseline": 1, "only_other": 2, "p": 1.0}],
        "classes": [
            {"name": text + name, "support": 4, "recall_baseline": 0.5, "recall_other": 0.5 + change,
             "recall_difference": change, "interval": (change - 0.1, change + 0.1), "f1_baseline": 0.4,
             "f1_other": 0.5, "f1_difference": 0.1}
            for name, change in (("x", 0.25), ("y", -0.5), ("z", 0.0))
        ],
        "flips": [{"path": f"/{text}.mp4", "label": text, "baseline": 0.0, "other": 1.0,
                   "prediction_baseline": text, "prediction_other": text}],
    }  # fmt: skip


def summary(text: str = "a", others: int = 1, **changes) -> dict:
    numbers = range(2, 2 + others)
    return {
        "metric": "top1", "tested": "top1", "higher_is_better": True, "tested_higher_is_better": True,
        "pretraining": False, "confidence": 0.95, "draws": 1000, "seed": 0, "repeats": ["seed"], "baseline": 1,
        "keys": {"optimizer.lr": "lr"}, "recipes": [recipe(1, text), *(recipe(n, text) for n in numbers)],
        "runs": [run(1, text=text), *(run(n, 0.5 + n / 50, text) for n in numbers)],
        "settings": {"optimizer.lr": [0.1, *(n / 10 for n in numbers)]},
        "comparisons": [comparison(n, text) for n in numbers],
        "importance": [], "is_sweep": False, "chosen": None, "notes": [f"note {text}"],
        "left_out": [{"folder": text, "why": "not finished"}], **changes,
    }  # fmt: skip


def sweep(others: int = 3) -> dict:
    found = [
        {"key": "optimizer.lr", "values": 4, "runs": 8, "binned": True, "share": 0.7, "adjusted": 0.6},
        {"key": "seed", "values": 2, "runs": 8, "binned": False, "share": 0.2, "adjusted": None},
    ]
    return summary(others=others, is_sweep=True, importance=found)


class Reader(HTMLParser):
    """Every tag with its attributes, and all text but that of styles."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self._last = [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._last = tag

    def handle_data(self, data):
        if self._last != "style":
            self.text += data


def page(of: dict, folder: Path) -> str:
    return compare_page(of, draw(of, folder, LOUD), folder)


def png_width(path: Path) -> int:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">I", head[16:20])[0]


HEAD = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 1200, 600)  # how a PNG begins


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """The figures that were drawn, by name; files hold the beginning of a PNG, as rendering takes a second each."""
    figures = {}

    def keep(figure, path):
        figures[path.stem] = figure
        path.write_bytes(HEAD)

    monkeypatch.setattr(compare_charts, "save_png", keep)
    return figures


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """All pictures of a sweep as files, which are made before `drawn` replaces how they are saved."""
    folder = tmp_path_factory.mktemp("rendered")
    return folder, draw(sweep(), folder, LOUD)


def test_what_comes_from_outside_is_text_only(tmp_path):
    plain, evil = (Reader(page(summary(text), tmp_path)) for text in ("a", EVIL))
    assert [tag for tag, _ in evil.tags] == [tag for tag, _ in plain.tags]
    assert evil.text.count(EVIL) >= 10


def test_the_page_says_what_was_found(tmp_path):
    text = " ".join(Reader(page(sweep(), tmp_path)).text.split())
    for words in (
        "4 runs of 4 recipes", "0.5500best top1 on test: recipe 1", "3better", "note a", "Left out: a: not finished",
        "9 in 3 groups", "-0.1000 to +0.3000", "2 gained and 1 lost, of 9 videos.", "4 bins", "60.0%", "70.0%",
    ):  # fmt: skip
        assert words in text, words


def test_a_long_note_is_folded(tmp_path):
    long = {**summary("a"), "notes": ["short", f"{'word ' * 90}end"]}
    reader = Reader(page(long, tmp_path))
    assert [tag for tag, _ in reader.tags].count("summary") == 1 + [
        tag for tag, _ in Reader(page(summary("a"), tmp_path)).tags
    ].count("summary")
    assert "word end" in reader.text and "short" in reader.text
    assert reader.text.count("word") == 90  # an open one does not repeat its beginning


@pytest.mark.slow
def test_it_needs_nothing_else(tmp_path):
    found = page(sweep(), tmp_path)
    assert not re.search(r"(src|href)=[\"'](?!data:|#)", found)
    assert "<script" not in found and "@import" not in found and "http" not in found
    assert "prefers-color-scheme: dark" in found
    assert found.count("data:image/png;base64,") == 5


def test_pictures_have_their_natural_size(rendered):
    folder, names = rendered
    images = [attributes for tag, attributes in Reader(compare_page(sweep(), names, folder)).tags if tag == "img"]
    assert images[0]["alt"] == "comparison"
    for image in images:
        width = png_width(folder / f"{image['alt'].replace(' ', '_')}.png")
        assert int(image["width"]) == round(width * 96 / 150) and width > 600


def test_nothing_to_compare(tmp_path):
    of = summary(comparisons=[], recipes=[recipe(1), recipe(2, compared=False)], notes=[], left_out=[], settings={})
    text = Reader(page(of, tmp_path)).text
    assert "not compared" in text and "all runs have the same settings" in text
    assert "Videos that flipped" not in text and "gained" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comparison.png", "curves.png"]


def test_long_lists_end_with_how_much_is_left_out(tmp_path):
    of = summary(others=14)
    of["comparisons"][0]["classes"] *= 20
    text = Reader(page(of, tmp_path)).text
    assert "… and 2 more recipes, in summary.json." in text
    assert "… and 30 more classes, in per_class.csv." in text
    assert "9 more recipes are in settings.csv." in text
    assert "… and 2 more videos, in flips.csv." in text


def test_many_swept_keys_share_a_column(tmp_path):
    few, many = ({f"key{n}": n for n in range(count)} for count in (3, 9))
    for settings, columns in ((few, 3), (many, 1)):
        of = summary(keys={key: key for key in settings})
        of["recipes"] = [recipe(1, settings=settings), recipe(2, settings=settings)]
        of["runs"] = [run(1, **settings), run(2, **settings)]
        first = page(of, tmp_path).split("</tr>")[0]
        assert first.count("<th") == 9 + columns


# --- tables -----------------------------------------------------------------------------------------------


def test_tables_have_a_value_for_every_column(tmp_path):
    changed = [(1, 2, {**comparison(2)["flips"][0], "flipped": 1})]
    of = summary(recipes=[recipe(1), recipe(2), recipe(3, compared=False)])
    of["runs"][1]["metrics"] = {"map": 0.3}
    of["settings"] = {"optimizer.lr": [0.1, 0.2, None]}
    write_tables(of, changed, tmp_path)
    rows = {}
    for name in ("runs.csv", "recipes.csv", "settings.csv", "per_class.csv", "flips.csv"):
        with open(tmp_path / name, newline="") as file:
            rows[name] = list(csv.DictReader(file))
        assert all(None not in row and None not in row.values() for row in rows[name]), name
    assert [row["top1"] for row in rows["runs.csv"]] == ["0.5", ""] and rows["runs.csv"][1]["map"] == "0.3"
    assert [row["low_with_seeds"] for row in rows["recipes.csv"]] == ["", "-0.1", ""]
    assert rows["recipes.csv"][0]["baseline"] == "1" and rows["recipes.csv"][1]["verdict"] == "better"
    assert rows["settings.csv"] == [{"setting": "optimizer.lr", "recipe 1": "0.1", "recipe 2": "0.2", "recipe 3": ""}]
    assert rows["per_class.csv"][1]["class"] == "ay" and rows["per_class.csv"][1]["recall_recipe"] == "0.0"
    assert rows["flips.csv"][0]["right_in_recipe"] == "1.0"


# --- pictures ---------------------------------------------------------------------------------------------


def test_recipes_are_ranked_by_what_is_better():
    of = summary(recipes=[recipe(1, values=(0.5,)), recipe(2, values=(None,)), recipe(3, values=(0.9,)),
                          recipe(4, compared=False)])  # fmt: skip
    assert [each["number"] for each in ranked(of)] == [3, 1, 2]
    assert [each["number"] for each in ranked({**of, "higher_is_better": False})] == [1, 3, 2]


def test_names_are_cut():
    assert name_of(recipe(3, "lr=1")) == "3: lr=1"
    assert name_of(recipe(3, "x" * 99), 10) == "3: xxxxxx…"


def test_recipes_and_differences(tmp_path, drawn):
    of = summary()
    of["recipes"][1]["values"] = [0.7, 0.8]
    of["recipes"][1]["mean"] = 0.75
    draw(of, tmp_path, LOUD)
    values, differences = drawn["comparison"].axes
    assert [label.get_text() for label in values.get_yticklabels()] == ["2: a", "1: a"]
    np.testing.assert_array_equal(values.lines[0].get_xdata(), [0.7, 0.8])
    zero, wide, narrow, point = differences.lines
    assert (list(wide.get_xdata()), list(narrow.get_xdata())) == ([-0.1, 0.3], [0.05, 0.15])
    assert point.get_xdata()[0] == 0.1
    assert [text.get_text() for text in differences.texts] == ["baseline"]


def test_the_baseline_is_always_shown(tmp_path, drawn):
    of = summary(others=40)
    of["recipes"][0].update(mean=0.0, values=[0.0])
    draw(of, tmp_path, LOUD)
    labels = [label.get_text() for label in drawn["comparison"].axes[0].get_yticklabels()]
    assert len(labels) == 31 and labels[-1] == "1: a"


def test_classes_of_one_recipe_are_bars_and_of_several_cells(tmp_path, drawn):
    draw(summary(), tmp_path, LOUD)
    (axes,) = drawn["classes"].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ax (4)", "az (4)", "ay (4)"]
    draw(summary(others=2), tmp_path, LOUD)
    axes = drawn["classes"].axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.25, 0.25], [0, 0], [-0.5, -0.5]])
    assert [text.get_text() for text in axes.texts][:2] == ["+0.25", "+0.25"]


def test_curves_are_colored_by_recipe(tmp_path, drawn):
    draw(summary(others=2), tmp_path, LOUD)
    (axes,) = drawn["curves"].axes
    assert [line.get_color() for line in axes.lines] == list(compare_charts.COLORS[:3])
    assert len(axes.get_legend().texts) == 3
    draw(summary(others=12), tmp_path, LOUD)
    axes, bar = drawn["curves"].axes
    assert axes.get_legend() is None and bar.get_ylabel() == "mean top1 of the recipe"


def test_a_sweep_has_two_pictures_more(tmp_path, drawn):
    of = sweep()
    of["runs"].append(run(2, None))  # without a value it has no place
    assert draw(of, tmp_path, LOUD) == [
        "comparison",
        "curves",
        "classes",
        "parallel_coordinates",
        "importance",
    ]
    axes = drawn["parallel_coordinates"].axes[0]
    words = [text.get_text() for text in axes.texts]
    assert words[:5] == ["lr", "0.1", "0.2", "0.3", "0.4"] and words[5] == "top1"
    assert len([line for line in axes.lines if len(line.get_xdata()) > 2]) == 4
    bars = drawn["importance"].axes[0]
    assert [text.get_text() for text in bars.texts] == ["60%", "one run for each value: unknown"]
    assert [label.get_text() for label in bars.get_yticklabels()] == ["lr", "seed"]
    assert draw(summary(), tmp_path, LOUD) == ["comparison", "curves", "classes"]
    assert not (tmp_path / "importance.png").exists()


@pytest.mark.parametrize(
    ("row", "places", "words"),
    [
        ([1e-4, 1e-3, 1e-2], [0, 0.5, 1], ["0.0001", "0.001", "0.01"]),
        ([0.1, 0.2, 0.3], [0, 0.5, 1], ["0.1", "0.2", "0.3"]),
        ([0, 10], [0, 1], ["0", "10"]),
        (["crop", "none", "crop"], [0, 1, 0], ["crop", "none"]),
        ([True, False], [0, 1], ["True", "False"]),
        ([None, 0.1], [0, 1], ["None", "0.1"]),
        ([100, 101, 102, 200], [0, 0.01, 0.02, 1], ["100", "200"]),  # words that would overlap are left out
        (["x" * 30], [0.5], ["x" * 17 + "…"]),
    ],
)
def test_axes_of_settings(row, places, words):
    axis = setting_axis("key", row)
    assert axis.places == pytest.approx(places)
    assert [word for _, word in axis.ticks] == words


def test_a_picture_that_fails_costs_only_itself(tmp_path, monkeypatch):
    said = []
    console = type("Console", (), {"warn": lambda self, text: said.append(text)})()

    def fails(*_):
        raise ValueError("no room")

    (tmp_path / "comparison.png").write_bytes(b"of an earlier comparison")
    monkeypatch.setitem(compare_charts.PLOTS, "comparison", fails)
    of = summary()
    names = draw(of, tmp_path, console)
    assert names == ["curves", "classes"] and not (tmp_path / "comparison.png").exists()
    assert len(said) == 1 and "comparison.png could not be made (ValueError: no room)" in said[0]
    assert "Recipes" in compare_page(of, names, tmp_path)


@pytest.mark.slow
def test_pictures_of_hundreds_of_runs_and_settings_are_bounded(tmp_path, drawn):
    settings = {f"augmentation.key_{key}": 0 for key in range(60)}
    of = sweep()
    of["runs"] = [
        {
            **run(each["recipe"]),
            "settings": {key: f"v{number % 50}" for key in settings},
            "curve": [(1, 0.1)] * 9000,
        }
        for number, each in enumerate(of["runs"] * 150)
    ]
    of["keys"] = {key: key for key in settings}
    of["importance"] = [{**of["importance"][0], "key": key} for key in settings]
    draw(of, tmp_path, LOUD)
    lines = drawn["curves"].axes[0].lines
    assert len(lines) == compare_charts.MOST_LINES and max(len(line.get_xdata()) for line in lines) <= 4000
    texts = [each.get_text() for each in drawn["parallel_coordinates"].axes[0].texts]
    assert len(texts) <= (compare_charts.MOST_AXES + 1) * (compare_charts.MOST_TICKS + 1)
    assert len(drawn["importance"].axes[0].get_yticklabels()) == compare_charts.MOST_BARS
    of["left_out"] = [{"folder": f"runs/{number}", "why": "failed"} for number in range(400)]
    assert "370 more runs, in summary.json" in compare_page(of, [], tmp_path)
