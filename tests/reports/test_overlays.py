import numpy as np
import pytest

from vidtrain.reports.overlays import caption, labeled, outlined, rgb, shade, strip
from vidtrain.reports.plots import COLORS

GRAY = np.full((40, 60, 3), 128, np.uint8)


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
    assert (
        whole.shape == (10, 61, 3)
        and whole[5, 10].tolist() == [200, 0, 0]
        and whole[5, 50].tolist() == [54, 54, 57]
    )
    panel = caption(61, "a", [], 1)
    found = labeled(np.full((40, 61, 3), 128, np.uint8), panel, whole, at=1.0)
    assert found.shape == (40 + 10 + 46, 62, 3)
    assert (found[40:50, 59:61] == 255).all() and (whole[:, 59:] != 255).all()


def test_colors_are_read():
    assert rgb(COLORS[0]) == (0, 114, 178)
