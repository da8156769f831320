import numpy as np
from PIL import Image

from vidtrain.reports.top_losses import Wrong, few_digits, most_wrong, plot_wrong, side_by_side
from vidtrain.tracking.loggers.tensorboard_logger import png_size


def test_the_most_confident_mistakes_come_first():
    found, count = most_wrong([0, 0, 2, 1], [0, 1, 1, 0], [0.6, 0.75, 0.5, 0.25], ["a", "b", "c"])
    assert count == 3
    assert found == [Wrong(1, "a", "b", 0.75), Wrong(2, "c", "b", 0.5), Wrong(3, "b", "a", 0.25)]


def test_there_are_at_most_sixteen():
    found, count = most_wrong(np.ones(40, np.int64), np.zeros(40, np.int64), np.full(40, 0.8), ["a", "b"])
    assert (count, [each.row for each in found]) == (40, list(range(16)))


def test_none_where_all_is_right():
    assert most_wrong([0], [0], [1.0], ["a", "b"]) == ([], 0)


def test_a_single_video_and_long_names_make_a_picture(tmp_path):
    strip = np.full((5, 32, 48, 3), 128, np.uint8)
    plot_wrong([strip], [Wrong(0, "n" * 80, "b", 0.9)], "wrong on test", tmp_path / "wrong.png")
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
    plot_wrong([strip], [Wrong(0, "跑步", "走", 0.9)], "wrong", tmp_path / "wrong.png")
    grays = np.asarray(Image.open(tmp_path / "wrong.png").convert("L"))
    counts = np.bincount(grays.ravel(), minlength=256)
    assert all(counts[value] > 5000 for value in (20, 60, 100, 140, 180))
