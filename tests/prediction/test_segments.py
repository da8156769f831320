import numpy as np
import pytest

from vidtrain.prediction.run import Segment, segments, smoothed, window_edges


def probabilities(*answers, sure=0.8, classes=3):
    rows = np.full((len(answers), classes), (1 - sure) / (classes - 1))
    rows[np.arange(len(answers)), answers] = sure
    return rows


def test_a_window_has_the_time_up_to_halfway_to_its_neighbors():
    starts, ends = np.array([0.0, 1.0, 2.0, 2.5]), np.array([2.0, 3.0, 4.0, 4.5])
    assert window_edges(starts, ends, 4.5).tolist() == [0.0, 1.5, 2.5, 3.25, 4.5]
    assert window_edges(np.array([0.0]), np.array([1.2]), 1.2).tolist() == [0.0, 1.2]


def test_adjacent_windows_of_one_class_are_one_segment():
    rows = probabilities(1, 1, 0, 1)
    rows[1] = [0.3, 0.6, 0.1]
    found = segments(rows, np.arange(5.0), 0.0, independent=False)
    assert [each[:3] for each in found] == [(0.0, 2.0, 1), (2.0, 3.0, 0), (3.0, 4.0, 1)]
    assert [each.probability for each in found] == pytest.approx([0.7, 0.8, 0.8])


def test_below_the_threshold_there_is_no_answer():
    rows = np.array([[0.6, 0.4], [0.5, 0.5], [0.9, 0.1]])
    found = segments(rows, np.arange(4.0), 0.55, independent=False)
    assert found == [Segment(0.0, 1.0, 0, 0.6), Segment(2.0, 3.0, 0, 0.9)]
    # of equal ones the first, and a threshold that is met counts
    assert segments(rows[1:2], np.arange(2.0), 0.5, independent=False) == [Segment(0.0, 1.0, 0, 0.5)]


def test_classes_that_are_judged_alone_may_overlap():
    rows = np.array([[0.9, 0.2], [0.8, 0.6], [0.1, 0.7], [0.1, 0.1]])
    found = segments(rows, np.arange(5.0), 0.5, independent=True)
    assert [(each.start, each.end, each.class_index) for each in found] == [(0.0, 2.0, 0), (1.0, 3.0, 1)]
    assert [each.probability for each in found] == pytest.approx([0.85, 0.65])


def test_what_could_not_be_read_has_no_answer():
    rows = probabilities(2, 2, 2)
    rows[1] = np.nan
    for independent in (False, True):
        found = segments(rows, np.arange(4.0), 0.0 if not independent else 0.5, independent)
        assert [each[:3] for each in found] == [(0.0, 1.0, 2), (2.0, 3.0, 2)]


def test_smoothing_is_a_mean_over_neighbors_that_were_read():
    rows = np.array([[0.0], [3.0], [np.nan], [6.0], [9.0]])
    assert smoothed(rows, 1) is rows
    np.testing.assert_allclose(smoothed(rows, 3), [[1.5], [1.5], [np.nan], [7.5], [7.5]])
    np.testing.assert_allclose(smoothed(rows, 5), [[1.5], [3.0], [np.nan], [6.0], [7.5]])


def test_smoothing_takes_away_a_single_window():
    rows = probabilities(0, 0, 1, 0, 0)
    assert len(segments(rows, np.arange(6.0), 0.0, False)) == 3
    assert [each[:3] for each in segments(smoothed(rows, 3), np.arange(6.0), 0.0, False)] == [(0.0, 5.0, 0)]


def test_smoothing_wider_than_the_video_is_the_mean_of_all():
    rows = np.array([[0.0], [1.0]])
    np.testing.assert_allclose(smoothed(rows, 9), [[0.5], [0.5]])
