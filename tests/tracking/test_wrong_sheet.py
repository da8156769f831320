import numpy as np

from vidtrain.tracking.tensorboard_mirror import png_size
from vidtrain.tracking.wrong_sheet import Wrong, most_wrong, plot_wrong


def test_the_most_confident_mistakes_come_first():
    probabilities = [[0.6, 0.3, 0.1], [0.1, 0.9, 0.0], [0.2, 0.7, 0.1], [0.4, 0.3, 0.3]]
    found, count = most_wrong([0, 0, 2, 1], probabilities, ["a", "b", "c"])
    assert count == 3
    assert found == [Wrong(1, "a", "b", 0.9), Wrong(2, "c", "b", 0.7), Wrong(3, "b", "a", 0.4)]


def test_there_are_at_most_sixteen():
    found, count = most_wrong(np.ones(40, np.int64), np.tile([0.8, 0.2], (40, 1)), ["a", "b"])
    assert (count, [each.row for each in found]) == (40, list(range(16)))


def test_none_where_all_is_right():
    assert most_wrong([0], [[1.0, 0.0]], ["a", "b"]) == ([], 0)


def test_a_single_video_and_long_names_make_a_picture(tmp_path):
    frame = np.full((32, 48, 3), 128, np.uint8)
    plot_wrong([frame], [Wrong(0, "n" * 80, "b", 0.9)], "wrong on test", tmp_path / "wrong.png")
    width, height = png_size(tmp_path / "wrong.png")
    assert width > 300 and height > 300
