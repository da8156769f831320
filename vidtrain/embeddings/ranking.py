"""Ranks videos by their vectors: nearest neighbors, near duplicates, suspect labels, and which videos to label next.

Search is exact, by cosine. Label errors follow Northcutt, Jiang and Chuang 2021, Confident Learning (the joint and its
thresholds; cleanlab is their code).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from vidtrain.embeddings.store import UNLABELED, Embeddings
from vidtrain.errors import UserError
from vidtrain.evaluator.classifiers import logistic_regression, out_of_fold, stratified_folds

BLOCK = 8192  # vectors that are compared at a time: their products with 100 queries stay in a core's cache
QUERIES = 1024  # that are compared at a time
PAIRS = 1 << 16  # whose cosines are computed at a time
ROUNDING = 2.0**-23  # twice the relative error that each term adds to a float32 sum
SPARE = 8  # further such errors, as vectors have unit length only up to rounding
MIN_CENTER = 0.5  # the mean query is subtracted if its length reaches this
KNOWN_BLOCK = 64  # known vectors whose distances to all others are computed at a time
THRESHOLD_TOLERANCE = 1e-6  # a probability that is lower by no more than this reaches its threshold


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors float32 [v d] at length one; those of zero stay."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.where(lengths > 0, lengths, 1.0)).astype(np.float32, copy=False)


def nearest(
    queries: np.ndarray, units: np.ndarray, count: int, own: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` nearest of `units` [v d] to each of `queries` [q d], all of unit length or zero, nearest first:
    cosines float32 [q count] and rows int64 [q count]. The search is exact; of equal ones the lower row comes first.

    `own` int64 [q] are the rows of the queries themselves in `units`, which are left out. If there are fewer than
    `count` others, there are fewer columns.
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
    """Computes products in bfloat16, then in float32, and keeps the pairs that bounds of rounding errors allow to be
    among the nearest; the cosines of these are computed in float64."""
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
    """Lower bounds, float32 [q], of the products [q b] of the `count` nearest, if products are wrong by `slack` at most
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
    """Cosines of queries with blocks of vectors, one block after the other. Yields the start of the block, the products
    [q b], and the largest error [q] of each before it is rounded to its dtype.

    Rounding a vector changes products by at most its change times the other's length (Cauchy-Schwarz). The vectors of
    many networks lie around one direction. Then the mean query is subtracted first, which leaves shorter vectors, and
    its products are added again in float32.
    """
    kind = torch.bfloat16 if torch.ops.mkldnn._is_mkldnn_bf16_supported() else torch.float32
    center, roundoff = left.mean(dim=0), torch.finfo(kind).eps / 2
    has_center = float(center.norm()) > MIN_CENTER
    short = left - center if has_center else left
    rounded, buffer = short.to(kind), torch.empty(min(BLOCK, len(right)), right.shape[1], dtype=kind)
    lengths, slack32 = short.norm(dim=1), (right.shape[1] + SPARE) * ROUNDING
    slack = (1 + roundoff) * (short - rounded.float()).norm(dim=1) + roundoff * lengths + slack32
    for start in range(0, len(right), BLOCK):
        block = right[start : start + BLOCK]
        if not has_center:
            yield start, rounded @ buffer[: len(block)].copy_(block).T, slack
            continue
        along = block @ center
        block = block - center
        products = rounded @ buffer[: len(block)].copy_(block).T + (along + (short @ center)[:, None])
        yield start, products, (slack + roundoff * lengths) * block.norm(dim=1).max() + slack32


def near_pairs(queries: np.ndarray, units: np.ndarray, least: float) -> Iterator[tuple[int, int, float]]:
    """Yields (row of `queries` [q d], row of `units` [v d], cosine) for every pair whose cosine is at least `least`."""
    left, right = torch.from_numpy(np.ascontiguousarray(queries)), torch.from_numpy(units)
    for place in range(0, len(queries), QUERIES):
        for start in range(0, len(units), BLOCK):
            products = left[place : place + QUERIES] @ right[start : start + BLOCK].T
            near = products >= least
            for (one, other), cosine in zip(near.nonzero().tolist(), products[near].tolist(), strict=True):
                yield place + one, start + other, cosine


