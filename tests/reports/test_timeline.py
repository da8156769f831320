import numpy as np
import pytest

from vidtrain.reports import timeline
from vidtrain.reports.timeline import Stretch, clock_text, draw_timeline, shown_classes


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved."""
    figures = []
    save = timeline.save_png
    monkeypatch.setattr(
        timeline, "save_png", lambda figure, path: (figures.append(figure), save(figure, path))
    )
    return figures


def test_a_timeline_puts_the_longest_answer_first(tmp_path, drawn):
    chances = np.tile([0.1, 0.2, 0.7, 0.0], (5, 1))
    chances[3] = [0.0, 0.9, 0.1, 0.0]
    chances[4] = np.nan
    stretches = [Stretch(0, 300, 2), Stretch(300, 400, 1)]
    assert shown_classes(chances, stretches) == [2, 1, 0, 3]
    edges = np.array([0.0, 100, 200, 300, 400, 500])
    draw_timeline(tmp_path / "t.png", "t", ["a", "b", "c", "d"], edges, chances, stretches)
    answers, axes = drawn[0].get_axes()[:2]
    assert [text.get_text() for text in answers.texts] == ["c", "b"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["c", "b", "a", "d"]
    drawn_values = axes.collections[0].get_array()
    np.testing.assert_allclose(drawn_values[0, :4], [0.7, 0.7, 0.7, 0.1])
    assert drawn_values.mask[:, 4].all()  # what could not be read is left gray


def test_a_timeline_shows_twelve_classes_of_many():
    chances = np.random.default_rng(0).dirichlet(np.ones(400), 50)
    found = shown_classes(chances, [Stretch(0, 1, 399)])
    assert len(found) == 12 and found[0] == 399
    assert found[1] == int(np.delete(chances, 399, 1).mean(axis=0).argmax())


def test_times_are_written_as_people_read_them():
    assert [clock_text(seconds, minutes=True) for seconds in (0, 65, 3599.6, 3725)] == [
        "0:00", "1:05", "1:00:00", "1:02:05"
    ]  # fmt: skip
    assert clock_text(2.5, minutes=False) == "2.5"


def test_an_hour_has_few_round_times(tmp_path, drawn):
    edges = np.linspace(0, 3600, 1801)
    draw_timeline(tmp_path / "t.png", "t", ["a", "b"], edges, np.full((1800, 2), 0.5), [Stretch(0, 3600, 0)])
    axes = drawn[0].get_axes()[1]
    ticks = [tick for tick in axes.get_xticks() if 0 <= tick <= 3600]
    assert ticks == [0, 300, 600, 900, 1200, 1500, 1800, 2100, 2400, 2700, 3000, 3300, 3600]
    assert axes.xaxis.get_major_formatter()(ticks[-1]) == "1:00:00"
