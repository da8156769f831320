"""Tokens on disk: whole or pending, of what the key says or refused."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from vidtrain.errors import UserError
from vidtrain.features.store import TokenStore

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