def k_center(vectors: np.ndarray, count: int, known: np.ndarray | None = None) -> np.ndarray:
    """Rows int64 [count] of `vectors` [v d] that cover them: each is farthest from all rows before it and from the
    vectors `known` [n d]. Without known vectors, the first is the one farthest from the mean.

    Distances are Euclidean. Source: the greedy algorithm of Gonzalez 1985, as Sener and Savarese 2018 choose labels.
    """
    vectors = vectors.astype(np.float32, copy=False)
    known = vectors[:0] if known is None else known
    if not len(known):
        distances = np.linalg.norm(vectors - vectors.mean(axis=0), axis=1)
    else:
        distances = np.full(len(vectors), np.inf, np.float32)
        for start in range(0, len(known), KNOWN_BLOCK):
            part = known[start : start + KNOWN_BLOCK].astype(np.float32, copy=False)
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


# --- label errors -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suspects:
    """All labeled videos, the most suspect first: `rows` int64 [v] of the embeddings, label, most probable other
    class, and the probabilities of both. `likely` bool [v]: the confident joint counts the label as wrong. `score`
    float64 [v] gives the order; less is more suspect.

    `estimate` is the number of wrong labels by the calibrated joint, `accuracy` the share of labels that are the most
    probable class; a classifier of low accuracy cannot doubt labels.
    """

    rows: np.ndarray
    labels: np.ndarray
    others: np.ndarray
    label_probabilities: np.ndarray
    other_probabilities: np.ndarray
    likely: np.ndarray
    score: np.ndarray
    estimate: float
    accuracy: float


