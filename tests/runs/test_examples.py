"""Which videos show a model best, and their moving pictures."""

import io
import json

import numpy as np
import torch
from PIL import Image

from vidtrain.evaluation.metrics import first_classes
from vidtrain.evaluation.report import Report
from vidtrain.evaluation.views import ViewTable
from vidtrain.runs.examples import Example, choose, frames_of, moving_picture, write_examples

CLASSES = ["a", "b", "c", "d"]


def evaluated(logits, labels, indices=None) -> Report:
    """Of one view a video; with labels [v k] several of them a video. Metrics, whose import takes seconds, are left
    out."""
    labels, logits = torch.tensor(labels), torch.tensor(logits)
    table = ViewTable(torch.tensor(indices or range(len(logits))), labels, logits[:, None], [], len(logits))
    ranked = first_classes(logits, 5)
    return Report({}, None, logits, ranked, table, table.coverage, "1 clip", independent=labels.ndim == 2)


def test_confident_mistakes_come_first_then_uncertain_right_answers():
    result = evaluated(
        [[3.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 1.0, 0], [0, 5.0, 0, 0], [0, 0, 0, 9.0]], [0, 0, 2, 0, 3]
    )
    examples = choose(result, CLASSES)
    assert [(video.kind, video.row) for video in examples] == [
        ("wrong", 3), ("wrong", 1), ("unsure", 2), ("unsure", 0), ("unsure", 4)
    ]  # fmt: skip
    first = examples[0]
    assert (first.true, [name for name, _ in first.answers]) == ("a", ["b", "a", "c"])
    np.testing.assert_allclose(first.answers[0][1], np.exp(5) / (np.exp(5) + 3), rtol=1e-6)
    np.testing.assert_allclose(first.true_probability, 1 / (np.exp(5) + 3), rtol=1e-6)


def test_there_are_at_most_sixteen_and_eight():
    result = evaluated([[2.0, 0, 0, 0]] * 60, [1, 0] * 30)
    kinds = [video.kind for video in choose(result, CLASSES)]
    assert kinds == ["wrong"] * 16 + ["unsure"] * 8


def test_of_several_labels_a_mistake_is_a_first_answer_that_is_none_of_them():
    result = evaluated([[3.0, 1, 0, 0], [0, 4.0, 0, 0], [1.0, 0, 0, 0]], [[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    examples = choose(result, CLASSES)
    assert [(video.row, video.true, video.true_probability) for video in examples] == [
        (1, "a; d", None), (2, "", None), (0, "a; c", None)
    ]  # fmt: skip
    assert [video.kind for video in examples] == ["wrong", "wrong", "unsure"]
    np.testing.assert_allclose(examples[0].answers[0][1], 1 / (1 + np.exp(-4)), rtol=1e-6)


def test_frames_are_of_the_middle_view_or_of_all_clips_that_were_judged_together():
    """Views are clip after clip, of each its crops; a pixel says its view and frame."""

    def shown(views: int, frames: int, crops: int | None) -> list[int]:
        numbers = 16 * torch.arange(views)[:, None] + torch.arange(frames)
        pixels = frames_of(numbers[:, None, :, None, None].expand(-1, 3, -1, 2, 2), crops)
        assert pixels.shape[1:] == (2, 2, 3)
        return pixels[:, 0, 0, 0].tolist()

    assert shown(3, 4, None) == [16, 17, 18, 19]
    assert shown(16, 2, 1) == [16 * clip for clip in range(16)]
    assert shown(6, 2, 3) == [16, 17, 64, 65]  # the second of three crops
    assert shown(2, 16, 1) == [0, 2, 4, 6, 9, 11, 13, 15, 16, 18, 20, 22, 25, 27, 29, 31]
    assert len(shown(40, 2, 1)) == 16


def test_a_moving_picture_has_eight_frames_of_128_pixels_at_most():
    noise = np.random.default_rng(0).integers(0, 255, (16, 224, 320, 3), dtype=np.uint8)
    data = moving_picture(noise)
    with Image.open(io.BytesIO(data)) as picture:
        assert (picture.format, picture.n_frames, picture.size, picture.info["loop"]) == (
            "WEBP",
            8,
            (128, 90),
            0,
        )
    assert len(data) < 120_000  # noise is the worst
    small = moving_picture(np.arange(3, dtype=np.uint8).repeat(16 * 16 * 3).reshape(3, 16, 16, 3) * 100)
    with Image.open(io.BytesIO(small)) as picture:
        assert (picture.n_frames, picture.size) == (3, (16, 16))


def test_what_is_written_takes_the_place_of_earlier_pictures(tmp_path):
    folder = tmp_path / "examples_test"
    folder.mkdir()
    (folder / "07.webp").write_bytes(b"of an earlier attempt")
    result = evaluated([[3.0, 0, 0, 0], [3.0, 0, 0, 0]], [1, 1], indices=[2, 5])
    frames = np.zeros((4, 16, 16, 3), np.uint8)
    video = Example("wrong", 1, "b", 0.25, [("a", 0.75)])
    write_examples([(video, frames)], result, [f"{n}.mp4" for n in range(9)], folder)
    assert sorted(path.name for path in folder.iterdir()) == ["01.webp", "examples.json"]
    assert json.loads((folder / "examples.json").read_text()) == {
        "videos": 2,
        "examples": [{"kind": "wrong", "row": 1, "true": "b", "true_probability": 0.25, "answers": [["a", 0.75]],
                      "path": "5.mp4", "file": "01.webp"}],
    }  # fmt: skip
