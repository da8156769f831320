"""Exact search among vectors by their cosine: nearest neighbors, near duplicates, and videos that cover a set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vidtrain.embeddings.store import Embeddings

BLOCK = 8192  # vectors that are compared at once: their products with 100 queries stay in a core's cache
QUERIES = 1024  # at once
PAIRS = 1 << 16  # whose cosines are computed at once
ROUNDING = 2.0**-23  # twice what a float32 sum loses by each term
SPARE = 8  # such losses that lengths, which are one within a rounding error, may add
LEAST_SHARED = 0.5  # the length of a mean of unit vectors from which on it is worth taking off
COMPARED = 64  # known vectors that all others are held against at once


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors float32 [v d] at length one; those of zero stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32, copy=False)


def nearest(
    queries: np.ndarray, units: np.ndarray, count: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of `units` [v d] to each of `queries` [q d], all of unit length or zero, nearest first:
    cosines float32 [q count] and rows int64 [q count]. The search is exact; of equal ones the lower row comes first.

    `own` int64 [q] are rows of `units` that the queries are themselves, which are passed over. Where there are fewer
    than `count` others, there are fewer columns.
    """
    count = min(count, len(units) - (own is not None))
    if count < 1 or not len(queries):
        return np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64)
    parts = [
        _nearest(queries[place : place + QUERIES], units, count, None if own is None else own[place : place + QUERIES])
        for place in range(0, len(queries), QUERIES)
    ]  # fmt: skip
    return np.concatenate([cosines for cosines, _ in parts]), np.concatenate([rows for _, rows in parts])


