"""Search against scikit-learn and literal cases."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made_embeddings import made
from sklearn.neighbors import NearestNeighbors

from vidtrain.embeddings import ranking
from vidtrain.embeddings.ranking import Likeness, k_center, nearest, unit


@pytest.mark.parametrize("block", [16384, 300])
@pytest.mark.parametrize("around", [0.0, 3.0])
@pytest.mark.parametrize("bfloat16", [True, False])
def test_neighbors_are_those_of_scikit_learn(monkeypatch, block, around, bfloat16):
    monkeypatch.setattr(ranking, "BLOCK", block)
    monkeypatch.setattr(ranking, "QUERIES", 400)
    monkeypatch.setattr(ranking, "PAIRS", 1000)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: bfloat16)
    rng = np.random.default_rng(0)
    base, queries = (unit(rng.normal(around, size=(count, 48)).astype(np.float32)) for count in (1000, 70))
    cosines, rows = nearest(queries, base, 9)
    known = NearestNeighbors(n_neighbors=9, metric="cosine").fit(base.astype(np.float64))
    distances, expected = known.kneighbors(queries.astype(np.float64))
    assert np.array_equal(rows, expected)
    assert np.abs(1 - cosines - distances).max() < 1e-6
    _, rows = nearest(base, base, 9, np.arange(1000))
    assert np.array_equal(rows, known.kneighbors()[1])


def test_rough_products_are_no_more_wrong_than_they_say():
    rng = np.random.default_rng(0)
    for around in (0.0, 3.0):
        some, others = (
            torch.from_numpy(unit(rng.normal(around, size=(count, 768)).astype(np.float32))) for count in (20, 9000)
        )
        exact = some.double() @ others.double().T
        for start, products, slack in ranking._rough_products(some, others):
            errors = (products.double() - exact[:, start : start + products.shape[1]]).abs()
            assert (errors <= slack[:, None] + products.abs() * torch.finfo(products.dtype).eps).all()
            assert slack.max() < 0.01


def test_of_equal_ones_the_lower_row_comes_first_and_there_may_be_fewer():
    base = unit(np.array([[1, 0], [0, 1], [1, 0], [0, 0]], np.float32))
    cosines, rows = nearest(base[:1], base, 10)
    assert rows.tolist() == [[0, 2, 1, 3]] and cosines.tolist() == [[1, 1, 0, 0]]
    assert nearest(base, base, 10, np.arange(4))[1].shape == (4, 3)
    assert nearest(base, base, 0)[1].shape == (4, 0)


def test_near_duplicates_lie_in_different_sets():
    vectors = np.array([[1, 0], [1, 0.01], [1, 0.02], [0, 1]], np.float32)
    videos = replace(made(4), vectors=vectors, splits=np.array(["train", "train", "test", "test"]))
    pairs = Likeness.of(videos, None, 1, 0.99).duplicates
    assert [pair[:2] for pair in pairs] == [(1, 2), (0, 2)]
    assert pairs[0][2] == pytest.approx(1.0002 / np.sqrt(1.0001 * 1.0004), abs=1e-6)
    pairs = Likeness.of(videos.take(np.array([3, 0])), videos, 1, 0.9999).duplicates
    assert [pair[:2] for pair in pairs] == [(0, 5), (1, 2), (1, 3)]  # rows of the others follow


def test_k_center_takes_the_farthest_one_each_time():
    line = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]])
    assert k_center(line, 3).tolist() == [4, 0, 2]  # the mean is 4.8
    assert k_center(line, 2, np.array([[11.0]])).tolist() == [0, 2]
    assert sorted(k_center(line, 9).tolist()) == [0, 1, 2, 3, 4]


def test_tables_name_both_videos():
    others = made(30, seed=1)
    alike = Likeness.of(made(6), others, 2, 0.5)
    columns, *rows = alike.neighbor_rows()
    assert len(rows) == 12 and len(columns) == 7
    assert rows[0][0] == "/videos/0000.mp4" and rows[0][2] == "class 0"
    assert all(one < 6 <= other for one, other, _ in alike.duplicates)
    assert Likeness.of(made(6), None, 0, None).neighbor_rows() == [columns]
