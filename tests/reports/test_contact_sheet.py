import numpy as np
import pytest
from PIL import Image

from vidtrain.reports import contact_sheet
from vidtrain.reports.contact_sheet import SeenClip, draw_contact_sheet, step_of

GRAY = np.full((40, 60, 3), 128, np.uint8)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = contact_sheet.save_png
    monkeypatch.setattr(
        contact_sheet, "save_png", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    return figures


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
    assert Image.open(tmp_path / "a.png").width > 1500
    whole, bars, *frames = drawn[0].get_axes()
    assert [label.get_text() for label in bars.get_yticklabels()] == ["run", "a name that is too long f…"]
    assert [axes.get_xlabel() for axes in frames[:8]] == [
        f"{place / 10:.2f} s" for place in (0, 2, 3, 5, 6, 8, 9, 11)
    ]
    assert [axes.get_xlabel() for axes in frames[8:]] == ["10%", "…", "20%", "…", "30%", "…", "40%", "…"]
    assert frames[0].get_ylabel() == "clip 1\nas seen" and frames[8].get_ylabel() == "heat"


def test_without_heat_frames_stand_alone_and_many_clips_are_counted(tmp_path, drawn):
    clips = [seen(frames=4, heat=False)] * 6
    draw_contact_sheet(tmp_path / "a.png", "a", "note.", [("run", 1.0)], GRAY, [], clips)
    frames = drawn[0].get_axes()[2:]
    assert len(frames) == 4 * 8 and sum(axes.axison for axes in frames) == 4 * 4
    assert drawn[0].subfigs[1]._supxlabel.get_text() == "note. 2 more clips are not shown."
