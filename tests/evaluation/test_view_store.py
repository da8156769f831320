"""Units appended by any ranks, killed anywhere, become the same table."""

import json

import numpy as np
import pytest
import torch

from vidtrain.errors import UserError
from vidtrain.evaluation import view_store
from vidtrain.evaluation.view_store import ShardWriter, find_units
from vidtrain.evaluation.views import BatchViews

IDENTITY = {"checkpoint": "ab12", "orders": ["forward", "reversed"], "clip.eval_clips": 2}
ABOUT = {
    "total": 6,
    "orders": ["forward", "reversed"],
    "num_clips": 2,
    "crops": ["center"],
}
PATHS = [f"v/{name}.mp4" for name in "abcdef"]
CLASSES = ("run", "sit")
SHAPE = (2, 2, 1, 2)  # orders, clips, crops, classes
FINAL = ("views.json", "logits.npy", "labels.npy", "frames.npy", "videos.csv")


def unit(number):
    """Videos 2u and 2u + 1; video 3 is missing. A logit's digits are video, order, clip and class."""
    indices = [index for index in (2 * number, 2 * number + 1) if index != 3]
    logits = [
        [[[[1000.0 * v + 100 * o + 10 * n + k for k in (0, 1)]] for n in (0, 1)] for o in (0, 1)] for v in indices
    ]
    frames = np.array([[[v, v + 3], [v + 1, v + 4]] for v in indices])
    missing = [("v/d.mp4", "cut")] if number == 1 else []
    labels = torch.tensor([v % 2 for v in indices])
    return BatchViews(torch.tensor(indices), labels, torch.tensor(logits), missing), frames


def write(folder, shares):
    for rank, units in enumerate(shares):
        writer = ShardWriter(folder / f"rank{rank}.bin")
        for number in units:
            writer.append(number, *unit(number))
        writer.close()


def make(folder, shares):
    view_store.begin(folder, IDENTITY, None, 1, overwrite=False)
    write(folder / "units", shares)
    view_store.merge(folder, ABOUT, PATHS, lambda label: CLASSES[int(label)], SHAPE)
    view_store.clean(folder)
    return folder


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FINAL}


def test_the_table(tmp_path):
    views = view_store.open_views(make(tmp_path / "views", [[0, 1, 2]]))
    assert views.indices.tolist() == [0, 1, 2, 4, 5]
    assert views.labels.tolist() == [0, 1, 0, 0, 1]
    assert views.logits[3, 1, 1, 0].tolist() == [4110, 4111]
    assert (views.missing, views.about["coverage"]) == ([("v/d.mp4", "cut")], "5/6")
    assert np.load(tmp_path / "views/frames.npy").tolist()[4] == [[5, 8], [6, 9]]
    assert (tmp_path / "views/videos.csv").read_text().splitlines()[:2] == [
        "index,path,label,clip1_first,clip1_last,clip2_first,clip2_last",
        "0,v/a.mp4,run,0,3,1,4",
    ]
    table = views.table("reversed", (1,), (0,))
    assert table.logits.tolist() == [[[1000 * v + 110, 1000 * v + 111]] for v in (0, 1, 2, 4, 5)]
    assert (table.coverage, table.missing) == ("5/6", [("v/d.mp4", "cut")])
    assert not (tmp_path / "views/units").exists()
    assert view_store.open_views(tmp_path).about == views.about  # the folder that it lies in will do


@pytest.mark.parametrize("shares", [[[0, 2], [1]], [[2], [0], [1]], [[], [1, 0, 2]]])
def test_it_is_the_same_bytes_whoever_made_the_units(tmp_path, shares):
    assert contents(make(tmp_path / "a", [[0, 1, 2]])) == contents(make(tmp_path / "b", shares))


