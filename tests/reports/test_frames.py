import numpy as np
import pytest
from PIL import Image

from vidtrain.reports import frames
from vidtrain.reports.frames import (
    SeenClip,
    caption,
    clock_text,
    draw_contact_sheet,
    draw_timeline,
    few_digits,
    labeled,
    outlined,
    plot_wrong,
    shade,
    shown_classes,
    side_by_side,
    step_of,
    strip,
)
from vidtrain.tracking.trackers import png_size

GRAY = np.full((40, 60, 3), 128, np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved; rendering them takes a second each."""
    figures = []
    monkeypatch.setattr(frames, "save_png", lambda figure, path: figures.append(figure))
    return figures


# --- what a model saw -------------------------------------------------------------------------------------


def test_a_step_of_the_heat_lasts_for_its_frames():
    assert [step_of(place, 8, 4) for place in range(8)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [step_of(place, 5, 2) for place in range(5)] == [0, 0, 0, 1, 1]


def seen(frames=12, steps=4, heat=True):
    shares = np.array([0.1, 0.2, 0.3, 0.4])[:steps]
    return SeenClip(
        "clip 1",
        np.zeros((frames, 16, 16, 3), np.uint8),
        np.arange(frames) / 10,
        np.ones((steps, 2, 2)) if heat else None,
        shares if heat else None,
    )


def test_a_sheet_shows_eight_frames_of_a_clip_without_and_with_heat(tmp_path, drawn):
    top = [("run", 0.9), ("a name that is too long for the margin of a chart", 0.1)]
    draw_contact_sheet(tmp_path / "a.png", "a", "note", top, GRAY, [(0, 0, 20, 20)], [seen()])
    whole, bars, *frames = drawn[0].get_axes()
    assert [label.get_text() for label in bars.get_yticklabels()] == ["run", "a name that is too long f…"]
    assert [axes.get_xlabel() for axes in frames[:8]] == [f"{place / 10:.2f} s" for place in (0, 2, 3, 5, 6, 8, 9, 11)]
    assert [axes.get_xlabel() for axes in frames[8:]] == ["10%", "…", "20%", "…", "30%", "…", "40%", "…"]
    assert frames[0].get_ylabel() == "clip 1\nas seen" and frames[8].get_ylabel() == "heat"


def test_a_sheet_and_a_timeline_are_rendered(tmp_path):
    top = [("run", 0.9), ("sit", 0.1)]
    draw_contact_sheet(tmp_path / "a.png", "a", "note", top, GRAY, [(0, 0, 20, 20)], [seen()])
    edges, probabilities = np.arange(9002.0), np.full((9001, 2), 0.5)
    draw_timeline(tmp_path / "t.png", "t", ["a", "b"], edges, probabilities, [(0, 9001, 0)])
    assert png_size(tmp_path / "a.png")[0] > 1500 and png_size(tmp_path / "t.png")[0] > 1500


def test_without_heat_frames_stand_alone_and_many_clips_are_counted(tmp_path, drawn):
    clips = [seen(frames=4, heat=False)] * 6
    draw_contact_sheet(tmp_path / "a.png", "a", "note.", [("run", 1.0)], GRAY, [], clips)
    frames = drawn[0].get_axes()[2:]
    assert len(frames) == 4 * 8 and sum(axes.axison for axes in frames) == 4 * 4
    assert drawn[0].subfigs[1]._supxlabel.get_text() == "note. 2 more clips are not shown."


# --- answers over time ------------------------------------------------------------------------------------


def test_a_timeline_puts_the_longest_answer_first(tmp_path, drawn):
    probabilities = np.tile([0.1, 0.2, 0.7, 0.0], (5, 1))
    probabilities[3] = [0.0, 0.9, 0.1, 0.0]
    probabilities[4] = np.nan
    stretches = [(0, 300, 2), (300, 400, 1)]
    assert shown_classes(probabilities, stretches) == [2, 1, 0, 3]
    edges = np.array([0.0, 100, 200, 300, 400, 500])
    draw_timeline(tmp_path / "t.png", "t", ["a", "b", "c", "d"], edges, probabilities, stretches)
    answers, axes = drawn[0].get_axes()[:2]
    assert [text.get_text() for text in answers.texts] == ["c", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "b", "a", "d"]
    drawn_values = axes.collections[0].get_array()
    np.testing.assert_allclose(drawn_values[0, :4], [0.7, 0.7, 0.7, 0.1])
    assert drawn_values.mask[:, 4].all()  # what could not be read is left gray


def test_a_timeline_shows_twelve_classes_of_many():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(400), 50)
    found = shown_classes(probabilities, [(0, 1, 399)])
    assert len(found) == 12 and found[0] == 399
    assert found[1] == int(np.delete(probabilities, 399, 1).mean(axis=0).argmax())


def test_times_are_written_as_people_read_them():
    assert [clock_text(seconds, minutes=True) for seconds in (0, 65, 3599.6, 3725)] == [
        "0:00", "1:05", "1:00:00", "1:02:05"
    ]  # fmt: skip
    assert clock_text(2.5, minutes=False) == "2.5"


def test_an_hour_has_few_round_times(tmp_path, drawn):
    edges = np.linspace(0, 3600, 1801)
    draw_timeline(tmp_path / "t.png", "t", ["a", "b"], edges, np.full((1800, 2), 0.5), [(0, 3600, 0)])
    axes = drawn[0].get_axes()[1]
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= 3600]
    assert ticks == [0, 300, 600, 900, 1200, 1500, 1800, 2100, 2400, 2700, 3000, 3300, 3600]
    assert axes.xaxis.get_major_formatter()(ticks[-1]) == "1:00:00"


# --- what a model got wrong -------------------------------------------------------------------------------


def test_a_single_video_and_long_names_make_a_picture(tmp_path):
    strip = np.full((5, 32, 48, 3), 128, np.uint8)
    plot_wrong([strip], [("n" * 80, "b", 0.9)], "wrong on test", tmp_path / "wrong.png")
    width, height = png_size(tmp_path / "wrong.png")
    assert width > 800 and height > 150


def test_small_probabilities_are_no_zeros():
    assert list(map(few_digits, (0.875, 0.01, 0.002, 0.000048))) == ["0.88", "0.01", "0.002", "5e-05"]


def test_frames_stand_side_by_side_in_order():
    frames = np.stack([np.full((4, 40, 3), value, np.uint8) for value in (10, 20, 30)])
    found = side_by_side(frames)
    assert found.shape == (4, 3 * 40 + 2, 3)
    assert found[0, ::41, 0].tolist() == [10, 20, 30] and (found[:, 40] == 255).all()


def test_a_sheet_shows_how_a_video_moves(tmp_path):
    """Frames of five grays: all of them are in the picture, not only the middle one."""
    strip = np.stack([np.full((32, 32, 3), value, np.uint8) for value in (20, 60, 100, 140, 180)])
    plot_wrong([strip], [("跑步", "走", 0.9)], "wrong", tmp_path / "wrong.png")
    grays = np.asarray(Image.open(tmp_path / "wrong.png").convert("L"))
    counts = np.bincount(grays.ravel(), minlength=256)
    assert all(counts[value] > 5000 for value in (20, 60, 100, 140, 180))


# --- frames of labeled videos -----------------------------------------------------------------------------


def test_heat_colors_its_place_and_nothing_else():
    heat = np.zeros((4, 6))
    heat[0, 5] = 1.0
    shaded = shade(GRAY, heat)
    np.testing.assert_array_equal(shaded[20:, :30], 128)
    assert shaded[2, 57].tolist() == [215, 217, 154]  # 0.7 of the palette's brightest, 0.3 of the picture
    assert (GRAY == 128).all()
    np.testing.assert_array_equal(shade(GRAY, np.zeros((4, 6))), GRAY)


def test_heat_can_lie_on_a_box_alone():
    shaded = shade(GRAY, np.ones((2, 2)), (10, 5, 20, 15))
    changed = np.argwhere((shaded != 128).any(axis=2))
    assert changed.min(axis=0).tolist() == [5, 10] and changed.max(axis=0).tolist() == [19, 29]
    assert len(changed) == 20 * 15


def test_a_box_is_outlined():
    found = np.argwhere((outlined(GRAY, (10, 5, 20, 15)) == 255).all(axis=2))
    assert found.min(axis=0).tolist() == [5, 10] and found.max(axis=0).tolist() == [19, 29]
    assert len(found) == 2 * 20 + 2 * 15 - 4


def test_bars_are_as_long_as_they_are_probable():
    panel = caption(212, "a.mp4", [("run", 0.5), ("walk", 0.25)], lines=3)
    assert panel.shape == (86, 212, 3)
    first, second = panel[6 + 20 + 13], panel[6 + 40 + 13]
    blue = np.array([0, 114, 178])
    assert int((first == blue).all(axis=1).sum()) == pytest.approx(101, abs=6)  # less what text covers
    assert (first[6 + 101 :][:20] == [24, 24, 27]).all() and (second[6 + 51 :][:40] == [24, 24, 27]).all()


def test_long_names_are_cut():
    short, long = (caption(200, "x", [(name, 0.0)], 1) for name in ("word", "word" * 40))
    np.testing.assert_array_equal(short[-20:, -50:], long[-20:, -50:])  # the percentage stays legible


def test_a_frame_has_its_strip_and_caption_below_it():
    whole = strip(61, [(0.0, 0.5, (200, 0, 0))])
    assert whole.shape == (10, 61, 3) and whole[5, 10].tolist() == [200, 0, 0] and whole[5, 50].tolist() == [54, 54, 57]
    panel = caption(61, "a", [], 1)
    found = labeled(np.full((40, 61, 3), 128, np.uint8), panel, whole, at=1.0)
    assert found.shape == (40 + 10 + 46, 62, 3)
    assert (found[40:50, 59:61] == 255).all() and (whole[:, 59:] != 255).all()
