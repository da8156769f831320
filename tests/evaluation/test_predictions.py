"""Which videos runs share."""

import numpy as np
import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.evaluation.predictions import Predictions, StoredLogits, align, read_predictions, write_logits


def predictions(rows: str, groups: list[str] | None = None, several: bool = False) -> Predictions:
    """From `path label prediction` a line."""
    columns = list(map(list, zip(*(row.split() for row in rows.strip().splitlines()), strict=True)))
    return Predictions(*columns, top5=np.ones(len(columns[0]), dtype=bool), groups=groups, several=several)


def test_a_file_is_read(tmp_path):
    path = tmp_path / "predictions.csv"
    path.write_text(
        "path,label,prediction,correct,top1,p1,top2,p2,top3,p3,top4,p4,top5,p5\n"
        '"a, b.mp4",run,run,1,run,0.5,sit,0.2,x,0.1,y,0.1,z,0.1\n'
        "c.mp4,run,sit,0,sit,0.5,x,0.2,y,0.1,z,0.1,w,0.1\n"
        "d.mp4,run,sit,0,sit,0.5,x,0.2,y,0.1,run,0.1,w,0.1\n"
    )
    found = read_predictions(path)
    assert found.paths == ["a, b.mp4", "c.mp4", "d.mp4"]
    assert found.predictions == ["run", "sit", "sit"]
    assert found.top5.tolist() == [True, False, True] and found.groups is None
    path.write_text("path,label,prediction\na.mp4,cafe\u0301,caf\u00e9\n")  # of before classes had one spelling
    assert read_predictions(path).labels == read_predictions(path).predictions == ["caf\u00e9"]
    path.write_text("path,label,prediction\n")
    with pytest.raises(UserError, match="names no video"):
        read_predictions(path)


def test_shared_videos_in_the_order_of_the_first():
    found = align(
        [
            predictions("a run run\nb sit run\nc sit sit\nd run run"),
            predictions("c sit run\nx run run\na run run\nb run run"),
        ]
    )
    assert found.paths == ["a", "c"]
    assert (found.relabeled, found.unshared, found.below_folders) == (1, [1, 1], False)  # b; d and x
    assert found.correct.tolist() == [[True, True], [True, False]]
    assert found.classes == ["run", "sit"]
    assert found.labels.tolist() == [0, 3] and [each.tolist() for each in found.predictions] == [
        [0, 3],
        [0, 2],
    ]
    assert found.groups is None


def test_spellings_of_a_path():
    assert align([predictions("./v/a r r"), predictions("v//a r r")]).paths == ["./v/a"]


def test_clips_of_one_file_are_told_apart_by_their_order():
    two = predictions("a run run\na run sit\nb run run")
    found = align([two, predictions("a run sit\na run run\nb run run")])
    assert found.correct.tolist() == [[True, False, True], [False, True, True]]
    found = align([two, predictions("a run sit\nb run run")])  # which of the two it read is not known
    assert found.paths == ["b"] and found.unshared == [2, 1]


def test_moved_folders():
    here = predictions("/data/test/run/1 run run\n/data/test/sit/1 sit run")
    there = predictions("motion/sit/1 sit sit\nmotion/run/1 run run")
    found = align([here, there])
    assert found.below_folders and found.paths == ["/data/test/run/1", "/data/test/sit/1"]
    assert found.correct.tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    "other",
    [
        "/b/run/1 sit sit",  # the label says that it is another video
        "/b/run/2 run run",
        "x/run/1 run run\n/y/run/2 run run",  # no common folder
        "1 run run",
    ],
)
def test_nothing_is_shared(other):
    found = align([predictions("/a/run/1 run run\n/a/sit/9 sit sit"), predictions(other)])
    assert found.paths == [] and not found.below_folders and found.relabeled == 0


def test_several_labels():
    found = align([predictions("1 a;b a\n2 b;c b;c", several=True), predictions("1 a;b a;b\n2 b;c d", several=True)])
    assert found.classes == ["a", "b", "c", "d"]
    assert found.labels.tolist() == [0, 1, 5, 6]
    assert [each.tolist() for each in found.predictions] == [[0, 5, 6], [0, 1, 7]]
    assert found.correct.tolist() == [[False, True], [True, False]]


def test_groups_are_numbered():
    found = align([predictions("a r r\nb r r\nc r r", ["q", "p", "q"])] * 2)
    assert found.groups.tolist() == [1, 0, 1]
    mixed = [predictions("a r r", ["q"]), predictions("a r r")]
    assert align(mixed).groups is None


def test_logits_lie_beside_their_predictions(tmp_path):
    path, logits = tmp_path / "predictions.csv", torch.randn(3, 2)
    path.write_text("path,label,prediction\na.mp4,run,run\nb.mp4,sit;run,sit\nc.mp4,,sit\n")
    assert read_predictions(path).logits is None
    write_logits(tmp_path / "logits.npz", logits, ["sit", "run"], independent=True)
    found = read_predictions(path, several=True)
    assert (found.logits.classes, found.logits.independent) == (["sit", "run"], True)
    assert torch.equal(found.logits.read([2, 0]), logits[[2, 0]])
    assert found.logits.labels(found.labels, several=True).tolist() == [[0, 1], [1, 1], [0, 0]]
    assert found.logits.labels(["run", "sit"], several=False).tolist() == [1, 0]
    other = Predictions(["c.mp4", "a.mp4"], ["", "run"], ["sit", "run"], np.ones(2, bool), None, True)
    assert align([found, other]).rows == [[0, 2], [1, 0]]
    with pytest.raises(UserError, match=r"logits\.npz lacks the class jump"):
        found.logits.labels(["run", "jump"], several=False)
    with pytest.raises(UserError, match=r"logits\.npz has 3 rows"):
        found.logits.read([0, 3])
    (tmp_path / "logits.npz").write_bytes((tmp_path / "logits.npz").read_bytes()[:-30])
    with pytest.raises(UserError, match=r"logits\.npz cannot be read"):
        StoredLogits.open(tmp_path / "logits.npz")
    np.savez(tmp_path / "logits.npz", logits=np.array([{"code": 1}], dtype=object))
    with pytest.raises(UserError, match=r"logits\.npz cannot be read"):
        StoredLogits.open(tmp_path / "logits.npz")