def test_cut_at_any_byte_whole_units_stay_and_more_can_be_appended(tmp_path):
    whole = make(tmp_path / "whole", [[0, 1, 2]])
    write(tmp_path / "units", [[0, 1]])
    data = (tmp_path / "units/rank0.bin").read_bytes()
    first = find_units(tmp_path / "units")[0]
    end = first.start + first.size
    for length in [0, 5, end - 1, end, end + 1, end + 40, len(data) - 1, len(data)]:
        folder = tmp_path / f"cut{length}"
        view_store.begin(folder, IDENTITY, None, 1, overwrite=False)
        (folder / "units").mkdir()
        (folder / "units/rank0.bin").write_bytes(data[:length])
        kept = list(view_store.units_done(folder))
        assert kept == [0, 1] if length == len(data) else kept == ([0] if length >= end else [])
        write(folder / "units", [[number for number in range(3) if number not in kept]])
        view_store.merge(folder, ABOUT, PATHS, lambda label: CLASSES[int(label)], SHAPE)
        assert contents(folder) == contents(whole)


def test_a_damaged_unit_is_not_taken(tmp_path):
    write(tmp_path, [[0, 1]])
    data = bytearray((tmp_path / "rank0.bin").read_bytes())
    data[-20] ^= 1
    (tmp_path / "rank0.bin").write_bytes(data)
    assert list(find_units(tmp_path)) == [0]


def test_no_table_is_made_of_two_evaluations(tmp_path):
    view_store.begin(tmp_path, IDENTITY, None, 2, overwrite=False)
    other = {**IDENTITY, "checkpoint": "cd34", "crops": 3}
    with pytest.raises(UserError) as error:
        view_store.begin(tmp_path, other, None, 2, overwrite=False)
    assert "checkpoint: ab12 -> cd34\n  crops: absent -> 3\n" in str(error.value)
    assert "overwrite=true" in str(error.value)
    write(tmp_path / "units", [[0]])
    view_store.begin(tmp_path, other, None, 2, overwrite=True)
    assert not view_store.units_done(tmp_path)
    assert json.loads((tmp_path / "identity.json").read_text())["identity"] == other


def test_threads_are_those_that_it_was_begun_with(tmp_path):
    assert view_store.begin(tmp_path, IDENTITY, None, 2, overwrite=False) == 2
    assert view_store.begin(tmp_path, IDENTITY, None, 8, overwrite=False) == 2
    assert view_store.begin(tmp_path, IDENTITY, 2, 8, overwrite=False) == 2
    with pytest.raises(UserError, match="cpu_threads: 2 -> 4"):
        view_store.begin(tmp_path, IDENTITY, 4, 8, overwrite=False)


def test_what_is_no_complete_table_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no view table"):
        view_store.open_views(tmp_path)
    view_store.begin(tmp_path, IDENTITY, None, 1, overwrite=False)
    with pytest.raises(UserError, match="is not complete"):
        view_store.open_views(tmp_path)
    folder = make(tmp_path / "whole", [[0, 1, 2]])
    lines = (folder / "videos.csv").read_text().splitlines()
    (folder / "videos.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="not belong to one table; .*overwrite=true"):
        view_store.open_views(folder)
    (folder / "logits.npy").write_bytes(b"nothing")
    with pytest.raises(UserError, match="is damaged"):
        view_store.open_views(folder)


def test_all_videos_missing(tmp_path):
    view_store.begin(tmp_path, IDENTITY, None, 1, overwrite=False)
    nothing = torch.empty(0, dtype=torch.int64)
    writer = ShardWriter(tmp_path / "units/rank0.bin")
    writer.append(0, BatchViews(nothing, nothing, torch.empty(0, *SHAPE), [("v/a.mp4", "cut")]), np.zeros((0, 2, 2)))
    writer.close()
    view_store.merge(tmp_path, {**ABOUT, "total": 1}, PATHS[:1], str, SHAPE)
    views = view_store.open_views(tmp_path)
    assert (views.logits.shape, views.missing) == ((0, *SHAPE), [("v/a.mp4", "cut")])
