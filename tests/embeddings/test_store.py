"""The file of embeddings: what comes back, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
from made_embeddings import ENCODER, made, several

from vidtrain.embeddings.store import Embeddings, Progress, joined
from vidtrain.errors import UserError


@pytest.mark.parametrize("of_several", [False, True])
def test_everything_comes_back(tmp_path, of_several):
    embeddings = several(made()) if of_several else made()
    embeddings = replace(embeddings, paths=np.array([f"/vidéo/\udce9 {n}.mp4" for n in range(60)]))
    embeddings.save(tmp_path / "embeddings.npz")
    for named in (tmp_path, tmp_path / "embeddings.npz"):
        again = Embeddings.open(str(named))
        for name in vars(embeddings):
            if name != "encoder":
                assert np.array_equal(
                    getattr(again, name), getattr(embeddings, name), equal_nan=name in ("starts", "ends")
                )
        assert again.encoder == ENCODER and again.multi_label is of_several
    assert again.names_of(1) == ["class 1"]


def test_others_read_it_without_us(tmp_path):
    made().save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as file:
        assert file["vectors"].shape == (60, 16) and file["paths"][0] == "/videos/0000.mp4"


def test_what_is_damaged_is_named(tmp_path):
    path = tmp_path / "embeddings.npz"
    with pytest.raises(UserError, match="no such file or folder; python -m vidtrain.embed"):
        Embeddings.open(str(tmp_path))
    made().save(path)
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"no zip", whole[:200] + b"xxxx" + whole[204:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"embeddings\.npz"):
            Embeddings.open(str(path))
    replace(made(), labels=np.zeros(59, np.int64)).save(path)
    with pytest.raises(UserError, match="was cut.*'labels': 59"):
        Embeddings.open(str(path))
    replace(made(), vectors=np.full((60, 4), np.nan, np.float32)).save(path)
    with pytest.raises(UserError, match="not finite"):
        Embeddings.open(str(path))
    replace(made(), labels=np.full(60, 3)).save(path)
    with pytest.raises(UserError, match="no class of the 3"):
        Embeddings.open(str(path))


def test_vectors_of_another_encoder_are_not_compared():
    for key, words in (("weights", "another encoder"), ("protocol", "other clips")):
        with pytest.raises(UserError, match=f"mine holds vectors of {words}"):
            made().check_comparable(ENCODER | {key: "other"}, "mine")
    made().check_comparable(dict(ENCODER), "mine")


def test_rows_and_splits_are_taken_and_joined():
    embeddings = made()
    part = embeddings.take(np.array([3, 1]))
    assert part.paths.tolist() == ["/videos/0003.mp4", "/videos/0001.mp4"] and len(part.classes) == 3
    assert len(joined([part, embeddings])) == 62
    with pytest.raises(UserError, match="split=val.*train"):
        embeddings.of_split("val")
    record = embeddings.manifest()[4]
    assert (record.path, record.label, record.group) == ("/videos/0004.mp4", 1, "g1")


def test_a_call_that_was_killed_goes_on(tmp_path):
    path, key = tmp_path / "partial", ["weights", {"test": ["/vidéo/\udce9.mp4"]}]
    progress = Progress(path, key)
    for split, video in ((0, 2), (1, 0), (1, 3)):
        progress.add(split, video, np.full(4, video, np.float32))
    progress.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])  # the last row is cut
    progress = Progress(path, key)
    assert [row[:2] for row in progress.rows] == [(0, 2), (1, 0)]
    assert progress.pending(0, 4).tolist() == [0, 1, 3] and progress.pending(1, 4).tolist() == [1, 2, 3]
    progress.add(1, 3, np.full(4, 3, np.float32))
    progress.close()
    assert path.read_bytes() == whole
    other = Progress(path, ["other weights"])
    assert not other.rows and len(other.pending(0, 4)) == 4
    other.close()
