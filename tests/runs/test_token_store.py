"""Tokens on disk: whole or pending, of what the key says or refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from vidtrain.errors import UserError
from vidtrain.runs.token_store import TokenStore

KEY = {"format": "test", "weights": "ab"}


def a_store(folder, key=KEY, rows=5, shape=(1, 2, 3)):
    return TokenStore(folder / "store", key, rows, shape, chunk=2)


def fill(store, chunks):
    for chunk in chunks:
        rows = store.rows_of(chunk)
        tokens = np.stack([np.full(store.shape, row, np.float16) for row in rows])
        store.write(chunk, tokens, np.array(rows) * 10)


def test_chunks_are_pending_until_they_are_written(tmp_path):
    store = a_store(tmp_path)
    store.prepare()
    assert (store.bytes, store.num_chunks, store.pending()) == (60, 3, [0, 1, 2])
    assert [list(store.rows_of(chunk)) for chunk in range(3)] == [[0, 1], [2, 3], [4]]
    fill(store, [2, 0])
    again = a_store(tmp_path)
    again.prepare()  # what is there stays
    assert again.pending() == [1]
    fill(again, [1])
    assert again.pending() == []
    assert again.read.tolist() == [0, 10, 20, 30, 40]
    assert again.tokens.shape == (5, 1, 2, 3) and again.tokens.dtype == np.float16
    assert again.tokens[:, 0, 1, 2].tolist() == [0, 1, 2, 3, 4]
    assert isinstance(again.tokens, np.memmap)


def test_rows_of_the_same_videos_are_taken_over(tmp_path):
    """From stores of the same kind: whole chunks, of rows that could be read."""

    def store(name, weights="ab", rows=5):
        key = {**KEY, "weights": weights, "videos": name, "dataset": name}
        made = TokenStore(tmp_path / name, key, rows, (1, 2, 3), chunk=2)
        made.prepare()
        return made

    first, stranger = store("first"), store("stranger", "cd")
    for made in (first, stranger):
        made.take_over(["a", "b", "c", "d", "e"])
        fill(made, [0, 1])  # e is pending
    first.write(1, first.tokens[2:4], np.array([2, -1]))  # d could not be read
    second = store("second", rows=7)
    second.take_over(["c", "a", "d", "a", "b", "e", "b"])
    assert second.pending() == [1, 2]
    assert second.tokens[[0, 1, 6], 0, 0, 0].tolist() == [2, 0, 1]
    assert second.read[[0, 1, 6]].tolist() == [0, 1, 6]
    (tmp_path / "second/tokens.f16").write_bytes(b"")  # damaged: nothing is taken from it
    shutil.rmtree(tmp_path / "first")
    third = store("third")
    third.take_over(["a", "c", "a", "c", "a"])
    assert third.pending() == [0, 1, 2]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"key": {**KEY, "weights": "cd"}}, "weights"),
        ({"rows": 6}, "rows, tokens.f16, read.i64"),
        ({"shape": (6,)}, "shape"),
    ],
)
def test_what_is_of_something_else_is_refused(tmp_path, other, named):
    a_store(tmp_path).prepare()
    with pytest.raises(UserError, match=rf"damaged .*\(differing: {named}\)"):
        a_store(tmp_path, **other).prepare()


def test_damaged_files_are_refused(tmp_path):
    store = a_store(tmp_path)
    store.prepare()
    with open(store.folder / "tokens.f16", "r+b") as file:
        file.truncate(50)
    with pytest.raises(UserError, match="differing: tokens.f16"):
        store.prepare()
    (store.folder / "key.json").write_text("{")
    with pytest.raises(UserError, match="differing: format, weights, rows"):
        store.prepare()


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    store = a_store(tmp_path, rows=10**9)
    with pytest.raises(UserError, match=r"12.00 GB, .* 1.00 GB free; .*features_root"):
        store.prepare()
    assert list(store.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "store").write_text("a file")
    with pytest.raises(UserError, match="may write to with data.features_root"):
        a_store(tmp_path).prepare()


def test_causes_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    store = a_store(tmp_path)
    store.prepare()
    store.add_faults([("a.mp4", "truncated")], rank=0)
    store.add_faults([("b.mp4", "absent")], rank=1)
    with open(store.folder / "faults_rank1.jsonl", "a") as file:
        file.write(json.dumps(["c.mp4", "cut"])[:-4])
    assert store.causes == {"a.mp4": "truncated", "b.mp4": "absent"}