def _nearest(
    queries: np.ndarray, units: np.ndarray, count: int, own: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Products in bfloat16, then in float32, leave the pairs that may be among the nearest, by bounds of their rounding
    errors; the cosines of these are computed in float64."""
    left, right = torch.from_numpy(np.ascontiguousarray(queries)), torch.from_numpy(units)
    cosines = np.full((len(left), count), -np.inf)
    rows = np.zeros((len(left), count), np.int64)
    slack32 = torch.tensor((left.shape[1] + SPARE) * ROUNDING)
    for start, products, slack in _rough_products(left, right):
        floors = torch.from_numpy(cosines[:, -1].astype(np.float32))
        rough_floors = floors - slack
        if start == 0:
            rough_floors = _floors(products, count + (own is not None), slack)
        above = (products - rough_floors.to(products.dtype)[:, None]).amax(dim=0) >= 0
        likely = above.nonzero()[:, 0] + start
        exact = left @ right[likely].T
        floors = torch.maximum(floors - slack32, _floors(exact, count + (own is not None), slack32))
        query, place = (exact >= floors[:, None]).nonzero().T
        row = likely[place]
        if own is not None:
            other = row != torch.from_numpy(own)[query]
            query, row = query[other], row[other]
        near = torch.cat([
            F.cosine_similarity(left[some].double(), right[some_rows].double())
            for some, some_rows in zip(query.split(PAIRS), row.split(PAIRS), strict=True)
        ])  # fmt: skip
        cosines, rows = _merged(cosines, rows, query.numpy(), near.numpy(), row.numpy())
    return cosines.astype(np.float32), rows


def _floors(products: torch.Tensor, count: int, slack: torch.Tensor) -> torch.Tensor:
    """What the products [q b] of the `count` nearest are not below, float32 [q], where all are at most `slack` wrong
    before they are rounded to their dtype."""
    if products.shape[1] <= count:
        return torch.full((len(products),), -torch.inf)
    last = products.topk(count, dim=1).values[:, -1].float()
    return last - last.abs() * torch.finfo(products.dtype).eps - 2 * slack


def _merged(
    cosines: np.ndarray, rows: np.ndarray, query: np.ndarray, near: np.ndarray, row: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest [q n] of those so far and of more pairs [m] of a query and a row."""
    query = np.concatenate([np.repeat(np.arange(len(rows)), rows.shape[1]), query])
    near, row = np.concatenate([cosines.ravel(), near]), np.concatenate([rows.ravel(), row])
    order = np.lexsort((row, -near, query))
    ranks = np.arange(len(order)) - np.searchsorted(query[order], query[order])
    first = order[ranks < rows.shape[1]]
    return near[first].reshape(rows.shape), row[first].reshape(rows.shape)


def _rough_products(left: torch.Tensor, right: torch.Tensor) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Cosines [q b] of queries with one block of vectors after the other: where the block starts, the products, and by
    how much [q] they may be wrong before they are rounded to their dtype.

    Rounding a vector changes products by at most its change times the other's length (Cauchy-Schwarz). Vectors of many
    networks lie around one direction: then the mean query is taken off first, which leaves shorter ones, and its
    products are added again in float32.
    """
    kind = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    center, roundoff = left.mean(dim=0), torch.finfo(kind).eps / 2
    aside = float(center.norm()) > LEAST_SHARED
    short = left - center if aside else left
    rounded, buffer = short.to(kind), torch.empty(min(BLOCK, len(right)), right.shape[1], dtype=kind)
    lengths, slack32 = short.norm(dim=1), (right.shape[1] + SPARE) * ROUNDING
    slack = (1 + roundoff) * (short - rounded.float()).norm(dim=1) + roundoff * lengths + slack32
    for start in range(0, len(right), BLOCK):
        block = right[start : start + BLOCK]
        if not aside:
            yield start, rounded @ buffer[: len(block)].copy_(block).T, slack
            continue
        along = block @ center
        block = block - center
        products = rounded @ buffer[: len(block)].copy_(block).T + (along + (short @ center)[:, None])
        yield start, products, (slack + roundoff * lengths) * block.norm(dim=1).max() + slack32


def near_pairs(queries: np.ndarray, units: np.ndarray, least: float) -> Iterator[tuple[int, int, float]]:
    """Every row of `queries` [q d] and of `units` [v d] whose cosine is at least `least`, and that."""
    left, right = torch.from_numpy(np.ascontiguousarray(queries)), torch.from_numpy(units)
    for place in range(0, len(queries), QUERIES):
        for start in range(0, len(units), BLOCK):
            products = left[place : place + QUERIES] @ right[start : start + BLOCK].T
            near = products >= least
            for (one, other), cosine in zip(near.nonzero().tolist(), products[near].tolist(), strict=True):
                yield place + one, start + other, cosine


def k_center(vectors: np.ndarray, count: int, known: np.ndarray | None = None) -> np.ndarray:
    """Rows int64 [count] of `vectors` [v d] that cover them: each is the one farthest from all before it, and from
    the vectors `known` [n d]; the first one, where nothing is known, is farthest from the mean.

    Distances are Euclidean. Source: the greedy algorithm of Gonzalez 1985, as Sener and Savarese 2018 choose labels.
    """
    vectors = vectors.astype(np.float32, copy=False)
    known = vectors[:0] if known is None else known
    if not len(known):
        distances = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    else:
        distances = np.full(len(vectors), np.inf, np.float32)
        for start in range(0, len(known), COMPARED):
            part = known[start : start + COMPARED].astype(np.float32, copy=False)
            squares = (vectors**2).sum(axis=1)[:, None] - 2 * vectors @ part.T + (part**2).sum(axis=1)
            distances = np.minimum(distances, np.sqrt(squares.min(axis=1).clip(0)))
    chosen: list[int] = []
    for _ in range(min(count, len(vectors))):
        first_center = not len(known) and not chosen  # distances were those from the mean, which covers nothing
        chosen.append(int(distances.argmax()))
        apart = np.linalg.norm(vectors - vectors[chosen[-1]], axis=1)
        distances = apart if first_center else np.minimum(distances, apart)
        distances[chosen] = -1.0
    return np.array(chosen, dtype=np.int64)


@dataclass(frozen=True)
class Likeness:
    """Neighbors and near duplicates among `videos`, or of `videos` in `others`.

    `cosines` and `rows` [v n] are of the nearest neighbors of each video, `duplicates` are pairs of rows with their
    cosine; rows of `others` follow those of `videos`.
    """

    videos: Embeddings
    others: Embeddings | None
    cosines: np.ndarray
    rows: np.ndarray
    duplicates: list[tuple[int, int, float]]

    @classmethod
    def of(cls, videos: Embeddings, others: Embeddings | None, count: int, least: float | None) -> "Likeness":
        """The `count` nearest of every video, and pairs of a cosine of at least `least` across splits, or across
        `videos` and `others`; None looks for no pairs."""
        units = unit(videos.vectors)
        base, first = (units, 0) if others is None else (unit(others.vectors), len(units))
        own = np.arange(len(units)) if others is None else None
        cosines, rows = nearest(units, base, count, own)
        pairs = [] if least is None else near_pairs(units, base, least)
        duplicates = [
            (one, first + other, cosine)
            for one, other, cosine in pairs
            if others is not None or (one < other and videos.splits[one] != videos.splits[other])
        ]
        duplicates.sort(key=lambda pair: (-pair[2], pair[0], pair[1]))
        return cls(videos, others, cosines, rows + first, duplicates)

    def about(self, row: int) -> tuple[str, str, str]:
        """Path, split and labels of a video."""
        of, place = self.videos, row
        if row >= len(self.videos) and self.others is not None:
            of, place = self.others, row - len(self.videos)
        return str(of.paths[place]), str(of.splits[place]), ";".join(of.names_of(place))

    def neighbor_rows(self) -> list[tuple[str, ...]]:
        """A table with a row for every video and each of its neighbors, the nearest first."""
        columns = ("path", "split", "label", "neighbor", "neighbor_split", "neighbor_label", "cosine")
        pairs = (
            (row, other, cosine)
            for row in range(len(self.rows))
            for other, cosine in zip(self.rows[row].tolist(), self.cosines[row].tolist(), strict=True)
        )
        return [columns, *self._described(pairs)]

    def duplicate_rows(self) -> list[tuple[str, ...]]:
        """A table of the near duplicates, the nearest first."""
        columns = ("path", "split", "label", "other", "other_split", "other_label", "cosine")
        return [columns, *self._described(self.duplicates)]

    def _described(self, pairs: Iterable[tuple[int, int, float]]) -> list[tuple[str, ...]]:
        return [(*self.about(one), *self.about(other), f"{cosine:.6f}") for one, other, cosine in pairs]