def self_confidence(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The probability of each video's label, float64 [v]."""
    return probabilities[np.arange(len(labels)), labels]


def normalized_margin(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """By how much the probability of each video's label exceeds the greatest of the others, float64 [v]."""
    others = probabilities.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return self_confidence(probabilities, labels) - others.max(axis=1)


SCORES: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "self_confidence": self_confidence,
    "normalized_margin": normalized_margin,
}


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The confident class of each video [v]: the most probable that reaches its threshold, the mean probability
    of the class in videos labeled with it; -1 where none does."""
    classes = range(probabilities.shape[1])
    thresholds = np.array([probabilities[labels == k, k].mean() if (labels == k).any() else np.inf for k in classes])
    reached = np.where(probabilities >= thresholds - THRESHOLD_TOLERANCE, probabilities, -1.0)
    return np.where(reached.max(axis=1) >= 0, reached.argmax(axis=1), -1)


def confident_joint(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The number of videos with label i and confident class j, int64 [k k]."""
    confident, count = confident_classes(probabilities, labels), probabilities.shape[1]
    pairs = labels[confident >= 0] * count + confident[confident >= 0]
    return np.bincount(pairs, minlength=count**2).reshape(count, count)


def find_suspects(embeddings: Embeddings, folds: int, rank_by: str) -> tuple[Suspects, np.ndarray]:
    """Ranks the labels of all videos; also returns the probabilities [v k], by row of the embeddings.

    Raises `UserError` for several labels a video, for videos without any, and for a class with fewer videos, or groups
    of them, than `folds`.
    """
    labels, classes = embeddings.labels, embeddings.classes
    if embeddings.multi_label:
        raise UserError(
            "the videos have several labels each, and label errors are ranked only for one label a video, as wrong and "
            "missing labels cannot be told apart"
        )
    if (labels == UNLABELED).any():
        raise UserError(
            f"{int((labels == UNLABELED).sum())} of the videos have no label: name labeled ones with split="
        )
    present, numbers = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        raise UserError(f"all videos are labeled {classes[labels[0]]}: label errors need two classes or more")
    names = [str(classes[label]) for label in present]
    check_folds(numbers, embeddings.groups, folds, names)
    plan = stratified_folds(numbers, np.unique(embeddings.groups, return_inverse=True)[1], folds)
    for train, test in plan:
        alone = np.setdiff1d(numbers[test], numbers[train])
        if len(alone):
            raise UserError(
                f"all videos of {names[alone[0]]} would lie in one fold, as groups are kept whole: set another number "
                "with folds="
            )
    known = out_of_fold(embeddings.vectors, np.eye(len(present))[numbers], plan)
    score = SCORES[rank_by](known, numbers)
    order = np.argsort(score, kind="stable")
    others = known.copy()
    others[np.arange(len(labels)), numbers] = -1.0
    confident = confident_classes(known, numbers)
    joint = confident_joint(known, numbers).astype(np.float64)
    sums = joint.sum(axis=1)
    shares = np.divide(joint.diagonal(), sums, out=np.ones(len(joint)), where=sums > 0)
    probabilities = np.zeros((len(labels), len(classes)))
    probabilities[:, present] = known
    suspects = Suspects(
        rows=order,
        labels=labels[order],
        others=present[others.argmax(axis=1)][order],
        label_probabilities=self_confidence(known, numbers)[order],
        other_probabilities=others.max(axis=1)[order],
        likely=((confident >= 0) & (confident != numbers))[order],
        score=score[order],
        estimate=float(((1 - shares) * np.bincount(numbers)).sum()),
        accuracy=float((known.argmax(axis=1) == numbers).mean()),
    )
    return suspects, probabilities


def check_folds(labels: np.ndarray, groups: np.ndarray, folds: int, names: list[str]) -> None:
    """Raises `UserError` naming a class with too few videos or groups for `folds`; `labels` int64 [v] index `names`."""
    for what, counts in (
        ("videos", np.bincount(labels)),
        ("groups of videos, which are kept whole,", _group_counts(labels, groups)),
    ):
        if counts.min() < folds:
            name, count = names[int(counts.argmin())], int(counts.min())
            hint = f"set folds={count}" if count > 1 else "add videos to it, or leave the class out"
            raise UserError(f"folds={folds}: the class {name} has {count} {what} and every fold needs one; {hint}")


def _group_counts(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    pairs = {(int(label), str(group)) for label, group in zip(labels, groups, strict=True)}
    counts = Counter(label for label, _ in pairs)
    return np.array([counts[label] for label in range(int(labels.max()) + 1)])


# --- what to label next -----------------------------------------------------------------------------------


def choose_next(
    labeled: Embeddings, pool: Embeddings, strategy: str, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows int64 [count] of `pool` to label, the best first, and their uncertainty if the strategy ranks by it.

    `margin` and `entropy` use a classifier that learned from `labeled`; `k_center` covers both sets.

    Raises `UserError` for several labels a video, and for labels of fewer than two classes.
    """
    if strategy == "random":
        return np.random.default_rng(seed).permutation(len(pool))[:count], None
    if strategy == "k_center":
        return k_center(unit(pool.vectors), count, unit(labeled.vectors)), None
    if labeled.multi_label:
        raise UserError(f"strategy={strategy} needs one label a video; k_center needs no labels")
    known = labeled.take(np.flatnonzero(labeled.labels != UNLABELED))
    present, numbers = np.unique(known.labels, return_inverse=True)
    if len(present) < 2:
        raise UserError(f"strategy={strategy} needs labels of two classes or more; k_center needs no labels")
    groups = np.unique(known.groups, return_inverse=True)[1]
    targets = np.eye(len(present))[numbers]
    probabilities = logistic_regression(known.vectors, targets, groups, False)(pool.vectors)
    uncertainty = UNCERTAINTIES[strategy](probabilities)
    order = np.argsort(-uncertainty, kind="stable")[:count]
    return order, uncertainty[order]


def margin_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """One minus the difference of the two greatest probabilities, float64 [v]."""
    two = np.sort(probabilities, axis=1)[:, -2:]
    return 1 - (two[:, 1] - two[:, 0])


def entropy_uncertainty(probabilities: np.ndarray) -> np.ndarray:
    """The entropy of probabilities [v k] in nats, float64 [v]."""
    return -(probabilities * np.log(np.where(probabilities > 0, probabilities, 1.0))).sum(axis=1)


UNCERTAINTIES: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "margin": margin_uncertainty,
    "entropy": entropy_uncertainty,
}
