import math
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from vidtrain.reports import plots
from vidtrain.reports.charts import thinned
from vidtrain.reports.plots import plot_confusion, plot_curves, plot_views

REPO = Path(__file__).resolve().parents[2]


def png_size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:24])
    return width, height


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch):
    """The figures that would be saved; rendering them takes a second each."""
    figures = []
    monkeypatch.setattr(plots, "save_png", lambda figure, path: figures.append(figure))
    return figures


def pairs_of(matrix):
    """(true classes, predicted ones, counts) of a confusion matrix."""
    return *np.nonzero(matrix), matrix[np.nonzero(matrix)]


ROWS = [
    {"step": 1, "train/loss": 2.0, "train/grad_norm": 3.0, "lr/head": 1e-3, "phase": "head"},
    {"step": 2, "train/loss": None, "train/grad_norm": 2.0, "lr/head": 1e-3, "phase": "head"},
    {"step": 2, "val/loss": 1.5, "val/top1": 0.25, "phase": "head"},
    {
        "step": 3,
        "train/loss": 1.0,
        "lr/head": 1e-4,
        "lr/encoder": 1e-5,
        "weight_decay": 0.05,
        "phase": "full",
    },
    {"step": 4, "time/total_s": 12.0},
]


def test_curves_show_what_was_logged(tmp_path: Path, drawn):
    plot_curves(ROWS, tmp_path / "curves.png")
    panels = {axes.get_title("left"): axes for axes in drawn[0].axes}
    assert list(panels) == ["Loss", "Accuracy and F1", "Gradient norm", "Learning rate", "Weight decay"]
    loss, validation, border = panels["Loss"].lines
    np.testing.assert_array_equal(loss.get_xdata(), [1, 2, 3])
    np.testing.assert_array_equal(loss.get_ydata(), [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(validation.get_xydata(), [[2, 1.5]])
    assert list(border.get_xdata()) == [2, 2]
    assert [text.get_text() for text in panels["Loss"].get_legend().texts] == ["train loss", "val loss"]
    assert [text.get_text() for text in panels["Loss"].texts] == ["head", "full"]
    assert [text.get_text() for text in panels["Learning rate"].get_legend().texts] == ["head", "encoder"]


@pytest.mark.parametrize("rows", [[], [{"step": 1, "epoch": 1}], [{"step": 1, "train/loss": None}]])
def test_curves_of_nothing(tmp_path: Path, drawn, rows):
    plot_curves(rows, tmp_path / "curves.png")
    assert [text.get_text() for text in drawn[0].texts] == ["nothing logged yet"]


def test_many_learning_rates_share_a_short_legend(tmp_path: Path, drawn):
    row = {"step": 1, **{f"lr/block_{index}": 0.8**index for index in range(26)}}
    plot_curves([row, {**row, "step": 2}], tmp_path / "curves.png")
    (axes,) = drawn[0].axes
    assert len(axes.lines) == 26
    assert [text.get_text() for text in axes.get_legend().texts] == [f"block {i}" for i in range(0, 26, 4)]


def test_running_mean_leaves_unknown_values_out():
    values = np.array([1.0, np.nan, 3.0, np.nan, np.nan, np.nan])
    np.testing.assert_array_equal(plots.running_mean(values, 1), [1.0, 2.0, 3.0, 3.0, np.nan, np.nan])


def test_confusion_is_normalized_by_row_and_shows_counts(tmp_path: Path, drawn):
    matrix = np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]])
    plot_confusion(pairs_of(matrix), ["left", "a" * 40, "right"], tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array(), [[0.75, 0.25, 0.0], [0.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert [(text.get_position(), text.get_text()) for text in axes.texts] == [
        ((0, 0), "3"),
        ((1, 0), "1"),
        ((1, 2), "2"),
        ((2, 2), "2"),
    ]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["left", "a" * 25 + "…", "right"]


@pytest.mark.parametrize("classes, texts", [(30, 30), (31, 0)])
def test_counts_are_written_up_to_thirty_classes(tmp_path: Path, drawn, classes: int, texts: int):
    plot_confusion(pairs_of(np.eye(classes, dtype=int)), [f"c{i}" for i in range(classes)], tmp_path / "confusion.png")
    assert len(drawn[0].axes[0].texts) == texts


def test_the_most_confused_of_many_classes_are_drawn(tmp_path: Path, drawn):
    """Classes 7 and 900 are taken for each other 30 times; 5 for 6 ten times. Of others but 1 there is no video, and
    nothing to show."""
    labels, predictions = np.array([1, 7, 900, 5, 7]), np.array([1, 900, 7, 6, 7])
    pairs = (labels, predictions, np.array([99, 20, 10, 10, 60]))
    plot_confusion(pairs, [f"c{i}" for i in range(1000)], tmp_path / "confusion.png")
    axes = drawn[0].axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["c7", "c900", "c5", "c6", "c1"]
    np.testing.assert_array_equal(axes.images[0].get_array()[:3, :4], [[0.75, 0.25, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]])
    assert "the 5 most confused of 1,000 classes, with 40 of 40 mistakes" in axes.get_title()


@pytest.mark.slow
def test_pictures_are_written_whole_and_of_a_bounded_size(tmp_path: Path):
    plot_curves(ROWS, tmp_path / "plots" / "curves.png")
    classes = [f"c{number}" for number in range(1000)]
    plot_confusion((np.arange(200), np.arange(200) + 1, np.ones(200, int)), classes, tmp_path / "plots" / "c.png")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["c.png", "curves.png"]
    assert png_size(tmp_path / "plots" / "curves.png")[0] > 2000
    assert max(png_size(tmp_path / "plots" / "c.png")) < 3000


def test_a_long_curve_is_drawn_by_stretches():
    values = [1.0] * 10
    values[2], values[5] = math.nan, 9.0
    steps, means, low, high = thinned(range(10), values, most=3)  # of four points each, the last of two
    np.testing.assert_array_equal(steps, [1.5, 5.5, 8.5])
    np.testing.assert_array_equal(means, [1.0, 3.0, 1.0])
    np.testing.assert_array_equal((low, high), ([1.0, 1.0, 1.0], [1.0, 9.0, 1.0]))
    nothing = thinned([0, 1, 2], [math.nan, math.nan, 1.0], most=2)
    np.testing.assert_array_equal(nothing[1:], [[math.nan, 1.0]] * 3)


def test_pyplot_stays_unloaded():
    code = "import sys, vidtrain.reports.plots; print('matplotlib.pyplot' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


# --- what views are worth ---------------------------------------------------------------------------------

ABOUT = {
    "orders": ["forward", "reversed"],
    "crops": ["left or top", "center", "right or bottom"],
    "classes": ["run", "sit"],
    "frames": {"forward": "8x3 frames at 32x32"},
    "split": "test",
    "coverage": "20/20",
}


def protocol(clips, crops, fusion="mean_logits", order="forward", top1=0.5):
    numbers = SimpleNamespace(numbers=tuple(range(crops)))
    return SimpleNamespace(
        num_clips=clips,
        crops=numbers,
        fusion=fusion,
        order=order,
        metrics={"top1": top1},
        name=f"{clips}x{crops}",
    )


def point(clips, crops):
    return SimpleNamespace(clips=clips, crops=crops, mean=0.5 + 0.1 * clips, lowest=0.4, highest=0.9)


SEVERAL = [protocol(c, s, fusion) for c in (1, 2) for s in (1, 3) for fusion in ("mean_logits", "vote")]
POINTS = [point(c, s) for s in (1, 3) for c in (1, 2)]
PROBES = [SimpleNamespace(protocol=protocol(2, 3, order=order, top1=top1)) for order, top1 in
          (("forward", 0.9), ("reversed", 0.0))]  # fmt: skip


@pytest.mark.parametrize(
    ("protocols", "points", "probes", "panels"),
    [
        (SEVERAL, POINTS, PROBES, 3),
        (SEVERAL, POINTS, [], 2),
        ([protocol(1, 1), protocol(1, 1, "vote")], [point(1, 1)], PROBES, 1),
        ([protocol(4, 1, "joint"), protocol(4, 3, "joint")], [], [], 1),
    ],
    ids=["all", "no_probes", "one_view", "joint"],
)
def test_it_has_a_panel_for_all_that_there_is_to_show(drawn, tmp_path, protocols, points, probes, panels):
    plot_views(ABOUT, protocols, points, probes, "mean_logits", "top1", tmp_path / "a.png")
    assert len(drawn[0].axes) == panels
    for axes in drawn[0].axes:
        low, high = axes.get_ylim()
        assert all(low <= y <= high for line in axes.lines for y in line.get_ydata())
